"""Pictures that are drawn into given ones, or from them: as they are alone, in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.options import OnnxRuntimeOptions, TorchOptions
from bootpig_rt.diffusion.noise_schedule import SOLVERS
from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.errors import NumericalError, ParameterError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.picture import to_pil
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from tests.compiled import ANY_SHAPE

MakePaper = Callable[..., Any]
MANNERS: dict[str, Any] = {
    "torch": TorchOptions(),
    "torch, recorded": TorchOptions(cuda_graph=True),
    "onnxruntime": OnnxRuntimeOptions(intra_op_threads=1),
    "openvino": ANY_SHAPE,
}

PIXELS = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), np.bool_)
MASK[5:21, 9:29] = True
CANVAS = Canvas.load(PIXELS, MASK)
WHOLE = Canvas.load(PIXELS)


@pytest.fixture(scope="module", params=MANNERS)
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
def wanted(tiny_pair_folder: Path, red: Image.Image) -> list[tuple[Request, np.ndarray]]:
    """Requests, and what torch draws of each."""
    plain = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    subject = plain.encode_subject(red, "a photo of a dog")
    requests = [
        request_of(subject, strength=0.6, solver="dpmpp_2m"),
        request_of(subject, canvas=WHOLE, strength=0.6),
    ]
    return [(one, np.asarray(plain.generate([one]).images[0], int)) for one in requests]


def request_of(subject: Subject | None, **fields: Any) -> Request:
    known: dict[str, Any] = {"prompt": "a dog, in snow", "seed": 1, "num_inference_steps": 4}
    return Request(subject=subject, **(known | {"canvas": CANVAS} | fields))


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_not_drawn_comes_out_as_it_went_in(
    drawer: Pipeline, dog: Subject, solver: str
) -> None:
    result = drawer.generate([request_of(dog, solver=solver)])
    drawn = np.asarray(result.images[0])
    np.testing.assert_array_equal(drawn[~MASK], PIXELS[~MASK])
    assert (drawn[MASK] != PIXELS[MASK]).any(axis=-1).mean() > 0.9
    first = result.parameters[0]
    assert (first.strength, first.mask_edge_px) == (1.0, 4)  # a latent is four pixels wide
    assert first.canvas_fingerprint == CANVAS.fingerprint


def test_pictures_with_and_without_masks_are_as_they_are_alone(
    drawer: Pipeline, dog: Subject
) -> None:
    requests = [
        request_of(dog),
        request_of(dog, canvas=None),
        request_of(dog, strength=0.5, solver="unipc", seed=2),
        request_of(None, canvas=WHOLE, solver="ddim", seed=3),
        request_of(dog, canvas=WHOLE, strength=0.3, reference_schedule="exact"),
    ]
    together = [np.asarray(image, int) for image in drawer.generate(requests).images]
    alone = [np.asarray(drawer.generate([one]).images[0], int) for one in requests]
    for mine, theirs in zip(together, alone, strict=True):
        assert np.abs(mine - theirs).max() <= 1


def test_the_backends_draw_the_same_into_a_picture(
    drawer: Pipeline, wanted: list[tuple[Request, np.ndarray]]
) -> None:
    for request, picture in wanted:
        got = np.asarray(drawer.generate([request]).images[0], int)
        assert np.abs(picture - got).max() <= 1


def test_less_strength_keeps_more_and_takes_fewer_steps(drawer: Pipeline, dog: Subject) -> None:
    given = drawer._backend.encode_image(WHOLE.for_encoder())
    kept = np.asarray(to_pil(drawer._backend.decode(given))[0], int)
    far = []
    for strength, steps in ((0.2, 2), (0.5, 5), (1.0, 10)):
        request = request_of(dog, canvas=WHOLE, strength=strength, num_inference_steps=10)
        job = drawer.engine.submit(request)
        drawer.engine.drive([job])
        assert job.total_steps == job.done_steps == steps
        far.append(float(np.abs(np.asarray(job.result().images[0], int) - kept).mean()))
    assert far[0] < far[-1]


def test_steps_that_are_not_done_need_no_entries_of_the_table(make_paper: MakePaper) -> None:
    paper = make_paper()
    subject = paper.subject()
    job = paper.submit(subject, 10, canvas=WHOLE, strength=0.4, reference_schedule="exact")
    plan = job.plans[0]
    assert plan.solver.num_steps == 4
    assert plan.table is not None
    assert list(plan.table.key.timesteps) == plan.solver.timesteps.tolist()
    whole = paper.submit(subject, 10, reference_schedule="exact").plans[0].solver.timesteps
    np.testing.assert_array_equal(plan.solver.timesteps, whole[6:])
    np.testing.assert_array_equal(plan.entries, [0, 1, 2, 3])
    assert plan.parameters.num_inference_steps == 10
    paper.run()
    assert job.total_steps == job.done_steps == 4


def test_a_step_is_given_what_the_canvas_is_at_the_level_that_it_arrives_at(
    make_paper: MakePaper,
) -> None:
    paper = make_paper()
    job = paper.submit(None, 4, canvas=CANVAS, strength=0.5, seed=7, solver="ddim")
    other = paper.submit(None, 2, seed=8)
    paper.engine.step()
    (batch,) = paper.backend.batches
    canvas = batch.canvas
    bars = paper.backend.spec.noise_schedule.alphas_cumprod
    first, second = job.plans[0].solver.timesteps
    noise, given = picture_noise(7, (4, 8, 8)), paper.backend.encode_image(CANVAS.for_encoder())
    expected = np.sqrt(bars[first]) * given[0] + np.sqrt(1 - bars[first]) * noise
    np.testing.assert_allclose(batch.state[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(canvas.latents[:, 0], [given[0], noise, given[1]], atol=1e-6)
    levels = [[np.sqrt(bars[second]), np.sqrt(1 - bars[second])], [1, 0]]
    np.testing.assert_allclose(canvas.weights[:, 0], levels, atol=1e-6)
    np.testing.assert_array_equal(canvas.mask[0], CANVAS.latent_mask(4))
    # The other picture has none: its mask is 1, and its sample is the noise of its seed.
    np.testing.assert_array_equal(canvas.mask[1], 1)
    np.testing.assert_array_equal(batch.state[0, 1], picture_noise(8, (4, 8, 8)))
    assert not canvas.latents[:, 1].any()
    assert not other.done()


def test_a_mask_with_full_strength_begins_from_noise_alone(make_paper: MakePaper) -> None:
    paper = make_paper()
    paper.submit(None, 3, canvas=CANVAS, seed=7)
    paper.engine.step()
    np.testing.assert_array_equal(paper.backend.batches[0].state[0, 0], picture_noise(7, (4, 8, 8)))


def test_plain_pictures_bring_no_canvas_along(make_paper: MakePaper) -> None:
    paper = make_paper()
    paper.submit(paper.subject(), 2)
    paper.run()
    assert all(batch.canvas is None for batch in paper.backend.batches)


def test_a_pair_for_inpainting_reads_grey_of_the_pictures_own_size_where_nothing_is_given(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(canvas="read")
    encoded = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        assert not pixels.any()
        encoded.append(pixels.shape)
        count, _, height, width = pixels.shape
        return np.full((count, 4, height // 4, width // 4), width, np.float32)

    paper.backend.encode_image = encode
    for width in (32, 64, 32):
        paper.submit(None, 1, width=width, height=32)
    paper.run()
    assert encoded == [(1, 3, 32, 32), (1, 3, 32, 64)]
    assert sorted(paper.backend.sizes) == [1, 2]
    for batch in paper.backend.batches:
        assert (batch.canvas.latents[2] == 4 * batch.state.shape[-1]).all()
        assert not batch.canvas.latents[:2].any()
        assert (batch.canvas.mask == 1).all()


def test_a_pair_for_inpainting_reads_the_given_picture_with_its_drawn_part_in_grey(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(canvas="read")
    paper.submit(None, 2, canvas=CANVAS)
    paper.engine.step()
    (batch,) = paper.backend.batches
    given = paper.backend.encode_image(CANVAS.for_encoder())
    np.testing.assert_array_equal(batch.canvas.latents[2, 0], given[1])
    assert given[1].any()


def test_a_canvas_is_encoded_once_for_all_pictures_of_it(make_paper: MakePaper) -> None:
    paper = make_paper()
    encoded = []
    encode = paper.backend.encode_image

    def note(pixels: np.ndarray) -> np.ndarray:
        encoded.append(len(pixels))
        found: np.ndarray = encode(pixels)
        return found

    paper.backend.encode_image = note
    paper.submit(None, 2, canvas=CANVAS, num_images_per_prompt=3)
    paper.submit(None, 2, canvas=Canvas.load(PIXELS.copy(), MASK.copy()))
    paper.engine.step()
    assert paper.backend.sizes == [4]
    assert encoded == [2]


def test_a_canvas_that_cannot_be_encoded_is_the_loss_of_its_own_picture(
    make_paper: MakePaper,
) -> None:
    paper = make_paper()
    encode = paper.backend.encode_image
    paper.backend.encode_image = lambda pixels: encode(pixels) * np.float32("nan")
    lost, drawn = paper.submit(None, 2, canvas=CANVAS), paper.submit(None, 2)
    paper.run()
    with pytest.raises(NumericalError, match="after the image encoder"):
        lost.result(0)
    assert len(drawn.result(0).images) == 1


def test_graphs_that_know_no_masks_refuse_them_and_take_the_rest(make_paper: MakePaper) -> None:
    paper = make_paper(canvas="none")
    with pytest.raises(ParameterError, match="built without masks; build it again with bootpig-rt"):
        paper.submit(None, 2, canvas=CANVAS)
    paper.submit(None, 2, canvas=WHOLE)
    job = paper.submit(None, 2)
    paper.run()
    assert len(job.result(0).images) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"width": 64}, "image is 32x32 px, but 64x32 px are asked for; resize the image, or"),
        ({"strength": 0.2}, "strength is 0.2, of which no step of 4 is left; raise it to 0.25"),
        ({"canvas": Canvas(np.zeros((32, 44, 3), np.uint8))}, "width is 44, expected a multiple"),
    ],
)
def test_what_cannot_be_drawn_into_is_refused_when_it_is_asked_for(
    make_paper: MakePaper, fields: dict[str, Any], told: str
) -> None:
    paper = make_paper()
    with pytest.raises(ParameterError, match=told):
        paper.submit(None, 4, **({"canvas": CANVAS} | fields))
    assert not paper.engine.num_waiting


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"strength": 0.5}, "strength is given without an image; give both, or neither"),
        ({"mask_edge_px": 3}, "mask_edge_px is given without a mask; give mask_image too"),
        ({"canvas": WHOLE, "mask_edge_px": 3}, "mask_edge_px is given without a mask"),
        ({"canvas": CANVAS, "mask_edge_px": 257}, "mask_edge_px is 257, expected 0..256"),
        ({"canvas": CANVAS, "strength": 0}, "strength is 0, expected a number over 0 up to 1"),
        ({"canvas": CANVAS, "strength": 1.1}, "strength is 1.1, expected a number over 0 up to 1"),
        ({"canvas": CANVAS, "strength": float("nan")}, "strength is nan, expected a number over"),
        ({"canvas": CANVAS, "strength": "half"}, "strength is 'half', expected a number over 0"),
        ({"canvas": PIXELS}, "canvas is of type ndarray, expected a Canvas; make one with"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        Request(prompt="a", **fields)


def test_cancelling_and_going_on_keeps_the_canvas(drawer: Pipeline, dog: Subject) -> None:
    """A picture that joins ends the run of the other, which goes on from where it was."""
    request = request_of(dog, num_inference_steps=5)
    alone = np.asarray(drawer.generate([request]).images[0], int)
    job = drawer.engine.submit(request)
    for _ in range(2):
        drawer.engine.step()
    late = drawer.engine.submit(replace(request, seed=9, canvas=None))
    drawer.engine.step()
    late.cancel()
    drawer.engine.drive([job])
    again = np.asarray(job.result().images[0], int)
    assert np.abs(again - alone).max() <= 1
    np.testing.assert_array_equal(again[~MASK], PIXELS[~MASK])
