"""Controls of one batch in torch: what they add to the rows of a step. Nothing here is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.control_inputs import ControlInputs, control_inputs
from bootpig_rt.backends.derived import Derived
from bootpig_rt.backends.torch.graphs import Lane
from bootpig_rt.models.control import Control


@dataclass(frozen=True, eq=False)
class Hints:
    """Embedded maps of one control, [M, C0, h, w]."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class _Reads:
    """One control, and what it reads on the device, see `ControlInputs`."""

    net: Control
    hints: Tensor
    pictures: Tensor
    states: Tensor
    of_row: Tensor
    scale: Tensor


class Controls:
    """The controls of a run, for the batch's rows in their own order.

    Args:
        batch: With controls.
        nets: By kind.
        states: [P, S, E], the distinct texts.
        dtype: That they compute in.
        lane: Where they run; the caller works in it.
        hints: Embedded maps of other runs.
    """

    def __init__(
        self,
        batch: DenoiseBatch,
        *,
        nets: Mapping[str, Control],
        states: Tensor,
        dtype: torch.dtype,
        lane: Lane,
        hints: Derived[Hints],
    ) -> None:
        """Embed maps that were not met lately, and upload everything."""
        self._dtype = dtype
        self._reads: list[_Reads] = []
        self._held: list[Hints] = []  # for other runs, which may come while this lives
        for laid_out in control_inputs(batch):
            net = nets[laid_out.kind]

            def embed(one: ControlInputs = laid_out, net: Control = net) -> Hints:
                return Hints(net.embed(lane.upload(np.stack(one.maps)).to(dtype)))

            embedded = hints.of(laid_out.maps, embed)
            self._held.append(embedded)
            self._reads.append(
                _Reads(
                    net=net,
                    hints=embedded.tensor.index_select(0, lane.upload(laid_out.hint_of_control)),
                    pictures=lane.upload(laid_out.picture_of_control),
                    states=states.index_select(0, lane.upload(laid_out.text_of_control)),
                    of_row=lane.upload(laid_out.control_of_row),
                    scale=lane.upload(laid_out.control_scale),
                )
            )

    def residuals(self, latents: Tensor, timesteps: Tensor) -> Sequence[Tensor]:
        """What is added to the rows of a step: [N, C_i, h_i, w_i] each, of the controls' type.

        Args:
            latents: float32 [B, C, h, w].
            timesteps: int64 [B].
        """
        sums: list[Tensor] = []
        for reads in self._reads:
            given = reads.net(
                latents.to(self._dtype).index_select(0, reads.pictures),
                timesteps.index_select(0, reads.pictures),
                reads.states,
                reads.hints,
            )
            parts = [scaled_residual(one, reads.of_row, reads.scale) for one in given]
            sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
        return sums


def scaled_residual(residual: Tensor, of_row: Tensor, scale: Tensor) -> Tensor:
    """Hand the residual of a control's rows to the rows of a step.

    Args:
        residual: [Q, C, h, w].
        of_row: int64 [N], the row of the control for each.
        scale: float32 [N]; where it is 0 the result is 0, whatever lies in the residual.
    """
    weight = scale.view(-1, 1, 1, 1)
    scaled = residual.index_select(0, of_row) * weight.to(residual.dtype)
    return torch.where(weight != 0, scaled, torch.zeros_like(scaled))
