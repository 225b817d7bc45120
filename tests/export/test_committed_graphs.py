"""The graphs in `tests/data/tiny`, which most tests of ONNX Runtime run, are today's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bootpig_rt.export.graphs import GRAPH_NAMES
from bootpig_rt.export.onnx_export import export_graph
from bootpig_rt.models.load import load_pair

SLOW = ("vae_encoder", "reference_kv", *(name for name in GRAPH_NAMES if "_step" in name))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GRAPH_NAMES],
)
def test_a_committed_graph_is_what_the_exporter_writes(
    name: str, tiny_pair_folder: Path, root: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_pair_folder, tmp_path / "pair")
    made = export_graph(name, load_pair(folder), folder, dialect="cpu")
    committed = root / "tests" / "data" / "tiny" / made.name
    assert made.read_bytes() == committed.read_bytes(), f"cp {made} {committed}"


def test_the_committed_pair_is_what_its_fixture_writes(
    make_tiny_pair: Any, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    made = make_tiny_pair(tmp_path)
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(tiny_pair_folder) for path in tiny_pair_folder.rglob("*") if path.is_file()
    }
    for path in files:
        if path.suffix != ".safetensors":
            assert (made / path).read_bytes() == (tiny_pair_folder / path).read_bytes()
            continue
        ours, theirs = load_file(made / path), load_file(tiny_pair_folder / path)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
