"""Continuous batching: the same picture whoever shares the batch, and nobody waits for ever."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.errors import Cancelled, NumericalError, ParameterError, SubjectMismatch
from bootpig_rt.pipeline import Pipeline, Request
from bootpig_rt.scheduler import Scheduler, Ticket
from bootpig_rt.subject import Subject

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
    budget = max(need[1] for need in sizes if need is not None)
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
