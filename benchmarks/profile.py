"""Where a picture's time goes: Chrome traces and a table of operators, per runtime."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.files.atomic import atomic_write_text

STEP = "step in ONNX Runtime"
"""Name of the group whose rows are of one step."""

_ROWS = 12


@dataclass(frozen=True)
class Cost:
    """What one kind of operator took in a profile."""

    self_ms: float
    calls: int


def profile_picture(settings: Settings, folder: Path) -> SuiteResult:
    """Profile the steps in ONNX Runtime and a picture in torch, of a known subject.

    Args:
        settings: Pair and threads.
        folder: Gets `onnxruntime.json` and `torch.json`, for chrome://tracing or Perfetto, and
            `operators.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(settings.threads):
        settings.progress("ONNX Runtime", 0, 2)
        found = {STEP: _onnxruntime(settings, folder / "onnxruntime.json")}
        settings.progress("torch", 1, 2)
        ours = OurWay(settings.pair, backend="torch", threads=settings.threads)
        found["picture in torch"] = _torch(ours, folder / "torch.json")
    rows = [row for group, costs in found.items() for row in _rows(group, costs)]
    atomic_write_text(folder / "operators.md", _markdown(found))
    return SuiteResult("profile", tuple(rows), settings={"pair": ours.pipe.spec.config.name})


def _onnxruntime(settings: Settings, path: Path) -> dict[str, Cost]:
    """A step of a picture of a known subject: of each node the median over the steps.

    A sum would tell of the one step in which the system took the processor away.
    """
    with tempfile.TemporaryDirectory() as work:
        options = {"profile_prefix": str(Path(work) / "profile")}
        ours = OurWay(settings.pair, threads=settings.threads, backend_options=options)
        for _ in range(2):  # the first one pays for its memory too
            ours.warm()
        steps = ours.pipe.sampling_params().num_inference_steps
        backend: Any = ours.pipe._backend
        written = Path(backend.sessions.get("denoise_step").end_profiling())
        text = written.read_text(encoding="utf-8")
    atomic_write_text(path, text)
    nodes = [
        event
        for event in json.loads(text)
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    times_of_node: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in nodes[len(nodes) // 2 :]:
        times_of_node[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    costs: dict[str, Cost] = {}
    for (kind, _), times in times_of_node.items():
        before = costs.get(kind, Cost(0.0, 0))
        calls = round(len(times) / steps)
        costs[kind] = Cost(before.self_ms + calls * median(times), before.calls + calls)
    return costs


def _torch(ours: OurWay, path: Path) -> dict[str, Cost]:
    """One picture of a known subject, after one that warms up."""
    ours.warm()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        ours.warm()
    part = path.with_suffix(".part.json")
    seen.export_chrome_trace(str(part))
    part.replace(path)
    return {
        event.key: Cost(event.self_cpu_time_total / 1e3, event.count)
        for event in seen.key_averages()
    }


def _rows(group: str, costs: Mapping[str, Cost]) -> list[Row]:
    total = sum(cost.self_ms for cost in costs.values()) or 1.0
    largest = sorted(costs.items(), key=lambda item: -item[1].self_ms)[:_ROWS]
    return [
        Row(
            name=f"{group}/{name}",
            label=name,
            group=group,
            values={
                "share": round(cost.self_ms / total, 4),
                "self_ms": round(cost.self_ms, 3),
                "calls": float(cost.calls),
            },
        )
        for name, cost in largest
    ]


def _markdown(found: Mapping[str, Mapping[str, Cost]]) -> str:
    lines = []
    for group, costs in found.items():
        lines += [f"## {group}", "", "| operator | share | ms | calls |", "|---|---|---|---|"]
        lines += [
            f"| {row.label} | {row.values['share']:.1%} | {row.values['self_ms']:.2f} | "
            f"{row.values['calls']:.0f} |"
            for row in _rows(group, costs)
        ]
        lines.append("")
    return "\n".join(lines)
