"""Types of tables: numpy and torch give equal bytes, and the bytes are those of the formula."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.host_table import (
    TABLE_DTYPES,
    TableDtype,
    check_host_table,
    pack,
    pack_table,
    table_bytes,
    unpack,
    write_entry,
)
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch import tables
from bootpig_rt.engine.events import Event, ReferenceEvent
from bootpig_rt.errors import NumericalError, ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from tests.one_backend import pipeline_over

DTYPES: tuple[TableDtype, ...] = get_args(TableDtype)
SHAPE = (3, 2, 4, 6, 8)
NUMBERS = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
NUMBERS[:, :, 1] *= 100.0  # a head that is much larger than its neighbours
NUMBERS[0, 0, 2] = 0.0
ARRAYS = hnp.arrays(
    np.float32,
    (1, 2, 2, 3, 4),
    elements=st.floats(-60000, 60000, width=32, allow_nan=False, allow_subnormal=False),
)


def torch_packed(array: np.ndarray, dtype: TableDtype) -> Any:
    entries, references, *_ = array.shape
    builder = tables.TableBuilder(entries, references, dtype)
    flat = torch.from_numpy(array.reshape(-1, *array.shape[2:]))
    builder.put(slice(0, len(flat)), ((flat, flat),))
    host = tables.download(builder.table()).layers[0][0]
    return host.values, host.scale


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60)
@given(array=ARRAYS)
def test_numpy_and_torch_give_equal_bytes(dtype: TableDtype, array: np.ndarray) -> None:
    ours = pack(array, dtype)
    values, scale = torch_packed(array, dtype)
    np.testing.assert_array_equal(ours.values, values)
    if scale is not None:
        np.testing.assert_array_equal(ours.scale, scale)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_the_bits_of_tables_are_those_of_the_first_version() -> None:
    """Files keep them: what was packed by hand-written code is packed equally by the library."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)].reshape(1, 1, 1, 1, -1)
    packed = pack(numbers, "bfloat16")
    assert digest(packed.values) == (
        "a6c3ca22df6b72a164d4bb586da9786a4c7a8292df20e1d03443316225d73b03"
    )
    steps = np.arange(-448 * 64, 448 * 64 + 1, dtype=np.float32) / 64  # all ties among them
    small = np.concatenate([numbers[np.abs(numbers) <= 448], steps])
    packed = pack(small.reshape(1, 1, 1, 1, -1), "float8")
    np.testing.assert_array_equal(packed.scale, 1)
    assert digest(packed.values) == (
        "d519ab2e983fab2e020a5652d0aa15fbbc8777c0cde66f82e94ad7a6f52967c1"
    )
    codes = np.array([*range(127), *range(128, 255)], dtype=np.uint8)
    assert digest(unpack(codes, None, "float8")) == (
        "f275e267d1b70f2c583fa6b5c47be61348a1aa22f7aa676cc5a0fb66798646a5"
    )


def test_every_code_of_float8_is_read_as_torch_reads_it() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(unpack(codes, None, "float8"), expected)


@pytest.mark.parametrize("out_type", [np.float32, np.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_entry_is_written_in_the_type_of_the_memory_at_hand(
    dtype: TableDtype, out_type: Any
) -> None:
    packed = pack(NUMBERS, dtype)
    whole = unpack(packed.values, packed.scale, dtype)
    for index in range(len(NUMBERS)):
        out = np.full(SHAPE[1:], np.nan, out_type)
        write_entry(packed, index, dtype, out)
        np.testing.assert_array_equal(out, whole[index].astype(out_type))


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [("float32", 0.0), ("float16", 5e-4), ("bfloat16", 4e-3), ("float8", 0.04), ("int8", 0.02)],
)
def test_what_is_read_again_is_near_what_was_kept(dtype: TableDtype, limit: float) -> None:
    table = pack_table([(NUMBERS, NUMBERS * 3)], dtype)
    ((k, v),) = table.entry(1)
    for read, kept in ((k, NUMBERS[1]), (v, NUMBERS[1] * 3)):
        for head in range(SHAPE[2]):  # each head has its own scale
            error = np.sqrt(np.mean((read[:, head] - kept[:, head]) ** 2))
            assert error <= limit * np.sqrt(np.mean(kept[:, head] ** 2))
            assert (error > 0) == (dtype != "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_of_a_table_are_those_of_the_formula(
    pipeline: Pipeline, tiny_pair_folder: Path, cat: Subject, dtype: TableDtype
) -> None:
    shapes = pipeline.spec.reference_shapes
    options = TableOptions(dtype=dtype)
    other = pipeline_over(pipeline, tiny_pair_folder, tables=options)
    other("a cat", subject=cat, seed=1, num_inference_steps=3, reference_schedule="exact")
    expected = table_bytes(shapes, num_entries=3, num_references=2, dtype=dtype)
    assert other.store.stats().device_bytes == expected


def test_the_bytes_of_a_table_are_those_of_the_entries_of_its_schedule(
    pipeline: Pipeline, tiny_pair_folder: Path, cat: Subject
) -> None:
    shapes = pipeline.spec.reference_shapes
    other = pipeline_over(pipeline, tiny_pair_folder, tables=TableOptions(dtype="int8"))
    for schedule, entries in (("exact", 5), ("clean", 1), ("stride:2", 3), ("window:0-0.6", 3)):
        other.store.clear()
        other("a cat", subject=cat, seed=1, num_inference_steps=5, reference_schedule=schedule)
        expected = table_bytes(shapes, num_entries=entries, num_references=2, dtype="int8")
        assert other.store.stats().device_bytes == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_never_kept(dtype: TableDtype, bad: float) -> None:
    broken = NUMBERS.copy()
    broken[0, 0, 0, 0, 0] = bad
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        pack(broken, dtype)
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        torch_packed(broken, dtype)


def test_numbers_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(NumericalError, match="keep the table in a wider type"):
        pack(NUMBERS * 1e6, "float16")
    with pytest.raises(NumericalError, match="keep the table in a wider type"):
        torch_packed(NUMBERS * 1e6, "float16")
    assert np.isfinite(unpack(pack(NUMBERS * 1e6, "bfloat16").values, None, "bfloat16")).all()


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("float32", np.float32(np.nan)),
        ("float32", np.float32(np.inf)),
        ("float16", np.float16(-np.inf)),
        ("bfloat16", 0x7FC0),  # NaN
        ("bfloat16", 0xFF80),  # -Inf
        ("float8", 0x7F),
        ("float8", 0xFF),
    ],
)
def test_nan_in_a_table_from_elsewhere_is_found(dtype: TableDtype, bits: Any) -> None:
    table = pack_table([(NUMBERS.copy(), NUMBERS.copy())], dtype)
    check_host_table(table)
    table.layers[0][1].values.reshape(-1)[5] = bits
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        check_host_table(table)


@pytest.mark.parametrize("dtype", ["float8", "int8"])
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_positive_number_is_found(dtype: TableDtype, scale: float) -> None:
    table = pack_table([(NUMBERS.copy(), NUMBERS.copy())], dtype)
    kept = table.layers[0][1].scale
    assert kept is not None
    kept[0, 0, 0] = scale
    with pytest.raises(NumericalError, match="scale"):
        check_host_table(table)


def latents_of(pipeline: Pipeline, requests: list[Request], **settings: Any) -> np.ndarray:
    """Final latents, which eight bits would round."""
    seen: list[np.ndarray] = []
    decode = pipeline._backend.decode

    def record(latents: np.ndarray, **options: Any) -> np.ndarray:
        seen.append(latents)
        return decode(latents, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._backend, "decode", record)
        pipeline.generate([replace(request, **settings) for request in requests])
    return np.concatenate(seen)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_streamed_table_draws_what_a_resident_one_draws(
    tiny_pair_folder: Path, pipeline: Pipeline, dog: Subject, cat: Subject, dtype: TableDtype
) -> None:
    requests = [Request(prompt="a cat", subject=one, seed=1) for one in (dog, cat, None)]
    settings: dict[str, Any] = {"num_inference_steps": 6, "reference_schedule": "exact"}
    resident = pipeline_over(pipeline, tiny_pair_folder, tables=TableOptions(dtype=dtype))
    one = table_bytes(resident.spec.reference_shapes, num_entries=1, num_references=1, dtype=dtype)
    streamed = TableOptions(dtype=dtype, budget_bytes=5 * one, host_bytes=1 << 30)
    streaming = pipeline_over(pipeline, tiny_pair_folder, tables=streamed)
    expected = latents_of(resident, requests, **settings)
    found = latents_of(streaming, requests, **settings)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    stats = streaming.store.stats()
    assert (stats.device_bytes, stats.host_bytes) == (0, 18 * one)
    again = streaming.generate([replace(request, **settings) for request in requests])
    assert again.reference_passes == 0
    assert streaming.store.stats().host_hits == 2


def test_narrow_tables_draw_nearly_the_same_picture(
    tiny_pair_folder: Path, pipeline: Pipeline, cat: Subject
) -> None:
    requests = [Request(prompt="a cat", subject=cat, seed=1)]
    expected = latents_of(pipeline, requests)
    for dtype in TABLE_DTYPES[1:]:
        tables: Any = TableOptions(dtype=dtype)  # type: ignore[arg-type]
        other = pipeline_over(pipeline, tiny_pair_folder, tables=tables)
        found = latents_of(other, requests)
        error = float(np.sqrt(np.mean((found - expected) ** 2)))
        assert 0 < error < 0.1 * float(np.std(expected)), dtype


def test_the_rows_of_a_pass_change_no_table(
    tiny_pair_folder: Path, pipeline: Pipeline, red: Image.Image, blue: Image.Image
) -> None:
    latents: list[np.ndarray] = []
    told: list[tuple[int, int]] = []

    def tell(event: Event) -> None:
        assert isinstance(event, ReferenceEvent)
        told.append((event.done, event.total))

    for rows in (1, 5, 16):
        options = TableOptions(rows_per_launch=rows)
        other = pipeline_over(pipeline, tiny_pair_folder, tables=options)
        manner: dict[str, Any] = {"num_inference_steps": 4, "reference_schedule": "exact"}
        subject = other.encode_subject(
            [red, blue], "a toy", keep_table=True, on_event=tell, **manner
        )
        request = Request(prompt="a toy", subject=subject, seed=1)
        latents.append(latents_of(other, [request], **manner))
    assert told == [*((i, 8) for i in range(1, 9)), (5, 8), (8, 8), (8, 8)]
    for found in latents[1:]:
        np.testing.assert_allclose(found, latents[0], atol=1e-4)


def test_a_subject_too_large_for_the_budget_is_told_what_would_fit(
    tiny_pair_folder: Path, pipeline: Pipeline, cat: Subject
) -> None:
    one = table_bytes(
        pipeline.spec.reference_shapes, num_entries=1, num_references=1, dtype="float32"
    )
    options = TableOptions(budget_bytes=3 * one)
    tight = pipeline_over(pipeline, tiny_pair_folder, tables=options)
    with pytest.raises(ParameterError, match=rf"need {4 * one} bytes.*: 1 would fit"):
        tight("a cat", subject=cat, reference_schedule="exact")
    assert tight("a cat", subject=cat, reference_schedule="clean").images  # one entry fits


def test_batches_are_cut_by_memory_as_well(
    tiny_pair_folder: Path,
    pipeline: Pipeline,
    dog: Subject,
    cat: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = table_bytes(
        pipeline.spec.reference_shapes, num_entries=1, num_references=1, dtype="float32"
    )
    options = TableOptions(budget_bytes=2 * one)
    tight = pipeline_over(pipeline, tiny_pair_folder, tables=options)
    sizes: list[int] = []
    start = tight._backend.start

    def watch(batch: DenoiseBatch) -> Any:
        sizes.append(batch.state.shape[1])
        return start(batch)

    monkeypatch.setattr(tight._backend, "start", watch)
    manner: dict[str, Any] = {"num_inference_steps": 1, "reference_schedule": "clean"}
    tight.generate(
        [
            Request(prompt="a cat", subject=subject, seed=1, **manner)
            for subject in (dog, dog, cat, None, dog)
        ]
    )
    assert sizes == [2, 2, 1]


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_convolutions")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_streams_and_draws_what_the_cpu_draws(
    tiny_pair_folder: Path, cat: Subject, tmp_path: Path, dtype: TableDtype
) -> None:
    """A subject saved on the CPU; its table pinned on the host, copied beside the steps."""
    settings: dict[str, Any] = {"num_inference_steps": 6, "reference_schedule": "exact"}
    cat.save(tmp_path / "cat.subject")
    requests = [Request(prompt="a cat", subject=Subject.load(tmp_path / "cat.subject"), seed=1)]
    cpu = Pipeline(
        tiny_pair_folder, backend="torch", device="cpu", tables=TableOptions(dtype=dtype)
    )
    expected = latents_of(cpu, requests, **settings)
    budget = cpu.table_bytes(2, **settings) // 2
    for limit in (None, budget):
        gpu = Pipeline(
            tiny_pair_folder,
            backend=TorchOptions(precision="float32"),
            device="cuda",
            tables=TableOptions(dtype=dtype, budget_bytes=limit),
        )
        np.testing.assert_allclose(latents_of(gpu, requests, **settings), expected, atol=5e-2)
