"""The two U-Nets of a golden folder in torch, on the CPU, for `bootpig_rt.export.golden`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bootpig_rt.export.golden_step import Choices, FloatArray, IntArray, Prediction, References
from bootpig_rt.models.attention import change_norms, take_reference
from bootpig_rt.models.load import load_unet
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet


def load(folder: Path) -> TorchGoldenPair:
    """Load `base_unet` and `ref_unet` of a folder.

    Raises:
        CheckpointError: A U-Net is missing or damaged.
    """
    return TorchGoldenPair(
        BaseUNet(load_unet(folder / "base_unet")), ReferenceUNet(load_unet(folder / "ref_unet"))
    )


class TorchGoldenPair:
    """Implements `bootpig_rt.export.golden.GoldenPair`."""

    def __init__(self, base: BaseUNet, reference: ReferenceUNet) -> None:
        self._base = base.eval()
        self._reference = reference.eval()

    def features(
        self, latents: FloatArray, t: IntArray, prompt_embeds: FloatArray
    ) -> tuple[FloatArray, ...]:
        """Features ahead of each self-attention, L arrays [N, M_l, C_l]."""
        with torch.inference_mode():
            features = self._reference(_tensor(latents), _tensor(t), _tensor(prompt_embeds))
            return tuple(feature.numpy() for feature in features)

    def predict(
        self,
        latents: FloatArray,
        t: IntArray,
        prompt_embeds: FloatArray,
        references: References | None = None,
        choices: Choices | None = None,
    ) -> Prediction:
        """Output of the Base U-Net, [B, C, h, w], and norms of its merges."""
        with torch.inference_mode():
            inputs = (_tensor(latents), _tensor(t), _tensor(prompt_embeds))
            if references is None:
                return Prediction(self._base(*inputs).numpy())
            features = self._reference(
                _tensor(references.latents),
                _tensor(references.t),
                _tensor(references.prompt_embeds),
            )
            table = self._base.project_reference(features, ref_scale=references.ref_scale)
            merge = _WatchedMerge(choices)
            output = self._base(*inputs, table, _tensor(references.ref_of_row), merge=merge)
            return Prediction(output.numpy(), tuple(merge.norms))


class _WatchedMerge:
    """`argmax` that shows its norms, and may be told what to take."""

    def __init__(self, choices: Choices | None) -> None:
        self._choices = choices or ()
        self.norms: list[FloatArray] = []

    def __call__(self, change: torch.Tensor) -> torch.Tensor:
        """[b, R, N, C] -> [b, N, C]."""
        norms = change_norms(change).numpy()
        choice: IntArray = norms.argmax(axis=1)
        if len(self.norms) < len(self._choices):
            choice = self._choices[len(self.norms)]
        self.norms.append(norms)
        return take_reference(change, _tensor(choice))


def _tensor(array: FloatArray | IntArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
