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


def run(settings: Settings) -> SuiteResult:
    """Build the pair for `cpu`, and for `sm_89` where TensorRT-RTX is installed."""
    rows = []
    targets = ["cpu"] if settings.is_smoke else ["cpu", "sm_89"]
    with tempfile.TemporaryDirectory(dir=_folder(settings)) as work:
        for done, target in enumerate(targets):
            settings.progress(f"building {target}", done, len(targets))
            if settings.is_wanted(target):
                rows.append(_build(settings.pair, target, Path(work) / target))
    return SuiteResult(suite=NAME, rows=tuple(rows), settings={"pair": settings.pair.name})


def _folder(settings: Settings) -> Path:
    settings.work.mkdir(parents=True, exist_ok=True)
    return settings.work


def _build(pair: Path, target: str, output: Path) -> Row:
    name, group = target, "build-engine"
    if target != "cpu" and importlib.util.find_spec("tensorrt_rtx") is None:
        missing = 'not installed: pip install "bootpig-rt[tensorrt]"'
        return Row(name, target, group, notes={"status": missing})
    words = ["-m", "bootpig_rt", "build-engine", "--pair", str(pair), "--target", target]
    words += ["--max-references", "1"] if target != "cpu" else []
    try:
        made = run_child([*words, "-o", str(output), "--quiet"])
    except BootPIGError as error:
        return Row(name, target, group, notes={"status": f"failed: {error}"})
    stored = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    graphs = sum(path.stat().st_size for path in output.glob("*.*") if path.is_file())
    shutil.rmtree(output)
    return Row(
        name,
        target,
        group,
        samples_ms=(made.wall_ms,),
        values={
            "peak_bytes": float(made.peak_bytes),
            "bundle_bytes": float(stored),
            "graphs_and_engines_bytes": float(graphs),
        },
    )
