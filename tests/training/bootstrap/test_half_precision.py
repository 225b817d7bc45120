"""Every model of the stages runs in bf16, as it does on a GPU by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.training.bootstrap.ask import LlmCaptions
from bootpig_rt.training.bootstrap.encoders import Agreement, make_encoder
from bootpig_rt.training.bootstrap.masks import Found, SamSegmenter
from bootpig_rt.training.bootstrap.pictures import DiffusersPictures
from bootpig_rt.training.bootstrap.stage import Item


# Of diffusers' Euler scheduler with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("version", ["2.x", "xl"])
def test_stable_diffusion(bootstrap_config: Any, sd_folder: Any, version: str) -> None:
    settings = {"source": "diffusers", "model": str(sd_folder(version)), "steps": 2}
    stage = DiffusersPictures(bootstrap_config(pictures=settings, dtype="bf16", size_px=32))
    ((first,), (second,)) = stage([Item(k, "a photo of a dog, on a beach") for k in range(2)])
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert not np.array_equal(first.views[0].picture, second.views[0].picture)


@pytest.mark.parametrize(
    ("finder", "kind"), [("grounding_dino", "sam"), ("clipseg", "sam2"), ("centre", "sam2")]
)
def test_segmenters_and_finders(
    bootstrap_config: Any,
    draw_disc: Any,
    kind: str,
    finder: str,
    request: pytest.FixtureRequest,
) -> None:
    settings: dict[str, Any] = {
        "source": "sam",
        "model": str(request.getfixturevalue(f"{kind}_folder")),
        "finder": finder,
        "min_score": 0.0,
        "box_threshold": 0.0,
        "heat_threshold": 0.0,
    }
    if finder != "centre":
        settings["finder_model"] = str(request.getfixturevalue(f"{finder}_folder"))
    config = bootstrap_config(masks=settings, dtype="bf16")
    segmenter = SamSegmenter(config)
    assert segmenter._finder([draw_disc()[0]], ["ball"])[0]
    for found in segmenter([draw_disc(seed=k)[0] for k in range(2)], ["ball"] * 2):
        assert not isinstance(found, Found) or found.mask.shape == (64, 64)


def test_encoders(clip_folder: Path, dino_folder: Path, draw_disc: Any) -> None:
    pictures = [draw_disc()[0], draw_disc(radius=0.4)[0]]
    for folder in (clip_folder, dino_folder):
        half, whole = (make_encoder(str(folder), "cpu", t)(pictures) for t in ("bf16", "float32"))
        assert np.allclose(np.linalg.norm(half, axis=1), 1.0, atol=1e-5)
        assert ((half * whole).sum(axis=1) > 0.99).all()
    cosines = [
        Agreement(str(clip_folder), "cpu", t)(pictures, ["a", "b"]) for t in ("bf16", "float32")
    ]
    assert np.allclose(cosines[0], cosines[1], atol=0.05)


def test_language_models(bootstrap_config: Any, llm_folder: Path) -> None:
    settings = {"source": "llm", "model": str(llm_folder), "max_new_tokens": 8, "answers": 1}
    stage = LlmCaptions(bootstrap_config(captions=settings, dtype="bf16"))
    assert stage([Item(0)])[0]
