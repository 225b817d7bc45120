"""A step of the torch backend: what it reads and writes, and the step.

It is a function of tensors that reads its own number on the device, so one recording serves all
steps of all runs of its bucket (`buckets.py`, `recorded.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bootpig_rt.backends.torch.buckets import Kinds
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.models.rows import RowPlan, SharedRows, bucketed_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers, TextKVLayers

_MOST_STEPS = 1000
"""Room for the coefficients of a run in the buffers of a recording: a few hundred kilobytes."""

MOST_HISTORY = 2
"""Of the solvers that there are: recordings have room for it, whatever solvers a batch mixes."""


@dataclass
class StepTensors:
    """What the steps of a run read and write, on the device. Per step: the first axis is T.

    Attributes:
        state: float32 [1 + K, B, C, h, w], latents and the solver's history; written.
        estimate: float32 [B, C, h, w], x0 of the last step; written.
        step: int64 [1], the step to do.
        text: [N, S, sum of 2 H * D], keys and values of the rows' texts for every layer.
        added: [N, T], what their texts add to the embedding of timesteps; T is 0 where nothing is.
        image_scale: float32 [B].
        text_scale: float32 [B].
        timesteps: int64 [T, B].
        matrices: float32 [T, B, 1 + K, 2 + K].
        x0: float32 [T, B, 2].
        clip_weight: float32 [T, B].
        clip_range: float32 [1], x0 is clamped to plus or minus this where its weight is not 0.
        canvas: float32 [3, B, C, h, w], latents of the given pictures, the noise of the pictures,
            and latents of the given pictures with what is drawn in grey.
        canvas_weights: float32 [T, B, 2], of the first two at the level that a step arrives at.
        mask: float32 [B, 1, h, w], 1 where latents are drawn, 0 where they are the canvas's.
        entries: int32 [T], the entry of the table.
        rows_of_picture: int64 [3, B].
        picture_of_row: int64 [N].
        pair_of_row: int64 [N].
        picture_of_pair: int64 [U].
        refs: int32 [N, R].
        refs_of_pair: int32 [U, R].
        features: [N, C', h, w], of the deep blocks, written by steps that compute those and read by
            the others; [0] where none are kept.
    """

    state: Tensor
    estimate: Tensor
    step: Tensor
    text: Tensor
    added: Tensor
    image_scale: Tensor
    text_scale: Tensor
    timesteps: Tensor
    matrices: Tensor
    x0: Tensor
    clip_weight: Tensor
    clip_range: Tensor
    canvas: Tensor
    canvas_weights: Tensor
    mask: Tensor
    entries: Tensor
    rows_of_picture: Tensor
    picture_of_row: Tensor
    pair_of_row: Tensor
    picture_of_pair: Tensor
    refs: Tensor
    refs_of_pair: Tensor
    features: Tensor

    def room_for_all_steps(self) -> StepTensors:
        """Tensors of these shapes, with zeros, for as many steps as a run may have."""
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        for name in _PER_STEP:
            shapes[name] = (max(_MOST_STEPS, shapes[name][0]), *shapes[name][1:])
        return StepTensors(
            **{name: getattr(self, name).new_zeros(shape) for name, shape in shapes.items()}
        )

    def load(self, other: StepTensors) -> None:
        """Copy what a run has; of its own number of steps."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            mine[: len(theirs)].copy_(theirs, non_blocking=True)


_PER_STEP = ("timesteps", "matrices", "x0", "clip_weight", "canvas_weights", "entries")


@dataclass(frozen=True)
class StepProgram:
    """What does not change between the runs that share a recording.

    Attributes:
        base: The Base U-Net.
        text_widths: Of the keys, and of the values, of every cross-attention.
        dtype: That it computes in.
        merge: How several references of a row are combined.
        rows: The plan of the rows of one run; or their kinds and those of the pairs, for the plan
            that follows from the tensors.
        is_deep: The step computes the deep blocks, or reads their features.
    """

    base: BaseUNet
    text_widths: tuple[int, ...]
    dtype: torch.dtype
    merge: Merge
    rows: RowPlan | tuple[Kinds, Kinds]
    is_deep: bool = True

    def plan(self, tensors: StepTensors) -> RowPlan:
        """Which references each row reads."""
        if isinstance(self.rows, RowPlan):
            return self.rows
        kinds, kinds_of_pairs = self.rows
        shared = SharedRows(
            bucketed_rows(kinds_of_pairs, tensors.refs_of_pair),
            tensors.picture_of_pair,
            tensors.pair_of_row,
            tensors.picture_of_row,
        )
        return bucketed_rows(kinds, tensors.refs, shared)

    def text_layers(self, text: Tensor) -> TextKVLayers:
        """Keys and values of every layer, views of [N, S, sum of 2 H * D]."""
        parts = text.split([width for width in self.text_widths for _ in range(2)], dim=-1)
        return tuple(zip(parts[::2], parts[1::2], strict=True))


def take_step(
    program: StepProgram,
    tensors: StepTensors,
    table: ReferenceKVLayers | None,
    residuals: Sequence[Tensor] = (),
) -> None:
    """Do one step in place: U-Net rows, guidance, solver. No value is read on the host.

    Args:
        program: What to compute.
        tensors: Whose state is replaced by the next.
        table: L pairs [E, N_ref, H, M, D], read at this step's entry.
        residuals: Of controls, for the rows; empty for none.
    """

    def now(per_step: Tensor) -> Tensor:
        return per_step.index_select(0, tensors.step).squeeze(0)

    column = (-1, 1, 1, 1)
    latents, history = tensors.state[0], tensors.state[1:]
    read = latents
    if program.base.reads_canvas:
        read = torch.cat([latents, tensors.mask, tensors.canvas[2]], dim=1)
    output, features = program.base.draw(
        read.to(program.dtype),  # one a picture: the plan knows the pictures of its rows
        now(tensors.timesteps),
        program.text_layers(tensors.text),
        table,
        program.plan(tensors),
        merge=program.merge,
        entry=None if table is None else tensors.entries.index_select(0, tensors.step),
        features=None if program.is_deep else tensors.features,
        residuals=residuals,
        added=tensors.added if tensors.added.shape[1] else None,
    )
    if program.is_deep and tensors.features.numel():
        tensors.features.copy_(features)
    uncond, image, text_image = output.float()[tensors.rows_of_picture]
    guided = (
        uncond
        + tensors.image_scale.view(column) * (image - uncond)
        + tensors.text_scale.view(column) * (text_image - image)
    )
    state = torch.cat([torch.stack([latents, guided]), history])
    x0 = now(tensors.x0)[..., None, None, None]
    estimate = x0[:, 0] * latents + x0[:, 1] * guided
    # One term after another: those of a history that a solver lacks are zeros and change nothing.
    weights = now(tensors.matrices).permute(2, 1, 0)[..., None, None, None]
    following = weights[0] * state[0]
    for weight_of, part in zip(weights[1:], state[1:], strict=True):
        following = torch.addcmul(following, weight_of, part)
    weight = now(tensors.clip_weight).view(column)
    clipped = estimate.minimum(tensors.clip_range).maximum(-tensors.clip_range)
    following[0] += weight * (clipped - estimate)
    estimate = torch.where(weight != 0, clipped, estimate)
    signal, spread = now(tensors.canvas_weights)[..., None, None, None].unbind(1)
    given = torch.addcmul(signal * tensors.canvas[0], spread, tensors.canvas[1])
    is_drawn = tensors.mask > 0
    following[0] = torch.where(is_drawn, following[0], given)
    estimate = torch.where(is_drawn, estimate, tensors.canvas[0])
    tensors.state.copy_(following)
    tensors.estimate.copy_(estimate)
