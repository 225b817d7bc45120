"""What a run found: rows with a status, and the JSON file that is written after each part."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from bootpig_rt.benchmarks import machine
from bootpig_rt.files.atomic import atomic_write_text

FORMAT_VERSION = 1

Status: TypeAlias = Literal[
    "ok", "wrong", "not available", "out of memory", "failed", "skipped budget", "skipped"
]


@dataclass(frozen=True)
class GpuRow:
    """One thing that was to be measured.

    Attributes:
        section: `kernel`, `merge`, `attention`, `step`, `picture`, `part` or `profile`.
        case: The shape that it was measured on.
        way: How it was computed.
        label: The way, for people.
        status: `ok` has a time; `wrong` was computed and is not right; the others say why there
            is none.
        reason: Of a status that is not `ok`, or a remark.
        ms: Median time.
        samples_ms: All rounds.
        error: What was found by the comparison ahead of the times.
        values: Numbers beside the time, with their unit in the name.
    """

    section: str
    case: str
    way: str
    label: str
    status: Status = "ok"
    reason: str = ""
    ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    error: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """All rows of a run.

    Attributes:
        is_rehearsal: On a CPU at toy size: no time in it means anything.
        device: The hardware.
        settings: What was measured.
        rows: In the order in which they were measured.
        targets: The issue's targets with what was measured, as `Target.to_dict` gives them.
        is_finished: The run came to its end.
    """

    is_rehearsal: bool
    device: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: list[GpuRow] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    is_finished: bool = False
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def of(self, section: str, case: str | None = None) -> Iterator[GpuRow]:
        """Rows of a part, of one case or of all."""
        for row in self.rows:
            if row.section == section and case in (None, row.case):
                yield row

    def ms(self, section: str, case: str, way: str) -> float | None:
        """Median of one row; None where it is not there, not right or has no time."""
        for row in self.of(section, case):
            if row.way == way and row.status == "ok":
                return row.ms
        return None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": "bench-gpu",
            "is_rehearsal": self.is_rehearsal,
            "is_finished": self.is_finished,
            "started": self.started,
            "commit": machine.commit(),
            "command": machine.command(),
            "versions": machine.versions(),
            "machine": {
                "processor": machine.processor(),
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "python": platform.python_version(),
            },
            "device": dict(self.device),
            "settings": dict(self.settings),
            "targets": self.targets,
            "rows": [_rounded(asdict(row)) for row in self.rows],
        }

    def save(self, path: Path | None) -> None:
        """Write the JSON file, whole or not at all; None: nothing."""
        if path is not None:
            atomic_write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")


def describe_device(device: str) -> dict[str, Any]:
    """The GPU with its driver's and libraries' versions; of a CPU, its threads."""
    if not device.startswith("cuda"):
        return {"name": machine.processor(), "kind": "cpu", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "kind": "cuda",
        "architecture": f"sm_{found.major}{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": getattr(found, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "power_and_clocks": _asked_of_driver(),
    }


def _asked_of_driver() -> dict[str, str]:
    """Driver, power limit and clocks, where the driver's tool is installed."""
    import subprocess

    names = ("driver_version", "power.limit", "clocks.max.sm", "clocks.sm", "temperature.gpu")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    first = (done.stdout.splitlines() or [""])[0]
    return dict(zip(names, (part.strip() for part in first.split(",")), strict=False))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Times to a tenth of a microsecond, and rates to what a reader uses."""
    row["samples_ms"] = [round(each, 5) for each in row["samples_ms"]]
    row["ms"] = None if row["ms"] is None else round(row["ms"], 5)
    row["values"] = {name: float(f"{value:.6g}") for name, value in row["values"].items()}
    return row
