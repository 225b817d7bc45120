"""Suite `kernels`: the attention of a step with references, by each way to compute it."""

from __future__ import annotations

import torch

from bootpig_rt.benchmarks.attention import Shape, attention_ways
from bootpig_rt.benchmarks.ours import torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Bench, Journal
from bootpig_rt.benchmarks.ways import attention_shapes

HELP = "attention with references of all layers of a step, beside stock libraries"


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Compare the ways with the oracle, and time them.

    Raises:
        ParameterError: `--only` matches no row.
    """
    bench = Bench(settings, journal)
    dtype = torch.float16 if settings.is_cuda else torch.float32
    rows: list[Row] = []
    side, shapes = attention_shapes(settings.pair)
    sizes = (side, side * 3 // 2) if settings.is_cuda else (side,)
    counts = ((1, 1), (4, 1), (1, 4), (4, 4)) if settings.is_cuda else ((1, 1), (2, 1), (4, 1))
    with torch_threads(settings.threads):
        for size in sizes:
            for references, pictures in counts[: 2 if settings.is_smoke else None]:
                case = f"{size} px, {references} references, {pictures} pictures"
                ways = attention_ways(
                    case, _grown(shapes, size / side), references=references, pictures=pictures,
                    device=settings.device, dtype=dtype,
                )  # fmt: skip
                rows += bench.rows(case, ways, baseline=ways[0].name)
                bench.forget()
    settings.check_only(bench.names)
    return SuiteResult(
        "kernels",
        tuple(rows),
        settings={"pair": settings.pair.name, "precision": str(dtype).removeprefix("torch.")},
        checks=tuple(bench.checks),
    )


def _grown(shapes: list[Shape], factor: float) -> list[Shape]:
    """The same layers for a picture whose side is so much longer."""
    return [(heads, round(tokens * factor**2), size) for heads, tokens, size in shapes]
