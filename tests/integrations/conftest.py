"""A subject to draw, and pipelines of diffusers over the tiny pair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def disc() -> Image.Image:
    """A picture of a subject, cut out."""
    image = Image.new("RGBA", (48, 40))
    ImageDraw.Draw(image).ellipse((8, 4, 40, 36), fill=(200, 60, 30, 255))
    return image


@pytest.fixture
def eager(tiny_pair_folder: Path) -> Any:
    """The tiny pair by its modules."""
    from bootpig_rt.integrations.diffusers import BootPIGPipeline

    pipe = BootPIGPipeline.from_pretrained(tiny_pair_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def on_engine(tiny_bundle_folder: Path) -> Iterator[Any]:
    """The tiny pair on ONNX Runtime."""
    from bootpig_rt.integrations.diffusers import BootPIGPipeline

    pipe = BootPIGPipeline.from_pretrained(tiny_bundle_folder, backend="onnxruntime", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    pipe.close()
