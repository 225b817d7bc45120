"""Tables of the ONNX Runtime backend without a graph: pieces, entries, joins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.host_table import HostTable, named_layers, pack_table
from bootpig_rt.backends.onnxruntime.sessions import to_device
from bootpig_rt.backends.onnxruntime.tables import (
    DeviceTable,
    StreamedTables,
    TableWriter,
    join,
    upload,
)

SHAPES = ((2, 5, 8), (1, 3, 8))
FLOAT = np.dtype(np.float32)


def layers(entries: int, references: int, seed: int) -> list[tuple[Any, Any]]:
    """Keys and values; each head of each entry and reference of another size."""
    rng = np.random.default_rng(seed)

    def numbers(shape: tuple[int, ...]) -> Any:
        sizes = 10.0 ** rng.uniform(-3, 3, (entries, references, shape[0], 1, 1))
        return (rng.standard_normal((entries, references, *shape)) * sizes).astype(np.float32)

    return [(numbers(shape), numbers(shape)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8", "int8"])
@pytest.mark.parametrize("rows_per_launch", [1, 2, 4, 6])
def test_a_table_written_in_pieces_is_the_table_packed_at_once(
    dtype: Any, rows_per_launch: int
) -> None:
    entries, references = 3, 2
    whole = layers(entries, references, seed=1)
    writer = TableWriter(
        SHAPES,
        entries=entries,
        references=references,
        dtype=dtype,
        graph_type=FLOAT,
        device="cpu",
    )
    flat = dict(
        zip(
            named_layers(SHAPES),
            (part.reshape(-1, *part.shape[2:]) for layer in whole for part in layer),
            strict=True,
        )
    )
    for start in range(0, entries * references, rows_per_launch):
        rows = slice(start, min(start + rows_per_launch, entries * references))
        writer.take(rows, {name: to_device(part[rows], "cpu") for name, part in flat.items()})
    found, expected = writer.finish(), pack_table(whole, dtype)
    assert isinstance(found, HostTable)
    for one, other in zip(found.layers, expected.layers, strict=True):
        for part, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(part.values, wanted.values)
            assert (part.scale is None) == (wanted.scale is None)
            if part.scale is not None and wanted.scale is not None:
                np.testing.assert_array_equal(part.scale, wanted.scale)


def test_each_of_several_streamed_tables_is_read_at_its_own_entry() -> None:
    tables = [pack_table(layers(3, count, seed), "int8") for seed, count in enumerate((1, 2, 1))]
    entry_of_step = np.array([[0, 0, 0, 2], [0, 1, 1, 1], [0, 0, 2, 2]])
    streamed = StreamedTables(tables, entry_of_step, FLOAT, "cpu")
    for step in (0, 1, 2, 3, 1, 0):
        streamed.load(step)
        for layer in range(len(SHAPES)):
            for kind, name in enumerate(("k", "v")):
                expected = np.concatenate(
                    [
                        table.entry(int(entry))[layer][kind]
                        for table, entry in zip(tables, entry_of_step[:, step], strict=True)
                    ]
                )
                found = streamed.layers[f"{name}_{layer}"].numpy()
                np.testing.assert_array_equal(found, expected)


def test_joined_tables_lie_in_the_order_that_they_are_given_in() -> None:
    given = [
        upload(pack_table(layers(2, n, n), "float32"), FLOAT, "cpu", is_resident=True)
        for n in (1, 2)
    ]
    tables = [table for table in given if isinstance(table, DeviceTable)]
    joined = join(tables, "cpu")
    for name, value in joined.items():
        parts = [table.layers[name].numpy() for table in tables]
        np.testing.assert_array_equal(value.numpy(), np.concatenate(parts))
