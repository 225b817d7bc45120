"""Fake quantisation of one OpenVINO graph by NNCF: where an 8 bit product would round, a node does.

The nodes compute in float32, so that a graph can be taken apart and measured; `stored` then makes
8 bit weights of them, and OpenVINO runs 8 bit products where both inputs are rounded. SmoothQuant
moves outliers of activations into weights ahead of that. Attention between activations, norms and
sums are left alone: they take little of a step, and OpenVINO has an operator for the first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import openvino as ov

from bootpig_rt.errors import EngineError

Sample: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
"""Inputs of one launch of a graph, by name."""

_NO_TELEMETRY = "NNCF_CI"
"""Where this is set, NNCF tells nobody that it was used."""


def quantised(
    model: ov.Model, samples: Sequence[Sample], told: Callable[[float], object] | None = None
) -> ov.Model:
    """A graph whose products of activations with weights are rounded to 8 bits.

    Args:
        model: Is not changed.
        samples: What its ranges are taken from, in this order.
        told: Share of the work done, 0..1; what it raises ends the work.

    Returns:
        The graph, with `FakeQuantize` nodes.

    Raises:
        EngineError: No samples, or NNCF refuses the graph.
    """
    if not samples:
        raise EngineError("no samples to take the ranges of an int8 graph from")
    model = simplified(model)
    passes = 2  # NNCF reads them once for SmoothQuant and once for ranges
    read = 0

    def each() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        nonlocal read
        for sample in samples:
            yield dict(sample)
            read += 1
            if told is not None:
                told(min(1.0, read / (passes * len(samples))))

    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

        try:
            made: ov.Model = nncf.quantize(
                model,
                nncf.Dataset(_Again(each)),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,  # with SmoothQuant
                ignored_scope=nncf.IgnoredScope(names=_left_alone(model)),
                advanced_parameters=AdvancedQuantizationParameters(
                    disable_bias_correction=True,  # a part that stays wide would be corrected too
                    backend_params={"compress_weights": False},
                ),
            )
        except (nncf.ValidationError, nncf.InternalError, RuntimeError) as error:
            raise EngineError(
                f"NNCF cannot quantise {model.get_friendly_name()}: {error}"
            ) from error
    return made


def simplified(model: ov.Model) -> ov.Model:
    """A copy as the runtime would simplify it: weights are plain constants, biases are fused."""
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.passes import ConstantFolding, Manager

    copy = model.clone()
    for op in copy.get_ops():  # a weight that is stored in float16 keeps its name in float32
        if op.get_type_name() == "Convert" and _is_stored(op.input_value(0).get_node()):
            source = op.input_value(0).get_node()
            name = source.get_friendly_name()
            source.set_friendly_name(f"{name} as stored")
            op.set_friendly_name(name)
    apply_moc_transformations(copy, cf=False, smart_reshape=False)
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(copy)
    return copy


def _is_stored(node: ov.Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def stored(model: ov.Model) -> ov.Model:
    """The same graph with rounded weights kept in 8 bits; `model` is changed."""
    from openvino._offline_transformations import compress_quantize_weights_transformation

    compress_quantize_weights_transformation(model)
    return model


def has_weight(op: ov.Node) -> bool:
    """Whether an operator multiplies with a constant: a convolution or a linear layer."""
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    return op.get_type_name() in kinds and weight_of(op) is not None


def weight_of(op: ov.Node) -> ov.Node | None:
    """The constant that an operator multiplies with, behind whatever was put between them."""
    for port in range(1, op.get_input_size()):
        node = op.input_value(port).get_node()
        while node.get_type_name() in _BETWEEN:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant":
            return node
    return None


# What may stand between a weight and its product; the weight is the first input of each.
_BETWEEN = ("FakeQuantize", "Convert", "Multiply", "Subtract", "Transpose", "Reshape")


def _left_alone(model: ov.Model) -> list[str]:
    """Names of operators that stay as they are: all that compute but products with weights."""
    return [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() not in (*_NO_ARITHMETIC, *MOVES) and not has_weight(op)
    ]


_NO_ARITHMETIC = ("Constant", "Convert", "Parameter", "Result", "ShapeOf")

MOVES = (
    "Concat", "Gather", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice",
    "Transpose", "Unsqueeze", "VariadicSplit",
)  # fmt: skip
"""Operators that an activation passes unchanged."""


class _Again:
    """An iterable that begins anew each time, as NNCF reads its samples more than once."""

    def __init__(self, each: Callable[[], Iterator[Any]]) -> None:
        self._each = each

    def __iter__(self) -> Iterator[Any]:
        return self._each()


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF, which neither prints nor tells anybody that it is used."""
    before = os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    try:
        import nncf
        from nncf.common.logging.logger import nncf_logger
    finally:
        if before is None:
            del os.environ[_NO_TELEMETRY]
        else:
            os.environ[_NO_TELEMETRY] = before
    level = nncf_logger.level
    nncf_logger.setLevel(logging.ERROR)
    try:
        # Its progress bars; and warnings of what it divides by, which changes no range.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield nncf
    finally:
        nncf_logger.setLevel(level)
