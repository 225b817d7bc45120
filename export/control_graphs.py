"""The graphs of a pair's controls with what tracing needs, beside those of `graphs.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import Dim

from bootpig_rt.backends.control_inputs import CONTROL_GRAPHS, STEP_GRAPH
from bootpig_rt.errors import ParameterError
from bootpig_rt.export.control_modules import ControlledStep, ControlMap, ControlResiduals
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.graphs import Graph, step_graph
from bootpig_rt.export.reference_op import OpMerge
from bootpig_rt.models.control import Control
from bootpig_rt.models.control_folder import PairControl
from bootpig_rt.models.load import Pair
from bootpig_rt.models.text_encoders import states_shape

_MAP, _RESIDUALS = CONTROL_GRAPHS


def is_control_graph(name: str) -> bool:
    """Whether a graph is one of those that only a pair with controls has."""
    return name.startswith((_RESIDUALS, STEP_GRAPH))


def build_control_graph(
    name: str, pair: Pair, *, dtype: torch.dtype = torch.float32, dialect: Dialect = "portable"
) -> Graph:
    """A graph of a pair with controls, see `bootpig_rt.export.graphs.build_graph`.

    Args:
        name: `control_map_<kind>`, `control_<kind>`, `controlled_step` or
            `controlled_step_<merge>`.
        pair: With modules of type `dtype` on the CPU.
        dtype: What the graph computes in.
        dialect: What it is written for.

    Raises:
        ParameterError: The pair has no such control.
    """
    if not pair.controls:
        raise ParameterError(f"graph is {name!r}, but the pair has no controls")
    text_length = states_shape(pair.text_encoder)[0]
    if name.startswith(STEP_GRAPH):
        merge = name.removeprefix(STEP_GRAPH).removeprefix("_") or "one"
        control = pair.controls[0].net
        return _step_graph(pair, control, cast("OpMerge", merge), text_length, dtype, dialect)
    is_map = name.startswith(_MAP)
    kind = name.removeprefix(_MAP if is_map else _RESIDUALS)
    found = next((one for one in pair.controls if one.kind == kind), None)
    if found is None:
        has = ", ".join(one.kind for one in pair.controls)
        raise ParameterError(f"graph is {name!r}, but the pair has controls of kind {has}")
    return _map_graph(found, pair) if is_map else _residual_graph(found, text_length, dtype)


def _map_graph(control: PairControl, pair: Pair) -> Graph:
    vae: Any = pair.vae
    unit = 2 ** (len(vae.config.block_out_channels) - 1) * control.net.size_multiple
    size = {2: unit * Dim("_height", min=1), 3: unit * Dim("_width", min=1)}
    return Graph(
        name=f"{_MAP}{control.kind}",
        module=ControlMap(control.net),
        inputs={"maps": torch.zeros(5, 3, 3 * unit, 2 * unit)},
        axes={"maps": {0: Dim("maps", min=1), **size}},
        outputs=("hints",),
        control=control.kind,
    )


def _residual_graph(control: PairControl, text_length: int, dtype: torch.dtype) -> Graph:
    net = control.net
    multiple, channels = net.size_multiple, int(net.unet.config.in_channels)
    history, pictures, steps, rows, of_control, texts, maps = 2, 3, 4, 7, 5, 6, 8
    height, width = Dim("_height", min=1), Dim("_width", min=1)
    side = (3 * multiple, 2 * multiple)
    width_of_text = net.unet.config.cross_attention_dim
    inputs: dict[str, Tensor] = {
        "step": torch.zeros(1, dtype=torch.int64),
        "state": torch.zeros(1 + history, pictures, channels, *side),
        "timesteps": torch.zeros(steps, pictures, dtype=torch.int64),
        "prompt_embeds": torch.zeros(texts, text_length, _one(width_of_text), dtype=dtype),
        "hints": torch.zeros(maps, net.hint_channels, *side, dtype=dtype),
        "picture_of_control": torch.zeros(of_control, dtype=torch.int64),
        "text_of_control": torch.zeros(of_control, dtype=torch.int64),
        "hint_of_control": torch.zeros(of_control, dtype=torch.int64),
        "control_of_row": torch.zeros(rows, dtype=torch.int64),
        "control_scale": torch.ones(rows),
    }
    free = {
        "K": Dim("history", min=0),
        "B": Dim("pictures", min=1),
        "N": Dim("rows", min=1),
        "Q": Dim("control_rows", min=1),
    }
    whole = (multiple * height, multiple * width) if multiple > 1 else (height, width)
    axes: dict[str, dict[int, Any]] = {
        "state": {0: free["K"] + 1, 1: free["B"], 3: whole[0], 4: whole[1]},
        "timesteps": {0: Dim("steps", min=1), 1: free["B"]},
        "prompt_embeds": {0: Dim("prompts", min=1)},
        "hints": {0: Dim("maps", min=1), 2: whole[0], 3: whole[1]},
        "picture_of_control": {0: free["Q"]},
        "text_of_control": {0: free["Q"]},
        "hint_of_control": {0: free["Q"]},
        "control_of_row": {0: free["N"]},
        "control_scale": {0: free["N"]},
    }
    given, given_axes = _residuals(net, "given", rows, free["N"], (height, width), dtype)
    return Graph(
        name=f"{_RESIDUALS}{control.kind}",
        module=ControlResiduals(net),
        inputs=inputs | given,
        axes=axes | given_axes,
        outputs=tuple(f"residual_{index}" for index in range(len(given))),
        control=control.kind,
    )


def _step_graph(
    pair: Pair,
    control: Control,
    merge: OpMerge,
    text_length: int,
    dtype: torch.dtype,
    dialect: Dialect,
) -> Graph:
    plain = step_graph(pair.base, merge, text_length, dtype, dialect)
    rows = plain.inputs["picture_of_row"].shape[0]
    sizes = _sizes_of(plain, pair.base.size_multiple)
    more, more_axes = _residuals(
        control, "residual", rows, plain.axes["picture_of_row"][0], sizes, dtype
    )
    return replace(
        plain,
        name=STEP_GRAPH if merge == "one" else f"{STEP_GRAPH}_{merge}",
        module=ControlledStep(pair.base, merge, dialect, num_residuals=len(more)),
        inputs=more | plain.inputs,
        axes=more_axes | plain.axes,
        outputs=("next_state", "estimate"),
    )


def _residuals(
    control: Control,
    name: str,
    rows: int,
    free_rows: Any,
    size: tuple[Any, Any],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Example residuals `name_0`, `name_1`, ... [N, C_i, h_i, w_i], and their free axes.

    `size` are the free height and width of latents, in units of the U-Net's `size_multiple`.
    """
    multiple = control.size_multiple
    inputs: dict[str, Tensor] = {}
    axes: dict[str, dict[int, Any]] = {}
    for index, (channels, level) in enumerate(control.residual_shapes()):
        unit = multiple >> level
        inputs[f"{name}_{index}"] = torch.zeros(rows, channels, 3 * unit, 2 * unit, dtype=dtype)
        height, width = (unit * side if unit > 1 else side for side in size)
        axes[f"{name}_{index}"] = {0: free_rows, 2: height, 3: width}
    return inputs, axes


def _sizes_of(graph: Graph, multiple: int) -> tuple[Any, Any]:
    """The free height and width that a step's graph has, in units of `multiple`."""
    height, width = graph.axes["state"][3], graph.axes["state"][4]
    return (height, width) if multiple == 1 else (height.root, width.root)


def _one(width: Any) -> int:
    return int(width if isinstance(width, int) else width[0])
