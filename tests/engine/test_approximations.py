"""Pictures that leave out deep blocks: as they are alone, and in step with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.options import OnnxRuntimeOptions, OpenVINOOptions, TorchOptions
from bootpig_rt.engine.runs import SeveralRuns, in_step
from bootpig_rt.errors import ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from tests.compiled import OPENVINO

MakePaper = Callable[..., Any]
MANNERS: dict[str, Any] = {
    "torch": TorchOptions(),
    "torch, recorded": TorchOptions(cuda_graph=True),
    "onnxruntime": OnnxRuntimeOptions(intra_op_threads=1),
    "openvino": OPENVINO,
    "openvino, in fours and streams": OpenVINOOptions(
        precision="float32", threads=2, streams=2, buckets=(1, 4), cache=False
    ),
    "openvino, any shape": replace(OPENVINO, buckets=()),
}


# Each shape has a model of its own, which takes a second to compile.
_COMPILES_MUCH = ("openvino", "openvino, in fours and streams")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in _COMPILES_MUCH else name
        for name in MANNERS
    ],
)
def drawer(
    request: pytest.FixtureRequest, tiny_pair_folder: Path, tiny_bundle_folder: Path
) -> Pipeline:
    """A pipeline over each kind of run."""
    options = MANNERS[request.param]
    folder = tiny_pair_folder if options.name == "torch" else tiny_bundle_folder
    return Pipeline(folder, backend=options, device="cpu", max_batch=4)


@pytest.fixture(scope="module")
def dog(drawer: Pipeline, red: Image.Image) -> Subject:
    return drawer.encode_subject(red, "a photo of a dog")


@pytest.fixture(scope="module")
def cat(drawer: Pipeline, blue: Image.Image, green: Image.Image) -> Subject:
    return drawer.encode_subject([blue, green], "a photo of a cat")


def pixels_of(pipeline: Pipeline, requests: list[Request]) -> np.ndarray:
    """Pictures of requests, in their order."""
    return np.stack([np.asarray(image, int) for image in pipeline.generate(requests).images])


def test_an_interval_of_one_is_no_approximation_bit_for_bit(drawer: Pipeline, dog: Subject) -> None:
    request = Request(prompt="a dog, in snow", subject=dog, seed=1, num_inference_steps=4)
    plain, one = (
        drawer.generate([replace(request, approximation=name)]) for name in ("none", "cache:1")
    )
    assert plain.parameters == one.parameters
    assert plain.images[0].tobytes() == one.images[0].tobytes()


def test_an_approximation_changes_the_picture_and_stands_in_its_parameters(
    drawer: Pipeline, dog: Subject
) -> None:
    request = Request(prompt="a dog, in snow", subject=dog, seed=1, num_inference_steps=6)
    plain, cached = (
        drawer.generate([replace(request, approximation=name)]) for name in ("none", "cache:3")
    )
    assert cached.parameters[0].approximation == "cache:3"
    assert plain.images[0].tobytes() != cached.images[0].tobytes()


def test_pictures_of_mixed_approximations_are_as_they_are_alone(
    drawer: Pipeline, dog: Subject, cat: Subject
) -> None:
    names = ("cache:2", "none", "cache:3", "cache:2+window:0.3-1", "cache:4", "cache:2")
    requests = [
        Request(
            prompt="a dog, in snow",
            subject=(dog, cat, None)[number % 3],
            seed=number,
            num_inference_steps=5 + number % 3,
            approximation=name,
            guidance_interval=((0.0, 1.0), (0.25, 0.75))[number % 2],
            reference_schedule=("clean", "exact", "window:0.2-0.8")[number % 3],
            solver=("ddim", "unipc")[number % 2],
        )
        for number, name in enumerate(names)
    ]
    together = pixels_of(drawer, requests)
    for request, expected in zip(requests, together, strict=True):
        alone = pixels_of(drawer, [request])[0]
        assert np.abs(alone - expected).max() <= 1


@pytest.fixture(scope="module")
def wanted(pipeline: Pipeline, blue: Image.Image, green: Image.Image) -> np.ndarray:
    """What torch draws of the cat with an approximation."""
    cat = pipeline.encode_subject([blue, green], "a photo of a cat")
    return pixels_of(pipeline, [approximate(cat)])


def approximate(cat: Subject) -> Request:
    return Request(prompt="a cat", subject=cat, seed=2, approximation="cache:2")


def test_each_backend_draws_of_an_approximation_what_torch_draws(
    drawer: Pipeline, cat: Subject, wanted: np.ndarray
) -> None:
    assert np.abs(pixels_of(drawer, [approximate(cat)]) - wanted).max() <= 1


# In step


def test_a_picture_joins_at_a_step_that_computes_all_and_shares_launches_from_then(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(keeps_features=True)
    paper.submit(steps=9, approximation="cache:4")
    for _ in range(2):
        paper.engine.step()
    paper.submit(steps=9, approximation="cache:4")
    paper.engine.step()
    assert paper.engine.num_waiting == 1  # between two deep steps
    paper.run()
    shared = [batch for batch in paper.backend.batches if batch.state.shape[1] == 2]
    assert np.concatenate([batch.deep_steps for batch in shared]).tolist()[:4] == [1, 0, 0, 0]


def test_one_that_leaves_out_nothing_waits_for_nobody(make_paper: MakePaper) -> None:
    paper = make_paper(keeps_features=True)
    paper.submit(steps=9, approximation="cache:4")
    for _ in range(2):
        paper.engine.step()
    paper.submit(steps=9)
    paper.engine.step()
    assert paper.engine.num_running == 2


def test_a_run_computes_the_deep_blocks_of_all_its_pictures_or_of_none(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(keeps_features=True)
    jobs = [
        paper.submit(steps=8, approximation=name, guidance_interval=interval)
        for name in ("none", "cache:2", "cache:3+window:0.25-1")
        for interval in ((0.0, 1.0), (0.5, 1.0))
    ]
    paper.run()
    assert all(job.result().images for job in jobs)
    for batch in paper.backend.batches:
        if batch.deep_steps is not None:
            assert len(batch.deep_steps) == batch.solver.num_steps
            is_first_deep = bool(batch.deep_steps[0])
            assert is_first_deep == (batch.features == ())
            assert all(one is not None for one in batch.features)


def test_without_approximations_runs_keep_no_features(make_paper: MakePaper) -> None:
    paper = make_paper(keeps_features=True)
    paper.submit(steps=4)
    paper.run()
    assert [batch.deep_steps for batch in paper.backend.batches] == [None]


def test_runs_side_by_side_answer_in_the_order_of_the_pictures() -> None:
    class Part:
        def __init__(self, *values: float) -> None:
            self.values = np.array(values, np.float32)

        def step(self, index: int) -> None:
            self.values += 1

        def state(self) -> np.ndarray:
            planes = len(self.values)  # other solvers, other histories
            return np.broadcast_to(
                self.values[None, :, None, None, None], (planes, planes, 1, 1, 1)
            )

        def estimate(self) -> np.ndarray:
            return self.values[:, None, None, None]

        def features(self) -> tuple[float, ...]:
            return tuple(self.values)

    runs = SeveralRuns([Part(0, 2), Part(1)], [[0, 2], [1]])
    runs.step(0)
    assert runs.state()[0].ravel().tolist() == [1, 2, 3]
    assert runs.state()[1].ravel().tolist() == [1, 0, 3]
    assert runs.estimate().ravel().tolist() == [1, 2, 3]
    assert list(runs.features()) == [1, 2, 3]


# What is refused


def test_a_bundle_without_shallow_graphs_refuses_with_what_to_do(make_paper: MakePaper) -> None:
    paper = make_paper(keeps_features=False)
    with pytest.raises(ParameterError, match="approximation is cache:2, but paper has no graphs"):
        paper.submit(approximation="cache:2")
    paper.submit(approximation="none")


def test_a_window_without_a_step_is_refused_at_submit(make_paper: MakePaper) -> None:
    paper = make_paper(keeps_features=True)
    with pytest.raises(ParameterError, match="none of 2 steps lies in its window"):
        paper.submit(steps=2, approximation="cache:2+window:0.6-0.9")


def test_a_run_goes_on_while_its_pictures_stay_in_step_or_out_of_it() -> None:
    def picture(deep: str | None, *, step: int = 0, is_controlled: bool = False) -> Any:
        steps = None if deep is None else np.array([one == "1" for one in deep])
        plan = SimpleNamespace(deep_steps=steps)
        return SimpleNamespace(plan=plan, step=step, is_controlled=lambda: is_controlled)

    half, third = picture("101010"), picture("100100")
    assert in_step([half, picture(None)], 6) == (1, [[0, 1]])
    assert in_step([half, third], 6) == (2, [[0, 1]])  # in step in two, then out of it
    assert in_step([picture("101010", step=2), picture("100100", step=2)], 4) == (3, [[0], [1]])
    assert in_step([picture("0101", step=1), half, picture(None)], 3) == (1, [[0, 1, 2]])
    assert in_step([half, half], 6) == (6, [[0, 1]])
    assert in_step([picture(None), picture(None, is_controlled=True)], 6) == (6, [[0], [1]])
