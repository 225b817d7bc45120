"""The shapes that a launch of fixed shapes has, for OpenVINO to compile a model of.

Such a model is about a third quicker than one of free shapes, and takes memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from bootpig_rt.backends.host_table import LayerShape
from bootpig_rt.backends.openvino.launch import AnyArray
from bootpig_rt.backends.openvino.models import Shapes

_BY_STEP = (
    "timesteps",
    "matrices",
    "x0",
    "clip_weight",
    "canvas_weights",
    "ref_of_row",
    "ref_of_pair",
)
"""Inputs of a step whose first axis are the steps of the run."""


def step_shapes(inputs: Mapping[str, AnyArray], layers: tuple[LayerShape, ...]) -> Shapes:
    """Shapes of a step's inputs but for the lengths of run and table, which cost nothing free.

    Args:
        inputs: All that a step reads.
        layers: H, M, D of the tables of references of the pair's own size. Where references have
            another size, the result is empty: the model of free shapes reads those.
    """
    if any(inputs[f"k_{index}"].shape[1:] != shape for index, shape in enumerate(layers)):
        return ()
    return tuple(
        (name, (-1, *array.shape[1:]) if _is_long(name) else array.shape)
        for name, array in sorted(inputs.items())
    )


def one_row(inputs: Mapping[str, AnyArray], size: tuple[int, ...]) -> Shapes:
    """Shapes of a launch of one row whose pictures or latents measure `size`; else empty."""
    first = next(iter(inputs.values()))
    if len(first) != 1 or first.shape[2:] != size:
        return ()
    return tuple((name, array.shape) for name, array in sorted(inputs.items()))


def _is_long(name: str) -> bool:
    """Whether the first axis grows with the run or the table."""
    return name in _BY_STEP or name.startswith(("k_", "v_"))
