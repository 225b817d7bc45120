"""Suite `builds`: time, memory and size of `build-engine`, each in a process of its own."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.errors import BootPIGError

NAME = "builds"
HELP = "time, memory and size of build-engine for each target that can be built here"

_SIZES = {"small": "the shipped pair", "sd21": "size of Stable Diffusion 2.1"}
_FULL_SIZE = ("--max-batch", "1", "--max-references", "1", "--resolution", "256:512:512")
"""The parity gate then runs at 256 px: attention over 512 px, written out, takes much memory."""


def run(settings: Settings) -> SuiteResult:
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
    rows = []
    with tempfile.TemporaryDirectory(dir=_folder(settings)) as work:
        large = Path(work) / "pair"
        if any(size == "sd21" for size, _ in builds):
            settings.progress("making a pair of the size of Stable Diffusion 2.1", 0, len(builds))
            run_child(["-m", "bootpig_rt.benchmarks.random_pair", str(large)])
        for done, (size, target) in enumerate(builds):
            settings.progress(f"building {size} for {target}", done, len(builds))
            pair = settings.pair if size == "small" else large
            rows.append(_build(pair, size, target, Path(work) / target))
    return SuiteResult(suite=NAME, rows=tuple(rows), settings={"pair": settings.pair.name})


def _options(size: str, target: str) -> tuple[str, ...]:
    if size == "sd21":
        return _FULL_SIZE
    return () if target == "cpu" else ("--max-references", "1")


def _folder(settings: Settings) -> Path:
    settings.work.mkdir(parents=True, exist_ok=True)
    return settings.work


def _build(pair: Path, size: str, target: str, output: Path) -> Row:
    name, group = f"{size} {target}", "build-engine"
    label = f"{_SIZES[size]}, `{target}`"
    if target != "cpu" and importlib.util.find_spec("tensorrt_rtx") is None:
        missing = 'not installed: pip install "bootpig-rt[tensorrt]"'
        return Row(name, label, group, notes={"status": missing})
    words = ["-m", "bootpig_rt", "build-engine", "--pair", str(pair), "--target", target]
    words += _options(size, target)
    try:
        made = run_child([*words, "-o", str(output), "--quiet"])
    except BootPIGError as error:
        return Row(name, label, group, notes={"status": f"failed: {error}"})
    stored = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    graphs = sum(path.stat().st_size for path in output.glob("*.*") if path.is_file())
    shutil.rmtree(output)
    peak = None if made.peak_bytes is None else float(made.peak_bytes)
    return Row(
        name,
        label,
        group,
        samples_ms=(made.wall_ms,),
        values={
            "peak_bytes": peak,
            "bundle_bytes": float(stored),
            "graphs_and_engines_bytes": float(graphs),
        },
    )
