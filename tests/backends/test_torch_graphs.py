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

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch.buckets import bucket, lay_out
from bootpig_rt.backends.torch.graphs import Kept, Lane, RecordedFunction
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request

pytestmark = pytest.mark.slow

PROMPT = "a photo of a dog, on a beach"
MERGES = [
    pytest.param(merge, marks=[] if merge == "argmax" else [pytest.mark.slow])
    for merge in get_args(Merge)
]
"""All; in a hurry the one that is the default."""


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


def alike(one: Any, other: Any) -> bool:
    """Equal but for rounding: a CPU sums in another order where a launch has other rows."""
    pairs = zip(one.images, other.images, strict=True)
    levels = [np.asarray(a, np.int16) - np.asarray(b, np.int16) for a, b in pairs]
    return all(int(np.abs(level).max()) <= 2 for level in levels)


def close(found: Any, expected: Any) -> bool:
    return bool(np.abs(found - expected).max() < 1e-4 * np.abs(expected).max())


def slots(pipeline: Pipeline) -> list[Any]:
    backend: Any = pipeline._backend
    return list(backend.recorded.slots._kept.values())


def states_of(pipeline: Pipeline, request: Request, **manner: Any) -> Any:
    """What the runs of a request left, bit for bit."""
    backend: Any = pipeline._backend
    start, runs = backend.start, []

    def keep(batch: Any) -> Any:
        runs.append(start(batch))
        return runs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "start", keep)
        pipeline.generate([replace(request, **{"num_inference_steps": 3, **manner})])
    return np.concatenate([run.state().ravel() for run in runs])


@pytest.mark.parametrize("merge", get_args(Merge))
def test_recorded_steps_equal_plain_ones(
    recorded: Pipeline, pipeline: Pipeline, dog: Any, cat: Any, merge: Merge
) -> None:
    for subject, solver in ((dog, "ddim"), (cat, "unipc"), (dog, "dpmpp_2m"), (None, "unipc")):
        request = Request(prompt=PROMPT, subject=subject, seed=3, num_images_per_prompt=2)
        manner = {"merge": merge, "solver": solver}
        found, expected = (states_of(one, request, **manner) for one in (recorded, pipeline))
        assert close(found, expected)


def test_guidance_and_windows_that_end_a_run_go_through_recordings(
    recorded: Pipeline, pipeline: Pipeline, dog: Any
) -> None:
    request = Request(prompt=PROMPT, subject=dog, seed=3, guidance_interval=(0.25, 0.75))
    manner: dict[str, Any] = {"num_inference_steps": 8, "reference_schedule": "window:0-0.5"}
    found, expected = (states_of(one, request, **manner) for one in (recorded, pipeline))
    assert close(found, expected)


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
    tensors += [part for layer in slot.table.layers or () for part in layer]
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


SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmpp_2m")


def mixed_batch(backend: Any, tables: list[Any], rng: np.random.Generator) -> DenoiseBatch:
    """Some pictures of a stream: subjects of 1 to 3 references or none, guided or not."""
    count = int(rng.integers(1, 9))
    refs: list[list[int]] = []
    picture_of_row: list[int] = []
    rows_of_picture: list[list[int]] = [[], [], []]
    chosen = [tables[n] for n in rng.permutation(len(tables))[: rng.integers(0, 4)]]
    firsts = np.cumsum([0, *(num for _, num in chosen)])
    steps = int(rng.integers(1, 6))
    for picture in range(count):
        subject = int(rng.integers(-1, len(chosen)))
        own = [] if subject < 0 else [*range(firsts[subject], firsts[subject + 1])]
        first = len(refs)
        kinds = [[], own, own] if rng.random() < 0.7 else [own]
        refs += [row + [-1] * (3 - len(row)) for row in kinds]
        picture_of_row += [picture] * len(kinds)
        for branch in range(3):
            rows_of_picture[branch].append(first + min(branch, len(kinds) - 1))
    solvers = [
        solver_table(SOLVERS[rng.integers(2)], backend.spec.noise_schedule, steps)
        for _ in range(count)
    ]
    return DenoiseBatch(
        state=rng.standard_normal((1, count, 4, 8, 8)).astype(np.float32),
        prompt_embeds=rng.standard_normal((4, *backend.spec.text_shape)).astype(np.float32),
        text_of_row=rng.integers(0, 4, len(refs)),
        picture_of_row=np.array(picture_of_row),
        ref_of_row=np.array(refs),
        rows_of_picture=np.array(rows_of_picture),
        image_guidance_scale=rng.uniform(1, 5, count).astype(np.float32),
        text_guidance_scale=rng.uniform(1, 8, count).astype(np.float32),
        tables=tuple(data for data, _ in chosen),
        num_references=tuple(num for _, num in chosen),
        entry_of_step=rng.integers(0, 2, (len(chosen), steps)),
        solver=BatchSolver.of(solvers),
        merge="argmax",
    )


def tables_of(backend: Any, *references: int) -> list[tuple[Any, int]]:
    """Tables of two entries."""
    made = []
    for seed, count in enumerate(references):
        rng = np.random.default_rng(seed)
        latents = rng.standard_normal((2, count, 4, 8, 8)).astype(np.float32)
        states = rng.standard_normal((count, *backend.spec.text_shape)).astype(np.float32)
        made.append((backend.reference_kv(latents, np.array([500, 0]), states).data, count))
    return made


def drawn(backend: Any, batch: DenoiseBatch) -> Any:
    run = backend.start(batch)
    for index in range(batch.solver.num_steps):
        run.step(index)
    return np.concatenate([run.state(), run.estimate()[None]])


def stream(
    backend: Any, tables: list[Any], rng: np.random.Generator, pictures: int
) -> list[DenoiseBatch]:
    batches: list[DenoiseBatch] = []
    while sum(batch.state.shape[1] for batch in batches) < pictures:
        batches.append(mixed_batch(backend, tables, rng))
    return batches


def test_200_mixed_requests_record_each_bucket_once(tiny_pair_folder: Path) -> None:
    """Subjects, references, guidance, steps and solvers in any mix: what differs is data."""
    settings = TorchOptions(cuda_graph=True)
    backend: Any = create_backend(settings, tiny_pair_folder, device="cpu")
    tables = tables_of(backend, 1, 1, 2, 3)
    rng = np.random.default_rng(7)
    buckets, contents = set(), set()
    before = backend.num_recordings
    batches = stream(backend, tables, rng, 200)
    for batch in batches:
        layout = lay_out(batch)
        buckets.add((layout.key, layout.references))
        contents.add((batch.ref_of_row.tobytes(), batch.rows_of_picture.tobytes()))
        backend.start(batch)
    recorded = backend.num_recordings - before
    assert recorded == len(buckets) <= 32 < len(contents) <= len(batches)
    for batch in reversed(batches):
        backend.start(batch)
    assert backend.num_recordings - before == recorded


def test_subjects_of_one_reference_need_few_recordings(tiny_pair_folder: Path) -> None:
    backend: Any = create_backend(TorchOptions(cuda_graph=True), tiny_pair_folder, device="cpu")
    tables = tables_of(backend, 1, 1, 1)
    before = backend.num_recordings
    for batch in stream(backend, tables, np.random.default_rng(8), 400):
        backend.start(batch)
    assert backend.num_recordings - before <= 24


@pytest.mark.parametrize("merge", MERGES)
def test_mixed_batches_draw_what_unpadded_ones_draw(tiny_pair_folder: Path, merge: Merge) -> None:
    recorded: Any = create_backend(TorchOptions(cuda_graph=True), tiny_pair_folder, device="cpu")
    plain: Any = create_backend("torch", tiny_pair_folder, device="cpu")
    rng, fills = np.random.default_rng(3), 0
    tables = tables_of(plain, 1, 2, 3)
    for _ in range(6):
        batch = replace(mixed_batch(plain, tables, rng), merge=merge)
        fills += len(lay_out(batch).text_of_row) - len(batch.text_of_row)
        assert close(drawn(recorded, batch), drawn(plain, batch))
    assert fills > 3


@pytest.mark.parametrize("merge", MERGES)
def test_what_fills_a_bucket_changes_no_bit(tiny_pair_folder: Path, merge: Merge) -> None:
    """Pictures, rows, slots and history that are added are NaN here, and nothing shows it."""
    backend: Any = create_backend(TorchOptions(cuda_graph=True), tiny_pair_folder, device="cpu")
    rng = np.random.default_rng(3)
    tables = tables_of(backend, 1, 2, 3)
    for _ in range(6):
        batch = replace(mixed_batch(backend, tables, rng), merge=merge)
        expected = drawn(backend, batch)
        layout, run = lay_out(batch), backend.start(batch)
        count = batch.state.shape[1]
        with torch.inference_mode():
            for name in ("image_scale", "text_scale"):
                getattr(run.tensors, name)[count:] = torch.nan
            run.tensors.state[:, count:] = torch.nan
            start = 0
            for _, size in layout.kinds:
                of_kind = layout.picture_of_row[start : start + size]
                rows = [
                    row
                    for row in range(start, start + size)
                    if row not in set(layout.rows_of_picture[:, :count].ravel().tolist())
                ]
                assert len(rows) < len(of_kind)
                run.tensors.text[rows] = torch.nan
                start += size
        for index in range(batch.solver.num_steps):
            run.step(index)
        found = np.concatenate([run.state(), run.estimate()[None]])
        np.testing.assert_array_equal(found, expected)


def test_a_batch_that_fills_its_bucket_is_drawn_bit_for_bit_as_without(
    tiny_pair_folder: Path,
) -> None:
    recorded: Any = create_backend(TorchOptions(cuda_graph=True), tiny_pair_folder, device="cpu")
    plain: Any = create_backend("torch", tiny_pair_folder, device="cpu")
    rng = np.random.default_rng(4)
    tables = tables_of(plain, 1, 1)
    exact = 0
    for batch in stream(plain, tables, rng, 120):
        layout = lay_out(batch)
        sizes = len(layout.text_of_row), layout.pictures, len(layout.picture_of_pair)
        pairs = {
            (p, tuple(refs))
            for p, refs in zip(
                batch.picture_of_row.tolist(), batch.ref_of_row.tolist(), strict=True
            )
        }
        if sizes == (len(batch.text_of_row), batch.state.shape[1], len(pairs)):
            exact += 1
            np.testing.assert_array_equal(drawn(recorded, batch), drawn(plain, batch))
    assert exact


def test_texts_are_projected_once_while_their_set_stays(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = create_backend("torch", tiny_pair_folder, device="cpu")
    rng = np.random.default_rng(3)
    tables = tables_of(backend, 1, 2)
    first = mixed_batch(backend, tables, rng)
    texts: Any = first.prompt_embeds
    for _ in range(4):
        backend.start(replace(mixed_batch(backend, tables, rng), prompt_embeds=texts))
    assert backend.projected.num_made == 1
    backend.start(first)
    assert backend.projected.num_made == 1
    backend.start(replace(first, prompt_embeds=texts.copy()))
    assert backend.projected.num_made == 2


def test_sizes_are_rounded_up_to_few() -> None:
    found = [bucket(count) for count in (0, 1, 2, 3, 5, 7, 9, 13, 64, 65)]
    assert found == [0, 1, 2, 4, 6, 8, 12, 16, 64, 96]
    assert all(count <= bucket(count) <= 1.5 * count for count in range(1, 200))


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

    def keep(batch: Any) -> Any:
        batches.append(batch)
        return start(batch)

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
    assert alike(plain(PROMPT, **manner), recorded(PROMPT, **manner))


def test_each_step_reads_its_own_entry_of_a_table_of_many(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Any, cat: Any
) -> None:
    recorded = pipeline_of(tiny_pair_folder)
    for subject in (dog, cat, dog):
        manner: dict[str, Any] = {"seed": 5, "num_inference_steps": 4}
        manner["reference_schedule"] = "exact"
        found = recorded(PROMPT, subject=subject, **manner)
        assert alike(found, pipeline(PROMPT, subject=subject, **manner))
    assert {slot.table.layers[0][0].shape[0] for slot in slots(recorded)} == {1}


def test_a_table_that_lies_in_the_buffers_is_not_copied_again(
    tiny_pair_folder: Path, dog: Any, cat: Any
) -> None:
    recorded = pipeline_of(tiny_pair_folder)
    request = Request(prompt=PROMPT, subject=dog, seed=5)
    expected = states_of(recorded, request, reference_schedule="clean")
    (slot,) = slots(recorded)
    with torch.inference_mode():
        slot.table.layers[0][0].mul_(2)  # shows in what is drawn unless it is copied again
    assert not np.array_equal(states_of(recorded, request, reference_schedule="clean"), expected)
    slot.table._held = [], ()
    assert np.array_equal(states_of(recorded, request, reference_schedule="clean"), expected)


def test_a_streamed_table_goes_through_recordings(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Any
) -> None:
    manner: dict[str, Any] = {"reference_schedule": "exact", "num_inference_steps": 4}
    size = pipeline.table_bytes(1, **manner)
    recorded = pipeline_of(tiny_pair_folder, TableOptions(budget_bytes=size - 1))
    manner["seed"] = 6
    found = recorded(PROMPT, subject=dog, **manner)
    assert alike(found, pipeline(PROMPT, subject=dog, **manner))


@pytest.mark.slow
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
    for size in (4, 5):  # 3 and 4 rows are one bucket
        with function.call(torch.arange(size, dtype=torch.float32)) as (out,):
            assert out.tolist() == [2 * row for row in range(size)]
    assert lane.num_recordings == 2
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
