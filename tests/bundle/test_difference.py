"""Weights as differences from others: what is lost, what is kept whole, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bootpig_rt.bundle.difference import (
    apply_difference,
    whole_name,
    write_branch,
    write_difference,
)
from bootpig_rt.errors import CheckpointError


def weights(seed: int, dtype: Any = np.float16) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (8, 4, 3, 3), "norm.weight": (8,), "same.weight": (3, 5)}
    return {name: rng.normal(0, 0.1, shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A teacher's weights, a student's, and the difference of them."""
    base, changed = weights(0), weights(0)
    noise = np.random.default_rng(1)
    for name in ("conv.weight", "norm.weight"):
        moved = changed[name] + noise.normal(0, 0.01, changed[name].shape)
        changed[name] = moved.astype(np.float16)
    changed["conv.weight"][2] = base["conv.weight"][2]  # a row that did not change
    names = tmp_path / "base.safetensors", tmp_path / "changed.safetensors"
    save_file(base, names[0], metadata={"format": "pt"})
    save_file(changed, names[1], metadata={"format": "pt"})
    write_difference(*names, tmp_path / "a.difference.safetensors")
    return (*names, tmp_path / "a.difference.safetensors")


def test_a_sum_is_the_changed_weights_but_for_a_254th_of_a_rows_difference(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, changed, difference = files
    apply_difference(base, difference, tmp_path / "whole.safetensors")
    before, wanted, whole = (
        load_file(path) for path in (base, changed, tmp_path / "whole.safetensors")
    )
    assert np.array_equal(whole["norm.weight"], wanted["norm.weight"])
    assert np.array_equal(whole["same.weight"], wanted["same.weight"])
    error, moved = (
        np.abs(wanted["conv.weight"].astype(np.float64) - other["conv.weight"]).max(axis=(1, 2, 3))
        for other in (whole, before)
    )
    assert error[2] == 0
    assert (error <= moved / 254 + 2e-4).all()  # and float16 itself
    assert moved.max() > 0.02


def test_a_sum_is_laid_out_as_the_base_is_and_is_the_same_bytes_each_time(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, difference = files
    for name in ("first", "second"):
        apply_difference(base, difference, tmp_path / name)
    first = (tmp_path / "first").read_bytes()
    assert first == (tmp_path / "second").read_bytes()
    head = base.read_bytes()[: int.from_bytes(base.read_bytes()[:8], "little") + 8]
    assert first.startswith(head)
    assert len(first) == len(base.read_bytes())


def test_equal_weights_take_no_room(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "base.safetensors")
    write_difference(
        tmp_path / "base.safetensors", tmp_path / "base.safetensors", tmp_path / "difference"
    )
    assert (tmp_path / "difference").stat().st_size < 300


def test_a_difference_knows_what_it_is_made_whole_into() -> None:
    assert whole_name(Path("unet/weights.difference.safetensors")) == Path(
        "unet/weights.safetensors"
    )


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "base")
    save_file(weights(0, np.float32), tmp_path / "wide")
    save_file({"other": np.zeros(3, np.float16)}, tmp_path / "other")
    for name in ("wide", "other"):
        with pytest.raises(CheckpointError, match="has other tensors than"):
            write_difference(tmp_path / "base", tmp_path / name, tmp_path / "difference")


def test_a_difference_from_another_base_is_refused(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    save_file({"conv.weight": np.zeros((2, 2), np.float16)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"of shape \[8.*install the package again"):
        apply_difference(tmp_path / "other", files[2], tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0[1, 2, 3", b"\xff" * 40])
def test_a_file_of_anything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        write_difference(tmp_path / "base", tmp_path / "base", tmp_path / "difference")


def test_a_truncated_file_is_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, changed, _ = files
    changed.write_bytes(changed.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is truncated"):
        write_difference(base, changed, tmp_path / "difference")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none cannot be read"):
        write_difference(tmp_path / "none", tmp_path / "none", tmp_path / "difference")


@pytest.fixture
def branch_files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A pair's weights, those of a control that began as some of them, and how it is kept."""
    base, noise = weights(0), np.random.default_rng(2)
    branch = {
        "conv.weight": base["conv.weight"] + noise.normal(0, 0.01, (8, 4, 3, 3)).astype(np.float16),
        "norm.weight": base["norm.weight"],
        "zero.weight": noise.normal(0, 0.01, (6, 8, 1, 1)).astype(np.float16),
        "zero.bias": noise.normal(0, 0.01, 6).astype(np.float16),
        "idle.weight": np.zeros((2, 2), np.float16),
    }
    names = tmp_path / "base.safetensors", tmp_path / "branch.safetensors"
    save_file(base, names[0], metadata={"format": "pt"})
    save_file(branch, names[1], metadata={"format": "pt"})
    write_branch(*names, tmp_path / "branch.difference.safetensors")
    return (*names, tmp_path / "branch.difference.safetensors")


def test_a_branch_has_its_own_tensors_and_no_others(
    branch_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, branch, difference = branch_files
    apply_difference(base, difference, tmp_path / "whole.safetensors")
    before, wanted, whole = (
        load_file(path) for path in (base, branch, tmp_path / "whole.safetensors")
    )
    assert whole.keys() == wanted.keys()
    for name in ("norm.weight", "zero.bias", "idle.weight"):
        assert np.array_equal(whole[name], wanted[name])
    for name in ("conv.weight", "zero.weight"):
        moved = np.abs(wanted[name].astype(np.float64) - before.get(name, np.zeros(())))
        error = np.abs(wanted[name].astype(np.float64) - whole[name])
        assert error.max() <= moved.max() / 254 + 2e-4
        assert moved.max() > 0.02
    assert {tensor.dtype for tensor in whole.values()} == {np.dtype(np.float16)}


def test_a_branch_is_the_same_bytes_each_time(
    branch_files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, difference = branch_files
    for name in ("first", "second"):
        apply_difference(base, difference, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("changed", ["shape", "type"])
def test_a_branch_of_another_pair_is_refused(changed: str, tmp_path: Path) -> None:
    base, branch = weights(0), weights(0)
    other = np.zeros((8, 4, 1, 1), np.float16) if changed == "shape" else np.zeros((8, 4, 3, 3))
    branch["conv.weight"] = other.astype(np.float16 if changed == "shape" else np.float32)
    names = tmp_path / "base.safetensors", tmp_path / "branch.safetensors"
    save_file(base, names[0])
    save_file(branch, names[1])
    with pytest.raises(CheckpointError, match=r"'conv\.weight' of another shape or type"):
        write_branch(*names, tmp_path / "a.difference.safetensors")
    assert not (tmp_path / "a.difference.safetensors").exists()
