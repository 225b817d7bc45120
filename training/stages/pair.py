"""Stage `pair`: BootPIG as published (paper, sections 3.2 and 4.1), on a finished base.

The base's weights are copied into a Reference U-Net of its own. All of it is trained, and of the
Base U-Net the self-attentions alone, which have become reference self-attentions. Everything else,
the VAE and the text encoder too, is frozen.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bootpig_rt.models.load import Pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.stage import trainable
from bootpig_rt.training.stages.diffusion import DiffusionStage
from bootpig_rt.training.start import with_settings


class PairStage(DiffusionStage):
    """The untied pair; see `stage.Stage`.

    A shared U-Net of the start is copied into a Reference U-Net of its own; the table [pair]
    changes what its `pair.json` says.
    """

    def __init__(self, config: TrainConfig, start: Pair, data: DiffusionData) -> None:
        unet: Any = start.base.unet
        reference_unet: Any = start.reference.unet
        if reference_unet is unet:
            reference_unet = copy.deepcopy(unet)
        reference_unet.requires_grad_(True)
        for name, parameter in unet.named_parameters():
            # The q, k, v and output projections of every self-attention.
            parameter.requires_grad_(".attn1." in name)
        settings = with_settings(
            start.config,
            config.pair,
            name=Path(config.output).name,
            shared_unet=False,
        )
        pair = replace(
            start,
            base=BaseUNet(unet),
            reference=ReferenceUNet(reference_unet),
            config=settings,
            fingerprint="",
        )
        super().__init__(config, pair, data)

    def modules(self) -> dict[str, nn.Module]:
        """Both U-Nets."""
        return {"base_unet": self.pair.base.unet, "ref_unet": self.pair.reference.unet}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The Reference U-Net, and the RSA layers of the base at a rate of their own."""
        rates = self.config.optimizer
        return [
            {"params": trainable(self.pair.reference.unet), "lr": rates.learning_rate},
            {"params": trainable(self.pair.base.unet), "lr": rates.rsa_learning_rate},
        ]
