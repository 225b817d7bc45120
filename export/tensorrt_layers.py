"""What TensorRT made of a graph, read without a GPU: fused attentions, kernels in float32.

An engine can be opened only on the GPU that it is for. But a builder logs its final layers when it
is told to log everything, and TensorRT-RTX keeps the text of generated kernels in the plan; both
are read here. This file knows text and bytes, and no TensorRT.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig_rt.backends.tensorrt.flavours import flavour_of

LAYERS_MESSAGE = "Layers:\n"
"""How the log message that lists the final layers begins."""

MEMORY_MESSAGE = "Total Activation Memory: "
"""How the log message that gives the device memory of a launch begins, in bytes."""

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
_TYPE = re.compile(r"Datatype: (\w+)")

# Layers that multiply matrices or convolve: where float32 costs most.
_HEAVY_KINDS = ("gemm", "correlation", "convolution", "runtime_fusion", "fusion")

# A generated kernel with the maximum, the exponential and the sum of a softmax: no fused attention.
# Behind a square root it weighs references by their norms instead (`reference_op`).
_SOFTMAX = re.compile(r"(?P<before>.*)Maxr.*Exp.*Sum")
_FUSED_ATTENTION = "mha"

# Traits of the first product of a fused attention, scores = q k^T: the type that it is summed in.
_SCORES = re.compile(rb"Kernel_traits_v2\w*<\s*fmha::\w*?_(fp16|fp32|bf16)_traits,")


@dataclass(frozen=True)
class Layer:
    """One kernel launch of an engine.

    Attributes:
        name: TensorRT's; says what was fused.
        kind: `gemm`, `correlation` (a convolution), `kgen` (a generated kernel) and so on.
        input_types: TensorRT's names of the types that it reads, such as `Half` and `Float`.
    """

    name: str
    kind: str
    input_types: tuple[str, ...]


@dataclass(frozen=True)
class LayerReport:
    """What became of a network.

    Attributes:
        num_layers: Launches of the engine; 0 where the builder did not say.
        fused_attentions: Attentions that are one kernel.
        unfused_attentions: Softmaxes in kernels of their own, their scores written to memory.
        unfused_half_scores: Those among them whose scores lie in memory as float16.
        float32_layers: Names of matrix products and convolutions that read float32.
        score_types: For each kernel text in the plan the type that scores are summed in, `fp32` or
            `fp16`; empty where plans hold no text. float16 overflows with the weights of Stable
            Diffusion 2.1.
    """

    num_layers: int
    fused_attentions: int
    unfused_attentions: int
    unfused_half_scores: int
    float32_layers: tuple[str, ...]
    score_types: tuple[str, ...]

    @property
    def half_scores(self) -> int:
        """Attentions whose scores are float16 anywhere, where they overflow."""
        return self.score_types.count("fp16") + self.unfused_half_scores


def parse_layers(message: str) -> tuple[Layer, ...]:
    """The layers that a log message lists.

    Args:
        message: Begins with `LAYERS_MESSAGE`; a line each.
    """
    layers = []
    for match in _LAYER.finditer(message):
        inputs = match["rest"].partition("Outputs: ")[0]
        layers.append(Layer(match["name"], match["kind"], tuple(_TYPE.findall(inputs))))
    return tuple(layers)


def layer_report(layers: tuple[Layer, ...], plan: bytes | memoryview) -> LayerReport:
    """Count what matters in the layers and in the texts of the plan."""
    unfused = [layer for layer in layers if _is_unfused_attention(layer)]
    return LayerReport(
        num_layers=len(layers),
        fused_attentions=sum(_FUSED_ATTENTION in layer.name for layer in layers),
        unfused_attentions=len(unfused),
        unfused_half_scores=sum("Half" in layer.input_types for layer in unfused),
        float32_layers=tuple(
            layer.name
            for layer in layers
            if layer.kind in _HEAVY_KINDS and "Float" in layer.input_types[:2]
        ),
        score_types=tuple(match[1].decode() for match in _SCORES.finditer(plan)),
    )


def read_layers(engines: Path, name: str) -> dict[str, Any]:
    """What the builder wrote beside an engine: its `EngineReport` as json."""
    text = (engines / f"{name}.layers.json").read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text)
    return report


def describe_engine(engines: Path, name: str) -> str:
    """One line about what became of the graph of an engine."""
    report = read_layers(engines, name)
    layers = report["layers"]
    if not layers["num_layers"]:
        return "layers unknown: the builder did not list them"
    parts = []
    if layers["fused_attentions"]:
        types = sorted(set(layers["score_types"]))
        sums = "scores of unknown type"
        if types and flavour_of(report["target"]).keeps_kernel_source:
            sums = f"scores summed in {' and '.join(types)}"
        parts.append(f"{layers['fused_attentions']} attentions fused, {sums}")
    if layers["unfused_attentions"]:
        parts.append(f"{layers['unfused_attentions']} attentions not fused")
    if layers["float32_layers"]:
        parts.append(f"{len(layers['float32_layers'])} products in float32")
    return ", ".join(parts) or "no attention, no product in float32"


def _is_unfused_attention(layer: Layer) -> bool:
    if _FUSED_ATTENTION in layer.name:
        return False
    match = _SOFTMAX.search(layer.name)
    return match is not None and "Sqrt" not in match["before"]
