"""Pictures that follow maps: as they are alone, in any company, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.options import OnnxRuntimeOptions, TorchOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.control import Control
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from tests.compiled import ANY_SHAPE

MANNERS: dict[str, Any] = {
    "torch": TorchOptions(),
    "torch, recorded": TorchOptions(cuda_graph=True),
    "onnxruntime": OnnxRuntimeOptions(intra_op_threads=1),
    "openvino": ANY_SHAPE,
}


def depth_of(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return Image.fromarray(grey)


DEPTH = Control.load("depth", depth_of(1))
OUTLINE = Control.load("outline", depth_of(2))


@pytest.fixture(scope="module", params=MANNERS)
def drawer(
    request: pytest.FixtureRequest, controlled_pair_folder: Path, controlled_bundle_folder: Path
) -> Pipeline:
    """A pipeline over each kind of run."""
    options = MANNERS[request.param]
    if options == TorchOptions():
        found: Pipeline = request.getfixturevalue("torch_drawer")
        return found
    is_torch = options.name == "torch"
    folder = controlled_pair_folder if is_torch else controlled_bundle_folder
    return Pipeline(folder, backend=options, device="cpu", max_batch=6)


@pytest.fixture(scope="module")
def torch_drawer(controlled_pair_folder: Path) -> Pipeline:
    return Pipeline(controlled_pair_folder, backend="torch", device="cpu", max_batch=6)


@pytest.fixture(scope="module")
def dog(drawer: Pipeline, red: Image.Image) -> Subject:
    return drawer.encode_subject(red, "a photo of a dog")


def request_of(subject: Subject | None, *controls: Control, **fields: Any) -> Request:
    known: dict[str, Any] = {"prompt": "a dog, in snow", "seed": 1, "num_inference_steps": 3}
    return Request(subject=subject, controls=controls, **(known | fields))


@pytest.fixture(scope="module")
def wanted(torch_drawer: Pipeline, red: Image.Image) -> list[tuple[Request, np.ndarray]]:
    """Requests, and what torch draws of each."""
    subject = torch_drawer.encode_subject(red, "a photo of a dog")
    several = torch_drawer.encode_subject([red, red.rotate(90)], "a photo of a dog")
    requests = [
        request_of(subject, DEPTH),
        request_of(subject, DEPTH, OUTLINE.with_options(0.5, (0.0, 0.5)), solver="unipc"),
        request_of(several, OUTLINE),
        request_of(None, DEPTH, prompt="a street"),
    ]
    return [(one, drawn(torch_drawer, one)[0]) for one in requests]


def drawn(pipeline: Pipeline, *requests: Request) -> list[np.ndarray]:
    return [np.asarray(image, int) for image in pipeline.generate(list(requests)).images]


def test_a_map_changes_the_picture_and_another_map_otherwise(
    drawer: Pipeline, dog: Subject
) -> None:
    other = Control.load("depth", depth_of(9))
    plain, first, second, outline = drawn(
        drawer,
        request_of(dog),
        request_of(dog, DEPTH),
        request_of(dog, other),
        request_of(dog, Control.load("outline", depth_of(1))),
    )
    for a, b in ((plain, first), (first, second), (first, outline)):
        assert np.abs(a - b).max() > 2
    said = drawer.generate([request_of(dog, DEPTH, OUTLINE)]).parameters[0].controls
    assert [one.kind for one in said] == ["depth", "outline"]
    assert said[0].map_fingerprint == DEPTH.fingerprint
    assert said[0].fingerprint == drawer.spec.controls[0].fingerprint


def test_the_backends_follow_maps_alike(
    drawer: Pipeline, wanted: list[tuple[Request, np.ndarray]]
) -> None:
    for request, picture in wanted:
        (got,) = drawn(drawer, request)
        assert np.abs(picture - got).max() <= 1


def test_pictures_with_and_without_maps_are_as_they_are_alone(
    drawer: Pipeline, dog: Subject
) -> None:
    requests = [
        request_of(dog),
        request_of(dog, DEPTH, seed=2),
        request_of(dog, OUTLINE, seed=3, solver="unipc"),
        request_of(None, DEPTH, OUTLINE, seed=4, prompt="a street"),
        request_of(dog, DEPTH.with_options(0.4, (0.0, 0.5)), seed=5),
        request_of(None, seed=6, prompt="a street"),
    ]
    together = drawn(drawer, *requests)
    for mine, request in zip(together, requests, strict=True):
        (alone,) = drawn(drawer, request)
        assert np.abs(mine - alone).max() <= 1


def test_plain_pictures_keep_their_bits_beside_those_that_follow_maps(
    drawer: Pipeline, dog: Subject
) -> None:
    plain = request_of(dog)
    (alone,) = drawn(drawer, plain)
    together, *_ = drawn(drawer, plain, request_of(dog, DEPTH, seed=2))
    np.testing.assert_array_equal(together, alone)


def test_a_scale_of_zero_and_maps_that_act_in_no_step_change_nothing(
    drawer: Pipeline, dog: Subject
) -> None:
    (plain,) = drawn(drawer, request_of(dog))
    (silent,) = drawn(drawer, request_of(dog, DEPTH.with_options(0.0, (0.0, 1.0))))
    np.testing.assert_array_equal(silent, plain)


def test_a_larger_scale_pulls_further_and_an_interval_less_far(
    drawer: Pipeline, dog: Subject
) -> None:
    def far(scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> float:
        acts = DEPTH.with_options(scale, interval)
        (image,) = drawn(drawer, request_of(dog, acts, num_inference_steps=4))
        return float(np.abs(image - plain).mean())

    (plain,) = drawn(drawer, request_of(dog, num_inference_steps=4))
    much = far(0.5)
    assert 0 < far(0.1) < much
    assert far(0.5, (0.75, 1.0)) < much


def test_maps_go_with_canvases_and_all_merges(drawer: Pipeline, dog: Subject) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.bool_)
    mask[5:21, 9:29] = True
    canvas = Canvas.load(pixels, mask)
    (plain,), (image,) = (
        drawn(drawer, request_of(dog, *controls, canvas=canvas)) for controls in ((), (DEPTH,))
    )
    np.testing.assert_array_equal(image[~mask], pixels[~mask])
    assert (image[mask] != plain[mask]).any()
    for merge in ("argmax", "softmax", "mean", "concat"):  # with one reference they are the same
        drawn(drawer, request_of(dog, DEPTH, merge=merge, num_inference_steps=1))


def test_a_map_gives_the_picture_its_size(drawer: Pipeline) -> None:
    wide = Control.load("depth", depth_of(4, width=48, height=32))
    result = drawer.generate([request_of(None, wide)])
    assert result.images[0].size == (48, 32)


def test_a_picture_that_joins_goes_on_with_its_map(drawer: Pipeline, dog: Subject) -> None:
    request = request_of(dog, DEPTH, num_inference_steps=5)
    (alone,) = drawn(drawer, request)
    job = drawer.engine.submit(request)
    for _ in range(2):
        drawer.engine.step()
    late = drawer.engine.submit(request_of(dog, OUTLINE, seed=9))
    drawer.engine.drive([job, late])
    assert np.abs(np.asarray(job.result().images[0], int) - alone).max() <= 1


def test_runs_without_an_acting_map_are_plain(torch_drawer: Pipeline) -> None:
    """Behind its interval a picture runs through the plain graphs, at their speed."""
    plan = torch_drawer.engine.planner.plan(
        request_of(None, DEPTH.with_options(1.0, (0.25, 0.75)), num_inference_steps=8)
    )
    acts = [control.acts.tolist() for control in plan.controls]
    assert acts == [[False] * 2 + [True] * 4 + [False] * 2]
    assert np.flatnonzero(plan.changes[1:]).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("controls", "fields", "told"),
    [
        ((Control.load("pose", depth_of(1)),), {}, "no such control: it has depth, outline"),
        ((Control.load("depth", depth_of(1, 40)),), {"width": 32}, "control_image is 40x32 px"),
        (
            (DEPTH, Control.load("outline", depth_of(1, 40))),
            {},
            "control_image outline is 40x32 px, but the picture is 32x32 px",
        ),
        (
            (DEPTH.with_options(1.0, (0.0, 0.01)), OUTLINE.with_options(1.0, (0.9, 0.95))),
            {},
            "control_interval of outline is .0.9, 0.95., but none of 3 steps",
        ),
        ((DEPTH,), {"approximation": "cache:2"}, "approximation is cache:2 together with"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_submit(
    torch_drawer: Pipeline, controls: Any, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ParameterError, match=told):
        torch_drawer.engine.submit(request_of(None, *controls, **fields))
    assert torch_drawer.engine.num_waiting == 0


def test_a_pair_without_controls_says_how_to_get_one(pipeline: Pipeline, red: Image.Image) -> None:
    with pytest.raises(ParameterError, match="it has none; put the ControlNet beside the pair"):
        pipeline("a dog, in snow", reference_images=red, control_image={"depth": depth_of(1)})


def test_two_maps_of_one_kind_are_refused() -> None:
    with pytest.raises(ParameterError, match="one of each kind"):
        request_of(None, DEPTH, replace(DEPTH))


def test_a_control_from_elsewhere_draws_as_one_beside_the_pair(
    controlled_pair_folder: Path,
    tiny_pair_folder: Path,
    torch_drawer: Pipeline,
    red: Image.Image,
) -> None:
    folder = controlled_pair_folder / "controlnet_depth"
    other = Pipeline(
        tiny_pair_folder,
        backend="torch",
        device="cpu",
        pair=PairOptions(controls={"depth": folder}),
    )
    given: dict[str, Any] = {
        "reference_images": red,
        "control_image": {"depth": depth_of(1)},
        "seed": 1,
    }
    first, second = (pipe("a dog, in snow", **given) for pipe in (other, torch_drawer))
    np.testing.assert_array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))


def test_a_bundle_takes_no_control_that_it_was_not_built_with(tiny_bundle_folder: Path) -> None:
    with pytest.raises(ParameterError, match="build-engine --control depth=some"):
        Pipeline(
            tiny_bundle_folder, backend="onnxruntime", pair=PairOptions(controls={"depth": "some"})
        )
