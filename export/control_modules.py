"""What the graphs of controls compute, as torch modules: tensors in, tensors out.

    control_map_<kind>       maps -> hints, once for all steps
    control_<kind>           state, text states, hints and given residuals -> residuals of the rows
    controlled_step          residuals, and everything that `denoise_step` reads -> the same

Maps, scales and the state are float32; text states, hints and residuals have the type that the
graphs compute in. This file knows no ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.graph_modules import DenoiseStep
from bootpig_rt.export.reference_op import OpMerge
from bootpig_rt.models.control import Control
from bootpig_rt.models.unet import BaseUNet

_NUM_BEFORE_PAIRS, _NUM_PAIRS = 15, 3
"""Arguments of `DenoiseStep` up to `ref_of_row`, and those of the pairs behind them."""


class ControlMap(nn.Module):
    """maps float32 [M, 3, H, W] in [0, 1] -> hints [M, C0, h, w]."""

    def __init__(self, control: Control) -> None:
        """Keep the control."""
        super().__init__()
        self.control = control

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return self.control.embed(maps.to(self.control.unet.conv_in.weight.dtype))


class ControlResiduals(nn.Module):
    """What a control adds to the rows of a step.

    Args:
        control: The module.
    """

    def __init__(self, control: Control) -> None:
        """Keep the control."""
        super().__init__()
        self.control = control

    def forward(
        self,
        step: Tensor,
        state: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        hints: Tensor,
        picture_of_control: Tensor,
        text_of_control: Tensor,
        hint_of_control: Tensor,
        control_of_row: Tensor,
        control_scale: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the control on its own rows, and hand the result to those of the step.

        Args:
            step: int64 [1].
            state: float32 [1 + K, B, C, h, w], of which the sample is read.
            timesteps: int64 [T, B].
            prompt_embeds: [P, S, E], distinct text states.
            hints: [M, C0, h, w], distinct embedded maps.
            picture_of_control: int64 [Q].
            text_of_control: int64 [Q].
            hint_of_control: int64 [Q].
            control_of_row: int64 [N], the row of the control that each row of the step reads.
            control_scale: float32 [N], 0 for rows without this control.
            given: What the controls before this one gave, each [N, C_i, h_i, w_i].

        Returns:
            residual_0, residual_1, ...: `given` with what is added to it.
        """
        t = timesteps.index_select(0, step).squeeze(0)
        found = self.control(
            state[0].index_select(0, picture_of_control).to(prompt_embeds.dtype),
            t.index_select(0, picture_of_control),
            prompt_embeds.index_select(0, text_of_control),
            hints.index_select(0, hint_of_control),
        )
        scale = control_scale.view(-1, 1, 1, 1)
        weight = scale.to(prompt_embeds.dtype)
        sums = []
        for before, residual in zip(given, found, strict=True):
            of_rows = weight * residual.index_select(0, control_of_row)
            sums.append(before + torch.where(scale != 0, of_rows, torch.zeros_like(of_rows)))
        return tuple(sums)


class ControlledStep(DenoiseStep):
    """A step whose U-Net gets residuals of controls."""

    def __init__(
        self, base: BaseUNet, merge: OpMerge, dialect: Dialect, *, num_residuals: int
    ) -> None:
        """Keep the U-Net, and how many residuals there are."""
        super().__init__(base, merge, dialect)
        self._num_residuals = num_residuals

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Take a step.

        Args:
            arguments: residual_0, residual_1, ..., each [N, C_i, h_i, w_i]; then those of
                `DenoiseStep`.

        Returns:
            next_state [1 + K, B, C, h, w] and estimate (x0) [B, C, h, w], float32.
        """
        residuals, rest = arguments[: self._num_residuals], arguments[self._num_residuals :]
        if self.base.added_width:  # rows are no pairs, see `SizedStep`
            return self._take(*rest, residuals=residuals)[:2]
        after = _NUM_BEFORE_PAIRS + _NUM_PAIRS
        pair_of_row, picture_of_pair, ref_of_pair = rest[_NUM_BEFORE_PAIRS:after]
        state, estimate, _ = self._take(
            *rest[:_NUM_BEFORE_PAIRS],
            *rest[after:],
            pairs=(pair_of_row, picture_of_pair, ref_of_pair),
            residuals=residuals,
        )
        return state, estimate
