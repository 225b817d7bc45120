"""What a picture will be is decided when it is asked for: defaults, limits, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bootpig_rt import __version__
from bootpig_rt.backends.base import PairSpec
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.engine.plan import Planner
from bootpig_rt.engine.tables import TableUse, bytes_held
from bootpig_rt.errors import Cancelled, ParameterError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_pass import TablePlan, make_table
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import PictureParameters, Request


def planner(pipeline: Pipeline, options: TableOptions | None = None, **spec: Any) -> Planner:
    backend: Any = SimpleNamespace(
        name="none", device="cpu", runtime="none 1", spec=replace(pipeline.spec, **spec)
    )
    return Planner(backend, TableOptions() if options is None else options)


def picture(spec: PairSpec, number: int = 0, steps: int | None = 4, **request: Any) -> Request:
    latents = np.full((2, 4, 8, 8), number, np.float32)
    subject = Subject(None, latents, "a dog", 0, spec.fingerprint)
    given = {"num_inference_steps": steps, "reference_schedule": "exact", **request}
    return Request(prompt="a", subject=subject, seed=1, **given)


def size_of(spec: PairSpec, dtype: Any, entries: int = 1) -> int:
    shapes = spec.reference_shapes
    return table_bytes(shapes, num_entries=entries, num_references=2, dtype=dtype)


def table_of(planner: Planner, request: Request) -> TablePlan:
    table = planner.plan(request).table
    assert table is not None
    return table


def test_what_is_left_out_comes_from_the_pair(pipeline: Pipeline) -> None:
    config = pipeline.spec.config
    plan = planner(pipeline).plan(Request(prompt="a"))
    assert plan.solver.num_steps == config.default_steps
    assert plan.solver.name == config.default_solver
    made = plan.parameters
    assert (made.merge, made.solver) == (config.merge, config.default_solver)
    assert made.image_guidance_scale == config.image_guidance_scale
    assert made.text_guidance_scale == config.text_guidance_scale
    assert (made.width, made.height) == (config.sample_size_px,) * 2
    assert plan.table is None
    assert (plan.entries == -1).all()
    scales = np.array([made.image_guidance_scale, made.text_guidance_scale], np.float32)
    assert (plan.scales == scales).all()


def test_the_parameters_of_a_picture_hold_all_that_it_is_made_from(pipeline: Pipeline) -> None:
    pixels = np.full((32, 32, 3), 90, np.uint8)
    canvas = Canvas.load(pixels, np.eye(32, dtype=np.uint8) * 255)
    request = picture(
        pipeline.spec,
        steps=8,
        negative_prompt="fog",
        solver="unipc",
        image_guidance_scale=2.0,
        text_guidance_scale=3.0,
        merge="mean",
        reference_schedule="stride:2",
        guidance_interval=(0.0, 0.5),
        canvas=canvas,
        strength=0.5,
        mask_edge_px=2,
    )
    assert request.subject is not None
    made = planner(pipeline, TableOptions(dtype="int8")).plan(request).parameters
    assert made == PictureParameters(
        prompt="a",
        negative_prompt="fog",
        reference_prompt="a dog",
        num_references=2,
        subject_fingerprint=request.subject.fingerprint,
        seed=1,
        num_inference_steps=8,
        solver="unipc",
        image_guidance_scale=2.0,
        text_guidance_scale=3.0,
        merge="mean",
        reference_schedule="stride:2",
        guidance_interval=(0.0, 0.5),
        approximation="none",
        decoder="full",
        reference_noise_seed=0,
        table_dtype="int8",
        width=32,
        height=32,
        sizes=(),
        strength=0.5,
        mask_edge_px=2,
        canvas_fingerprint=canvas.fingerprint,
        controls=(),
        model=pipeline.spec.config.name,
        model_fingerprint=pipeline.spec.fingerprint,
        backend="none",
        runtime=pipeline.spec.runtime,
        precision=pipeline.spec.precision,
        device="cpu",
        version=__version__,
    )


def test_each_scale_is_its_own(pipeline: Pipeline) -> None:
    plan = planner(pipeline).plan(
        Request(prompt="a", image_guidance_scale=2.0, text_guidance_scale=3.0)
    )
    assert plan.scales[0].tolist() == [2.0, 3.0]
    zero = planner(pipeline).plan(Request(prompt="a", image_guidance_scale=0.0))
    assert zero.scales[0, 0] == 0.0  # zero is a scale, not nothing


def test_width_is_not_height(pipeline: Pipeline) -> None:
    plan = planner(pipeline).plan(Request(prompt="a", width=64, height=32))
    assert plan.latents_shape == (4, 8, 16)
    assert plan.parameters.width == 64


def test_guidance_is_off_outside_of_its_interval(pipeline: Pipeline) -> None:
    request = Request(
        prompt="a", num_inference_steps=4, text_guidance_scale=3.0, guidance_interval=(0.25, 0.75)
    )
    assert planner(pipeline).plan(request).scales[:, 1].tolist() == [1.0, 3.0, 3.0, 1.0]


def test_pictures_of_a_request_differ_by_their_seeds_alone(pipeline: Pipeline) -> None:
    plans = planner(pipeline).plan(Request(prompt="a", seed=2**63 - 2)).of_pictures(3)
    assert [one.parameters.seed for one in plans] == [2**63 - 2, 2**63 - 1, 0]
    assert all(replace(one.parameters, seed=0) == plans[2].parameters for one in plans)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"width": 128}, r"width is 128, expected 8\.\.64, .*--resolution 8:128"),
        ({"height": 72}, r"height is 72, expected 8\.\.64"),
        ({"steps": 51}, r"steps is 51, expected 1\.\.50, .*--steps 51"),
    ],
)
def test_what_the_graphs_were_not_built_for_is_refused(
    pipeline: Pipeline, asked: dict[str, int], message: str
) -> None:
    built: dict[str, Any] = {"max_references": 1, "max_steps": 50, "sides_px": (8, 64)}
    small = planner(pipeline, **built)
    with pytest.raises(ParameterError, match=r"references is 2, expected 1, .*--max-references 2"):
        small.plan(picture(small._backend.spec))
    if "steps" in asked:
        asked = {"num_inference_steps": asked["steps"]}
    with pytest.raises(ParameterError, match=message):
        small.plan(Request(prompt="a", **asked))  # type: ignore[arg-type]
    small.plan(Request(prompt="a", width=64, height=8, num_inference_steps=50))
    planner(pipeline).plan(Request(prompt="a", **asked))  # type: ignore[arg-type]  # torch has none


def test_default_steps_are_some_that_the_backend_takes(pipeline: Pipeline) -> None:
    short = planner(pipeline, max_steps=1)
    assert pipeline.spec.config.default_steps == 2
    assert short.plan(Request(prompt="a")).solver.num_steps == 1
    with pytest.raises(ParameterError, match="number of steps is 2, expected 1, "):
        short.plan(Request(prompt="a", num_inference_steps=2))


def test_a_window_alone_is_one_of_the_pairs_own_schedule(pipeline: Pipeline) -> None:
    plan = planner(pipeline).plan(
        picture(pipeline.spec, reference_schedule="window:0-0.5", steps=4)
    )
    assert plan.parameters.reference_schedule == "exact+window:0-0.5"
    assert plan.entries.tolist() == [0, 1, -1, -1]


def test_a_table_counts_in_the_type_that_it_lies_in(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    narrow = TableOptions(dtype="int8", budget_bytes=size_of(spec, "float32", 4) - 1)
    as_kept = table_of(planner(pipeline, narrow), picture(spec))
    assert as_kept.is_resident
    assert as_kept.device_bytes == as_kept.size_bytes == size_of(spec, "int8", 4)
    widened = table_of(planner(pipeline, narrow, resident_dtype="float32"), picture(spec))
    assert not widened.is_resident  # one byte is missing
    assert widened.size_bytes == as_kept.size_bytes


def test_tables_are_kept_as_the_backend_computes_unless_told(pipeline: Pipeline) -> None:
    half = planner(pipeline, table_dtype="float16")
    assert table_of(half, picture(pipeline.spec)).key.dtype == "float16"
    told = planner(pipeline, TableOptions(dtype="int8"), table_dtype="float16")
    assert table_of(told, picture(pipeline.spec)).key.dtype == "int8"


def test_a_streamed_table_counts_the_entry_that_is_read_and_the_next(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    budget = 2 * size_of(spec, "float16")
    options = TableOptions(dtype="int8", budget_bytes=budget)
    long = picture(spec, steps=16)
    plan = table_of(planner(pipeline, options, resident_dtype="float16"), long)
    assert (plan.is_resident, plan.device_bytes) == (False, budget)
    tight = planner(pipeline, replace(options, budget_bytes=budget - 1), resident_dtype="float16")
    with pytest.raises(ParameterError, match=f"need {budget} bytes .* 1 would fit"):
        tight.plan(long)


def test_tenants_with_one_subject_hold_a_table_each(pipeline: Pipeline) -> None:
    plan = table_of(planner(pipeline), picture(pipeline.spec))
    uses = [TableUse(tenant, plan) for tenant in ("mine", "mine", "theirs")]
    assert bytes_held(uses, joins_tables=False) == 2 * plan.device_bytes
    assert bytes_held(uses, joins_tables=True) == 4 * plan.device_bytes
    assert bytes_held(uses[:2], joins_tables=True) == plan.device_bytes


def test_pictures_that_stream_one_table_hold_it_once_for_each_step_they_are_at(
    pipeline: Pipeline,
) -> None:
    spec = pipeline.spec
    options = TableOptions(budget_bytes=3 * size_of(spec, "float32"))
    plan = table_of(planner(pipeline, options), picture(spec))
    assert not plan.is_resident
    uses = [TableUse("", plan, "launch", pace) for pace in (0, 0, 1)]
    assert bytes_held(uses, joins_tables=True) == 2 * plan.device_bytes


def test_a_streamed_table_is_made_launch_by_launch_beside_the_tables_of_others(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    spec, made = tight.spec, list[int]()
    read = tight._backend.reference_kv

    def record(latents: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        made.append(len(latents))
        return read(latents, *args, **kwargs)

    monkeypatch.setattr(tight._backend, "reference_kv", record)
    for budget, expected in ((None, [8]), (7 * size_of(spec, "float32"), [2] * 4)):
        made.clear()
        table, passes = make_table(
            table_of(planner(tight, TableOptions(budget_bytes=budget)), picture(spec, steps=8)),
            backend=tight._backend,
            tokenizer=tight._tokenizer,
            rows_per_launch=5,
        )
        assert made == expected
        assert (table.is_resident, passes) == (budget is None, 16)


def test_what_a_caller_raises_in_a_pass_ends_the_call(tiny_pair_folder: Path) -> None:
    tables = TableOptions(rows_per_launch=2)
    fresh = Pipeline(tiny_pair_folder, backend="torch", device="cpu", tables=tables)
    told: list[tuple[int, int]] = []

    def stop(event: Any) -> None:
        told.append((event.done, event.total))
        if event.done == 4:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        fresh.generate([picture(fresh.spec)], on_event=stop)
    assert told == [(2, 8), (4, 8)]
    assert fresh.engine.num_running == fresh.engine.num_waiting == 0
