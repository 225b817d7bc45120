"""Tuning of tiles: what is measured, how rows are replaced, and its refusal without a GPU."""

from __future__ import annotations

import pytest
import torch

from bootpig_rt.cli.main import main
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels import autotune, tiles
from bootpig_rt.kernels.tiles import Tile, TileRow

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")


def _row(architecture: int, min_tokens: int, micros: float | None = None) -> TileRow:
    tile = Tile(64, 64, 4, 2)
    return TileRow(architecture, tiles.JOINT, 16, 64, False, min_tokens, tile, micros)


def test_tuned_rows_take_the_place_of_those_for_the_same_use() -> None:
    old = [_row(80, 0), _row(90, 0), _row(90, 512)]
    new = [_row(90, 0, 5.0), _row(90, 512, 250.0)]
    assert autotune.replace_rows(old, new) == [_row(80, 0), *new]


def test_all_classes_of_token_counts_are_tuned() -> None:
    shapes = autotune.default_shapes()
    classes = {(s.dtype, s.head_dim, s.mode) for s in shapes}
    for key in classes:
        found = [s.min_tokens for s in shapes if (s.dtype, s.head_dim, s.mode) == key]
        assert sorted(found) == [0, 512]
    assert {s.mode for s in shapes} == {tiles.JOINT, tiles.SEPARATE}


@without_gpu
def test_tuning_without_a_gpu_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="tuning needs a CUDA GPU"):
        autotune.tune(autotune.default_shapes())


@without_gpu
def test_the_command_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = tiles.TABLE.read_bytes()
    assert main(["tune-kernels"]) == 2
    assert "tuning needs a CUDA GPU" in capsys.readouterr().err
    assert tiles.TABLE.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--jobs", "0"], "--jobs is 0"), (["--head-dim", "12"], "--head-dim is 12, expected 16")],
)
def test_options_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["tune-kernels", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_a_small_tuning_chooses_a_candidate() -> None:
    shape = autotune.Shape(0, 64, 2, 64, 1, "float16")
    candidates = [Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)]
    (row,) = autotune.tune([shape], candidates=candidates)
    assert row.tile in candidates
    assert row.measured_us is not None
    assert row.measured_us > 0
