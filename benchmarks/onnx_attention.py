"""Four ways to attend to own and reference tokens in ONNX Runtime on a CPU: time and memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from bootpig_rt.benchmarks.bare_unet import quiet_export
from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.result import Check, Row
from bootpig_rt.benchmarks.rounds import Way, choose, time_ways
from bootpig_rt.benchmarks.settings import Settings

SHAPES = ((256, 2, 32), (1024, 5, 64), (4096, 5, 64))
"""Tokens, heads and head dim of a row: the packaged pair, SD 2.1 at 256 px and at 512 px."""

_BATCH = 2
"""Rows that read a reference: image and text_image."""

_OPSET = 23
"""The first with `Attention`."""

_LIMIT = 1e-5
_FEW, _MANY = 2, 20

_LABELS = {
    "concat": "keys joined, attention written out",
    "segments": "own and reference keys apart, joined by their sums",
    "fused": "keys joined, ONNX Runtime's own attention",
    "operator": "ONNX's own operator, the reference as its past",
}

# Peak memory of a graph alone: no torch, random inputs of the graph's own shapes.
_CHILD = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
random = np.random.default_rng(0)
feeds = {x.name: random.standard_normal(x.shape, np.float32) for x in session.get_inputs()}
if sys.argv[3] == "run":
    session.run(None, feeds)
"""


_Attend: TypeAlias = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class _Graph:
    """A graph of one attention, and what it reads."""

    path: Path
    session: ort.InferenceSession
    feeds: dict[str, np.ndarray[Any, Any]]

    def run(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.session.run(None, self.feeds)[0]
        return found


class _Attention(nn.Module):
    def __init__(self, attend: _Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor) -> Any:
        return self.attend(q * q.shape[-1] ** -0.5, k, v, ref_k, ref_v)


def _concat(q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor) -> Tensor:
    keys, values = torch.cat([k, ref_k], dim=2), torch.cat([v, ref_v], dim=2)
    return (q @ keys.transpose(2, 3)).softmax(dim=-1) @ values


def _segments(q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor) -> Tensor:
    own, ref = q @ k.transpose(2, 3), q @ ref_k.transpose(2, 3)
    largest = torch.maximum(own.amax(-1, keepdim=True), ref.amax(-1, keepdim=True))
    own, ref = (own - largest).exp(), (ref - largest).exp()
    return (own @ v + ref @ ref_v) / (own.sum(-1, keepdim=True) + ref.sum(-1, keepdim=True))


def _fused(q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor) -> Tensor:
    rows, heads, tokens, size = q.shape
    keys, values = torch.cat([k, ref_k], dim=2), torch.cat([v, ref_v], dim=2)
    attended: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        tuple(each.transpose(1, 2).flatten(2) for each in (q, keys, values)),
        {"num_heads": heads, "scale": 1.0},
        dtype=q.dtype,
        shape=(rows, tokens, heads * size),
        version=1,
    )
    return attended.reshape(rows, tokens, heads, size).transpose(1, 2)


def _operator(q: Tensor, k: Tensor, v: Tensor, ref_k: Tensor, ref_v: Tensor) -> Sequence[Tensor]:
    both = (*k.shape[:2], k.shape[2] + ref_k.shape[2], k.shape[3])
    attended: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        "Attention",
        (q, k, v, None, ref_k, ref_v),
        {"scale": 1.0},
        dtypes=(q.dtype,) * 3,
        shapes=(q.shape, both, both),  # the runtime insists on the joined keys and values
        version=_OPSET,
    )
    return attended


_WAYS: dict[str, _Attend] = {
    "concat": _concat,
    "segments": _segments,
    "fused": _fused,
    "operator": _operator,
}


def attention_rows(settings: Settings) -> tuple[list[Row], list[Check], list[str]]:
    """Measure all shapes; rows, checks against torch, and the names that `--only` may take."""
    rows: list[Row] = []
    checks: list[Check] = []
    names: list[str] = []
    for shape in SHAPES[: 1 if settings.is_smoke else None]:
        repeats = _MANY if shape[0] < SHAPES[1][0] else _FEW
        with tempfile.TemporaryDirectory() as work:
            graphs = dict(_graphs(shape, Path(work), settings.threads))
            ways = [
                Way(
                    f"onnx {shape[0]} tokens {name}", _LABELS[name],
                    partial(_repeated, graph, repeats), repeats, group=_group(shape),
                )
                for name, graph in graphs.items()
            ]  # fmt: skip
            names += [way.name for way in ways]
            chosen = choose(ways, settings)
            if not chosen:
                continue
            checks += _checks(shape, graphs)
            timed = time_ways(
                chosen, settings.rounds, baseline=ways[0].name, progress=settings.progress
            )
            by_name = {way.name: graph for way, graph in zip(ways, graphs.values(), strict=True)}
            for row in timed:
                taken = _bytes(by_name[row.name], settings.threads)
                rows.append(replace(row, values={"launch_bytes": taken}))
    return rows, checks, names


def _group(shape: tuple[int, int, int]) -> str:
    tokens, heads, size = shape
    return f"ONNX Runtime, {tokens} own and reference tokens, {heads} heads of {size}, two rows"


def _graphs(shape: tuple[int, int, int], work: Path, threads: int) -> Iterator[tuple[str, _Graph]]:
    tokens, heads, size = shape
    generator = torch.Generator().manual_seed(0)
    names = ("q", "k", "v", "ref_k", "ref_v")
    inputs = [torch.randn(_BATCH, heads, tokens, size, generator=generator) for _ in names]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, attend in _WAYS.items():
        path = work / f"{name}.onnx"
        with quiet_export():
            torch.onnx.export(
                _Attention(attend), tuple(inputs), path, input_names=list(names), dynamo=True,
                opset_version=_OPSET,
            )  # fmt: skip
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {key: value.numpy() for key, value in zip(names, inputs, strict=True)}
        yield name, _Graph(path, session, feeds)


def _checks(shape: tuple[int, int, int], graphs: dict[str, _Graph]) -> Iterator[Check]:
    inputs = [torch.from_numpy(value) for value in next(iter(graphs.values())).feeds.values()]
    expected = _Attention(_concat)(*inputs).numpy()
    for name, graph in graphs.items():
        error = np.linalg.norm(graph.run() - expected) / np.linalg.norm(expected)
        yield Check(f"onnx {shape[0]} tokens {name}, torch", float(error), _LIMIT)


def _repeated(graph: _Graph, repeats: int) -> None:
    for _ in range(repeats):
        graph.run()


def _bytes(graph: _Graph, threads: int) -> float | None:
    """Peak memory that a launch adds to a process that has loaded the graph and made its inputs."""
    peaks = [
        run_child(["-c", _CHILD, str(graph.path), str(threads), what]).peak_bytes
        for what in ("run", "load")
    ]
    return None if None in peaks else float((peaks[0] or 0) - (peaks[1] or 0))
