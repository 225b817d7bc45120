"""What inputs are made from: pictures, subjects and manifests of our own, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from bootpig_rt.backends.host_table import TableDtype, pack_table
from bootpig_rt.images.encode_image import encode_image
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_file import write_table
from tests.fuzz.byte_edits import edited
from tests.fuzz.jpeg import edited_jpeg
from tests.fuzz.metadata import profile, xmp
from tests.fuzz.png import edited_png
from tests.fuzz.tensors import edited_tensors
from tests.fuzz.webp import edited_webp

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "bootpig_rt" / "assets" / "subjects"
SIDE_PX = 40

Edit = Callable[[Random, bytes, Sequence[bytes]], bytes]
_EDITS: dict[bytes, Edit] = {
    b"\x89PNG": edited_png,
    b"\xff\xd8\xff": edited_jpeg,
    b"RIFF": edited_webp,
}


def picture(random: Random, pictures: Sequence[bytes]) -> bytes:
    """One of the pictures, edited by its format, or by its bytes alone."""
    data = random.choice(pictures)
    edit = next((one for head, one in _EDITS.items() if data.startswith(head)), edited)
    return (edited if random.random() < 0.2 else edit)(random, data, pictures)


def subject_file(random: Random, files: Sequence[bytes]) -> bytes:
    """One of the files of subjects and tables, edited."""
    return edited_tensors(random, random.choice(files), files)


@cache
def pictures() -> tuple[bytes, ...]:
    """Small pictures in every format and mode that is read, and in some that are not."""
    cut_out = [_asset(path) for path in sorted(ASSETS.glob("*.png"))[:3]]
    first = cut_out[0]
    white = Image.new("RGB", first.size, "white")
    white.paste(first, mask=first)
    random, found = Random(0), [_file(one, "PNG") for one in cut_out]
    for mode in ("1", "L", "LA", "P", "RGB"):
        found.append(_file(first.convert(mode) if mode == "LA" else white.convert(mode), "PNG"))
    found.append(_file(white.convert("P"), "PNG", transparency=0))
    found.append(_file(white.convert("P"), "PNG", transparency=bytes(range(256))))
    found.append(_file(white, "PNG", transparency=(255, 255, 255)))
    found.append(
        _file(Image.fromarray(np.asarray(white.convert("L")).astype(np.uint16) * 257), "PNG")
    )
    frames = {"save_all": True, "append_images": [white.rotate(90)]}
    found.append(_file(white, "PNG", **frames))
    found += [
        _file(white, "JPEG", quality=80),
        _file(white, "JPEG", progressive=True, icc_profile=profile(random)),
        _file(white.convert("L"), "JPEG", progressive=True),
        _file(white.convert("CMYK"), "JPEG"),
        _file(
            white, "JPEG", subsampling=2, restart_marker_blocks=2, exif=_turned(), xmp=xmp(random)
        ),
        _file(white, "WEBP", quality=60, exif=_turned().tobytes()),
        _file(first, "WEBP", quality=60),
        _file(first, "WEBP", lossless=True, icc_profile=profile(random)),
        _file(white, "WEBP", **frames),
        _file(white, "BMP"),
        _file(white.convert("P"), "BMP"),
        _file(white.convert("P"), "GIF"),
        _file(white, "TIFF"),
        _file(white, "MPO", **frames),
    ]
    return tuple(found)


@cache
def marked_pictures() -> tuple[bytes, ...]:
    """Pictures that say how they were made, and plain ones."""
    image = _asset(ASSETS / "owl.png").convert("RGB")
    parameters = {"prompt": "a dog", "seed": 1, "model_fingerprint": "f" * 64}
    long = parameters | {"prompt": "long " * 14_000}
    made = [
        encode_image(image, format=one, parameters=parameters) for one in ("png", "jpeg", "webp")
    ]
    return (*made, encode_image(image, format="jpeg", parameters=long), *pictures()[:1])


@cache
def subject_files() -> tuple[bytes, ...]:
    """Files of subjects, with tables and without, and of tables alone."""
    numbers = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return numbers.normal(size=shape).astype(np.float32)

    found = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one"
        for references, dtype in ((1, None), (2, "float32"), (1, "float8"), (1, "bfloat16")):
            subject = Subject(
                pixels=None,
                latents=drawn(references, 4, 8, 8),
                reference_prompt="a photo of a dog",
                noise_seed=7,
                pair_fingerprint="f" * 64,
                prompt_states=drawn(24, 16) if references == 1 else None,
                preview=numbers.integers(0, 255, (6, 8, 3), np.uint8),
                pixels_sha256="e" * 64,
            )
            if dtype is not None:
                table = _table(subject, dtype, drawn)  # type: ignore[arg-type]
                write_table(path, table)
                found.append(path.read_bytes())
                fields = {name: getattr(subject, name) for name in _KEPT}
                subject = Subject(pixels=None, tables=(table,), **fields)
            subject.save(path, form=subject.form)
            found.append(path.read_bytes())
    return tuple(found)


_KEPT: tuple[str, ...] = (
    "latents",
    "reference_prompt",
    "noise_seed",
    "pair_fingerprint",
    "prompt_states",
)
_KEPT += ("preview", "pixels_sha256")


def _table(subject: Subject, dtype: TableDtype, drawn: Callable[..., Any]) -> ReferenceTable:
    key = ReferenceKey(
        subject=subject.fingerprint,
        pixels=subject.pixels_sha256,
        reference_prompt=subject.reference_prompt,
        noise_seed=subject.noise_seed,
        pair=subject.pair_fingerprint,
        is_noised=True,
        timesteps=(999, 499),
        ref_scale=1.0,
        precision="float32",
        dtype=dtype,
        size=(8, 8),
        num_references=subject.num_references,
    )
    layers = [
        (drawn(2, subject.num_references, 1, 4, 2), drawn(2, subject.num_references, 1, 4, 2))
        for _ in range(2)
    ]
    return ReferenceTable.on_host(key, pack_table(layers, dtype))


@cache
def manifest() -> bytes:
    """That of the bundle inside the package."""
    return (ASSETS.parent / "pair" / "manifest.json").read_bytes()


def _asset(path: Path) -> Image.Image:
    image: Image.Image = Image.open(path).convert("RGBA")
    return image.resize((SIDE_PX, SIDE_PX))


def _file(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    return exif
