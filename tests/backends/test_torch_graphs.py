"""Recordings of the torch backend on a CPU: the same buffers and copies as on CUDA."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch.graphs import Kept, Lane, RecordedFunction
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request

PROMPT = "a photo of a dog, on a beach"


def pipeline_of(folder: Path, tables: TableOptions | None = None, **options: Any) -> Pipeline:
    settings = TorchOptions(cuda_graph=True, **options)
    return Pipeline(folder, backend=settings, device="cpu", tables=tables)


@pytest.fixture(scope="module")
def recorded(tiny_pair_folder: Path) -> Pipeline:
    """Shared; keeps enough recordings for all of these tests."""
    return pipeline_of(tiny_pair_folder, graphs_kept=64)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def slots(pipeline: Pipeline) -> list[Any]:
    backend: Any = pipeline._backend
    return list(backend._slots._kept.values())


def states_of(pipeline: Pipeline, request: Request, **manner: Any) -> Any:
    """What the runs of a request left, bit for bit."""
    backend: Any = pipeline._backend
    start, runs = backend.start, []

    def keep(batch: Any, state: Any = None) -> Any:
        runs.append(start(batch, state))
        return runs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "start", keep)
        pipeline.generate([replace(request, **{"num_inference_steps": 3, **manner})])
    return np.concatenate([run.state().ravel() for run in runs])


@pytest.mark.parametrize("merge", get_args(Merge))
def test_recorded_steps_equal_plain_ones_bit_for_bit(
    recorded: Pipeline, pipeline: Pipeline, dog: Any, cat: Any, merge: Merge
) -> None:
    for subject, solver in ((dog, "ddim"), (cat, "unipc"), (dog, "dpmpp_2m"), (None, "unipc")):
        request = Request(prompt=PROMPT, subject=subject, seed=3, num_images_per_prompt=2)
        manner = {"merge": merge, "solver": solver}
        found, expected = (states_of(one, request, **manner) for one in (recorded, pipeline))
        np.testing.assert_array_equal(found, expected)


def test_guidance_and_windows_that_end_a_run_go_through_recordings(
    recorded: Pipeline, pipeline: Pipeline, dog: Any
) -> None:
    request = Request(prompt=PROMPT, subject=dog, seed=3, guidance_interval=(0.25, 0.75))
    manner: dict[str, Any] = {"num_inference_steps": 8, "reference_schedule": "window:0-0.5"}
    found, expected = (states_of(one, request, **manner) for one in (recorded, pipeline))
    np.testing.assert_array_equal(found, expected)


def test_the_backend_computes_rows_of_a_picture_once_until_they_meet_their_text(
    recorded: Pipeline, dog: Any, request: pytest.FixtureRequest
) -> None:
    backend: Any = recorded._backend
    block = backend.pair.base.unet.down_blocks[0]
    attention = block.attentions[0].transformer_blocks[0]
    seen: dict[str, int] = {}
    for name, module in (
        ("residual block", block.resnets[0]),
        ("first self-attention", attention.attn1.to_out[0]),
        ("text", attention.attn2.to_out[0]),
    ):
        handle = module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: len(output)})
        )
        request.addfinalizer(handle.remove)
    recorded(PROMPT, subject=dog, seed=1, num_images_per_prompt=2)
    assert seen == {"residual block": 2, "first self-attention": 4, "text": 6}


def test_a_second_request_of_a_shape_records_nothing_and_reads_the_same_memory(
    tiny_pair_folder: Path, red: Image.Image, blue: Image.Image
) -> None:
    recorded = pipeline_of(tiny_pair_folder)
    backend: Any = recorded._backend
    clean: dict[str, Any] = {"reference_schedule": "clean"}  # one entry, whatever the steps
    recorded(PROMPT, reference_images=red, seed=0, num_inference_steps=3, **clean)
    count = backend.num_recordings
    assert count == 6  # encoder, one prompt, reference pass, two prompts, step, decoder
    (slot,) = slots(recorded)
    addresses = _addresses(slot)
    recorded("a photo of a cat", reference_images=blue, seed=1, num_inference_steps=5, **clean)
    assert backend.num_recordings == count
    assert slots(recorded)[0] is slot
    assert _addresses(slot) == addresses


def _addresses(slot: Any) -> list[int]:
    tensors = [*vars(slot.tensors).values()]
    tensors += [part for layer in slot.table or () for part in layer]
    return [tensor.data_ptr() for tensor in tensors]


def test_many_requests_take_no_more_memory(tiny_pair_folder: Path, red: Image.Image) -> None:
    recorded = pipeline_of(tiny_pair_folder)
    backend: Any = recorded._backend
    subject = recorded.encode_subject(red, "a photo of a dog")
    recorded(PROMPT, subject=subject, seed=0)
    before = _addresses(slots(recorded)[0])
    count = backend.num_recordings
    for seed in range(5):
        recorded(PROMPT, subject=subject, seed=seed)
    assert backend.num_recordings == count
    assert _addresses(slots(recorded)[0]) == before


def test_few_recordings_are_kept(tiny_pair_folder: Path, dog: Any) -> None:
    recorded = pipeline_of(tiny_pair_folder, graphs_kept=2)
    for count in (1, 2, 3):
        recorded(PROMPT, subject=dog, seed=0, num_images_per_prompt=count)
    assert len(slots(recorded)) == 2


def test_runs_of_one_shape_take_turns_in_one_recording(
    recorded: Pipeline, pipeline: Pipeline, dog: Any, cat: Any
) -> None:
    """The scheduler draws two sizes in turn, and each joins and leaves between steps."""
    requests = [
        Request(prompt=PROMPT, subject=subject, seed=seed, num_inference_steps=steps)
        for seed, (subject, steps) in enumerate([(dog, 4), (cat, 2), (dog, 3), (None, 3)])
    ]
    found = [result.images for result in recorded.map(requests)]
    expected = [result.images for result in pipeline.map(requests)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one[0]), np.asarray(other[0]))


def test_interleaved_runs_do_not_disturb_each_other(recorded: Pipeline, dog: Any, cat: Any) -> None:
    backend: Any = recorded._backend
    batches = []
    start = backend.start

    def keep(batch: Any, state: Any = None) -> Any:
        batches.append(batch)
        return start(batch, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "start", keep)
        for subject, seed in ((dog, 1), (dog, 2)):
            recorded(PROMPT, subject=subject, seed=seed, num_inference_steps=4)
    alone = []
    for batch in batches:
        run = backend.start(batch)
        for index in range(4):
            run.step(index)
        alone.append(run.state())
    runs = [backend.start(batch) for batch in batches]
    assert runs[0]._slot is runs[1]._slot
    for index in range(4):
        for run in runs:
            run.step(index)
    for run, expected in zip(runs, alone, strict=True):
        np.testing.assert_array_equal(run.state(), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8", "int8"])
@pytest.mark.parametrize("schedule", ["exact", "anchor:500"])
def test_tables_of_other_types_go_through_recordings_unchanged(
    tiny_pair_folder: Path, dtype: Any, schedule: str, red: Image.Image
) -> None:
    tables = TableOptions(dtype=dtype)
    plain = Pipeline(tiny_pair_folder, backend="torch", device="cpu", tables=tables)
    recorded = pipeline_of(tiny_pair_folder, tables)
    manner: dict[str, Any] = {
        "reference_images": red,
        "seed": 4,
        "num_inference_steps": 3,
        "reference_schedule": schedule,
    }
    assert same(plain(PROMPT, **manner), recorded(PROMPT, **manner))


@pytest.mark.parametrize("table_bytes", [0, 1 << 30])
def test_a_table_of_many_entries_is_read_whole_or_entry_by_entry(
    tiny_pair_folder: Path, pipeline: Pipeline, table_bytes: int, dog: Any, cat: Any
) -> None:
    recorded = pipeline_of(tiny_pair_folder, graph_table_bytes=table_bytes)
    for subject in (dog, cat, dog):
        manner: dict[str, Any] = {"seed": 5, "num_inference_steps": 4}
        manner["reference_schedule"] = "exact"
        found = recorded(PROMPT, subject=subject, **manner)
        assert same(found, pipeline(PROMPT, subject=subject, **manner))
    entries = {slot.table[0][0].shape[0] for slot in slots(recorded)}
    assert entries == ({4} if table_bytes else {1})


def test_a_table_that_lies_in_the_buffers_is_not_copied_again(
    tiny_pair_folder: Path, dog: Any, cat: Any
) -> None:
    recorded = pipeline_of(tiny_pair_folder)
    request = Request(prompt=PROMPT, subject=dog, seed=5)
    expected = states_of(recorded, request, reference_schedule="exact")
    (slot,) = slots(recorded)
    with torch.inference_mode():
        slot.table[0][0].mul_(2)  # shows in what is drawn unless it is copied again
    assert not np.array_equal(states_of(recorded, request, reference_schedule="exact"), expected)
    slot._held = None
    assert np.array_equal(states_of(recorded, request, reference_schedule="exact"), expected)


def test_a_streamed_table_goes_through_recordings(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Any
) -> None:
    manner: dict[str, Any] = {"reference_schedule": "exact", "num_inference_steps": 4}
    size = pipeline.table_bytes(1, **manner)
    recorded = pipeline_of(tiny_pair_folder, TableOptions(budget_bytes=size - 1))
    manner["seed"] = 6
    found = recorded(PROMPT, subject=dog, **manner)
    assert same(found, pipeline(PROMPT, subject=dog, **manner))


def test_32_threads_draw_what_one_draws(recorded: Pipeline, dog: Any, cat: Any) -> None:
    def draw(number: int) -> Any:
        subject = (dog, cat)[number % 2]
        return recorded(
            PROMPT, subject=subject, seed=number % 4, num_images_per_prompt=1 + number % 3 // 2
        )

    expected = [draw(number) for number in range(32)]
    together = threading.Barrier(32)

    def draw_at_once(number: int) -> Any:
        together.wait()
        return draw(number)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(draw_at_once, range(32)))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_recorded_function_reads_new_inputs_at_old_addresses() -> None:
    lane = Lane("cpu", records=True)
    seen: list[int] = []

    def double(one: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(one.data_ptr())
        return (2 * one,)

    function = RecordedFunction(double, lane, kept=2)
    for value in (1.0, 2.0):
        with function.call(torch.full((3,), value)) as (out,):
            assert out.tolist() == [2 * value] * 3
    assert len(set(seen)) == 1
    for size in (4, 5):
        with function.call(torch.zeros(size)) as (out,):
            assert out.shape == (size,)
    assert lane.num_recordings == 3
    assert len(function.calls) == 2


def test_what_could_not_be_made_is_not_kept() -> None:
    kept: Kept[int] = Kept(2)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 // 0)
    assert len(kept) == 0
    assert kept.get("a", lambda: 7) == 7
    assert kept.get("a", lambda: 8) == 7


class FakeCuda:
    """Stands in for what a recording asks of `torch.cuda`, and keeps what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.recordings: list[dict[str, Any]] = []
        self.error = error
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, len(self.asked)))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self._graph)
        self.lane = Lane("cpu", records=True)
        self.lane.stream = "the stream of the lane"
        self.lane._recording_stream = "a stream for recordings"

    def replay(self) -> None:
        self.asked.append("replay")

    @contextmanager
    def _graph(self, graph: Any, **settings: Any) -> Iterator[None]:
        assert graph is self
        self.recordings.append(settings)
        self.asked.append("begin")
        yield
        if self.error is not None:
            raise self.error
        self.asked.append("end")


def test_on_cuda_a_function_is_called_twice_then_recorded_and_never_called_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    replay = cuda.lane.record(lambda: cuda.asked.append("call"))
    assert cuda.asked == ["call", "call", "begin", "call", "end"]
    replay()
    replay()
    assert cuda.asked[5:] == ["replay", "replay"]
    cuda.lane.record(lambda: None)
    first, second = cuda.recordings
    assert first["stream"] == "a stream for recordings"  # others download on the lane's own
    assert first["capture_error_mode"] == "thread_local"
    assert first["pool"] is second["pool"]  # intermediate results share memory
    cuda.lane.forget()
    cuda.lane.record(lambda: None)
    assert cuda.recordings[2]["pool"] is not first["pool"]


def test_a_recording_keeps_the_tensors_that_its_function_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    tensor = torch.ones(3)
    seen = weakref.ref(tensor)
    replay = cuda.lane.record(partial(torch.neg, tensor))
    del tensor
    gc.collect()
    assert seen() is not None
    replay()
    del replay
    gc.collect()
    assert seen() is None


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda(monkeypatch, RuntimeError("operation not permitted\nmore"))
    called: list[int] = []
    function = cuda.lane.record(lambda: called.append(1))
    assert "runs without a CUDA graph" in caplog.text
    assert "operation not permitted" in caplog.text
    function()
    assert (len(called), cuda.asked) == (4, ["begin"])


def test_a_lack_of_memory_while_recording_is_not_taken_for_another_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        cuda.lane.record(lambda: None)
