"""What a runtime says of its own step: which operators its time goes to.

ONNX Runtime writes a profile, OpenVINO keeps counters. Both are turned on from outside, while a
pipeline is loaded, so that what is profiled is what users run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock


@dataclass(frozen=True)
class OperatorTime:
    """Time of one kind of operator.

    Attributes:
        kind: The runtime's name of it.
        ms: Of all of them in a step, together.
        calls: How many a step has.
    """

    kind: str
    ms: float
    calls: float


Read: TypeAlias = Callable[[int], list[OperatorTime]]
"""Steps that were drawn -> operators of a step, the longest first."""


@contextmanager
def profiled(backend: str, folder: Path) -> Iterator[Read]:
    """Profile what is loaded inside.

    Args:
        backend: `onnxruntime` or `openvino`.
        folder: For files.

    Yields:
        What reads the profile, once the steps are drawn.
    """
    with _onnxruntime(folder) if backend == "onnxruntime" else _openvino() as read:
        yield read


@contextmanager
def _onnxruntime(folder: Path) -> Iterator[Read]:
    import onnxruntime as ort

    options, session = ort.SessionOptions, ort.InferenceSession
    made: list[Any] = []

    def profiling() -> Any:
        found = options()
        found.enable_profiling = True
        found.profile_file_prefix = str(folder / "profile")
        return found

    def kept(*arguments: Any, **others: Any) -> Any:
        made.append(session(*arguments, **others))
        return made[-1]

    def read(steps: int) -> list[OperatorTime]:
        events = [json.loads(Path(each.end_profiling()).read_text("utf-8")) for each in made]
        return of_profile(max(events, key=_node_us), steps)

    with (
        mock.patch.object(ort, "SessionOptions", profiling),
        mock.patch.object(ort, "InferenceSession", kept),
    ):
        yield read


def _nodes(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name")).endswith("_kernel_time"):
            yield event


def _node_us(events: Iterable[Mapping[str, Any]]) -> float:
    return sum(float(event["dur"]) for event in _nodes(events))


def of_profile(events: Iterable[Mapping[str, Any]], steps: int) -> list[OperatorTime]:
    """Operators of ONNX Runtime's profile of a graph that ran once a step."""
    return _sorted(
        (((str(event["args"]["op_name"])), float(event["dur"]) / 1e3) for event in _nodes(events)),
        steps,
    )


_STEP_OUTPUT = "next_state"
"""What step graphs give and no other: the pass over references takes longer than a step."""


@contextmanager
def _openvino() -> Iterator[Read]:
    import openvino as ov

    requests: list[Any] = []
    create = ov.CompiledModel.create_infer_request

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(core: Any, model: Any, device: Any = "CPU", config: Any = None) -> Any:
            return method(core, model, device, {**(config or {}), "PERF_COUNT": True})

        return called

    def kept(compiled: Any) -> Any:
        request = create(compiled)
        if any(_STEP_OUTPUT in output.names for output in compiled.outputs):
            requests.append(request)
        return request

    def read(steps: int) -> list[OperatorTime]:
        # Counters are of the last launch, so of one step.
        found = [of_counters(_counters(request)) for request in requests]
        return max(found, key=lambda each: sum(one.ms for one in each), default=[])

    with (
        mock.patch.object(ov.Core, "compile_model", counting(ov.Core.compile_model)),
        mock.patch.object(ov.Core, "import_model", counting(ov.Core.import_model)),
        mock.patch.object(ov.CompiledModel, "create_infer_request", kept),
    ):
        yield read


def _counters(request: Any) -> list[Any]:
    """Of a request; none where it never ran."""
    try:
        return list(request.profiling_info)
    except RuntimeError:
        return []


def of_counters(counters: Iterable[Any]) -> list[OperatorTime]:
    """Operators of OpenVINO's counters of one launch; what it fused away took no time."""
    return _sorted(
        (
            (str(each.node_type), each.real_time.total_seconds() * 1e3)
            for each in counters
            if each.real_time.total_seconds() > 0
        ),
        1,
    )


def _sorted(found: Iterable[tuple[str, float]], steps: int) -> list[OperatorTime]:
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for kind, ms in found:
        times[kind] += ms  # type: ignore[assignment]
        calls[kind] += 1
    return [
        OperatorTime(kind, ms / steps, calls[kind] / steps)
        for kind, ms in sorted(times.items(), key=lambda item: -item[1])
    ]
