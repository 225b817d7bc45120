"""Continuous batching: the same picture whoever shares the batch, and nobody waits for ever."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.base import DenoiseBatch, PairSpec, ReferencePass
from bootpig_rt.backends.host_table import pack_table
from bootpig_rt.engine.batch import TextStates
from bootpig_rt.engine.planner import Planner, params_for_pair
from bootpig_rt.engine.scheduler import Scheduler, Ticket
from bootpig_rt.errors import Cancelled, NumericalError, ParameterError, SubjectMismatch
from bootpig_rt.pipeline import Pipeline, Request
from bootpig_rt.reference.reference_pass import TableOptions
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import GenerationResult, SamplingParams
from bootpig_rt.storage.store import SubjectStore

SCHEDULES = ("exact", "clean", "anchor:300", "stride:2", "window:0.2-0.8", "stride:2+window:0-0.5")


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.fixture(scope="module")
def subjects(
    pipeline: Pipeline, red: Image.Image, blue: Image.Image, green: Image.Image
) -> list[Subject | None]:
    return encoded(pipeline, red, blue, green)


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


def mix(seed: int, count: int, subjects: list[Subject | None]) -> list[Request]:
    """Requests of strangers: everything that may differ does."""
    draw = random.Random(seed)
    return [
        Request(
            prompt=draw.choice(("a dog, on a beach", "a cat, in snow", "a toy")),
            subject=draw.choice(subjects),
            negative_prompt=draw.choice(("", "fog")),
            image_guidance_scale=draw.choice((None, 1.0, 2.5)),
            text_guidance_scale=draw.choice((None, 1.0, 0.0)),
            num_images=draw.choice((1, 1, 2)),
            seed=draw.randrange(100),
            num_inference_steps=draw.choice((2, 3, 4, 5)),
            solver=draw.choice(("ddim", "dpmpp_2m", "unipc")),
            reference_schedule=draw.choice(SCHEDULES),
            guidance_interval=draw.choice(((0.0, 1.0), (0.3, 1.0), (0.0, 0.5))),
            tenant=draw.choice(("", "a", "b")),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def each_pipeline(
    request: pytest.FixtureRequest, tiny_pair_folder: Path, tiny_bundle_folder: Path
) -> Pipeline:
    """One pipeline for each backend that runs here."""
    folder = tiny_pair_folder if request.param == "torch" else tiny_bundle_folder
    return Pipeline(folder, backend=request.param, device="cpu", max_batch=4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("merge", ["argmax", "concat"])
def test_a_random_mix_draws_what_each_request_draws_alone(
    each_pipeline: Pipeline,
    red: Image.Image,
    blue: Image.Image,
    green: Image.Image,
    seed: int,
    merge: str,
) -> None:
    pipeline = each_pipeline
    subjects = encoded(pipeline, red, blue, green)
    requests = mix(seed, 7, subjects)
    params = pipeline.sampling_params(merge=merge)
    together = pipeline.generate(requests, params)
    streamed = list(pipeline.map(requests, params))
    flat = [image for result in streamed for image in result.images]
    parameters = [one for result in streamed for one in result.parameters]
    assert parameters == together.parameters
    alone = [pipeline.generate([request], params) for request in requests]
    expected = [image for result in alone for image in result.images]
    assert len(flat) == len(together.images) == len(expected)
    for one, other, image in zip(flat, together.images, expected, strict=True):
        assert difference(one, image) <= 1
        assert difference(other, image) <= 1


def test_a_request_that_joins_on_the_way_draws_what_it_draws_alone(
    pipeline: Pipeline, subjects: list[Subject | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    start = pipeline._backend.start

    def record(batch: DenoiseBatch, state: np.ndarray) -> Any:
        sizes.append(state.shape[1])
        return start(batch, state)

    monkeypatch.setattr(pipeline._backend, "start", record)
    scheduler = pipeline.scheduler()
    params = pipeline.sampling_params(num_inference_steps=6, reference_schedule="exact")
    requests = [Request(prompt="a dog", subject=subjects[0], seed=seed) for seed in range(3)]
    tickets: list[Ticket] = []
    for request in requests:  # two steps apart: one subject at three steps of its table
        tickets.append(scheduler.submit(request, params))
        scheduler.step()
        scheduler.step()
    scheduler.run()
    assert sizes == [1, 2, 3, 2, 1]
    monkeypatch.undo()
    for ticket, request in zip(tickets, requests, strict=True):
        alone = pipeline.generate([request], params).images[0]
        assert difference(ticket.result().images[0], alone) <= 1
    assert sum(ticket.result().reference_passes for ticket in tickets) in (0, 6)


def test_tenants_take_turns(pipeline: Pipeline) -> None:
    scheduler = Scheduler(pipeline._planner, pipeline._texts, max_batch=1)
    params = pipeline.sampling_params(num_inference_steps=1)
    order: list[str] = []
    tickets = [
        scheduler.submit(
            Request(prompt="a dog", subject=None, seed=1, tenant=tenant, num_images=count), params
        )
        for tenant, count in (("greedy", 4), ("modest", 1), ("shy", 1))
    ]
    while scheduler.step():
        for ticket in tickets:
            if ticket.is_done and ticket.request.tenant not in order:
                order.append(ticket.request.tenant)
    assert order == ["modest", "shy", "greedy"]


def test_sizes_that_cannot_share_a_launch_alternate(pipeline: Pipeline) -> None:
    scheduler = Scheduler(pipeline._planner, pipeline._texts, max_batch=4)
    request = Request(prompt="a dog", subject=None, seed=1)
    long = scheduler.submit(request, pipeline.sampling_params(num_inference_steps=30))
    short = scheduler.submit(request, pipeline.sampling_params(num_inference_steps=2, width=40))
    for _ in range(5):
        scheduler.step()
    assert short.is_done
    assert not long.is_done
    scheduler.run()
    assert short.result().images[0].size == (40, 32)


def test_memory_limits_who_runs_and_nobody_starves(
    tiny_pair_folder: Any, subjects: list[Subject | None]
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend="torch", device="cpu", table_budget_bytes=1 << 30)
    params = pipeline.sampling_params(num_inference_steps=2, reference_schedule="exact")
    small, large = (Request(prompt="a", subject=s, seed=1) for s in (subjects[0], subjects[2]))
    sizes = [pipeline._planner.needs(one, params) for one in (small, large)]
    budget = max(need.device_bytes for need in sizes if need is not None)
    tight = Pipeline(tiny_pair_folder, backend="torch", device="cpu", table_budget_bytes=budget)
    scheduler = tight.scheduler()
    first = scheduler.submit(Request(prompt="a", subject=subjects[0], seed=1, tenant="s"), params)
    big = scheduler.submit(Request(prompt="a", subject=subjects[2], seed=1, tenant="b"), params)
    done_before = 0
    for seed in range(100):  # small ones come without end
        scheduler.submit(Request(prompt="a", subject=subjects[0], seed=seed, tenant="s"), params)
        scheduler.step()
        if big.is_done:
            break
        done_before += 1
    assert first.is_done
    assert big.is_done
    assert done_before < 40


def test_a_request_that_never_fits_is_refused_when_it_comes(
    tiny_pair_folder: Any, subjects: list[Subject | None]
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend="torch", device="cpu", table_budget_bytes=1000)
    scheduler = pipeline.scheduler()
    with pytest.raises(ParameterError, match=r"the budget for tables is 1000: 0 would fit"):
        scheduler.submit(
            Request(prompt="a", subject=subjects[0], seed=1), pipeline.sampling_params()
        )
    assert scheduler.step() is False


def test_a_full_queue_says_how_many_would_fit(pipeline: Pipeline) -> None:
    scheduler = Scheduler(pipeline._planner, pipeline._texts, max_waiting=3)
    params = pipeline.sampling_params(num_inference_steps=1)
    scheduler.submit(Request(prompt="a", subject=None, seed=1, num_images=2), params)
    with pytest.raises(ParameterError, match=r"2 pictures, but 1 of 3 places .* 1 would fit now"):
        scheduler.submit(Request(prompt="a", subject=None, seed=1, num_images=2), params)
    scheduler.run()


def test_a_subject_of_another_pair_is_refused_when_it_comes(pipeline: Pipeline) -> None:
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    with pytest.raises(SubjectMismatch):
        pipeline.scheduler().submit(
            Request(prompt="a", subject=stranger, seed=1), pipeline.sampling_params()
        )


def test_a_cancelled_request_leaves_and_the_others_go_on(pipeline: Pipeline) -> None:
    scheduler = pipeline.scheduler()
    params = pipeline.sampling_params(num_inference_steps=4)
    requests = [Request(prompt="a", subject=None, seed=seed) for seed in (1, 2)]
    leaves, stays = (scheduler.submit(request, params) for request in requests)
    scheduler.step()
    leaves.cancel()
    leaves.cancel()
    scheduler.run()
    with pytest.raises(Cancelled):
        leaves.result()
    alone = pipeline.generate([requests[1]], params).images[0]
    assert difference(stays.result().images[0], alone) <= 1
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_nan_fails_the_request_that_has_it_alone(
    pipeline: Pipeline, subjects: list[Subject | None]
) -> None:
    scheduler = pipeline.scheduler()
    params = pipeline.sampling_params(num_inference_steps=2)
    broken = Subject(
        None, np.full((1, 4, 8, 8), np.nan, np.float32), "a", 0, pipeline.spec.fingerprint
    )
    bad = scheduler.submit(Request(prompt="a", subject=broken, seed=1), params)
    good = scheduler.submit(Request(prompt="a", subject=subjects[0], seed=1), params)
    scheduler.run()
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        bad.result()
    assert len(good.result().images) == 1


def test_a_launch_that_fails_fails_its_pictures_and_the_scheduler_works_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = pipeline.scheduler()
    params = pipeline.sampling_params(num_inference_steps=2)
    request = Request(prompt="a", subject=None, seed=1)
    with monkeypatch.context() as patch:

        def out_of_memory(batch: DenoiseBatch, state: np.ndarray) -> Any:
            raise MemoryError("CUDA out of memory")

        patch.setattr(pipeline._backend, "start", out_of_memory)
        lost = scheduler.submit(request, params)
        scheduler.run()
    with pytest.raises(MemoryError):
        lost.result()
    kept = scheduler.submit(request, params)
    scheduler.run()
    assert difference(kept.result().images[0], pipeline.generate([request], params).images[0]) <= 1


def test_requests_may_come_from_other_threads_while_one_steps(pipeline: Pipeline) -> None:
    scheduler = pipeline.scheduler()
    params = pipeline.sampling_params(num_inference_steps=3)
    ended = threading.Event()
    found: dict[int, Image.Image] = {}

    def ask(seed: int) -> None:
        ticket = scheduler.submit(Request(prompt="a", subject=None, seed=seed), params)
        found[seed] = ticket.result(timeout_s=60).images[0]

    def work() -> None:
        while not ended.is_set():
            if not scheduler.step():
                ended.wait(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    ended.set()
    worker.join()
    for seed, image in found.items():
        request = Request(prompt="a", subject=None, seed=seed)
        assert difference(image, pipeline.generate([request], params).images[0]) <= 1
    assert len(found) == 6


def test_map_reads_no_further_ahead_than_it_must(pipeline: Pipeline) -> None:
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for seed in range(1000):
            read.append(seed)
            yield Request(prompt="a", subject=None, seed=seed)

    results = pipeline.map(requests(), pipeline.sampling_params(num_inference_steps=1))
    first = next(results)
    assert first.parameters[0].seed == 0
    assert len(read) <= 3 * pipeline.max_batch
    results.close()  # type: ignore[attr-defined]


def test_map_raises_what_a_request_failed_with_after_those_before_it(
    pipeline: Pipeline, subjects: list[Subject | None]
) -> None:
    broken = Subject(
        None, np.full((1, 4, 8, 8), np.nan, np.float32), "a", 0, pipeline.spec.fingerprint
    )
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    for bad, error in ((broken, NumericalError), (stranger, SubjectMismatch)):
        requests = [Request(prompt="a", subject=s, seed=1) for s in (None, bad, None)]
        results = pipeline.map(requests, pipeline.sampling_params(num_inference_steps=1))
        assert len(next(results).images) == 1
        with pytest.raises(error):
            next(results)


def test_a_result_that_is_not_there_yet_times_out(pipeline: Pipeline) -> None:
    ticket = pipeline.scheduler().submit(
        Request(prompt="a", subject=None, seed=1), pipeline.sampling_params()
    )
    with pytest.raises(TimeoutError, match=r"not done after 0\.01 s"):
        ticket.result(timeout_s=0.01)


class PaperBackend:
    """Computes nothing, at once, and notes what it is asked for. `hook` is told ahead of it."""

    name, device = "paper", "cpu"

    def __init__(self, spec: PairSpec) -> None:
        self.spec = spec
        self.log: list[str] = []
        self.sizes: list[int] = []
        self.num_texts: list[int] = []
        self.hook: Callable[[str], object] = lambda what: None

    def note(self, what: str) -> None:
        self.log.append(what)
        self.hook(what)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        self.num_texts.append(len(ids))
        return np.zeros((len(ids), 2, 2), np.float32)

    def download_states(self, states: np.ndarray) -> np.ndarray:
        return states

    def reference_kv(
        self,
        latents: np.ndarray,
        timesteps: np.ndarray,
        states: np.ndarray,
        *,
        dtype: str,
        rows_per_launch: int,
        progress: Callable[[int, int], object],
    ) -> ReferencePass:
        total = latents.shape[0] * latents.shape[1]
        for start in range(0, total, rows_per_launch):
            self.note("pass")
            progress(min(start + rows_per_launch, total), total)
        return ReferencePass(object(), 0, total)

    def download_table(self, data: object) -> Any:
        raise NotImplementedError

    def start(self, batch: DenoiseBatch, state: np.ndarray) -> PaperBackend:
        self.note("start")
        self.sizes.append(state.shape[1])
        run = PaperBackend(self.spec)
        run.array, run.note = state, self.note  # type: ignore[attr-defined,method-assign]
        return run

    def step(self, index: int) -> None:
        self.note("step")

    def state(self) -> np.ndarray:
        array: np.ndarray = self.array  # type: ignore[attr-defined]
        return array

    def decode(self, latents: np.ndarray) -> np.ndarray:
        self.note("decode")
        return np.zeros((len(latents), 3, 8, 8), np.float32)


class Paper:
    """A scheduler over a `PaperBackend`."""

    def __init__(
        self, pipeline: Pipeline, options: TableOptions | None = None, **limits: Any
    ) -> None:
        max_batch = limits.pop("asked_batch", 8)
        self.backend = PaperBackend(replace(pipeline.spec, **limits))
        backend: Any = self.backend
        options = TableOptions() if options is None else options
        tokenizer = pipeline._tokenizer
        store = SubjectStore()
        self.planner = Planner(backend, tokenizer=tokenizer, store=store, options=options)
        texts = TextStates(backend, tokenizer)
        self.scheduler = Scheduler(self.planner, texts, max_batch=max_batch)

    def params(self, steps: int = 4, **given: Any) -> SamplingParams:
        names = ("solver", "merge", "reference_schedule", "width_px", "height_px")
        return params_for_pair(
            self.backend.spec,
            **{**dict.fromkeys(names), "num_inference_steps": steps, **given},
        )

    def subject(self, number: int = 0, references: int = 1) -> Subject:
        latents = np.full((references, 4, 8, 8), number, np.float32)
        return Subject(None, latents, "a dog", 0, self.backend.spec.fingerprint)

    def submit(self, subject: Subject | None = None, steps: int = 4, **request: Any) -> Ticket:
        values = {"prompt": "a", "seed": 1, **request}
        return self.scheduler.submit(Request(subject=subject, **values), self.params(steps))


def test_streamed_pictures_at_different_steps_each_count_what_they_hold(
    pipeline: Pipeline,
) -> None:
    free = Paper(pipeline)
    plan = free.planner.needs(Request(prompt="a", subject=free.subject(), seed=1), free.params(8))
    assert plan is not None
    entry = plan.device_bytes // 8
    window = 2 * entry  # the one that is read, and the one that is copied
    paper = Paper(pipeline, TableOptions(budget_bytes=window + entry))
    paper.backend.download_table = lambda data: pack_table(  # type: ignore[method-assign]
        [(np.zeros((1, 1, 1, 1, 1), np.float32),) * 2], "float32"
    )
    paper.backend.upload_table = lambda table, is_resident: table  # type: ignore[attr-defined]
    for _ in range(2):
        paper.submit(paper.subject(), steps=8)
    paper.scheduler.step()
    assert paper.scheduler.num_running == 2  # in step with each other: one window
    late = paper.submit(paper.subject(), steps=8)
    paper.scheduler.step()
    assert (paper.scheduler.num_running, paper.scheduler.num_waiting) == (2, 1)
    paper.scheduler.run()
    assert len(late.result().images) == 1


def test_a_launch_holds_no_more_pictures_than_the_backend_takes(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, max_batch=2)
    ticket = paper.submit(num_images=5)
    paper.scheduler.run()
    assert len(ticket.result().images) == 5
    assert max(paper.backend.sizes) == 2


def test_what_the_backend_cannot_take_is_refused_when_it_comes(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, max_steps=6, max_references=1)
    with pytest.raises(ParameterError, match=r"number of steps is 7, expected 1..6, .*--steps 7"):
        paper.submit(num_inference_steps=7)
    with pytest.raises(ParameterError, match=r"number of references is 2, expected 1, "):
        paper.submit(paper.subject(references=2))
    assert paper.scheduler.num_waiting == 0
    assert paper.backend.log == []


@pytest.mark.parametrize("where", ["pass", "start", "step", "decode"])
def test_an_interrupt_leaves_nobody_waiting_for_ever(pipeline: Pipeline, where: str) -> None:
    paper = Paper(pipeline, asked_batch=1)
    first = paper.submit(paper.subject(0))
    second = paper.submit(paper.subject(1))

    def interrupt(what: str) -> None:
        if what == where:
            paper.backend.hook = lambda what: None
            raise KeyboardInterrupt

    paper.backend.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        paper.scheduler.run()
    with pytest.raises(Cancelled, match="was interrupted"):
        first.result(timeout_s=0)
    paper.scheduler.run()
    assert len(second.result(timeout_s=0).images) == 1
    assert (paper.scheduler.num_running, paper.scheduler.num_waiting) == (0, 0)


def test_an_interrupt_between_two_launches_of_a_pass_loses_both(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, TableOptions(rows_per_launch=1))
    running = paper.submit(steps=50)
    paper.scheduler.step()
    starting = paper.submit(paper.subject())

    def interrupt(what: str) -> None:
        if what == "step" and "pass" in paper.backend.log:
            raise KeyboardInterrupt

    paper.backend.hook = interrupt
    with pytest.raises(KeyboardInterrupt):
        paper.scheduler.step()
    for ticket in (running, starting):
        with pytest.raises(Cancelled, match="was interrupted"):
            ticket.result(timeout_s=0)
    assert paper.scheduler.step() is False


def test_patience_counts_steps_and_not_pictures(pipeline: Pipeline) -> None:
    free = Paper(pipeline)
    plan = free.planner.needs(Request(prompt="a", subject=free.subject(), seed=1), free.params())
    assert plan is not None
    paper = Paper(pipeline, TableOptions(budget_bytes=3 * plan.device_bytes), asked_batch=32)
    paper.submit(paper.subject(), tenant="first")
    paper.scheduler.step()
    paper.submit(paper.subject(1, references=3), tenant="large")
    for number in range(20):
        paper.submit(tenant=f"small {number}")
    paper.scheduler.step()
    assert (paper.scheduler.num_running, paper.scheduler.num_waiting) == (21, 1)


@pytest.mark.parametrize(("joins_tables", "together"), [(False, 2), (True, 1)])
def test_tables_that_a_launch_copies_side_by_side_count_twice(
    pipeline: Pipeline, joins_tables: bool, together: int
) -> None:
    free = Paper(pipeline)
    plan = free.planner.needs(Request(prompt="a", subject=free.subject(), seed=1), free.params())
    assert plan is not None
    options = TableOptions(budget_bytes=3 * plan.device_bytes)
    paper = Paper(pipeline, options, joins_tables=joins_tables)
    same = [paper.submit(paper.subject()) for _ in range(2)]
    paper.scheduler.step()
    assert paper.scheduler.num_running == 2  # of one table there is no copy
    paper.scheduler.run()
    tickets = [*same, *(paper.submit(paper.subject(number)) for number in range(2))]
    paper.scheduler.step()
    assert paper.scheduler.num_running == together
    paper.scheduler.run()
    assert all(len(ticket.result().images) == 1 for ticket in tickets)
    pictures = [ticket.request for ticket in tickets[2:]]
    batches = paper.planner.batches(pictures, paper.params(), max_batch=8)
    assert [len(batch) for batch in batches] == ([2] if together == 2 else [1, 1])


def test_cancelling_in_a_pass_ends_the_pass(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, TableOptions(rows_per_launch=1))
    ticket = paper.submit(paper.subject(), steps=8)
    behind = paper.submit(paper.subject(1), steps=2)
    paper.backend.hook = lambda what: ticket.cancel() if len(paper.backend.log) == 3 else None
    paper.scheduler.step()
    assert paper.backend.log[:3] == ["pass"] * 3
    assert paper.backend.log.count("pass") == 3 + 2
    paper.scheduler.run()
    with pytest.raises(Cancelled):
        ticket.result()
    assert len(behind.result().images) == 1


def test_running_pictures_make_a_step_after_each_launch_of_a_pass(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, TableOptions(rows_per_launch=2))
    short = paper.submit(steps=3)
    paper.scheduler.step()
    paper.backend.log.clear()
    paper.submit(paper.subject(), steps=8)
    paper.scheduler.step()
    expected = ["pass", "step", "pass", "step", "decode", "pass", "pass", "start", "step"]
    assert paper.backend.log == expected
    assert short.is_done


def test_a_pass_among_steps_gives_the_pictures_of_each_alone(
    pipeline: Pipeline, tiny_pair_folder: Path, subjects: list[Subject | None]
) -> None:
    slow = Pipeline(tiny_pair_folder, backend="torch", device="cpu", reference_rows=1)
    params = slow.sampling_params(num_inference_steps=3, reference_schedule="exact")
    requests = [Request(prompt="a dog", subject=one, seed=1) for one in subjects[:2]]
    scheduler = slow.scheduler()
    first = scheduler.submit(requests[0], params)
    scheduler.step()
    second = scheduler.submit(requests[1], params)
    scheduler.run()
    for ticket, request in zip((first, second), requests, strict=True):
        alone = pipeline.generate([request], params).images[0]
        assert difference(ticket.result().images[0], alone) <= 1


def test_a_join_encodes_the_prompts_that_are_new(pipeline: Pipeline) -> None:
    paper = Paper(pipeline)
    for prompt in ("a dog", "a cat", "a dog"):
        paper.submit(prompt=prompt)
        paper.scheduler.step()
    paper.scheduler.run()
    assert paper.backend.num_texts == [2, 1]  # "a dog" and "", then "a cat"


def test_a_flood_of_one_tenant_holds_up_no_other(pipeline: Pipeline) -> None:
    paper = Paper(pipeline, asked_batch=4)
    flood = [paper.submit(tenant="flood", num_images=64) for _ in range(4)]
    for _ in range(5):
        paper.scheduler.step()
    modest = [paper.submit(paper.subject(n), tenant="modest") for n in range(3)]
    launches = 0
    while not all(ticket.is_done for ticket in modest):
        paper.scheduler.step()
        launches += 1
    # A place is free after 4 steps at most, half of the places then are theirs, and each takes 4.
    assert launches <= 3 * 4
    assert not any(ticket.is_done for ticket in flood)


def test_map_gives_errors_out_in_their_places(
    pipeline: Pipeline, subjects: list[Subject | None]
) -> None:
    broken = Subject(
        None, np.full((1, 4, 8, 8), np.nan, np.float32), "a", 0, pipeline.spec.fingerprint
    )
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    requests = [Request(prompt="a", subject=s, seed=1) for s in (None, broken, stranger, None)]
    params = pipeline.sampling_params(num_inference_steps=1)
    results = list(pipeline.map(requests, params, on_error="return"))
    kinds = [GenerationResult, NumericalError, SubjectMismatch, GenerationResult]
    assert [type(result) for result in results] == kinds


def test_map_refuses_an_unknown_way_with_errors(pipeline: Pipeline) -> None:
    way: Any = "ignore"
    with pytest.raises(ParameterError, match="on_error is 'ignore', expected one of"):
        pipeline.map([], on_error=way)


def test_map_reads_no_further_for_requests_that_are_refused(pipeline: Pipeline) -> None:
    stranger = Subject(None, np.zeros((1, 4, 8, 8), np.float32), "a dog", 0, "another")
    read = Counter[str]()

    def requests() -> Iterator[Request]:
        while read["requests"] < 1000:
            read["requests"] += 1
            yield Request(prompt="a", subject=stranger, seed=1)

    with pytest.raises(SubjectMismatch):
        next(pipeline.map(requests()))
    assert read["requests"] == 1


@pytest.mark.slow
def test_a_thousand_pictures_take_no_more_memory_than_a_few(
    each_pipeline: Pipeline, red: Image.Image, blue: Image.Image, green: Image.Image
) -> None:
    """Soak: bytes that Python and the process hold, before and after a thousand pictures."""
    pipeline = each_pipeline
    subjects = encoded(pipeline, red, blue, green)
    params = pipeline.sampling_params(num_inference_steps=1)

    def draw(count: int) -> int:
        requests = (request for request in mix(3, count, subjects))
        for _ in pipeline.map(requests, params):
            pass
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = draw(200)
        held = resident_bytes()
        after = draw(1000)
    finally:
        tracemalloc.stop()
    assert after - before < 1 << 20
    if held:
        assert resident_bytes() - held < 64 << 20  # the kernels' own buffers, not the pictures


def resident_bytes() -> int:
    """Memory of this process as the system counts it; 0 where it does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    words = status.read_text().split()
    return int(words[words.index("VmRSS:") + 1]) << 10
