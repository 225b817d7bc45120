from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bootpig_rt
from bootpig_rt.backends.base import DenoiseBatch, FloatArray
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.engine.events import Event, OnEvent, ReferenceEvent, StepEvent
from bootpig_rt.errors import (
    Cancelled,
    ImageError,
    NumericalError,
    ParameterError,
    PromptError,
    SubjectMismatch,
)
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from bootpig_rt.storage.store import SubjectStore
from tests.one_backend import pipeline_over

PROMPT = "a photo of a dog, on a beach"


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


def on_step(act: Callable[[StepEvent], object]) -> OnEvent:
    """Passes the steps of a call on, and not the launches of its pass."""

    def tell(event: Event) -> None:
        if isinstance(event, StepEvent):
            act(event)

    return tell


@pytest.fixture
def latents_of(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FloatArray]:
    """Runs `Pipeline.generate` and returns the final latents, which eight bits would round."""

    def run(requests: list[Request], **settings: Any) -> FloatArray:
        seen: list[FloatArray] = []
        decode = pipeline._backend.decode

        def record(latents: FloatArray, **options: Any) -> FloatArray:
            seen.append(latents)
            return decode(latents, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pipeline._backend, "decode", record)
            pipeline.generate([replace(request, **settings) for request in requests])
        return np.concatenate(seen)

    return run


def test_a_prompt_and_a_reference_give_a_picture(pipeline: Pipeline, red: Image.Image) -> None:
    result = pipeline(PROMPT, reference_images=red, seed=1)
    assert [image.size for image in result.images] == [(32, 32)]
    assert result.images[0].mode == "RGB"
    assert np.asarray(result.images[0]).std() > 0


def test_the_same_call_gives_the_same_picture(pipeline: Pipeline, red: Image.Image) -> None:
    first = pipeline(PROMPT, reference_images=red, seed=1)
    again = pipeline(PROMPT, reference_images=red, seed=1)
    other = pipeline(PROMPT, reference_images=red, seed=2)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert first.images[0].tobytes() != other.images[0].tobytes()


def test_every_parameter_is_recorded(pipeline: Pipeline, dog: Subject) -> None:
    result = pipeline(
        PROMPT,
        subject=dog,
        negative_prompt="rain",
        num_inference_steps=3,
        image_guidance_scale=2.0,
        text_guidance_scale=3.5,
        num_images_per_prompt=2,
        seed=7,
        solver="unipc",
        merge="mean",
        reference_schedule="exact",
        width=40,
        height=48,
    )
    assert [image.size for image in result.images] == [(40, 48), (40, 48)]
    assert [parameters.seed for parameters in result.parameters] == [7, 8]
    parameters = result.parameters[0].to_dict()
    assert re.fullmatch(r"torch \d+\.\d+\.\d+\S*", parameters.pop("runtime"))
    assert parameters == {
        "prompt": PROMPT,
        "negative_prompt": "rain",
        "reference_prompt": "a photo of a dog",
        "num_references": 1,
        "subject_fingerprint": dog.fingerprint,
        "seed": 7,
        "num_inference_steps": 3,
        "solver": "unipc",
        "image_guidance_scale": 2.0,
        "text_guidance_scale": 3.5,
        "merge": "mean",
        "reference_schedule": "exact",
        "approximation": "none",
        "decoder": "full",
        "guidance_interval": [0.0, 1.0],
        "reference_noise_seed": 0,
        "table_dtype": "float32",
        "width": 40,
        "height": 48,
        "sizes": [],
        "strength": None,
        "mask_edge_px": None,
        "canvas_fingerprint": None,
        "controls": [],
        "model": "tiny",
        "model_fingerprint": pipeline.spec.fingerprint,
        "backend": "torch",
        "precision": "float32",
        "device": "cpu",
        "version": bootpig_rt.__version__,
    }


def test_what_is_left_out_comes_from_the_pair(pipeline: Pipeline, dog: Subject) -> None:
    config = pipeline.spec.config
    parameters = pipeline(PROMPT, subject=dog).parameters[0]
    assert parameters.num_inference_steps == config.default_steps
    assert parameters.solver == config.default_solver
    assert parameters.merge == config.merge
    assert parameters.image_guidance_scale == config.image_guidance_scale
    assert parameters.text_guidance_scale == config.text_guidance_scale


def test_a_random_seed_is_recorded_and_gives_the_picture_again(
    pipeline: Pipeline, dog: Subject
) -> None:
    first = pipeline(PROMPT, subject=dog)
    again = pipeline(PROMPT, subject=dog, seed=first.parameters[0].seed)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert pipeline(PROMPT, subject=dog).parameters[0].seed != first.parameters[0].seed


def test_several_prompts_count_on_from_one_seed(pipeline: Pipeline, dog: Subject) -> None:
    prompts = [PROMPT, "a photo of a dog, in a forest"]
    result = pipeline(prompts, subject=dog, num_images_per_prompt=2, seed=5)
    assert [(p.prompt, p.seed) for p in result.parameters] == [
        (prompts[0], 5),
        (prompts[0], 6),
        (prompts[1], 7),
        (prompts[1], 8),
    ]
    alone = pipeline(prompts[1], subject=dog, seed=7)
    assert np.abs(levels(result.images[2]) - levels(alone.images[0])).max() <= 1
    listed = pipeline(prompts, subject=dog, seed=[3, 3])
    assert [parameters.seed for parameters in listed.parameters] == [3, 3]


def test_strangers_in_one_batch_each_get_what_they_get_alone(
    pipeline: Pipeline,
    latents_of: Callable[..., FloatArray],
    red: Image.Image,
    blue: Image.Image,
    green: Image.Image,
) -> None:
    dog = pipeline.encode_subject(red, "a photo of a dog")
    cat = pipeline.encode_subject([blue, green], "a photo of a cat")
    crowd = pipeline.encode_subject([green, red, blue], "a photo of a toy", noise_seed=9)
    requests = [
        Request(prompt=PROMPT, subject=dog, seed=1),
        Request(prompt="a photo of a cat, in snow", subject=cat, seed=2, negative_prompt="fog"),
        Request(prompt="a photo of a toy", subject=crowd, seed=3, image_guidance_scale=1.0),
        Request(prompt="a city at night", subject=None, seed=4),
        Request(
            prompt=PROMPT, subject=dog, seed=5, text_guidance_scale=2.0, num_images_per_prompt=2
        ),
    ]
    for merge, schedule in (
        ("argmax", "exact"),
        ("softmax", "clean"),
        ("mean", "exact"),
        ("concat", "clean"),
    ):
        settings = {"merge": merge, "reference_schedule": schedule, "num_inference_steps": 3}
        together = latents_of(requests, **settings)
        alone = np.concatenate([latents_of([one], **settings) for one in requests])
        assert rms(together - alone) / rms(alone) < 1e-5
        assert np.abs(together - alone).max() < 1e-4


def test_the_size_of_a_batch_changes_no_picture(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject
) -> None:
    small = pipeline_over(pipeline, tiny_pair_folder, max_batch=2)
    one, other = (
        p(PROMPT, subject=dog, num_images_per_prompt=5, seed=3) for p in (pipeline, small)
    )
    for left, right in zip(one.images, other.images, strict=True):
        assert np.abs(levels(left) - levels(right)).max() <= 1


def test_the_reference_changes_the_picture(
    dog: Subject, cat: Subject, latents_of: Callable[..., FloatArray]
) -> None:
    shown = [latents_of([Request(prompt=PROMPT, subject=s, seed=1)]) for s in (dog, cat, None)]
    assert rms(shown[0] - shown[1]) > 1e-3
    assert rms(shown[0] - shown[2]) > 1e-3


def test_adding_a_reference_changes_neither_noise_nor_text(
    pipeline: Pipeline, red: Image.Image, blue: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[DenoiseBatch] = []
    start = pipeline._backend.start

    def record(batch: DenoiseBatch) -> Any:
        batches.append(batch)
        return start(batch)

    monkeypatch.setattr(pipeline._backend, "start", record)
    pipeline(PROMPT, reference_images=red, seed=1)
    pipeline(PROMPT, reference_images=[red, blue], seed=1)
    np.testing.assert_array_equal(batches[0].state, batches[1].state)
    assert batches[1].ref_of_row.shape[1] == 2
    assert batches[0].num_references == (1,)
    assert batches[1].num_references == (2,)


def test_no_guidance_computes_one_row_a_picture(
    pipeline: Pipeline, dog: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    start = pipeline._backend.start

    def record(batch: DenoiseBatch) -> Any:
        rows.append(len(batch.text_of_row))
        return start(batch)

    monkeypatch.setattr(pipeline._backend, "start", record)
    pipeline(
        PROMPT,
        subject=dog,
        image_guidance_scale=1.0,
        text_guidance_scale=1.0,
        num_images_per_prompt=3,
    )
    pipeline(PROMPT, subject=dog, num_images_per_prompt=3)
    assert rows == [3, 9]


def test_a_subject_equals_its_reference_images(
    pipeline: Pipeline, dog: Subject, red: Image.Image
) -> None:
    by_subject = pipeline(PROMPT, subject=dog, seed=4)
    by_images = pipeline(PROMPT, reference_images=red, reference_prompt="a photo of a dog", seed=4)
    assert by_subject.images[0].tobytes() == by_images.images[0].tobytes()
    assert by_subject.parameters == by_images.parameters


def test_reference_images_may_be_pil_paths_arrays_or_bytes(
    pipeline: Pipeline, red: Image.Image, dog_file: Path
) -> None:
    sources: list[Any] = [red, dog_file, str(dog_file), np.asarray(red), dog_file.read_bytes()]
    fingerprints = {pipeline.encode_subject(s, "a photo of a dog").fingerprint for s in sources}
    assert len(fingerprints) == 1


def test_the_reference_is_paid_once(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder)
    settings: dict[str, Any] = {"reference_images": red, "num_inference_steps": 4}
    cold = pipeline(PROMPT, reference_schedule="exact", **settings)
    warm = pipeline(PROMPT, reference_schedule="exact", num_images_per_prompt=2, **settings)
    clean = pipeline(PROMPT, reference_schedule="clean", **settings)
    assert [cold.reference_passes, warm.reference_passes, clean.reference_passes] == [4, 0, 1]
    other_steps = pipeline(PROMPT, reference_images=red, num_inference_steps=3)
    assert other_steps.reference_passes == 3  # another schedule is another table


def test_a_cache_of_no_bytes_keeps_no_table(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder, tables=TableOptions(device_bytes=0))
    passes = [pipeline(PROMPT, reference_images=red).reference_passes for _ in range(2)]
    assert passes == [2, 2]


def test_an_approximate_schedule_is_logged(
    tiny_pair_folder: Path,
    pipeline: Pipeline,
    red: Image.Image,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder)
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        pipeline(PROMPT, reference_images=red, reference_schedule="anchor:300")
    assert "reference schedule anchor:300 is an approximation" in caplog.text


def test_the_reference_prompt_is_the_class_phrase_and_is_logged(
    pipeline: Pipeline, red: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        result = pipeline(PROMPT, reference_images=red)
    assert result.parameters[0].reference_prompt == "a photo of a dog"
    assert "the reference is read as 'a photo of a dog'" in caplog.text


def test_a_whole_prompt_as_reference_prompt_is_a_warning(
    pipeline: Pipeline, red: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline("a dog on a beach", reference_images=red)
    assert "better say what it shows" in caplog.text


def test_prompts_that_begin_differently_need_a_reference_prompt(
    pipeline: Pipeline, red: Image.Image
) -> None:
    prompts = ["a dog, on a beach", "a puppy, in a forest"]
    with pytest.raises(PromptError, match="pass reference_prompt"):
        pipeline(prompts, reference_images=red)
    result = pipeline(prompts, reference_images=red, reference_prompt="a dog")
    assert {parameters.reference_prompt for parameters in result.parameters} == {"a dog"}


def test_a_preview_shows_the_picture_of_each_running_request(
    pipeline: Pipeline, dog: Subject
) -> None:
    previews: list[list[Image.Image]] = []
    result = pipeline(
        PROMPT,
        subject=dog,
        num_images_per_prompt=2,
        num_inference_steps=3,
        seed=1,
        on_event=on_step(lambda step: previews.append(step.decode())),
    )
    assert [len(images) for images in previews] == [2, 2, 2]
    # The last step ends at the estimate itself: sigma is zero there.
    assert np.abs(levels(previews[-1][0]) - levels(result.images[0])).max() <= 1


def test_steps_are_counted_over_all_batches(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder, max_batch=2)
    events: list[StepEvent] = []
    pipeline(PROMPT, subject=dog, num_images_per_prompt=3, on_event=on_step(events.append))
    assert [event.done for event in events] == [2, 4, 5, 6]
    assert {event.total for event in events} == {6}
    assert [event.pictures for event in events] == [(0, 1), (0, 1), (2,), (2,)]


def test_a_pipeline_works_on_after_a_cancelled_and_a_broken_call(
    pipeline: Pipeline, dog: Subject
) -> None:
    before = pipeline(PROMPT, subject=dog, seed=1).images[0]

    def broken(event: StepEvent) -> None:
        raise ValueError("mine")

    with pytest.raises(Cancelled):
        pipeline(PROMPT, subject=dog, on_event=on_step(StepEvent.cancel))
    with pytest.raises(ValueError, match="mine"):
        pipeline(PROMPT, subject=dog, on_event=on_step(broken))
    assert pipeline(PROMPT, subject=dog, seed=1).images[0].tobytes() == before.tobytes()


def test_a_callback_may_use_the_pipeline_itself(pipeline: Pipeline, dog: Subject) -> None:
    prompts = [PROMPT, "a photo of a cat"]
    alone = [pipeline(one, subject=dog, seed=1).images[0] for one in prompts]
    inner: list[Image.Image] = []

    def ask_again(event: StepEvent) -> None:
        inner.extend(pipeline(prompts[1], subject=dog, seed=1).images)

    (outer,) = pipeline(prompts[0], subject=dog, seed=1, on_event=on_step(ask_again)).images
    assert len(inner) == 2  # of each step one
    for image, expected in ((outer, alone[0]), *((one, alone[1]) for one in inner)):
        assert np.abs(levels(image) - levels(expected)).max() <= 1


def test_threads_on_one_pipeline_each_get_their_own_picture(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image, blue: Image.Image
) -> None:
    pipeline = pipeline_over(pipeline, tiny_pair_folder)

    def draw(seed: int) -> np.ndarray:
        result = pipeline(
            f"a photo of a dog, number {seed}",
            reference_images=red if seed % 2 else blue,
            seed=seed,
        )
        return levels(result.images[0])

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(10)))
    for seed, picture in enumerate(together):
        assert np.abs(picture - draw(seed)).max() <= 1
    assert len({picture.tobytes() for picture in together}) == 10


def test_nan_in_the_model_is_an_error_and_no_black_picture(
    pipeline: Pipeline, dog: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = np.full((1, 3, 32, 32), np.nan, dtype=np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._backend, "decode", lambda latents, **_: nan)
        with pytest.raises(NumericalError, match="the decoded picture holds NaN"):
            pipeline(PROMPT, subject=dog)
    start = pipeline._backend.start
    with monkeypatch.context() as patch:
        infinite = np.array([np.inf, 1.0], dtype=np.float32)
        patch.setattr(
            pipeline._backend,
            "start",
            lambda batch: start(replace(batch, text_guidance_scale=infinite)),
        )
        with pytest.raises(NumericalError, match=r"picture 0 of the batch .* lower the guidance"):
            pipeline(PROMPT, subject=dog, num_images_per_prompt=2)


def test_a_subject_of_another_pair_is_refused(
    pipeline: Pipeline, make_tiny_pair: Any, tmp_path: Path, red: Image.Image
) -> None:
    other = Pipeline(make_tiny_pair(tmp_path, seed=1), backend="torch", device="cpu")
    stranger = other.encode_subject(red, "a photo of a dog")
    with pytest.raises(SubjectMismatch, match="encode the reference images again"):
        pipeline(PROMPT, subject=stranger)


def test_a_streamed_table_is_made_once(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject
) -> None:
    settings: dict[str, Any] = {
        "subject": dog,
        "seed": 1,
        "num_inference_steps": 4,
        "reference_schedule": "exact",
        "approximation": "none",
    }
    size = pipeline.table_bytes(1, num_inference_steps=4, reference_schedule="exact")
    tables = TableOptions(budget_bytes=size // 2)
    kept = pipeline_over(pipeline, tiny_pair_folder, tables=tables, max_batch=2)
    # Three batches: none computes the table again.
    assert kept(PROMPT, num_images_per_prompt=5, **settings).reference_passes == 4
    assert kept(PROMPT, **settings).reference_passes == 0
    stats = kept.store.stats()
    assert (stats.host_bytes, stats.device_bytes) == (size, 0)
    tables = TableOptions(budget_bytes=size // 2, host_bytes=0)
    cold = pipeline_over(pipeline, tiny_pair_folder, tables=tables, max_batch=2)
    assert [cold(PROMPT, **settings).reference_passes for _ in range(2)] == [4, 4]


def test_the_folder_of_a_store_is_held_to_the_bytes_given(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject, tmp_path: Path
) -> None:
    for limit, passes in ((1, 2), (1 << 30, 0)):
        tables = TableOptions(device_bytes=0, folder=tmp_path, folder_bytes=limit)
        other = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
        other(PROMPT, subject=dog)
        other.store.flush()
        assert other(PROMPT, subject=dog).reference_passes == passes


@pytest.mark.parametrize("shares", [False, True], ids=["options", "a store"])
def test_every_option_of_tables_is_heeded(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image, tmp_path: Path, shares: bool
) -> None:
    """A store silently dropped the options beside it."""
    shapes = pipeline.spec.reference_shapes
    two = table_bytes(shapes, num_entries=2, num_references=1, dtype="int8")
    options = TableOptions(
        dtype="int8",
        budget_bytes=two,
        rows_per_launch=1,
        device_bytes=7,
        host_bytes=1 << 20,
        folder=tmp_path / "kept",
        folder_bytes=1 << 20,
    )
    tables = SubjectStore(options) if shares else options
    mine = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
    events: list[Event] = []
    manner: dict[str, Any] = {"num_inference_steps": 8, "reference_schedule": "exact"}
    size = mine.table_bytes(1, **manner)
    result = mine(PROMPT, reference_images=red, on_event=events.append, **manner)
    assert (size, result.parameters[0].table_dtype) == (4 * two, "int8")
    assert [one.done for one in events if isinstance(one, ReferenceEvent)] == list(range(1, 9))
    mine.store.flush()
    stats = mine.store.stats()
    assert (stats.device_bytes, stats.host_bytes) == (0, size)  # over the budget: streamed
    assert stats.disk_bytes > size
    assert list((tmp_path / "kept").rglob("*.table"))
    folder = mine.store.folder
    assert folder is not None
    assert (mine.store.device_bytes, folder.max_bytes) == (7, 1 << 20)


def test_the_environment_names_the_folder_where_no_other_is_given(
    tiny_pair_folder: Path,
    pipeline: Pipeline,
    dog: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOOTPIG_RT_STORE", str(tmp_path / "environment"))

    def passes(**options: Any) -> int:
        """Of a picture by a new pipeline."""
        with pipeline_over(pipeline, tiny_pair_folder, tables=TableOptions(**options)) as new:
            return new(PROMPT, subject=dog, seed=1).reference_passes

    assert [passes(), passes()] == [2, 0]
    assert list((tmp_path / "environment").rglob("*.table"))
    assert [passes(folder=tmp_path / "given"), passes(folder=tmp_path / "given")] == [2, 0]
    monkeypatch.delenv("BOOTPIG_RT_STORE")
    assert [passes(), passes()] == [2, 2]


def test_tables_of_another_kind_are_refused(tiny_pair_folder: Path, tmp_path: Path) -> None:
    folder: Any = tmp_path
    with pytest.raises(ParameterError, match="tables is of type .*Path, expected TableOptions"):
        Pipeline(tiny_pair_folder, backend="torch", device="cpu", tables=folder)


def test_the_noise_seed_matters_to_noised_references_alone(
    pipeline: Pipeline, red: Image.Image, latents_of: Callable[..., FloatArray]
) -> None:
    subjects = [pipeline.encode_subject(red, "a photo of a dog", noise_seed=n) for n in (0, 1)]
    requests = [Request(prompt=PROMPT, subject=subject, seed=1) for subject in subjects]
    exact = [latents_of([request], reference_schedule="exact") for request in requests]
    clean = [latents_of([request], reference_schedule="clean") for request in requests]
    assert rms(exact[0] - exact[1]) > 1e-4
    np.testing.assert_array_equal(clean[0], clean[1])


def test_a_published_pair_draws_with_its_base_model(
    published_layout_folder: Path, red: Image.Image
) -> None:
    base_model = published_layout_folder.parent / "base_model"
    pipeline = Pipeline(
        published_layout_folder,
        backend="torch",
        device="cpu",
        pair=PairOptions(base_model=base_model),
    )
    result = pipeline(PROMPT, reference_images=red, num_inference_steps=2)
    assert result.parameters[0].reference_schedule == "exact"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": ""}, PromptError, "prompt is empty"),
        ({"prompt": "  \n"}, PromptError, "prompt is empty"),
        ({"prompt": None}, PromptError, "prompt is missing"),
        ({"prompt": 3}, PromptError, "of type int"),
        ({"prompt": []}, PromptError, "empty list"),
        ({"prompt": ["a dog", ""]}, PromptError, "prompt is empty"),
        ({"prompt": "a\0b"}, PromptError, "NUL"),
        ({"prompt": "a \ud800"}, PromptError, "surrogate"),
        ({"prompt": "a" * 10_001}, PromptError, "10001 characters"),
        ({"negative_prompt": 1}, PromptError, "negative_prompt is of type int"),
        ({"reference_images": None}, ImageError, "no reference image"),
        ({"reference_images": []}, ImageError, "no reference image"),
        ({"reference_prompt": " "}, PromptError, "reference_prompt is empty"),
        ({"num_inference_steps": 0}, ParameterError, r"num_inference_steps is 0, expected 1..1000"),
        ({"num_inference_steps": -5}, ParameterError, "num_inference_steps is -5"),
        ({"num_inference_steps": 5000}, ParameterError, "num_inference_steps is 5000"),
        ({"num_inference_steps": 2.5}, ParameterError, "expected a whole number"),
        ({"num_inference_steps": True}, ParameterError, "expected a whole number"),
        ({"image_guidance_scale": float("nan")}, ParameterError, "image_guidance_scale is nan"),
        ({"text_guidance_scale": float("inf")}, ParameterError, "text_guidance_scale is inf"),
        ({"text_guidance_scale": -1}, ParameterError, "text_guidance_scale is -1"),
        ({"text_guidance_scale": "7"}, ParameterError, "expected a number"),
        ({"num_images_per_prompt": 0}, ParameterError, "num_images_per_prompt is 0"),
        (
            {"num_images_per_prompt": 65},
            ParameterError,
            "num_images_per_prompt is 65, expected 1..64",
        ),
        ({"num_images_per_prompt": "2"}, ParameterError, "num_images_per_prompt is '2'"),
        ({"seed": -1}, ParameterError, "seed is -1"),
        ({"seed": 2**63}, ParameterError, "seed is 9223372036854775808"),
        ({"seed": 1.0}, ParameterError, "seed is 1.0"),
        ({"seed": [1, 2]}, ParameterError, "2 seeds for 1 prompts"),
        ({"solver": "euler"}, ParameterError, "expected one of: ddim, dpmpp_2m, unipc"),
        ({"merge": "sum"}, ParameterError, "expected one of: argmax, softmax, mean, concat"),
        ({"reference_schedule": "never"}, ParameterError, "expected exact, clean, anchor:T"),
        ({"reference_schedule": "anchor:5000"}, ParameterError, "expected a timestep 0..999"),
        ({"width": 33}, ParameterError, "width is 33, expected a multiple of 8 up to 128"),
        ({"height": 136}, ParameterError, "height is 136, expected a multiple of 8 up to 128"),
        ({"width": 0}, ParameterError, "width is 0"),
        ({"width": -32}, ParameterError, "width is -32"),
        ({"mask_image": "mask.png"}, ParameterError, "mask_image is given without an image"),
        ({"strength": 0.5}, ParameterError, "strength is given without an image"),
        ({"image": "no.png"}, ImageError, "cannot read image 'no.png'"),
    ],
)
def test_bad_arguments_are_refused_with_the_fix(
    pipeline: Pipeline,
    red: Image.Image,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    call = {"prompt": PROMPT, "reference_images": red, **arguments}
    with pytest.raises(error, match=message) as caught:
        pipeline(**call)
    assert "\n" not in str(caught.value)


def test_a_subject_and_reference_images_together_are_refused(
    pipeline: Pipeline, dog: Subject, red: Image.Image
) -> None:
    with pytest.raises(ParameterError, match="expected one or the other"):
        pipeline(PROMPT, subject=dog, reference_images=red)
    with pytest.raises(ParameterError, match="expected one or the other"):
        pipeline(PROMPT, subject=dog, reference_prompt="a dog")


def test_something_else_than_a_subject_is_refused(pipeline: Pipeline, red: Image.Image) -> None:
    with pytest.raises(ParameterError, match=r"expected a Subject; make one with encode_subject"):
        pipeline(PROMPT, subject=red)  # type: ignore[arg-type]


def test_an_empty_list_of_requests_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(ParameterError, match="no requests"):
        pipeline.generate([])
