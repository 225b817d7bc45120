"""The table of tile configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.tiles import Tile


def test_every_supported_shape_has_a_configuration() -> None:
    for architecture in tiles.ARCHITECTURES:
        for mode in (tiles.JOINT, tiles.SEPARATE):
            for dtype in tiles.BITS_OF_DTYPE:
                for head_dim in range(16, 129, 8):
                    for tokens in (1, 64, 256, 1024, 4096, 9216):
                        tile = tiles.attention_tile(
                            architecture=architecture,
                            mode=mode,
                            dtype=dtype,
                            head_dim=head_dim,
                            tokens=tokens,
                        )
                        assert tile.block_m >= 16
                        assert tile.num_warps in (4, 8)


def test_few_tokens_get_small_tiles() -> None:
    def of(tokens: int) -> Tile:
        return tiles.attention_tile(
            architecture=90, mode="joint", dtype="float16", head_dim=64, tokens=tokens
        )

    assert of(64).block_m < of(4096).block_m


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendUnavailable, match="no tile configuration for sm_75 .* sm_80, sm_86"):
        tiles.attention_tile(architecture=75, mode="joint", dtype="float16", head_dim=64, tokens=64)


def test_the_table_survives_being_written(tmp_path: Path) -> None:
    rows = tiles.read_rows()
    tiles.write_rows(reversed(rows), tmp_path / "tiles.json")
    assert tiles.read_rows(tmp_path / "tiles.json") == rows
    assert (tmp_path / "tiles.json").read_text() == tiles.TABLE.read_text()


@pytest.mark.parametrize("channels", [1, 20, 320, 1280, 4096, 8192])
def test_merge_tiles_hold_some_tokens(channels: int) -> None:
    block_t, num_warps = tiles.merge_tile(channels)
    assert block_t >= 1
    assert num_warps in (4, 8)


def test_the_copy_engine_is_named_by_the_rows_that_use_it_alone(tmp_path: Path) -> None:
    rows = [
        tiles.TileRow(90, tiles.JOINT, 16, 64, False, 0, Tile(64, 64, 4, 3)),
        tiles.TileRow(90, tiles.JOINT, 16, 64, False, 512, Tile(128, 128, 8, 3, 128, True), 256.2),
    ]
    tiles.write_rows(rows, tmp_path / "tiles.json")
    assert tiles.read_rows(tmp_path / "tiles.json") == rows
    assert (tmp_path / "tiles.json").read_text().count("uses_tma") == 1


def test_only_architectures_with_a_copy_engine_use_it_and_in_16_bits() -> None:
    using = [row for row in tiles.read_rows() if row.tile.uses_tma]
    assert using
    assert all(row.architecture >= 90 and row.bits == 16 for row in using)
