"""The pair inside the package, written as one of Stable Diffusion XL, draws what it draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.text_encoders import unpack
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.xl_shaped import write_xl_shaped

PROMPTS = ["a photo of an owl, in the snow", "", "a photo of a dog, in the middle of a sandy beach"]
TORCH, ONNXRUNTIME = 4e-6, 2.5e-6
"""How far latents may lie apart, as a share of their norm; 8e-7 and 6e-7 where it was measured."""
OWL = default_model().parent / "subjects" / "owl.png"


@pytest.fixture(scope="module")
def folder(share: Any) -> Path:
    """The pair in XL's layout."""
    found: Path = share("xl-shaped", lambda made: write_xl_shaped(default_model(), made))
    return found


def requests(pipeline: Pipeline) -> list[Request]:
    """With and without a subject; the subject's has two guidance scales, three rows."""
    owl = pipeline.encode_subject(OWL, "a photo of an owl")
    fields: dict[str, Any] = {"num_inference_steps": 4, "seed": 3}
    drawn = Request(prompt=PROMPTS[0], subject=owl, **fields)
    return [drawn, replace(drawn, prompt=PROMPTS[2], subject=None)]


def draw(pipeline: Pipeline) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Latents [2, C, h, w] as they are decoded, and pixels [2, S, S, 3], 0 to 255."""
    backend, seen = pipeline._backend, []
    decode = backend.decode

    def recorded(latents: Any, **options: Any) -> Any:
        seen.append(np.array(latents))
        return decode(latents, **options)

    with mock.patch.object(backend, "decode", recorded):
        images = pipeline.generate(requests(pipeline)).images
    return np.concatenate(seen), np.stack([np.asarray(image, np.int64) for image in images])


def test_half_the_sum_of_both_states_is_the_state_of_the_pair(folder: Path) -> None:
    plain, shaped = load_pair(default_model()), load_pair(folder)

    def states(pair: Pair) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = pair.text_encoder(torch.from_numpy(pair.tokenizer()(PROMPTS)))[0]
        return found

    tokens, added = unpack(states(shaped), shaped.base.added_width)
    assert added.abs().max() > 1  # pooled state and sizes are told, and add nothing
    first, second = tokens.chunk(2, dim=-1)
    # 1e-6 where it was measured, of states up to 5.5.
    torch.testing.assert_close((first + second) / 2, states(plain), rtol=0, atol=5e-6)


def test_it_draws_the_same_pictures_in_torch(folder: Path) -> None:
    (ours, our_pixels), (theirs, their_pixels) = (
        draw(Pipeline(each, backend="torch", device="cpu")) for each in (folder, default_model())
    )
    assert np.linalg.norm(ours - theirs) <= TORCH * np.linalg.norm(theirs)
    assert np.abs(our_pixels - their_pixels).max() <= 1


@pytest.mark.slow
def test_a_bundle_of_it_draws_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    options = build_options(
        load_pair(folder).config, size_multiple_px=16, resolution="64", merges=("argmax",)
    )
    bundle = build_engine(folder, tmp_path / "bundle", options).bundle
    assert bundle.manifest.parity.status == "passed"
    (ours, our_pixels), (theirs, their_pixels) = (
        draw(Pipeline(each, backend="onnxruntime", device="cpu"))
        for each in (tmp_path / "bundle", default_model())
    )
    assert np.linalg.norm(ours - theirs) <= ONNXRUNTIME * np.linalg.norm(theirs)
    assert np.abs(our_pixels - their_pixels).max() <= 1
