"""Which tile configuration a kernel runs with: a fixed table that ships with the package.

`tiles.json` beside this file has one row per architecture, mode, type, head dim and number of
tokens. It is read, never guessed: an architecture without rows is an error. The rows come from
compiled code (no spills, no stack frame, two programs on a multiprocessor where that is possible)
until `bootpig-rt tune-kernels` has measured them on the GPU in question and written them anew;
`measured_us` says which. Nothing here imports torch or Triton.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.files.atomic import atomic_write_text

TABLE = Path(__file__).with_name("tiles.json")

JOINT, SEPARATE = "joint", "separate"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
BITS_OF_DTYPE = {"float16": 16, "bfloat16": 16, "float32": 32}


TileKey: TypeAlias = tuple[int, str, int, int, bool]
"""Architecture, mode, bits of an element, padded head dim, and whether it was padded."""


@dataclass(frozen=True)
class Tile:
    """How one program is cut and run.

    Attributes:
        block_m: Queries of a program.
        block_n: Keys that it takes in at once.
        num_warps: Groups of 32 threads.
        num_stages: Loads of keys and values in flight.
        max_registers: Limit per thread for the compiler, None for its own choice.
        uses_tma: The copy engine of sm_90 and later loads keys and values. 16-bit types alone.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    uses_tma: bool = False

    def with_plain_loads(self) -> Tile:
        """The same for inputs that the copy engine cannot read.

        Addresses take registers, so a limit that was set for descriptors would spill.
        """
        return replace(self, uses_tma=False, max_registers=None) if self.uses_tma else self


@dataclass(frozen=True)
class TileRow:
    """A row of the table: for what, which tile, and how long it took.

    Attributes:
        architecture: Compute capability, 90 for 9.0.
        mode: `joint` (at most one reference) or `separate` (several).
        bits: Of an element: 16 or 32.
        block_d: Head dim, rounded up to 16, 32, 64 or 128.
        is_padded: For head dims that had to be rounded up: their masks take registers.
        min_tokens: Smallest number of own tokens that the row is for.
        tile: The configuration.
        measured_us: Time of the kernel when the row was tuned, None where it was not.
    """

    architecture: int
    mode: str
    bits: int
    block_d: int
    is_padded: bool
    min_tokens: int
    tile: Tile
    measured_us: float | None = None

    @property
    def key(self) -> TileKey:
        """All but the number of tokens."""
        return (self.architecture, self.mode, self.bits, self.block_d, self.is_padded)


def padded(count: int) -> int:
    """Rounded up to a power of two: what a kernel's own tile is."""
    return 1 << (count - 1).bit_length()


def attention_tile(*, architecture: int, mode: str, dtype: str, head_dim: int, tokens: int) -> Tile:
    """Configuration of `reference_attention_kernel` for `joint` or `separate` and N own tokens.

    Raises:
        BackendUnavailable: The table has no row for this architecture.
    """
    rows = _table().get(_key(architecture, mode, dtype, head_dim))
    if rows is None:
        known = ", ".join(f"sm_{number}" for number in ARCHITECTURES)
        raise BackendUnavailable(
            f"no tile configuration for sm_{architecture} ({mode}, {dtype}, head dim {head_dim}), "
            f"there are some for {known}; run `bootpig-rt tune-kernels` on that GPU, or force the "
            "eager path with BOOTPIG_RT_ATTENTION=eager"
        )
    fitting = [row for row in rows if row.min_tokens <= tokens]
    return fitting[-1].tile


def tiles_for(*, architecture: int, mode: str, dtype: str, head_dim: int) -> list[Tile]:
    """The different configurations of the table for any number of tokens."""
    rows = _table().get(_key(architecture, mode, dtype, head_dim), [])
    return list(dict.fromkeys(row.tile for row in rows))


def merge_tile(channels: int) -> tuple[int, int]:
    """(tokens of a program, warps) of `reference_merge_kernel`: about 2048 numbers a program."""
    block_c = padded(channels)
    return max(1, 2048 // block_c), 4 if block_c <= 2048 else 8


# The kernels around attention are bound by memory: one way to cut them serves all GPUs. Measured on
# an H200, pictures of Stable Diffusion 2.1 at 512 px.

MOST_PIXELS_OF_ONE_LAUNCH = 32 * 32
"""Of a picture whose group norm is one launch; beyond, three are quicker."""

CHANNELS_OF_BLOCK, PIXELS_OF_BLOCK = 64, 32
"""That the group norm of a larger picture takes in at once: whole lines of memory."""

CHUNKS_AT_ONCE = 16
NUMBERS_OF_BLOCK = 2048
BLOCK_WARPS = {
    "group_norm": 16,
    "group_norm_sums": 4,
    "group_norm_scales": 4,
    "group_norm_apply": 4,
    "layer_norm": 4,
    "geglu": 8,
    "residual_add": 8,
}
"""Groups of 32 threads of a program, by kernel."""


def group_norm_pixels(channels_of_group: int) -> int:
    """Pixels that `group_norm_kernel` takes in at once: about 8192 numbers."""
    return max(1, 8192 // padded(channels_of_group))


def pixels_of_chunk(pixels: int) -> int:
    """Pixels that one program of `group_norm_sums_kernel` sums: at most 128 chunks a picture."""
    return max(256, -(-pixels // 128))


def tokens_of_block(channels: int) -> int:
    """Tokens of a program of `layer_norm_kernel`: about 2048 numbers."""
    return max(1, 2048 // padded(channels))


def read_rows(path: Path = TABLE) -> list[TileRow]:
    """All rows of a table file."""
    entries: list[dict[str, Any]] = json.loads(path.read_text())["attention"]
    return [TileRow(**{**entry, "tile": Tile(**entry["tile"])}) for entry in entries]


def measured_rows() -> dict[int, tuple[int, int]]:
    """Architecture -> rows of the shipped table that were measured on it, and rows in all."""
    rows = [row for of_key in _table().values() for row in of_key]
    return {
        number: (
            sum(row.architecture == number and row.measured_us is not None for row in rows),
            sum(row.architecture == number for row in rows),
        )
        for number in ARCHITECTURES
    }


def write_rows(rows: Iterable[TileRow], path: Path = TABLE) -> None:
    """Write a table file, one line a row, sorted."""
    ordered = sorted(rows, key=lambda row: (*row.key, row.min_tokens))
    lines = ",\n".join("  " + json.dumps(_to_dict(row)) for row in ordered)
    atomic_write_text(path, f'{{"attention": [\n{lines}\n]}}\n')
    _table.cache_clear()


def _to_dict(row: TileRow) -> dict[str, Any]:
    entry = asdict(row)
    if not row.tile.uses_tma:
        del entry["tile"]["uses_tma"]  # few rows have it
    return entry


def _key(architecture: int, mode: str, dtype: str, head_dim: int) -> TileKey:
    block_d = padded(head_dim)
    return (architecture, mode, BITS_OF_DTYPE[dtype], block_d, block_d != head_dim)


@functools.cache
def _table() -> dict[TileKey, list[TileRow]]:
    table: dict[TileKey, list[TileRow]] = {}
    for row in sorted(read_rows(), key=lambda row: row.min_tokens):
        table.setdefault(row.key, []).append(row)
    return table
