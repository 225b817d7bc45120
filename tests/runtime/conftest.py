"""A small pair in torch and pictures to give it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.subject import Subject


def drawing(colour: str, shape: str) -> Image.Image:
    """A coloured shape, cut out, RGBA 48 x 40."""
    image = Image.new("RGBA", (48, 40))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "round" else draw.rectangle)((6, 4, 40, 34), fill=colour)
    return image


@pytest.fixture(scope="session")
def pipeline(tiny_pair_folder: Path) -> Pipeline:
    """The tiny pair on the CPU, in torch. Shared: it holds no state of a call."""
    from bootpig_rt.pipeline import Pipeline

    return Pipeline(tiny_pair_folder, backend="torch", device="cpu")


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 on a GPU, where torch takes TF32 unless it is told not to."""
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def red() -> Image.Image:
    """A reference image."""
    return drawing("red", "round")


@pytest.fixture(scope="session")
def blue() -> Image.Image:
    """Another reference image."""
    return drawing("blue", "square")


@pytest.fixture(scope="session")
def green() -> Image.Image:
    """A third reference image."""
    return drawing("green", "round")


@pytest.fixture(scope="session")
def dog(pipeline: Pipeline, red: Image.Image) -> Subject:
    """A subject of one reference image."""
    return pipeline.encode_subject(red, "a photo of a dog")


@pytest.fixture(scope="session")
def cat(pipeline: Pipeline, blue: Image.Image, green: Image.Image) -> Subject:
    """A subject of two reference images."""
    return pipeline.encode_subject([blue, green], "a photo of a cat")


@pytest.fixture
def dog_file(tmp_path: Path, red: Image.Image) -> Path:
    """The first reference image as a file."""
    path = tmp_path / "dog.png"
    red.save(path)
    return path
