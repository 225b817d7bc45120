"""A subject to draw, and pipelines of diffusers over the tiny pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def loaded() -> Iterator[Callable[..., Any]]:
    """`loaded(folder, **settings)`: a pipeline whose parts are loaded once and must not be changed.

    What a pipeline holds beside its parts, and its scheduler, is each caller's own.
    """
    from bootpig_rt.integrations.diffusers import BootPIGPipeline

    kept: dict[str, Any] = {}

    def load(folder: Path, **settings: Any) -> Any:
        key = repr((folder, sorted(settings.items())))
        if key not in kept:
            kept[key] = BootPIGPipeline.from_pretrained(folder, **settings)
            kept[key].set_progress_bar_config(disable=True)
        pipe = copy.copy(kept[key])
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        return pipe

    yield load
    for pipe in kept.values():
        pipe.close()


@pytest.fixture
def eager(loaded: Callable[..., Any], tiny_pair_folder: Path) -> Any:
    """The tiny pair by its modules."""
    return loaded(tiny_pair_folder)


@pytest.fixture
def on_engine(loaded: Callable[..., Any], tiny_bundle_folder: Path) -> Any:
    """The tiny pair on ONNX Runtime."""
    return loaded(tiny_bundle_folder, backend="onnxruntime", device="cpu")
