"""From the controls of a `DenoiseBatch` to the arrays that their graphs read. numpy only.

A control sees text and picture, and no references: rows of a picture with the same text are one row
of a control. What it gives is handed out to the rows of the step, scaled, and added to what the
controls before it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray

T = TypeVar("T")

STEP_GRAPH = "controlled_step"
"""Name of the graph of steps that controls act in; `controlled_step_<merge>` for several
references."""

CONTROL_GRAPHS = ("control_map_", "control_")
"""How the two graphs of a control begin, ahead of its kind: maps to hints, hints to residuals."""


@dataclass(frozen=True, eq=False)
class ControlInputs:
    """What one control reads, but for hints and text states, which are on the device already.

    Attributes:
        kind: Of the control.
        maps: float32 [3, H, W], distinct ones, always in the same order.
        picture_of_control: int64 [Q], of each row of the control.
        text_of_control: int64 [Q].
        hint_of_control: int64 [Q], indices into the embedded `maps`.
        control_of_row: int64 [N], the row of the control for each row of the step; 0 for those that
            have none, whose scale is 0.
        control_scale: float32 [N].
    """

    kind: str
    maps: tuple[FloatArray, ...]
    picture_of_control: IntArray
    text_of_control: IntArray
    hint_of_control: IntArray
    control_of_row: IntArray
    control_scale: FloatArray

    def arrays(self) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]:
        """By the names of the graph's inputs."""
        return {
            "picture_of_control": self.picture_of_control,
            "text_of_control": self.text_of_control,
            "hint_of_control": self.hint_of_control,
            "control_of_row": self.control_of_row,
            "control_scale": self.control_scale,
        }


def control_inputs(batch: DenoiseBatch, order: IntArray | None = None) -> list[ControlInputs]:
    """Lay out the controls of a batch, in the order in which they are added up.

    Args:
        batch: The batch.
        order: int64 [N], the row of the batch that lies at each place of the step; None for the
            batch's own order.
    """
    pictures, texts = batch.picture_of_row, batch.text_of_row
    if order is not None:
        pictures, texts = pictures[order], texts[order]
    made = []
    for control in batch.controls:
        places = sorted(range(len(control.maps)), key=lambda index: id(control.maps[index]))
        place_of = {index: place for place, index in enumerate(places)}
        has_map = control.map_of_picture[pictures] >= 0
        read = list(zip(pictures.tolist(), texts.tolist(), strict=True))
        rows = list(dict.fromkeys(one for one, has in zip(read, has_map, strict=True) if has))
        of_row = [rows.index(one) if has else 0 for one, has in zip(read, has_map, strict=True)]
        made.append(
            ControlInputs(
                kind=control.kind,
                maps=tuple(control.maps[index] for index in places),
                picture_of_control=np.array([picture for picture, _ in rows], np.int64),
                text_of_control=np.array([text for _, text in rows], np.int64),
                hint_of_control=np.array(
                    [place_of[int(control.map_of_picture[picture])] for picture, _ in rows],
                    np.int64,
                ),
                control_of_row=np.array(of_row, np.int64),
                control_scale=np.where(has_map, control.scale[pictures], 0.0).astype(np.float32),
            )
        )
    return made


def bind_in_turn(
    controls: Iterable[ControlInputs],
    nothing: T,
    room: Callable[[], T],
    bind: Callable[[ControlInputs, T, T], object],
) -> T:
    """Bind controls one after another: each adds what it gives to what those before it gave.

    Two buffers take turns, however many controls there are: what one of them reads is free again
    for the next but one.

    Args:
        controls: In the order in which they are added up.
        nothing: Zeros, which the first one reads; nobody writes there.
        room: Makes a buffer.
        bind: (control, what it reads, where it writes).

    Returns:
        Where the last one writes.
    """
    given = nothing
    free: T | None = None
    for control in controls:
        made = room() if free is None else free
        bind(control, given, made)
        given, free = made, None if given is nothing else given
    return given


def step_graph_name(merge: str, slots: int) -> str:
    """The graph of a step with controls that draws rows with up to `slots` references each."""
    return STEP_GRAPH if slots == 1 else f"{STEP_GRAPH}_{merge}"
