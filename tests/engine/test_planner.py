"""What pictures need before anything is computed: memory for tables, and the limits of a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.base import PairSpec
from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.engine.planner import Planner, params_for_pair
from bootpig_rt.errors import Cancelled, ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_pass import TableOptions, make_table
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request, SamplingParams
from bootpig_rt.storage.store import SubjectStore


def planner(pipeline: Pipeline, options: TableOptions | None = None, **spec: Any) -> Planner:
    backend: Any = SimpleNamespace(name="none", device="cpu", spec=replace(pipeline.spec, **spec))
    return Planner(
        backend,
        tokenizer=pipeline._tokenizer,
        store=SubjectStore(),
        options=TableOptions() if options is None else options,
    )


def params(spec: PairSpec, steps: int | None = 4) -> SamplingParams:
    names = ("solver", "merge", "width_px", "height_px")
    given = {"num_inference_steps": steps, "reference_schedule": "exact"}
    return params_for_pair(spec, **dict.fromkeys(names), **given)


def picture(spec: PairSpec, number: int = 0, **request: Any) -> Request:
    latents = np.full((2, 4, 8, 8), number, np.float32)
    subject = Subject(None, latents, "a dog", 0, spec.fingerprint)
    return Request(prompt="a", subject=subject, seed=1, **request)


def size_of(spec: PairSpec, dtype: Any, entries: int = 1) -> int:
    shapes = spec.reference_shapes
    return table_bytes(shapes, num_entries=entries, num_references=2, dtype=dtype)


def test_tenants_with_one_subject_need_a_table_each(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    tight = planner(pipeline, TableOptions(budget_bytes=size_of(spec, "float32", 4)))
    mine, theirs = (picture(spec, tenant=tenant) for tenant in ("mine", "theirs"))
    assert tight.batches([mine, mine, theirs], params(spec), 8) == [range(2), range(2, 3)]


def test_pictures_that_stream_one_table_together_hold_it_once(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    tight = planner(pipeline, TableOptions(budget_bytes=3 * size_of(spec, "float32")))
    one, other = picture(spec, 0), picture(spec, 1)
    assert tight.batches([one, one, one, other], params(spec), 8) == [range(3), range(3, 4)]


def test_a_table_counts_in_the_type_that_it_lies_in(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    narrow = TableOptions("int8", budget_bytes=size_of(spec, "float32", 4) - 1)
    as_kept = planner(pipeline, narrow).needs(picture(spec), params(spec))
    assert as_kept is not None
    assert as_kept.is_resident
    assert as_kept.device_bytes == as_kept.size_bytes == size_of(spec, "int8", 4)
    wide = planner(pipeline, narrow, resident_dtype="float32")
    widened = wide.needs(picture(spec), params(spec))
    assert widened is not None
    assert not widened.is_resident  # one byte is missing
    assert widened.size_bytes == as_kept.size_bytes


def test_a_streamed_table_counts_the_entry_that_is_read_and_the_next(pipeline: Pipeline) -> None:
    spec = pipeline.spec
    budget = 2 * size_of(spec, "float16")
    options = TableOptions("int8", budget_bytes=budget)
    plan = planner(pipeline, options, resident_dtype="float16").needs(
        picture(spec), params(spec, 16)
    )
    assert plan is not None
    assert (plan.is_resident, plan.device_bytes) == (False, budget)
    tight = planner(pipeline, replace(options, budget_bytes=budget - 1), resident_dtype="float16")
    with pytest.raises(ParameterError, match=f"need {budget} bytes .* 1 would fit"):
        tight.needs(picture(spec), params(spec, 16))


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
    solver = tight._planner.solver("ddim", 8)
    subject = picture(spec).subject
    assert subject is not None
    for budget, expected in ((None, [8]), (7 * size_of(spec, "float32"), [2] * 4)):
        made.clear()
        table, passes = make_table(
            subject,
            ReferenceSchedule("exact"),
            solver.timesteps,
            backend=tight._backend,
            tokenizer=tight._tokenizer,
            options=TableOptions(budget_bytes=budget, rows_per_launch=5),
        )
        assert made == expected
        assert (table.is_resident, passes) == (budget is None, 16)


def test_a_batch_is_no_larger_than_the_backend_takes(pipeline: Pipeline) -> None:
    small = planner(pipeline, max_batch=2)
    pictures = [picture(pipeline.spec)] * 5
    batches = small.batches(pictures, params(pipeline.spec), 8)
    assert batches == [range(2), range(2, 4), range(4, 5)]


def test_a_batch_with_too_many_steps_is_refused_before_any_is_drawn(pipeline: Pipeline) -> None:
    short = planner(pipeline, max_steps=4)
    plain = Request(prompt="a", subject=None, seed=1)
    pictures = [plain, replace(plain, num_inference_steps=5)]
    with pytest.raises(ParameterError, match="number of steps is 5, expected 1..4, "):
        short.batches(pictures, params(pipeline.spec), 8)


def test_default_steps_are_some_that_the_backend_takes(pipeline: Pipeline) -> None:
    short = replace(pipeline.spec, max_steps=1)
    assert pipeline.spec.config.default_steps == 2
    assert params(short, None).num_inference_steps == 1
    with pytest.raises(ParameterError, match="number of steps is 2, expected 1, "):
        params(short, 2)


def test_progress_hears_of_each_launch_of_a_pass_and_may_end_the_call(
    tiny_pair_folder: Path,
) -> None:
    fresh = Pipeline(tiny_pair_folder, backend="torch", device="cpu", reference_rows=2)
    exact = params(fresh.spec)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 4:
            raise Cancelled("enough")

    request = picture(fresh.spec)
    with pytest.raises(Cancelled, match="enough"):
        fresh.generate([request], exact, progress=stop)
    assert told == [(2, 8), (4, 8)]
    told.clear()
    fresh.generate([request], exact, progress=lambda *numbers: told.append(numbers))
    assert told == [(2, 8), (4, 8), (6, 8), (8, 8)]
    fresh.generate([request], exact, progress=stop)  # the table is there: no pass
