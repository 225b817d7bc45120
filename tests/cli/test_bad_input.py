"""What a user can get wrong, one row each: the exit code, one clear line, nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bootpig_rt.cli.main import main

PROMPT = "a photo of a dog, on a beach"
WEIGHTS = "base_unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Case:
    """One wrong thing.

    Attributes:
        words: Added to (or in place of) a call that works.
        num_references: How often the reference image is given.
        has_prompt: Whether a prompt is given.
        message: In the one line on stderr.
        code: Exit code.
        picture: Makes the reference image's file.
        damage: Breaks a copy of the pair.
    """

    message: str
    words: tuple[str, ...] = ()
    num_references: int = 1
    has_prompt: bool = True
    code: int = 2
    picture: Callable[[Path], object] | None = None
    damage: Callable[[Path], None] | None = None


def drawing() -> Image.Image:
    image = Image.new("RGBA", (48, 48))
    image.paste((200, 30, 30, 255), (8, 8, 40, 40))
    return image


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG: signature, header and an empty data chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def change_tensor(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(pair: Path) -> None:
        tensors = load_file(pair / WEIGHTS)
        tensors["conv_in.weight"] = change(tensors["conv_in.weight"])
        save_file(tensors, pair / WEIGHTS)

    return damage


def pickled(pair: Path) -> None:
    (pair / WEIGHTS).unlink()
    (pair / "base_unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def cut_weights(pair: Path) -> None:
    content = (pair / WEIGHTS).read_bytes()
    (pair / WEIGHTS).write_bytes(content[: len(content) // 2])


def change_config(**values: Any) -> Callable[[Path], None]:
    def damage(pair: Path) -> None:
        config = json.loads((pair / "pair.json").read_text())
        (pair / "pair.json").write_text(json.dumps({**config, **values}))

    return damage


def with_nan(array: np.ndarray) -> np.ndarray:
    array.flat[3] = np.nan
    return array


CASES = {
    "missing prompt": Case("prompt is missing", has_prompt=False),
    "empty prompt": Case("prompt is empty", words=("--prompt", "")),
    "blank prompt": Case("prompt is empty", words=("--prompt", "  ")),
    "no reference": Case("no reference image", num_references=0),
    "a reference that is not there": Case("no such file", words=("--reference", "nowhere.png")),
    "a folder as reference": Case("is a folder", words=("--reference", ".")),
    "no picture": Case("not a picture", picture=lambda p: p.write_text("hello")),
    "empty file": Case("is empty (0 bytes)", picture=lambda p: p.write_bytes(b"")),
    "truncated": Case("damaged or cut short", picture=truncated),
    "animated": Case("is animated (2 frames)", picture=animated),
    "1x1": Case("is 1x1 px", picture=lambda p: Image.new("RGB", (1, 1)).save(p)),
    "20000x20000": Case(
        "is 20000x20000 px",
        picture=lambda p: p.write_bytes(png_header(20000, 20000)),
    ),
    "transparent all over": Case(
        "transparent all over", picture=lambda p: Image.new("RGBA", (32, 32)).save(p)
    ),
    "white all over": Case(
        "white all over", picture=lambda p: Image.new("RGB", (32, 32), "white").save(p)
    ),
    "five references": Case("5 reference images, expected 1..4", num_references=5),
    "0 steps": Case("num_inference_steps is 0, expected 1..1000", words=("--steps", "0")),
    "negative steps": Case("num_inference_steps is -5", words=("--steps", "-5")),
    "5000 steps": Case("num_inference_steps is 5000", words=("--steps", "5000")),
    "steps in words": Case("invalid int value: 'many'", words=("--steps", "many")),
    "nan image guidance": Case("image_guidance_scale is nan", words=("--image-guidance", "nan")),
    "nan text guidance": Case("text_guidance_scale is nan", words=("--text-guidance", "nan")),
    "infinite guidance": Case("text_guidance_scale is inf", words=("--text-guidance", "inf")),
    "no images": Case("num_images_per_prompt is 0, expected 1..64", words=("--num-images", "0")),
    "negative seed": Case("seed is -1", words=("--seed", "-1")),
    "unknown solver": Case("expected one of: ddim, dpmpp_2m, unipc", words=("--solver", "euler")),
    "unknown merge": Case("expected one of: argmax, softmax", words=("--merge", "sum")),
    "unknown schedule": Case("expected exact, clean", words=("--reference-schedule", "never")),
    "odd size": Case("width is 33, expected a multiple of 4", words=("--width", "33")),
    "large size": Case("height is 4096, expected a multiple of 4", words=("--height", "4096")),
    "no size": Case("width is 0", words=("--width", "0")),
    "unknown backend": Case("backend is 'jax'", words=("--backend", "jax")),
    "unknown device": Case("device is 'tpu'", words=("--device", "tpu")),
    "no such GPU": Case("sees", words=("--device", "cuda:99")),
    "unknown option": Case("unrecognized arguments: --stepz 3", words=("--stepz", "3")),
    "no such model": Case("does not exist", words=("--model", "nowhere")),
    "unknown remover": Case("background remover is 'x'", words=("--remove-background", "x")),
    "output is no png": Case("expected a name that ends in .png", words=("-o", "out.jpg")),
    "output in no folder": Case("no folder 'no'", words=("-o", "no/out.png"), code=1),
    "output is a folder": Case("it is a folder", words=("-o", "folder.png"), code=1),
    "missing config": Case(
        "config.json is missing", damage=lambda p: (p / "base_unet/config.json").unlink()
    ),
    "missing weights": Case("base_unet", damage=lambda p: (p / WEIGHTS).unlink()),
    "missing tokenizer": Case("tokenizer", damage=lambda p: shutil.rmtree(p / "tokenizer")),
    "missing vae": Case("has no vae folder", damage=lambda p: shutil.rmtree(p / "vae")),
    "pickle": Case("pickle", damage=pickled),
    "truncated weights": Case("diffusion_pytorch_model.safetensors", damage=cut_weights),
    "wrong shape": Case("conv_in.weight", damage=change_tensor(lambda a: a[:, :2].copy())),
    "nan in weights": Case("conv_in.weight", damage=change_tensor(with_nan)),
    "newer format": Case("format is 2, expected 1", damage=change_config(format=2)),
    "unknown field": Case("unknown field 'speed'", damage=change_config(speed=9)),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, but for a folder that is named like a picture."""
    folder = tmp_path / "work"
    (folder / "folder.png").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def call(case: Case, *, reference: Path, model: Path) -> list[str]:
    """A call that works, changed by the case."""
    words = ["generate", "--device", "cpu", "--quiet", "--model", str(model)]
    words += ["--reference", str(reference)] * case.num_references
    if "--prompt" not in case.words and case.has_prompt:
        words += ["--prompt", PROMPT]
    return [*words, *case.words]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_with_the_right_code_and_no_file(
    name: str,
    folder: Path,
    tmp_path: Path,
    shallow_pair_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = CASES[name]
    reference, model = tmp_path / "dog.png", shallow_pair_folder
    if case.picture is None:
        drawing().save(reference)
    else:
        case.picture(reference)
    if case.damage is not None:
        model = tmp_path / "pair"
        shutil.copytree(shallow_pair_folder, model)
        case.damage(model)
    code = main(call(case, reference=reference, model=model))
    captured = capsys.readouterr()
    assert code == case.code, captured.err
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("bootpig-rt: error: ")
    assert case.message in lines[0]
    assert "unexpected" not in lines[0]
    assert [path.name for path in folder.iterdir()] == ["folder.png"]


def save_grey(path: Path) -> None:
    Image.new("L", (48, 48), 255).save(path)
    with Image.open(path) as image:
        image.load()
    image.paste(40, (8, 8, 40, 40))
    image.save(path)


def save_16_bit(path: Path) -> None:
    values = np.full((48, 48), 65535, dtype=np.uint16)
    values[8:40, 8:40] = 9000
    Image.fromarray(values).save(path)


def save_cmyk(path: Path) -> None:
    drawing().convert("RGB").convert("CMYK").save(path, "JPEG")


def save_palette(path: Path) -> None:
    image = Image.new("P", (48, 48), 0)
    image.putpalette([255, 255, 255, 200, 30, 30])
    image.paste(1, (8, 8, 40, 40))
    image.save(path, transparency=0)


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing().convert("RGB").save(path, "JPEG", exif=exif)


@pytest.mark.parametrize("save", [save_grey, save_16_bit, save_cmyk, save_palette, save_rotated])
def test_unusual_pictures_are_read(
    save: Callable[[Path], None], folder: Path, tmp_path: Path, shallow_pair_folder: Path
) -> None:
    reference = tmp_path / "dog.png"
    save(reference)
    assert main(call(Case(""), reference=reference, model=shallow_pair_folder)) == 0
    assert (folder / "out.png").is_file()


@pytest.mark.parametrize("pictures", ["1", "3"])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(
    pictures: str,
    folder: Path,
    tmp_path: Path,
    shallow_pair_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    reference = tmp_path / "dog.png"
    drawing().save(reference)
    (folder / "out.png").write_bytes(b"an older picture")
    monkeypatch.setattr("bootpig_rt.files.atomic.os.fsync", full)
    case = Case("", words=("--num-images", pictures))
    assert main(call(case, reference=reference, model=shallow_pair_folder)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on device; free some space" in line
    assert sorted(path.name for path in folder.iterdir()) == ["folder.png", "out.png"]
    assert (folder / "out.png").read_bytes() == b"an older picture"
