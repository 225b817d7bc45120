"""References of a batch: as they were encoded once, or changed and encoded anew each time.

They are read in any thread, on the CPU; the VAE is asked on the thread that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.training.augment import augment
from bootpig_rt.training.buckets import fit_reference
from bootpig_rt.training.config import Augmentation
from bootpig_rt.training.latents import StoredLatents, encode
from bootpig_rt.training.samples import Samples

Chosen = Sequence[tuple[int, int]]
"""Samples, and the number of one of the references of each."""


class References(Protocol):
    """Where references come from."""

    def read(self, chosen: Chosen, rngs: Sequence[np.random.Generator]) -> Tensor:
        """What `latents` takes, n rows on the CPU; `rngs` are a random stream for each."""

    def latents(self, read: Tensor) -> Tensor:
        """Latents [n, C, r, r] of what was read."""


class StoredReferences:
    """References as they were encoded once."""

    def __init__(self, stored: StoredLatents) -> None:
        self._stored = stored

    def read(self, chosen: Chosen, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Latents, float16."""
        return self._stored.references(chosen)

    def latents(self, read: Tensor) -> Tensor:
        """The same."""
        return read


class AugmentedReferences:
    """References that are changed and encoded anew each time, so that every epoch sees others.

    Encoding costs about a sixth of a training step at 64 px and a tenth at 512. A cache of one draw
    an epoch would cost the same encodings, and the disk besides.
    """

    def __init__(
        self,
        samples: Samples,
        side: int,
        vae: Any,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        self._samples, self._side, self._vae = samples, side, vae
        self._augmentation, self._device = augmentation, device

    def read(self, chosen: Chosen, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Pictures, uint8 [n, S, S, 3]."""
        drawn = [
            augment(
                rng,
                fit_reference(self._samples.reference(sample, number), self._side),
                self._augmentation,
            )
            for (sample, number), rng in zip(chosen, rngs, strict=True)
        ]
        return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, dtype=torch.uint8)

    def latents(self, read: Tensor) -> Tensor:
        """What the VAE makes of them, float16."""
        with torch.autocast(
            self._device.type, enabled=False
        ):  # the numbers that a cache would hold
            return encode(self._vae, read.numpy(), self._device)
