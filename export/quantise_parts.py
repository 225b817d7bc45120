"""The parts of a quantised graph: what can be rounded or left wide on its own, and what that does.

A part is all products that read the same rounded activation, such as the three projections of an
attention. `Switched` is the graph with a switch for each part: it is compiled once, and any choice
of wide parts is measured by a launch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from bootpig_rt.export.quantise_graph import MOVES, Sample, has_weight, weight_of

_SWITCH = "bootpig_rt_switches"
_ROUNDED = "FakeQuantize"


@dataclass(frozen=True)
class Part:
    """Products that are rounded together or not at all.

    Attributes:
        name: Of the first weight, without `.weight`: "down_blocks.0.resnets.0.conv1".
        nodes: Names of the rounding nodes, of activations and of weights.
        weights: Numbers that are multiplied with.
    """

    name: str
    nodes: tuple[str, ...]
    weights: int


def parts_of(model: ov.Model) -> tuple[Part, ...]:
    """The parts of a quantised graph, in its order."""
    rounding = [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() == _ROUNDED and not _is_constant(op.input_value(0).get_node())
    ]
    owner = {op.get_friendly_name(): number for number, op in enumerate(rounding)}
    groups: dict[int, list[ov.Node]] = {number: [op] for number, op in enumerate(rounding)}
    products: dict[str, int] = {}
    for op in rounding:
        for product in _readers(op):
            name = product.get_friendly_name()
            mine = owner[op.get_friendly_name()]
            if name in products and products[name] != mine:  # it reads two: they are one part
                other = products[name]
                groups[other] += groups.pop(mine)
                owner |= {key: other for key, value in owner.items() if value == mine}
                products |= {key: other for key, value in products.items() if value == mine}
            else:
                products[name] = mine
    parts: dict[str, Part] = {}
    for number, activations in groups.items():
        nodes = [op.get_friendly_name() for op in activations]
        names, size = [], 0
        for product in (op for op in _ops(model) if products.get(op.get_friendly_name()) == number):
            weight = weight_of(product)
            if weight is None:
                continue
            names.append(weight.get_friendly_name())
            size += int(np.prod(weight.get_output_shape(0)))
            nodes += [
                op.get_friendly_name() for op in _sources(product) if op.get_type_name() == _ROUNDED
            ]
        if not names:
            continue
        name = _plain(names[0])
        if name in parts:  # the same layer at another place of the graph
            nodes += parts[name].nodes
            size = parts[name].weights
        parts[name] = Part(name, tuple(dict.fromkeys(nodes)), size)
    return tuple(parts.values())


def with_wide(model: ov.Model, wide: Collection[str], parts: Sequence[Part]) -> ov.Model:
    """A copy of a quantised graph in which some parts, by name, are not rounded."""
    copy = model.clone()
    nodes = {node for part in parts if part.name in wide for node in part.nodes}
    for op in copy.get_ordered_ops():
        if op.get_type_name() == _ROUNDED and op.get_friendly_name() in nodes:
            for reader in op.output(0).get_target_inputs():
                reader.replace_source_output(op.input_value(0))
    copy.validate_nodes_and_infer_types()
    return copy


class Switched:
    """A quantised graph whose parts can be rounded or wide from launch to launch.

    Args:
        model: Quantised; is not changed.
        parts: All of its parts.
    """

    def __init__(self, model: ov.Model, parts: Sequence[Part]) -> None:
        """Put the switches in and compile it in float32."""
        self.parts = tuple(parts)
        copy = model.clone()
        switches = ops.parameter([len(parts)], np.float32, name=_SWITCH)
        switches.output(0).get_tensor().set_names({_SWITCH})
        by_node = {node: number for number, part in enumerate(parts) for node in part.nodes}
        axis = ops.constant(np.int64(0))
        for op in copy.get_ordered_ops():
            if op.get_type_name() != _ROUNDED or op.get_friendly_name() not in by_node:
                continue
            readers = list(op.output(0).get_target_inputs())
            number = ops.constant(np.int64(by_node[op.get_friendly_name()]))
            switch = ops.gather(switches, number, axis)
            plain = op.input_value(0)
            mixed = ops.add(plain, ops.multiply(switch, ops.subtract(op.output(0), plain)))
            for reader in readers:
                reader.replace_source_output(mixed.output(0))
        copy.add_parameters([switches])
        compiled = ov.Core().compile_model(copy, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._request = compiled.create_infer_request()

    def launch(self, sample: Sample, wide: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name, with some parts wide and all others rounded."""
        on = np.array([part.name not in wide for part in self.parts], dtype=np.float32)
        made = self._request.infer({**sample, _SWITCH: on}, share_inputs=True)
        return {output.get_any_name(): np.array(value) for output, value in made.items()}


def _plain(name: str) -> str:
    """A weight's name as the report shows it."""
    return name.removesuffix(".weight").removeprefix("base.").removeprefix("unet.")


def _ops(model: ov.Model) -> list[ov.Node]:
    return [op for op in model.get_ordered_ops() if has_weight(op)]


def _is_constant(node: ov.Node) -> bool:
    """Whether a node depends on constants alone."""
    seen = [node]
    while seen:
        one = seen.pop()
        if one.get_type_name() == "Parameter":
            return False
        if one.get_type_name() not in ("Constant", "Convert", "Multiply", "Reshape", "Transpose"):
            return False
        seen += [one.input_value(port).get_node() for port in range(one.get_input_size())]
    return True


def _readers(rounding: ov.Node) -> list[ov.Node]:
    """Products with weights that read a rounded activation, through whatever moves numbers."""
    found: list[ov.Node] = []
    waiting = [rounding]
    while waiting:
        node = waiting.pop()
        for output in node.outputs():
            for reader in output.get_target_inputs():
                one = reader.get_node()
                if has_weight(one):
                    found.append(one)
                elif one.get_type_name() in MOVES:
                    waiting.append(one)
    return found


def _sources(product: ov.Node) -> list[ov.Node]:
    """Nodes between a product and its weight."""
    found = []
    for port in range(1, product.get_input_size()):
        node = product.input_value(port).get_node()
        while node.get_type_name() != "Constant" and node.get_input_size():
            found.append(node)
            node = node.input_value(0).get_node()
    return found
