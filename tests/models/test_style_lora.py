"""The LoRA of the documentation, trained for the pair inside the package: it gives its style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.tools.measure_style import colours_apart, shuffled
from tests.tools.style_lora import STYLE, cyanotype

OWL = default_model().parent / "subjects" / "owl.png"
PLACES = ("a snowy field", "a green meadow")


def draw(*loras: Lora) -> NDArray[np.uint8]:
    """Pictures of an owl, uint8 [2, S, S, 3]."""
    with Pipeline(backend="torch", device="cpu", pair=PairOptions(lora=list(loras))) as pipe:
        owl = pipe.encode_subject(OWL, "a photo of an owl")
        fields: dict[str, Any] = {"subject": owl, "seed": 1, "num_inference_steps": 3}
        asked = [
            Request(prompt=f"a photo of an owl, in the middle of {place}", **fields)
            for place in PLACES
        ]
        return np.stack([np.asarray(image) for image in pipe.generate(asked).images])


@pytest.fixture(scope="module")
def plain() -> NDArray[np.uint8]:
    return draw()


def test_it_fits_the_pair_and_is_small() -> None:
    pair = load_pair(default_model(), loras=[Lora(STYLE)])
    assert [each.name for each in pair.config.loras] == ["cyanotype.safetensors"]
    assert STYLE.stat().st_size <= 160_000


def test_the_style_leaves_its_own_colours_alone() -> None:
    greys = np.arange(256.0)[:, None].repeat(3, axis=1)
    printed = cyanotype(greys).round().astype(np.uint8)
    assert max(colours_apart(printed[None, None])) < 1
    red = np.full((1, 4, 4, 3), (220, 30, 30), np.uint8)
    assert min(colours_apart(red)) > 100


def test_pictures_come_nearer_to_its_colours_the_larger_the_scale(
    plain: NDArray[np.uint8],
) -> None:
    half, whole = draw(Lora(STYLE, 0.5)), draw(Lora(STYLE))
    apart = np.array([colours_apart(each) for each in (plain, half, whole)])
    assert (np.diff(apart, axis=0) < 0).all()
    assert (apart[2] < 0.6 * apart[0]).all()


def test_the_same_numbers_in_another_order_do_not_give_it(
    plain: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = draw(Lora(shuffled(STYLE, tmp_path / "other.safetensors")))
    assert np.mean(colours_apart(other)) > 0.8 * np.mean(colours_apart(plain))
