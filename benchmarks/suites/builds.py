"""Suite `builds`: time, memory and size of `build-engine`, each in a process of its own.

A build takes minutes and is run once: its time has no interval, and no ratio.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.errors import BootPIGError

HELP = "time, memory and size of build-engine for each target that can be built here"

_SIZES = {"small": "the shipped pair", "sd21": "size of Stable Diffusion 2.1"}
_FULL_SIZE = ("--max-batch", "1", "--max-references", "1", "--resolution", "256:512:512")
"""The parity gate then runs at 256 px: attention over 512 px, written out, takes much memory."""


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Build the pair, and one of the size of Stable Diffusion 2.1, for `cpu` and for `sm_89`.

    The large pair has random weights; it needs 12 GB of disk in the work folder.

    Raises:
        ParameterError: `--only` matches no row.
    """
    targets = ("cpu",) if settings.is_smoke else ("cpu", "sm_89")
    sizes = ("small",) if settings.is_smoke else tuple(_SIZES)
    offered = [(size, target) for size in sizes for target in targets]
    settings.check_only([f"{size} {target}" for size, target in offered])
    builds = [each for each in offered if settings.is_wanted(" ".join(each))]
    settings.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=settings.work) as work:
        large = Path(work) / "pair"
        if any(size == "sd21" for size, _ in builds):
            settings.progress("making a pair of the size of Stable Diffusion 2.1", 0, len(builds))
            run_child(["-m", "bootpig_rt.benchmarks.pairs", "sd21", str(large)])
        for done, (size, target) in enumerate(builds):
            settings.progress(f"building {size} for {target}", done, len(builds))
            pair = settings.pair if size == "small" else large
            rows.append(_build(pair, size, target, Path(work) / target))
    return SuiteResult("builds", tuple(rows), settings={"pair": settings.pair.name, "rounds": 1})


def _options(size: str, target: str) -> tuple[str, ...]:
    if size == "sd21":
        return _FULL_SIZE
    return () if target == "cpu" else ("--max-references", "1")


def _build(pair: Path, size: str, target: str, output: Path) -> Row:
    row = Row(f"{size} {target}", f"{_SIZES[size]}, `{target}`", "build-engine")
    if target != "cpu" and importlib.util.find_spec("tensorrt_rtx") is None:
        return Row(row.name, row.label, row.group, status="not available: tensorrt_rtx is missing")
    words = ["-m", "bootpig_rt", "build-engine", "--pair", str(pair), "--target", target]
    words += _options(size, target)
    try:
        made = run_child([*words, "-o", str(output), "--quiet"])
    except BootPIGError as error:
        return Row(row.name, row.label, row.group, status=f"failed: {error}")
    stored = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    graphs = sum(path.stat().st_size for path in output.glob("*.*") if path.is_file())
    shutil.rmtree(output)
    return Row(row.name, row.label, row.group, samples_ms=(made.wall_ms,)).with_values(
        peak_bytes=None if made.peak_bytes is None else float(made.peak_bytes),
        bundle_bytes=float(stored),
        graphs_and_engines_bytes=float(graphs),
    )
