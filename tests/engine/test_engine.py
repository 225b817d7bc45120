"""One loop for all: the same picture whoever shares the batch, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.engine.batch import Batch
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.events import DoneEvent, Event, Launch, ReferenceEvent, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.loop import Loop
from bootpig_rt.engine.options import EngineOptions, Limits
from bootpig_rt.engine.stream import Stream
from bootpig_rt.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFull,
    NumericalError,
    ParameterError,
    SubjectMismatch,
)
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import GenerationResult, Request, Timings
from bootpig_rt.storage.store import Claim, SubjectStore
from tests.compiled import ANY_SHAPE
from tests.one_backend import pipeline_over

SCHEDULES = ("exact", "clean", "anchor:300", "stride:2", "window:0.2-0.8", "stride:2+window:0-0.5")

MakePaper = Callable[..., Any]


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def encoded(
    pipeline: Pipeline, red: Image.Image, blue: Image.Image, green: Image.Image
) -> list[Subject | None]:
    """Subjects of one, two and three references, and none."""
    return [
        pipeline.encode_subject(red, "a photo of a dog"),
        pipeline.encode_subject([blue, green], "a photo of a cat"),
        pipeline.encode_subject([green, red, blue], "a photo of a toy", noise_seed=9),
        None,
    ]


@pytest.fixture(scope="module")
def subjects(
    pipeline: Pipeline, red: Image.Image, blue: Image.Image, green: Image.Image
) -> list[Subject | None]:
    return encoded(pipeline, red, blue, green)


def engine_of(pipeline: Pipeline, tables: TableOptions | None = None, max_batch: int = 8) -> Engine:
    """An engine over a pipeline's backend, with nothing in it yet."""
    store = SubjectStore(tables)
    return Engine(pipeline._backend, pipeline._tokenizer, store, max_batch=max_batch)


def run(engine: Engine) -> None:
    while engine.step():
        pass


def mix(
    seed: int,
    count: int,
    subjects: list[Subject | None],
    **fields: Any,
) -> list[Request]:
    """Requests of strangers: everything that may differ does."""
    draw = random.Random(seed)
    return [
        Request(
            prompt=draw.choice(("a dog, on a beach", "a cat, in snow", "a toy")),
            subject=draw.choice(subjects),
            negative_prompt=draw.choice(("", "fog")),
            image_guidance_scale=draw.choice((None, 1.0, 2.5)),
            text_guidance_scale=draw.choice((None, 1.0, 0.0)),
            num_images_per_prompt=draw.choice((1, 1, 2)),
            seed=draw.randrange(100),
            num_inference_steps=draw.choice((2, 3, 4, 5)),
            solver=draw.choice(("ddim", "dpmpp_2m", "unipc")),
            reference_schedule=draw.choice(SCHEDULES),
            guidance_interval=draw.choice(((0.0, 1.0), (0.3, 1.0), (0.0, 0.5))),
            approximation=draw.choice(("none", "none", "cache:2", "cache:3")),
            tenant=draw.choice(("", "a", "b")),
            **fields,
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["torch", "onnxruntime", "openvino"])
def each_pipeline(
    request: pytest.FixtureRequest, tiny_pair_folder: Path, tiny_bundle_folder: Path
) -> Pipeline:
    """One pipeline for each backend that runs here."""
    folder = tiny_pair_folder if request.param == "torch" else tiny_bundle_folder
    backend: Any = request.param
    if backend == "openvino":
        backend = ANY_SHAPE
    elif backend == "onnxruntime":
        backend = OnnxRuntimeOptions(intra_op_threads=1, spinning=False)
    return Pipeline(folder, backend=backend, device="cpu", max_batch=4)


# Company


@pytest.mark.parametrize(("seed", "merge"), [(0, "argmax"), (1, "concat")])
def test_a_random_mix_draws_what_each_request_draws_alone(
    each_pipeline: Pipeline,
    red: Image.Image,
    blue: Image.Image,
    green: Image.Image,
    seed: int,
    merge: str,
) -> None:
    pipeline = each_pipeline
    known = encoded(pipeline, red, blue, green)
    requests = mix(seed, 7, known, merge=merge)
    together = pipeline.generate(requests)
    streamed = list(pipeline.map(requests))
    flat = [image for result in streamed for image in result.images]
    assert [one for result in streamed for one in result.parameters] == together.parameters
    expected = [image for one in requests for image in pipeline.generate([one]).images]
    assert len(flat) == len(together.images) == len(expected)
    for one, other, image in zip(flat, together.images, expected, strict=True):
        assert difference(one, image) <= 1
        assert difference(other, image) <= 1


def test_a_request_that_joins_on_the_way_draws_what_it_draws_alone(
    pipeline: Pipeline, subjects: list[Subject | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    start = pipeline._backend.start

    def record(batch: Any) -> Any:
        sizes.append(batch.state.shape[1])
        return start(batch)

    engine = engine_of(pipeline)
    requests = [
        Request(
            prompt="a dog",
            subject=subjects[0],
            seed=seed,
            num_inference_steps=6,
            reference_schedule="exact",
        )
        for seed in range(3)
    ]
    jobs: list[Job] = []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._backend, "start", record)
        for request in requests:  # two steps apart: one subject at three steps of its table
            jobs.append(engine.submit(request))
            engine.step()
            engine.step()
        run(engine)
    assert sizes == [1, 2, 3, 2, 1]
    for job, request in zip(jobs, requests, strict=True):
        assert difference(job.result().images[0], pipeline.generate([request]).images[0]) <= 1
    assert sum(job.result().reference_passes for job in jobs) == 6


def test_a_pass_among_steps_gives_the_pictures_of_each_alone(
    pipeline: Pipeline, subjects: list[Subject | None]
) -> None:
    engine = engine_of(pipeline, TableOptions(rows_per_launch=1))
    requests = [
        Request(
            prompt="a dog",
            subject=one,
            seed=1,
            num_inference_steps=3,
            reference_schedule="exact",
        )
        for one in subjects[:2]
    ]
    first = engine.submit(requests[0])
    engine.step()
    second = engine.submit(requests[1])
    run(engine)
    for job, request in zip((first, second), requests, strict=True):
        assert difference(job.result().images[0], pipeline.generate([request]).images[0]) <= 1


def test_sizes_that_cannot_share_a_launch_alternate(paper: Any) -> None:
    long, short = paper.submit(steps=30), paper.submit(steps=2, width=40)
    for _ in range(5):
        paper.engine.step()
    assert short.done()
    assert not long.done()


def test_a_launch_holds_no_more_pictures_than_the_backend_takes(make_paper: MakePaper) -> None:
    paper = make_paper(max_batch=2)
    job = paper.submit(num_images_per_prompt=5)
    paper.run()
    assert len(job.result().images) == 5
    assert max(paper.backend.sizes) == 2


def test_a_join_encodes_the_prompts_that_are_new(paper: Any) -> None:
    for prompt in ("a dog", "a cat", "a dog"):
        paper.submit(prompt=prompt)
        paper.engine.step()
    paper.run()
    assert paper.backend.num_texts == [2, 1]  # "a dog" and "", then "a cat"


def test_text_states_stay_the_same_array_while_a_batch_needs_no_new_text(paper: Any) -> None:
    paper.submit(prompt="a dog", steps=2)
    paper.engine.step()
    paper.submit(prompt="a dog", steps=4)
    paper.run()
    arrays = {id(batch.prompt_embeds) for batch in paper.backend.batches}
    assert len(paper.backend.batches) == 3  # alone, together, and alone again
    assert len(arrays) == 1


# Turns


def test_tenants_take_turns(make_paper: MakePaper) -> None:
    paper = make_paper(asked_batch=1)
    order: list[str] = []
    for tenant, count in (("greedy", 4), ("modest", 1), ("shy", 1)):
        job = paper.submit(steps=1, tenant=tenant, num_images_per_prompt=count)
        job.add_done_callback(lambda _, tenant=tenant: order.append(tenant))
    paper.run()
    assert order == ["modest", "shy", "greedy"]


def test_a_flood_of_one_tenant_holds_up_no_other(make_paper: MakePaper) -> None:
    paper = make_paper(asked_batch=4)
    flood = [paper.submit(tenant="flood", num_images_per_prompt=64) for _ in range(4)]
    for _ in range(5):
        paper.engine.step()
    modest = [paper.submit(paper.subject(n), tenant="modest") for n in range(3)]
    launches = 0
    while not all(job.done() for job in modest):
        paper.engine.step()
        launches += 1
    # A place is free after 4 steps at most, half of the places then are theirs, and each takes 4.
    assert launches <= 3 * 4
    assert not any(job.done() for job in flood)


def test_a_higher_priority_begins_first_and_equal_ones_in_their_order(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(asked_batch=1)
    order: list[str] = []
    for name, priority in (("low", -1), ("first", 0), ("second", 0), ("urgent", 5)):
        job = paper.submit(steps=1, tenant=name[:1], job={"priority": priority})
        job.add_done_callback(lambda _, name=name: order.append(name))
    paper.run()
    assert order == ["urgent", "first", "second", "low"]


def test_the_place_in_the_queue_is_told(make_paper: MakePaper) -> None:
    paper = make_paper(asked_batch=1)
    first, second, third = (paper.submit(steps=2) for _ in range(3))
    assert [paper.engine.position(job) for job in (first, second, third)] == [0, 1, 2]
    paper.engine.step()
    assert [paper.engine.position(job) for job in (first, second, third)] == [None, 0, 1]
    second.cancel()
    assert paper.engine.position(third) == 0
    assert (paper.engine.num_waiting, paper.engine.num_running) == (1, 1)


# Tables


def test_two_tenants_with_one_subject_pay_a_pass_each_while_both_run(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(TableOptions(device_bytes=0), asked_batch=4)
    subject = paper.subject()
    jobs = [
        paper.submit(subject, tenant=tenant, reference_schedule="clean")
        for tenant in ("mine", "theirs", "mine")
    ]
    paper.run()
    assert sorted(job.result().reference_passes for job in jobs) == [0, 1, 1]
    assert max(len(batch.tables) for batch in paper.backend.batches) == 2


@pytest.mark.slow
def test_tables_are_let_go_with_the_pictures_that_read_them(make_paper: MakePaper) -> None:
    paper = make_paper(asked_batch=1)
    paper.store.device_bytes = 0
    alive: list[Any] = []
    made = paper.backend.reference_kv

    class Data:
        """Something that can be asked whether it is still there."""

    def record(*args: Any, **kwargs: Any) -> Any:
        import dataclasses
        import weakref

        data = Data()
        alive.append(weakref.ref(data))
        return dataclasses.replace(made(*args, **kwargs), data=data, size_bytes=1)

    paper.backend.reference_kv = record
    most = 0
    jobs = [
        paper.submit(paper.subject(number), steps=2, reference_schedule="clean")
        for number in range(8)
    ]
    paper.backend.batches.clear()
    while paper.engine.step():
        paper.backend.batches.clear()
        gc.collect()
        most = max(most, sum(one() is not None for one in alive))
    assert all(job.result().reference_passes == 1 for job in jobs)
    assert most == 1


def test_a_table_that_another_process_makes_holds_up_its_own_pictures_alone(
    make_paper: MakePaper, tmp_path: Path
) -> None:
    paper = make_paper(TableOptions(folder=tmp_path))
    subject = paper.subject()
    waits, goes_on = paper.submit(subject), paper.submit(steps=3)
    key = waits.plans[0].table.key
    other = paper.store.folder.claim(key)
    assert other is not None
    with paper.engine.start() as engine:
        assert len(goes_on.result(timeout=30).images) == 1
        assert not waits.done()
        cancelled = engine.submit(paper.request(subject))
        assert cancelled.cancel()
        with pytest.raises(Cancelled):
            cancelled.result(timeout=30)
        other.release()
        assert len(waits.result(timeout=30).images) == 1
    assert engine.num_waiting == 0


def test_two_engines_on_one_store_make_a_table_once(make_paper: MakePaper) -> None:
    store = SubjectStore()
    one, other = make_paper(store), make_paper(store)
    started = threading.Event()

    def slow(what: str) -> None:
        if what == "pass":
            started.set()
            time.sleep(0.1)

    one.backend.hook = slow
    with one.engine.start(), other.engine.start():
        first = one.submit(one.subject(), steps=2, reference_schedule="clean")
        assert started.wait(30)
        second = other.submit(other.subject(), steps=2, reference_schedule="clean")
        passes = [job.result(timeout=30).reference_passes for job in (first, second)]
    assert passes == [1, 0]


def test_a_claim_of_which_nobody_wants_the_table_any_more_is_released(
    make_paper: MakePaper, tmp_path: Path
) -> None:
    paper = make_paper(TableOptions(folder=tmp_path), asked_batch=1)
    running = paper.submit(steps=6)
    paper.engine.step()
    job = paper.submit(paper.subject(), steps=2)
    whose = ("", job.plans[0].table.key)
    claim = Claim(paper.store, ("", "paper cpu", whose[1]), None)
    found: Future[Any] = Future()
    found.set_result(claim)
    paper.engine._loop._tables.sought[whose] = found
    job.cancel()
    paper.engine.step()
    assert not claim._is_held
    assert paper.engine._loop._tables.sought == {}
    assert not running.done()


def test_memory_limits_who_runs_and_nobody_starves(make_paper: MakePaper) -> None:
    free = make_paper()
    large = free.request(free.subject(9, references=3), steps=2)
    budget = free.engine.planner.plan(large).table.device_bytes
    paper = make_paper(TableOptions(budget_bytes=budget))
    first = paper.submit(paper.subject(), steps=2, tenant="s")
    big = paper.submit(paper.subject(9, references=3), steps=2, tenant="b")
    done_before = 0
    for _ in range(100):  # small ones come without end
        paper.submit(paper.subject(), steps=2, tenant="s")
        paper.engine.step()
        if big.done():
            break
        done_before += 1
    assert first.done()
    assert big.done()
    assert done_before < 40


def test_patience_counts_steps_and_not_pictures(make_paper: MakePaper) -> None:
    free = make_paper()
    one = free.engine.planner.plan(free.request(free.subject())).table.device_bytes
    paper = make_paper(TableOptions(budget_bytes=3 * one), asked_batch=32)
    paper.submit(paper.subject(), tenant="first")
    paper.engine.step()
    paper.submit(paper.subject(1, references=3), tenant="large")
    for number in range(20):
        paper.submit(tenant=f"small {number}")
    paper.engine.step()
    assert (paper.engine.num_running, paper.engine.num_waiting) == (21, 1)


@pytest.mark.parametrize(("joins_tables", "together"), [(False, 2), (True, 1)])
def test_tables_that_a_launch_copies_side_by_side_count_twice(
    make_paper: MakePaper, joins_tables: bool, together: int
) -> None:
    free = make_paper()
    one = free.engine.planner.plan(free.request(free.subject())).table.device_bytes
    paper = make_paper(TableOptions(budget_bytes=3 * one), joins_tables=joins_tables)
    same = [paper.submit(paper.subject()) for _ in range(2)]
    paper.engine.step()
    assert paper.engine.num_running == 2  # of one table there is no copy
    paper.run()
    jobs = [*same, *(paper.submit(paper.subject(number)) for number in range(2))]
    paper.engine.step()
    assert paper.engine.num_running == together
    paper.run()
    assert all(len(job.result().images) == 1 for job in jobs)


def test_streamed_pictures_at_different_steps_each_count_what_they_hold(
    make_paper: MakePaper,
) -> None:
    free = make_paper()
    exact = {"reference_schedule": "exact"}
    plan = free.engine.planner.plan(free.request(free.subject(), steps=8, **exact)).table
    entry = plan.device_bytes // 8
    window = 2 * entry  # the one that is read, and the one that is copied
    paper = make_paper(TableOptions(budget_bytes=window + entry))
    for _ in range(2):
        paper.submit(paper.subject(), steps=8, **exact)
    paper.engine.step()
    assert paper.engine.num_running == 2  # in step with each other: one window
    late = paper.submit(paper.subject(), steps=8, **exact)
    paper.engine.step()
    assert (paper.engine.num_running, paper.engine.num_waiting) == (2, 1)
    paper.run()
    assert len(late.result().images) == 1


def test_running_pictures_make_a_step_after_each_launch_of_a_pass(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(rows_per_launch=2))
    short = paper.submit(steps=3)
    paper.engine.step()
    paper.backend.log.clear()
    paper.submit(paper.subject(), steps=8, reference_schedule="exact")
    paper.engine.step()
    expected = ["pass", "step", "pass", "step", "decode", "pass", "pass", "start", "step"]
    assert paper.backend.log == expected
    assert short.done()


# Refusals


def test_a_request_that_never_fits_is_refused_when_it_comes(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(budget_bytes=1000))
    with pytest.raises(ParameterError, match=r"the budget for tables is 1000: 0 would fit"):
        paper.submit(paper.subject(), reference_schedule="exact")
    assert paper.engine.step() is False


def test_a_full_queue_says_when_to_try_again(make_paper: MakePaper) -> None:
    paper = make_paper(options=EngineOptions(max_waiting=3))
    waits = paper.submit(steps=1, num_images_per_prompt=2)
    with pytest.raises(EngineFull, match=r"2 pictures, but 1 of 3 places .* again in") as refused:
        paper.submit(steps=1, num_images_per_prompt=2)
    assert refused.value.retry_after_s > 0
    waits.cancel()
    paper.submit(steps=1, num_images_per_prompt=3)  # its places are free at once


@pytest.mark.parametrize("number", [0, (1 << 20) + 1])
def test_a_queue_that_holds_nothing_or_has_no_end_is_refused(number: int) -> None:
    with pytest.raises(ParameterError, match=f"^max_waiting is {number}, "):
        EngineOptions(max_waiting=number)
    assert EngineOptions(max_waiting=1 << 20).max_waiting == 1 << 20


def test_the_requests_of_one_call_are_taken_all_or_none(make_paper: MakePaper) -> None:
    paper = make_paper(options=EngineOptions(max_waiting=3))
    with pytest.raises(EngineFull):
        paper.engine.submit_all([paper.request() for _ in range(4)], timings=Timings())
    assert paper.engine.num_waiting == 0


def test_a_subject_of_another_pair_is_refused_when_it_comes(paper: Any) -> None:
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    with pytest.raises(SubjectMismatch):
        paper.submit(stranger)


def test_what_the_backend_cannot_take_is_refused_when_it_comes(make_paper: MakePaper) -> None:
    paper = make_paper(max_steps=6, max_references=1)
    with pytest.raises(ParameterError, match=r"number of steps is 7, expected 1..6, .*--steps 7"):
        paper.submit(steps=7)
    with pytest.raises(ParameterError, match=r"number of references is 2, expected 1, "):
        paper.submit(paper.subject(references=2))
    assert paper.engine.num_waiting == 0
    assert paper.backend.log == []


@pytest.mark.parametrize(
    ("limit", "fields", "message"),
    [
        ({"num_inference_steps": 4}, {"num_inference_steps": 5}, "num_inference_steps is 5"),
        ({"side_px": 32}, {"height": 40}, "height is 40, expected at most 32"),
        ({"num_images": 2}, {"num_images_per_prompt": 3}, "num_images_per_prompt is 3"),
        ({"num_references": 1}, {"references": 2}, "number of references is 2"),
        ({"table_bytes": 10}, {"references": 1}, "the reference table takes"),
    ],
)
def test_who_runs_an_engine_limits_what_a_request_may_ask_for(
    make_paper: MakePaper, limit: dict[str, int], fields: dict[str, int], message: str
) -> None:
    paper = make_paper(options=EngineOptions(limits=Limits(**limit)))
    fields = dict(fields)
    references = fields.pop("references", 0)
    subject = paper.subject(references=references) if references else None
    with pytest.raises(ParameterError, match=message):
        paper.submit(subject, **fields)
    exact = dict(zip(fields, limit.values(), strict=False))
    if fields:  # the limit itself is allowed
        paper.submit(**exact)


@pytest.mark.parametrize("schedule", ["anchor:5000", "anchor:1000"])
def test_a_noise_level_that_the_pair_does_not_have_is_refused(paper: Any, schedule: str) -> None:
    with pytest.raises(ParameterError, match=r"expected a timestep 0\.\.999"):
        paper.submit(paper.subject(), reference_schedule=schedule)
    paper.submit(paper.subject(), reference_schedule="anchor:999")


def test_an_interval_without_a_step_is_refused_and_not_drawn_without_guidance(paper: Any) -> None:
    with pytest.raises(ParameterError, match="none of 4 steps lies in it"):
        paper.submit(steps=4, guidance_interval=(0.01, 0.03))


# Leaving


def test_a_cancelled_request_leaves_and_the_others_go_on(pipeline: Pipeline) -> None:
    engine = engine_of(pipeline)
    requests = [Request(prompt="a", seed=seed, num_inference_steps=4) for seed in (1, 2)]
    leaves, stays = (engine.submit(request) for request in requests)
    engine.step()
    assert leaves.cancel()
    assert leaves.cancel()
    run(engine)
    with pytest.raises(Cancelled, match="was cancelled"):
        leaves.result()
    alone = pipeline.generate([requests[1]]).images[0]
    assert difference(stays.result().images[0], alone) <= 1
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_cancelling_leaves_within_a_step_wherever_a_request_is(make_paper: MakePaper) -> None:
    paper = make_paper(asked_batch=2)
    running, waiting = paper.submit(steps=50, num_images_per_prompt=2), paper.submit(steps=50)
    paper.engine.step()
    paper.backend.log.clear()
    running.cancel()
    waiting.cancel()
    assert paper.engine.step() is False
    assert paper.backend.log == []


def test_cancelling_in_a_pass_ends_the_pass(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(rows_per_launch=1))
    exact = {"reference_schedule": "exact"}
    job = paper.submit(paper.subject(), steps=8, **exact)
    behind = paper.submit(paper.subject(1), steps=2, **exact)
    paper.backend.hook = lambda what: job.cancel() if len(paper.backend.log) == 3 else None
    paper.engine.step()
    assert paper.backend.log[:3] == ["pass"] * 3
    assert paper.backend.log.count("pass") == 3 + 2
    paper.run()
    with pytest.raises(Cancelled):
        job.result()
    assert len(behind.result().images) == 1


def test_cancelling_after_the_end_changes_nothing(paper: Any) -> None:
    job = paper.submit()
    paper.run()
    assert not job.cancel()
    assert len(job.result().images) == 1


def test_a_request_that_is_cancelled_just_when_it_ends_breaks_no_other(
    paper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, other = paper.submit(), paper.submit()
    end = ending.set_running_or_notify_cancel
    answers: list[bool] = []

    def cancelled_meanwhile() -> bool:
        if not answers:
            answers.append(True)
            answers[0] = ending.cancel()
        return bool(end())

    monkeypatch.setattr(ending, "set_running_or_notify_cancel", cancelled_meanwhile)
    paper.run()
    assert answers == [False]
    assert len(ending.result().images) == len(other.result().images) == 1


def test_those_who_wait_for_several_hear_of_a_cancelled_one(paper: Any) -> None:
    jobs = [paper.submit(), paper.submit()]
    jobs[0].cancel()
    paper.run()
    assert wait(jobs, timeout=10).not_done == set()


@pytest.mark.parametrize("is_running", [False, True])
def test_a_request_that_runs_out_of_its_time_stops(
    make_paper: MakePaper, monkeypatch: pytest.MonkeyPatch, is_running: bool
) -> None:
    paper = make_paper(asked_batch=1)
    ahead = None if is_running else paper.submit(steps=3)
    job = paper.submit(steps=50, job={"deadline_s": 5.0, "request_id": "r-17"})
    paper.engine.step()
    now = time.monotonic()
    monkeypatch.setattr("bootpig_rt.engine.job.time.monotonic", lambda: now + 6.0)
    paper.run()
    done = 1 if is_running else 0
    message = rf"the request r-17 ran out of its 5 s; {done} of 50 steps were done"
    with pytest.raises(DeadlineExceeded, match=message):
        job.result(timeout=0)
    assert ahead is None or len(ahead.result().images) == 1
    assert (paper.engine.num_running, paper.engine.num_waiting) == (0, 0)


def test_a_result_that_is_not_there_yet_times_out(paper: Any) -> None:
    with pytest.raises(TimeoutError):
        paper.submit().result(timeout=0.01)


# Failures


def test_nan_fails_the_request_that_has_it_alone(
    pipeline: Pipeline, subjects: list[Subject | None]
) -> None:
    engine = engine_of(pipeline)
    nan = np.full((1, 4, 8, 8), np.nan, np.float32)
    broken = Subject(None, nan, "a", 0, pipeline.spec.fingerprint)
    bad = engine.submit(Request(prompt="a", subject=broken, seed=1))
    good = engine.submit(Request(prompt="a", subject=subjects[0], seed=1))
    run(engine)
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        bad.result()
    assert len(good.result().images) == 1


@pytest.mark.parametrize("where", ["start", "step", "decode"])
def test_one_picture_that_breaks_its_launch_is_the_only_one_to_lose(
    make_paper: MakePaper, where: str
) -> None:
    paper = make_paper()
    start, decode = paper.backend.start, paper.backend.decode

    def poisoned_start(batch: Any) -> Any:
        is_poisoned = 99.0 in batch.text_guidance_scale
        if where == "start" and is_poisoned:
            raise MemoryError("no room for poison")
        run = start(batch)
        step = run.step

        def poisoned_step(index: int) -> None:
            step(index)
            if where == "step" and is_poisoned and index == 1:
                raise MemoryError("no room for poison")

        run.step = poisoned_step
        return run

    def poisoned_decode(latents: np.ndarray, **options: Any) -> np.ndarray:
        if where == "decode" and 7.0 in latents:  # the steps that were done
            raise MemoryError("no room for poison")
        picture: np.ndarray = decode(latents, **options)
        return picture

    paper.backend.start, paper.backend.decode = poisoned_start, poisoned_decode
    good = [paper.submit(steps=8), paper.submit(steps=9)]
    paper.engine.step()
    bad = paper.submit(steps=7, text_guidance_scale=99.0)
    paper.run()
    with pytest.raises(MemoryError):
        bad.result(timeout=0)
    assert [len(job.result(timeout=0).images) for job in good] == [1, 1]
    assert [job.done_steps for job in good] == [8, 9]  # steps made again count once


def test_a_launch_that_fails_for_everybody_fails_everybody_and_the_engine_works_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(pipeline)
    request = Request(prompt="a", seed=1, num_inference_steps=2)
    with monkeypatch.context() as patch:

        def out_of_memory(batch: Any) -> Any:
            raise MemoryError("CUDA out of memory")

        patch.setattr(pipeline._backend, "start", out_of_memory)
        lost = [engine.submit(request) for _ in range(2)]
        run(engine)
    for job in lost:
        with pytest.raises(MemoryError):
            job.result(timeout=0)
    kept = engine.submit(request)
    run(engine)
    assert difference(kept.result().images[0], pipeline.generate([request]).images[0]) <= 1


@pytest.mark.parametrize("where", ["pass", "start", "step", "decode"])
def test_an_interrupt_goes_through_and_whoever_drives_next_goes_on(
    make_paper: MakePaper, where: str
) -> None:
    paper = make_paper(asked_batch=1)
    jobs = [paper.submit(paper.subject(number)) for number in range(2)]

    def interrupt(what: str) -> None:
        if what == where:
            paper.backend.hook = lambda what: None
            raise KeyboardInterrupt

    paper.backend.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        paper.run()
    paper.run()
    for job in jobs:
        assert len(job.result(timeout=0).images) == 1
    assert (paper.engine.num_running, paper.engine.num_waiting) == (0, 0)


def test_an_interrupt_between_two_launches_of_a_pass_loses_nothing(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(rows_per_launch=1))
    running = paper.submit(steps=20)
    paper.engine.step()
    starting = paper.submit(paper.subject(), steps=3)

    def interrupt(what: str) -> None:
        if what == "step" and "pass" in paper.backend.log:
            paper.backend.hook = lambda what: None
            raise KeyboardInterrupt

    paper.backend.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        paper.engine.step()
    paper.run()
    assert [len(job.result(timeout=0).images) for job in (running, starting)] == [1, 1]


def test_an_interrupt_as_a_picture_joins_others_loses_neither(
    paper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = paper.submit(steps=20)
    paper.engine.step()
    joining = paper.submit(paper.subject(), steps=3)

    def interrupt(self: Batch) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "close", interrupt)
        with pytest.raises(KeyboardInterrupt):
            paper.engine.step()
    paper.run()
    assert [len(job.result(timeout=0).images) for job in (running, joining)] == [1, 1]
    assert paper.backend.log.count("pass") == 1  # its table was made already


def test_an_interrupted_call_takes_its_own_requests_back(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Loop) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline("a dog", reference_prompt="a dog", reference_images=Image.new("L", (9, 9)))
    assert pipeline.engine.num_waiting == 0


# Events


def test_a_caller_hears_of_each_launch_and_step(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(rows_per_launch=2))
    events: list[Event] = []
    job = paper.submit(
        paper.subject(),
        steps=4,
        num_images_per_prompt=2,
        reference_schedule="exact",
        job={"on_event": events.append, "preview_every": 2},
    )
    paper.run()
    passes = [(one.done, one.total) for one in events if isinstance(one, ReferenceEvent)]
    steps = [one for one in events if isinstance(one, StepEvent)]
    assert passes == [(2, 4), (4, 4)]
    assert [(one.done, one.total) for one in steps] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert [one.timestep for one in steps] == job.plans[0].solver.timesteps.tolist()
    assert all(one.pictures == (0, 1) for one in steps)
    assert [one.previews is not None for one in steps] == [False, True, False, True]
    previews = steps[1].previews
    assert previews is not None
    assert [one.size for one in previews] == [(32, 32)] * 2


def test_what_a_callback_raises_ends_its_own_request(paper: Any) -> None:
    def fail(event: Event) -> None:
        raise LookupError("no such page")

    bad, good = paper.submit(job={"on_event": fail}), paper.submit()
    paper.run()
    with pytest.raises(LookupError, match="no such page"):
        bad.result(timeout=0)
    assert len(good.result(timeout=0).images) == 1


def test_a_callback_that_two_requests_share_fails_the_one_that_it_was_called_for(
    paper: Any,
) -> None:
    def fail_once(event: Event) -> None:
        if not failed:
            failed.append(event)
            raise LookupError("no such page")

    failed: list[Event] = []
    first, second = (paper.submit(job={"on_event": fail_once}) for _ in range(2))
    paper.run()
    with pytest.raises(LookupError):
        first.result(timeout=0)
    assert len(second.result(timeout=0).images) == 1


def test_a_callback_may_decode_and_cancel(paper: Any) -> None:
    shown: list[Image.Image] = []

    def look(event: Event) -> None:
        assert isinstance(event, StepEvent)
        shown.extend(event.decode())
        event.cancel()

    job = paper.submit(steps=9, job={"on_event": look})
    paper.run()
    assert len(shown) == 1
    assert job.cancelled()
    assert paper.backend.log.count("step") == 1


def test_a_callback_may_submit_and_wait(make_paper: MakePaper) -> None:
    paper = make_paper()
    found: list[GenerationResult] = []
    has_asked: list[bool] = []

    def ask(event: Event) -> None:
        if not has_asked:
            has_asked.append(True)
            inner = paper.submit(paper.subject(), steps=2)
            paper.engine.drive([inner])
            found.append(inner.result(timeout=0))

    outer = paper.submit(steps=3, job={"on_event": ask})
    paper.engine.drive([outer])
    assert len(found) == len(outer.result(timeout=0).images) == 1


def test_queue_time_is_told(make_paper: MakePaper, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = make_paper(asked_batch=1)
    first, second = paper.submit(steps=1), paper.submit(steps=1)
    paper.engine.step()
    now = time.monotonic()
    monkeypatch.setattr("bootpig_rt.engine.job.time.monotonic", lambda: now + 2.0)
    paper.run()
    assert first.result().timings.queue_ms < 1000
    assert 1900 < second.result().timings.queue_ms < 3000


# Threads


def test_calls_from_threads_share_batches(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    start, together = pipeline._backend.start, threading.Barrier(4)

    def record(batch: Any) -> Any:
        sizes.append(batch.state.shape[1])
        return start(batch)

    found: dict[int, Image.Image] = {}

    def ask(seed: int) -> None:
        together.wait(30)
        request = Request(prompt="a", seed=seed, num_inference_steps=12)
        found[seed] = pipeline.generate([request]).images[0]

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._backend, "start", record)
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(sizes) > 1
    for seed, image in found.items():
        request = Request(prompt="a", seed=seed, num_inference_steps=12)
        assert difference(image, pipeline.generate([request]).images[0]) <= 1
    assert len(found) == 4


def test_threads_that_drive_an_engine_never_launch_at_once(make_paper: MakePaper) -> None:
    paper = make_paper(TableOptions(rows_per_launch=1))
    inside, most = [0], [0]

    def launch(what: str) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.0005)
        inside[0] -= 1

    paper.backend.hook = launch
    errors: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for number in range(6):
                subject = paper.subject(number) if number % 2 else None
                job = paper.submit(subject, steps=2, seed=seed)
                if number == 3:
                    job.cancel()
                paper.engine.drive([job])
                assert job.cancelled() == (number == 3)
                assert job.cancelled() or len(job.result(timeout=0).images) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert most == [1]
    assert (paper.engine.num_running, paper.engine.num_waiting) == (0, 0)


def test_leaving_a_stream_early_loses_no_other_threads_requests(make_paper: MakePaper) -> None:
    """Streams that are left while others go on: nobody's picture is lost, nobody spins for ever."""
    paper = make_paper(asked_batch=4)
    errors: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for count in range(8):
                jobs = [paper.submit(steps=2, seed=seed) for _ in range(4)]
                kept = jobs[:2] if count % 2 else jobs
                paper.engine.drive(kept)
                for job in jobs[len(kept) :]:
                    job.cancel()
                assert all(len(job.result(timeout=0).images) == 1 for job in kept)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def test_a_served_engine_draws_and_drains(paper: Any) -> None:
    with paper.engine.start() as engine:
        jobs = [engine.submit(paper.request(paper.subject(n), steps=3)) for n in range(5)]
        assert len(jobs[0].result(timeout=30).images) == 1
        with pytest.raises(ParameterError, match="served already"):
            engine.start()
    assert all(len(job.result(timeout=0).images) == 1 for job in jobs)
    late = paper.submit()  # after it is closed, whoever waits drives again
    paper.engine.drive([late])
    assert len(late.result(timeout=0).images) == 1


def test_who_watches_the_engine_hears_of_every_launch(make_paper: MakePaper) -> None:
    heard: list[Launch] = []
    paper = make_paper(options=EngineOptions(on_launch=heard.append))
    subject = paper.subject()
    paper.submit(subject, steps=2)
    paper.submit(steps=3, seed=2)
    paper.run()
    assert [launch.num_pictures for launch in heard] == [2, 2, 1]
    assert [launch.num_rows for launch in heard] == [5, 5, 2]  # no image branch without a subject
    assert all(launch.took_s > 0 for launch in heard)


def test_who_watches_the_engine_cannot_break_it(
    make_paper: MakePaper, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(launch: Launch) -> None:
        raise ValueError("no disk for metrics")

    paper = make_paper(options=EngineOptions(on_launch=fail))
    job = paper.submit(steps=2)
    paper.run()
    assert len(job.result().images) == 1
    assert "no disk for metrics" in caplog.text


def test_a_served_engine_outlives_a_step_that_fails_as_nobody_foresaw(
    paper: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []

    def fail(self: Loop) -> bool:
        steps.append("failed")
        raise LookupError("a fault of the engine itself")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", fail)
        with paper.engine.start():
            for count in (1, 2):  # it fails once for each, and does not spin between
                job = paper.submit()
                with pytest.raises(LookupError, match="of the engine itself"):
                    job.result(timeout=30)
                assert count <= len(steps) <= 3 * count
    assert "a step failed in a way that was not foreseen" in caplog.text
    with paper.engine.start():
        assert len(paper.submit().result(timeout=30).images) == 1


def test_a_closing_engine_takes_no_more_requests_and_draws_what_it_has(paper: Any) -> None:
    refused: list[EngineFull] = []

    def ask_while_it_closes(what: str) -> None:
        if paper.engine._loop._is_closing and not refused:
            with pytest.raises(EngineFull, match="is closing") as error:
                paper.submit()
            refused.append(error.value)
        time.sleep(0.001)

    paper.backend.hook = ask_while_it_closes
    with paper.engine.start():
        job = paper.submit(steps=50)
    assert len(job.result(timeout=0).images) == 1
    assert refused[0].retry_after_s > 0


def test_a_job_runs_from_its_first_work_to_its_end(paper: Any) -> None:
    job = paper.submit(steps=2)
    states = [job.running()]
    for _ in range(2):
        paper.engine.step()
        states.append(job.running())
    assert states == [False, True, False]


def test_an_engine_that_is_closed_at_once_cancels_what_it_has(paper: Any) -> None:
    paper.backend.hook = lambda what: time.sleep(0.001)
    engine = paper.engine.start()
    jobs = [paper.submit(steps=1000) for _ in range(3)]
    engine.close(drain=False)
    assert all(job.cancelled() for job in jobs)


def test_a_call_while_the_engine_is_served_joins_its_batches(pipeline: Pipeline) -> None:
    with pipeline.serve() as engine:
        job = engine.submit(Request(prompt="a", seed=1, num_inference_steps=3))
        result = pipeline.generate([Request(prompt="a", seed=1, num_inference_steps=3)])
        assert difference(job.result(timeout=60).images[0], result.images[0]) <= 1


def test_a_request_is_awaited(paper: Any) -> None:
    async def ask() -> GenerationResult:
        result: GenerationResult = await paper.engine.asubmit(
            paper.request(steps=2), request_id="r"
        )
        return result

    with paper.engine.start():
        assert len(asyncio.run(ask()).images) == 1


def test_a_cancelled_task_cancels_its_request(paper: Any) -> None:
    paper.backend.hook = lambda what: time.sleep(0.001)

    async def ask() -> None:
        task = asyncio.create_task(paper.engine.asubmit(paper.request(steps=1000)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with paper.engine.start() as engine:
        asyncio.run(ask())
        engine.close()
        assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_a_stream_tells_events_and_ends_with_the_result(paper: Any) -> None:
    async def ask() -> list[Event]:
        request = paper.request(paper.subject(), steps=3)
        return [event async for event in paper.engine.stream(request, preview_every=1)]

    with paper.engine.start():
        events = asyncio.run(ask())
    kinds = [type(event) for event in events]
    assert kinds == [ReferenceEvent, StepEvent, StepEvent, StepEvent, DoneEvent]
    assert all(event.previews for event in events if isinstance(event, StepEvent))


def test_leaving_a_stream_cancels_its_request(paper: Any) -> None:
    paper.backend.hook = lambda what: time.sleep(0.001)

    async def ask() -> None:
        events = paper.engine.stream(paper.request(steps=1000))
        async for _ in events:
            break
        await events.aclose()

    with paper.engine.start() as engine:
        asyncio.run(ask())
        engine.close()
    assert paper.backend.log.count("step") < 1000


def test_a_failure_comes_out_of_a_stream(paper: Any) -> None:
    def fail(what: str) -> None:
        raise MemoryError("no room")

    async def ask() -> None:
        paper.backend.hook = fail
        async for _ in paper.engine.stream(paper.request()):
            pass

    with paper.engine.start(), pytest.raises(MemoryError, match="no room"):
        asyncio.run(ask())


# Streams of requests


def test_map_reads_no_further_ahead_than_it_must(pipeline: Pipeline) -> None:
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for seed in range(1000):
            read.append(seed)
            yield Request(prompt="a", seed=seed, num_inference_steps=1)

    results = pipeline.map(requests())
    first = next(results)
    assert first.parameters[0].seed == 0
    assert len(read) <= 3 * pipeline.max_batch
    results.close()  # type: ignore[attr-defined]


def test_a_live_source_holds_up_no_picture(pipeline: Pipeline) -> None:
    more = threading.Event()

    def requests() -> Iterator[Request]:
        yield Request(prompt="a", seed=1, num_inference_steps=1)
        assert more.wait(60), "the first picture was held back"
        yield Request(prompt="a", seed=2, num_inference_steps=1)

    results = pipeline.map(requests())
    assert next(results).parameters[0].seed == 1
    more.set()
    assert next(results).parameters[0].seed == 2


def test_a_stream_waits_for_its_place_in_a_full_queue(tiny_pair_folder: Path) -> None:
    with Pipeline(tiny_pair_folder, backend="torch", device="cpu", max_batch=1) as crowded:
        crowded.engine.options = EngineOptions(max_waiting=1)
        crowded.engine.submit(Request(prompt="other", seed=9, num_inference_steps=2))
        requests = [Request(prompt="a", seed=seed, num_inference_steps=1) for seed in range(3)]
        with crowded.serve():
            results = list(crowded.map(requests))
    assert [result.parameters[0].seed for result in results] == [0, 1, 2]


def test_a_stream_that_nobody_makes_room_for_is_refused_and_does_not_hang(
    tiny_pair_folder: Path, pipeline: Pipeline
) -> None:
    with pipeline_over(pipeline, tiny_pair_folder, max_batch=1) as crowded:
        crowded.engine.options = EngineOptions(max_waiting=1)
        crowded.engine.submit(Request(prompt="other", seed=9, num_inference_steps=2))
        with pytest.raises(EngineFull):
            next(crowded.map([Request(prompt="a", seed=1)]))


def test_what_a_source_raises_comes_after_the_results_before_it(pipeline: Pipeline) -> None:
    def requests() -> Iterator[Request]:
        yield Request(prompt="a", seed=1, num_inference_steps=1)
        raise ConnectionError("the queue is gone")

    results = pipeline.map(requests())
    assert len(next(results).images) == 1
    with pytest.raises(ConnectionError, match="the queue is gone"):
        next(results)


def test_map_raises_what_a_request_failed_with_after_those_before_it(
    pipeline: Pipeline,
) -> None:
    nan = np.full((1, 4, 8, 8), np.nan, np.float32)
    broken = Subject(None, nan, "a", 0, pipeline.spec.fingerprint)
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    for bad, error in ((broken, NumericalError), (stranger, SubjectMismatch)):
        requests = [
            Request(prompt="a", subject=one, seed=1, num_inference_steps=1)
            for one in (None, bad, None)
        ]
        results = pipeline.map(requests)
        assert len(next(results).images) == 1
        with pytest.raises(error):
            next(results)


def test_map_gives_errors_out_in_their_places(pipeline: Pipeline) -> None:
    nan = np.full((1, 4, 8, 8), np.nan, np.float32)
    broken = Subject(None, nan, "a", 0, pipeline.spec.fingerprint)
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    requests = [
        Request(prompt="a", subject=one, seed=1, num_inference_steps=1)
        for one in (None, broken, stranger, None)
    ]
    results = list(pipeline.map(requests, on_error="return"))
    kinds = [GenerationResult, NumericalError, SubjectMismatch, GenerationResult]
    assert [type(result) for result in results] == kinds


def test_map_refuses_an_unknown_way_with_errors(pipeline: Pipeline) -> None:
    way: Any = "ignore"
    with pytest.raises(ParameterError, match="on_error is 'ignore', expected one of"):
        pipeline.map([], on_error=way)


def test_requests_that_are_refused_do_not_make_a_stream_run_ahead(paper: Any) -> None:
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    is_ahead = threading.Event()

    def requests() -> Iterator[Request]:
        for number in range(1000):
            if number == paper.engine.max_batch:
                is_ahead.set()
            yield paper.request(stranger)

    stream = Stream(paper.engine, requests())
    with contextlib.closing(stream):
        assert isinstance(next(iter(stream)).exception(0), SubjectMismatch)
        assert not is_ahead.wait(0.3)
        readers = [one for one in threading.enumerate() if one.name == "bootpig-map"]
        assert readers != []
        assert all(one.daemon for one in readers)  # a source that gives nothing keeps no process


@pytest.mark.parametrize("is_served", [False, True])
def test_a_stream_that_meets_a_full_queue_goes_on_when_there_is_room(
    make_paper: MakePaper, is_served: bool
) -> None:
    """Its own pictures make room where nobody serves the engine; else any may."""
    paper = make_paper(options=EngineOptions(max_waiting=1), asked_batch=2 - is_served)
    submit, is_full, go_on = paper.engine.submit, threading.Event(), threading.Event()

    def note(request: Request) -> Job:
        try:
            job: Job = submit(request)
        except EngineFull:
            is_full.set()
            raise
        return job

    if is_served:  # a stranger runs and another one waits
        begun = threading.Event()

        def wait_for_room(what: str) -> None:
            begun.set()
            go_on.wait(30)

        paper.backend.hook = wait_for_room
        paper.engine.start()
        paper.submit()
        assert begun.wait(30)
        paper.submit()
    paper.engine.submit = note
    stream = Stream(paper.engine, [paper.request(steps=2, seed=seed) for seed in range(4)])
    assert is_full.wait(30)
    go_on.set()
    drawn = []
    for job in stream:
        paper.engine.drive([job])
        drawn.append(job.result(0).parameters[0].seed)
    paper.engine.close()
    assert drawn == [0, 1, 2, 3]


def test_a_stream_that_is_refused_while_its_last_picture_is_drawn_asks_again(
    make_paper: MakePaper,
) -> None:
    paper = make_paper(options=EngineOptions(max_waiting=1), asked_batch=2)
    submit, is_made, asked = paper.engine.submit, threading.Event(), []

    def refuse_late(request: Request) -> Job:
        asked.append(request)
        if len(asked) == 2:
            assert is_made.wait(30)
            deadline = time.monotonic() + 30
            while stream._jobs and time.monotonic() < deadline:  # drawn and read meanwhile
                time.sleep(0.001)
            raise EngineFull("no place to wait is free", 0.05)
        job: Job = submit(request)
        return job

    paper.engine.submit = refuse_late
    stream = Stream(paper.engine, [paper.request(steps=2, seed=seed) for seed in range(3)])
    is_made.set()
    drawn = []
    for job in stream:
        paper.engine.drive([job])
        drawn.append(job.result(0).parameters[0].seed)
    assert drawn == [0, 1, 2]


@pytest.mark.slow
def test_pictures_that_are_drawn_again_take_no_more_memory(
    each_pipeline: Pipeline, red: Image.Image, blue: Image.Image, green: Image.Image
) -> None:
    """Soak: bytes that Python and the process hold, after 500 pictures and after them once more.

    The first time each shape among them has a model of OpenVINO compiled, which stays.
    """
    pipeline = each_pipeline
    subjects = encoded(pipeline, red, blue, green)

    def draw(count: int) -> int:
        for _ in pipeline.map(request for request in mix(3, count, subjects)):
            pass
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = draw(500)
        held = resident_bytes()
        after = draw(500)
    finally:
        tracemalloc.stop()
    assert after - before < 500 << 10
    if held:
        assert resident_bytes() - held < 64 << 20  # the kernels' own buffers, not the pictures


def resident_bytes() -> int:
    """Memory of this process as the system counts it; 0 where it does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    words = status.read_text().split()
    return int(words[words.index("VmRSS:") + 1]) << 10
