"""Stage `control`: a control for a finished pair, which stays as it is.

A copy of the encoder of the Base U-Net whose outputs go through convolutions that begin as zeros
(Zhang et al. 2023, arXiv 2302.05543, section 3), so that the first step draws what the pair draws.
Maps are the renderer's depth, or outlines of the targets. References are read as in stage `pair`:
the control learns what a map adds to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from bootpig_rt.diffusion.solver import solver_table
from bootpig_rt.errors import ConfigError
from bootpig_rt.models.control import Control
from bootpig_rt.models.control_folder import PairControl
from bootpig_rt.models.load import Pair
from bootpig_rt.models.unet import ReferenceKVLayers, WalkedUNet
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.latents import vae_factor
from bootpig_rt.training.maps import StoredMaps
from bootpig_rt.training.pictures import to_uint8
from bootpig_rt.training.sampling import Drawer, guidance_of
from bootpig_rt.training.stage import Validation, trainable
from bootpig_rt.training.stages.diffusion import (
    VALIDATION_STEPS,
    DiffusionStage,
    decoded,
    validation_conditions,
    validation_noise,
)

EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of an embedded map at full size, half of it and so on, as published; as many as the autoencoder
of the pair has sizes."""


class ControlStage(DiffusionStage):
    """A control beside a frozen pair; see `stage.Stage`.

    Args:
        config: Of the run.
        start: The pair.
        data: Samples.
        maps: Of the samples.
        validation_maps: float32 [N, 3, S, S], of the held-out ones; None where there are none.

    Raises:
        ConfigError: The pair was made for inpainting.
    """

    def __init__(
        self,
        config: TrainConfig,
        start: Pair,
        data: DiffusionData,
        maps: StoredMaps,
        validation_maps: Tensor | None,
    ) -> None:
        if start.base.reads_canvas:
            raise ConfigError(
                f"start_from {config.start_from} was made for inpainting, expected a pair whose "
                "Base U-Net reads latents alone: a control reads no mask"
            )
        for module in start.modules:
            module.requires_grad_(False)
        torch.manual_seed(config.seed)
        sizes = vae_factor(start.vae).bit_length()
        unet: Any = start.base.unet
        net: Any = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS[:sizes]
        )
        self.net = net.to(data.device).requires_grad_(True)
        self.control = Control(self.net)
        self._maps, self._validation_maps = maps, validation_maps
        kind = config.control.kind
        others = tuple(one for one in start.controls if one.kind != kind)
        control = PairControl(kind, self.control, "")
        pair = replace(start, controls=(*others, control), fingerprint="")
        super().__init__(config, pair, data)

    def modules(self) -> dict[str, nn.Module]:
        """The control."""
        return {"control": self.net}

    def walks(self) -> list[WalkedUNet]:
        """The control's; the pair is whole in each process."""
        return [self.control]

    def frozen(self) -> list[nn.Module]:
        """All of the pair."""
        others = (module for module in self.pair.modules if module is not self.net)
        return [*dict.fromkeys(others)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all of the control."""
        return [{"params": trainable(self.net), "lr": self.config.optimizer.learning_rate}]

    def _draw(
        self,
        noisy: Tensor,
        t: Tensor,
        states: Tensor,
        table: ReferenceKVLayers,
        ref_of_row: Tensor,
        samples: list[int],
    ) -> Tensor:
        hints = self.control.embed(self._maps.of(samples).to(noisy.device))
        residuals = self.control(noisy, t, states, hints)
        drawn, _ = self.pair.base.draw(
            noisy, t, states, table, ref_of_row, merge=self.pair.config.merge, residuals=residuals
        )
        return drawn

    @torch.no_grad()
    def validate(self) -> Validation:
        """Draw held-out samples on fixed seeds with their maps, those of others, and none.

        The rows are reference, map, target and drawn. Figures are mean differences to the target's
        pixels, 0..2: `target_error` with the own map, `wrong_map_error` with that of the next
        sample, `no_map_error`; the first should be below both.
        """
        latents, maps = self.data.validation, self._validation_maps
        if latents is None or maps is None:
            return Validation()
        conditions, references = validation_conditions(self.pair, self.data, latents)
        table = solver_table("ddim", self.schedule, VALIDATION_STEPS).astype32()
        noise = validation_noise(latents).to(self.data.device)
        wanted = decoded(self.pair, latents.targets)
        shown: list[Tensor] = []
        hints = self.control.embed(maps.to(self.data.device))
        for given in (hints, hints.roll(1, 0), None):
            control = None if given is None else (self.control, given)
            drawer = Drawer(
                self.pair.base, conditions, self.pair, guidance_of(self.pair), control=control
            )
            shown.append(decoded(self.pair, drawer.picture(table, noise)))
        errors = [float((one - wanted).abs().mean()) for one in shown]
        names = ("target_error", "wrong_map_error", "no_map_error")
        figures = dict(zip(names, errors, strict=True)) | {"samples": float(len(wanted))}
        rows = [decoded(self.pair, references), 2.0 * maps - 1.0, wanted, shown[0]]
        return Validation(figures, [to_uint8(row) for row in rows])
