"""Times tile configurations on the GPU at hand and writes the table of `tiles`. Offline.

`bootpig-rt tune-kernels` calls it. For each mode, type, head dim and class of token counts it
launches every candidate that compiles without spills on the shapes of Stable Diffusion 2.1 and
keeps the fastest. Each launch is captured in a CUDA graph, so the time is the kernel's; buffers
change between replays, so that the cache is as cold as in a run.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from bootpig_rt.errors import BackendUnavailable, BootPIGError
from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.compile import SHARED_LIMIT, compile_one
from bootpig_rt.kernels.launch import architecture_of, launch_attention
from bootpig_rt.kernels.tiles import Tile, TileRow
from bootpig_rt.kernels.variants import attention_variant

CANDIDATES = tuple(
    Tile(block_m, block_n, num_warps, num_stages, limit)
    for block_m, num_warps, limit in (
        (128, 8, 128),  # two programs on a multiprocessor
        (128, 8, None),
        (128, 4, None),
        (64, 4, None),
        (32, 4, None),
    )
    for block_n in (32, 64, 128)
    for num_stages in (2, 3)
)

TMA_CANDIDATES = tuple(
    Tile(block_m, block_n, num_warps, num_stages, limit, uses_tma=True)
    for block_m, num_warps, limit in (
        (128, 8, 128),
        (128, 8, None),
        (128, 4, None),
        (64, 4, None),
    )
    for block_n in (64, 128)
    for num_stages in (2, 3, 4)
)
"""For 16-bit types on GPUs with a copy engine."""

FIRST_WITH_TMA = 90

ROTATION_BYTES = 100 * 2**20
"""Inputs are used in turn so long as they take this much: twice the cache of an H100."""

REPLAYS = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What one row of the table is tuned on.

    Attributes:
        min_tokens: Of the row.
        tokens: N = M, tokens of the measurement.
        heads: H.
        head_dim: D.
        references: That the last two of three rows read.
        dtype: `float16` or `float32`.
    """

    min_tokens: int
    tokens: int
    heads: int
    head_dim: int
    references: int
    dtype: str

    @property
    def mode(self) -> str:
        """`joint` for one reference."""
        return tiles.JOINT if self.references == 1 else tiles.SEPARATE


HEAD_DIMS = (40, 64, 80)
"""Of Stable Diffusion 1 and 2."""


def default_shapes(head_dims: Iterable[int] = HEAD_DIMS) -> list[Shape]:
    """Small and large layers, one and four references."""
    return [
        Shape(min_tokens, tokens, max(1, channels // head_dim), head_dim, references, dtype)
        for dtype in ("float16", "float32")
        for head_dim in head_dims
        for references in (1, 4)
        for min_tokens, tokens, channels in ((0, 256, 1280), (512, 4096, 320))
    ]


def tune(
    shapes: Iterable[Shape],
    *,
    device: str = "cuda",
    candidates: Sequence[Tile] = (*CANDIDATES, *TMA_CANDIDATES),
    progress: Callable[[TileRow], object] | None = None,
    jobs: int = 1,
) -> list[TileRow]:
    """Measure and choose.

    Args:
        shapes: What to tune for.
        device: The GPU.
        candidates: Configurations to try; those that a type or GPU cannot have are left out.
        progress: Called with each finished row.
        jobs: Processes that compile ahead; the times are taken in this one, alone.

    Returns:
        One row for each shape, with its time in microseconds.

    Raises:
        BackendUnavailable: There is no CUDA GPU, or none of the candidates runs on it.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "tuning needs a CUDA GPU and torch sees none; the table that is shipped works without"
        )
    architecture = architecture_of(torch.device(device))
    rows = []
    for shape, usable in _usable(list(shapes), candidates, architecture, device, jobs):
        timed = []
        for tile in usable:
            try:
                timed.append((time_tile(shape, tile, device), tile))
            except (RuntimeError, BootPIGError) as error:  # this one does not run: leave it out
                _log.debug("%s does not run for %s: %s", tile, shape, error)
        if not timed:
            raise BackendUnavailable(f"no tile runs on sm_{architecture} for {shape}")
        micros, best = min(timed, key=lambda pair: pair[0])
        row = TileRow(
            architecture,
            shape.mode,
            tiles.BITS_OF_DTYPE[shape.dtype],
            tiles.padded(shape.head_dim),
            tiles.padded(shape.head_dim) != shape.head_dim,
            shape.min_tokens,
            best,
            round(micros, 2),
        )
        rows.append(row)
        if progress is not None:
            progress(row)
    return rows


def replace_rows(old: Iterable[TileRow], new: Sequence[TileRow]) -> list[TileRow]:
    """A table in which tuned rows take the place of those for the same use."""
    tuned = {row.key for row in new}
    return [row for row in old if row.key not in tuned] + list(new)


def time_tile(shape: Shape, tile: Tile, device: str) -> float:
    """Median time of one launch in microseconds."""
    inputs = _inputs(shape, device)
    run: Callable[..., object] = functools.partial(
        launch_attention, first_delta_row=_first_row(shape), tile=tile
    )
    for arguments in inputs[:2]:  # compiled and warm
        run(*arguments)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in inputs:
            run(*arguments)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    for _ in range(REPLAYS):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(inputs))
    return sorted(times)[len(times) // 2]


def _inputs(shape: Shape, device: str) -> list[tuple[Tensor, ...]]:
    """Arguments of several launches, enough of them to outgrow the cache."""
    inputs: list[tuple[Tensor, ...]] = []
    taken = 0
    while taken < ROTATION_BYTES and len(inputs) < 16:
        inputs.append(_draw(shape, device))
        taken += sum(tensor.nbytes for tensor in inputs[-1])
    return inputs


def _draw(shape: Shape, device: str) -> tuple[Tensor, ...]:
    """Random arguments of one launch: a row without references and two that read all."""
    dtype = getattr(torch, shape.dtype)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=dtype)

    refs = [[-1] * shape.references] + [list(range(shape.references))] * 2
    own = [draw(3, shape.tokens, shape.heads, shape.head_dim).transpose(1, 2) for _ in range(3)]
    dims = (shape.heads, shape.tokens, shape.head_dim)
    table = [draw(1, shape.references, *dims) for _ in range(2)]
    index = torch.tensor(refs, dtype=torch.int32, device=device)
    step = torch.zeros(1, dtype=torch.int32, device=device)
    return (*own, *table, index, step)


def _first_row(shape: Shape) -> int | None:
    return None if shape.references == 1 else 1


def _usable(
    shapes: list[Shape], candidates: Sequence[Tile], architecture: int, device: str, jobs: int
) -> list[tuple[Shape, list[Tile]]]:
    """The candidates of each shape that compile, do not spill and fit.

    Triton keeps what it compiles on disk, so that several processes can work ahead.
    """
    wanted = [
        (shape, tile, architecture, device)
        for shape in shapes
        for tile in candidates
        if not tile.uses_tma or (architecture >= FIRST_WITH_TMA and shape.dtype != "float32")
    ]
    if jobs == 1:
        found = [_is_usable(one) for one in wanted]
    else:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            found = list(pool.map(_is_usable, wanted))
    usable: dict[Shape, list[Tile]] = {shape: [] for shape in shapes}
    for (shape, tile, _, _), is_usable in zip(wanted, found, strict=True):
        if is_usable:
            usable[shape].append(tile)
    return list(usable.items())


def _is_usable(wanted: tuple[Shape, Tile, int, str]) -> bool:
    """Compile one candidate ahead of time, for what it takes, and once more as a launch does."""
    shape, tile, architecture, device = wanted
    limit = SHARED_LIMIT.get(architecture, 99) * 1024
    run: Callable[..., object] = functools.partial(
        launch_attention, first_delta_row=_first_row(shape), tile=tile
    )
    # With plain loads too: inputs that the copy engine cannot read fall back to them.
    ways = dict.fromkeys((tile, tile.with_plain_loads()))
    try:
        for way in ways:
            variant = attention_variant(
                architecture=architecture,
                mode=shape.mode,
                dtype=shape.dtype,
                head_dim=shape.head_dim,
                tile=way,
            )
            resources = compile_one(variant).resources
            if resources.spills or resources.stack_bytes or resources.shared_bytes > limit:
                return False
        run(*_draw(dataclasses.replace(shape, heads=1), device))
    except (RuntimeError, BootPIGError) as error:
        _log.debug("%s does not run for %s: %s", tile, shape, error)
        return False
    return True
