from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.errors import ImageError, ParameterError, StorageError
from bootpig_rt.images.picture import read_parameters, save_png

PARAMETERS: dict[str, Any] = {
    "prompt": 'a "dog", in 日本 \n <b> \\ \x1b[31m é',
    "seed": 2**63 - 1,
    "scale": 2.5,
    "references": ["a.png"],
    "none": None,
}


def test_parameters_come_back_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.effect_mandelbrot((32, 16), (-2, -1, 1, 1), 50).convert("RGB")
    save_png(image, path, PARAMETERS)
    assert read_parameters(path) == PARAMETERS
    with Image.open(path) as loaded:
        assert loaded.format == "PNG"
        assert loaded.convert("RGB").tobytes() == image.tobytes()
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("parameters", [{"x": float("nan")}, {"x": object()}, {"x": b"1"}])
def test_parameters_that_json_cannot_hold_are_refused(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ParameterError, match="do not fit JSON"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", parameters)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_up_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (8, 8), "red"), path, {"seed": 1})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="free some space"):
        save_png(Image.new("RGB", (8, 8), "blue"), path, {"seed": 2})
    assert read_parameters(path) == {"seed": 1}
    assert os.listdir(tmp_path) == ["a.png"]


def test_parameters_are_read_without_decoding_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (8, 8)), path, {"seed": 1})

    def decode(_image: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert read_parameters(path) == {"seed": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.png", "holds no parameters"),
        ("other.png", "holds no parameters"),
        ("list.png", "holds no parameters"),
        ("a.jpg", "holds no parameters"),
        ("a.gif", "is GIF, expected PNG, JPEG, WebP"),
        ("empty.png", "is empty"),
        ("cut.png", "is damaged or cut short"),
        ("missing.png", "no such file or directory.*check the path"),
        (".", "is a directory"),
    ],
)
def test_file_without_parameters_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    from PIL import PngImagePlugin

    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.gif")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:20])
    (tmp_path / "empty.png").touch()
    for file, text in (("other.png", "steps: 20, sampler: x"), ("list.png", "[1]")):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        image.save(tmp_path / file, pnginfo=info)
    with pytest.raises(ImageError, match=expected):
        read_parameters(tmp_path / name)
