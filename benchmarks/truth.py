"""What a picture should be: that of the published way, and how far from it is still the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.benchmarks.ours import (
    PROMPT,
    REFERENCE_PROMPT,
    SEED,
    OurWay,
    backends_here,
    drawing,
)
from bootpig_rt.benchmarks.published import PublishedWay, Scene
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.images.picture import prepare_reference
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.text.tokenizer import Tokenizer

DIFFERENCES = {
    "cpu float32": 2.2e-6,
    "cpu bfloat16": 1.28e-2,
    "cpu openvino float32": 2.49e-6,
    "cpu openvino bf16": 1.69e-2,
    "cpu openvino int8": 3.5e-2,
    "cuda float16": 7.2e-3,
    "cuda bfloat16": 6e-2,
    "cuda float32": 1e-3,
}
"""What latents were measured to differ from the published way's, as a share of what the references
change in it: a way that did not read them would score 1. A gate allows five times as much."""

GATE = 5.0


class Truth:
    """The scene that all ways draw, and what the published way makes of it, computed once.

    Args:
        folder: Of the pair.
        device: `cpu` or `cuda`.
        references: R.
        steps: T; that of the pair if None.
        images: The references; drawings by default.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        *,
        references: int = 1,
        steps: int | None = None,
        images: Sequence[Image.Image] = (),
    ) -> None:
        self.folder, self.device, self.references = folder, device, references
        self._images = images or [drawing(index) for index in range(references)]
        self.dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self.steps = steps

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def precision(self) -> str:
        """Name of the type."""
        return str(self.dtype).removeprefix("torch.")

    def pair(self) -> Pair:
        """Modules that belong to the caller."""
        return load_pair(self.folder, device=self.device, dtype=self.dtype)

    @cached_property
    def published(self) -> PublishedWay:
        """As published."""
        return PublishedWay(self.pair(), self.device)

    @cached_property
    def scene(self) -> Scene:
        """From the same prompt, references and seeds as `OurWay`."""
        pair = self.published._pair
        config = pair.config
        side = config.sample_size_px
        vae: Any = pair.vae
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        pixels = [
            prepare_reference(image, side, subject_share=config.subject_share)
            for image in self._images
        ]
        shape = (int(pair.base.unet.config.in_channels), side // scale, side // scale)
        return Scene(
            ids=Tokenizer.from_folder(pair.tokenizer_folder)(["", PROMPT, REFERENCE_PROMPT]),
            pixels=np.stack(pixels),
            noise=picture_noise(SEED, shape),
            add_noise=partial(add_noise, noise_schedule=NoiseSchedule.from_config(pair.scheduler)),
            solver=config.default_solver,
            steps=self.steps or config.default_steps,
        )

    @cached_property
    def _expected(self) -> NDArray[np.float32]:
        """Latents of the published way, float32 [1, C, h, w]."""
        self.published.picture(self.scene)
        return latents_of(self.published)

    @cached_property
    def _effect(self) -> float:
        """How much the references change: the norm of the difference to latents without them."""
        backend = backends_here(self.folder, self.device)[0]
        ours = OurWay(self.folder, backend=backend, device=self.device, steps=self.steps)
        return float(np.linalg.norm(ours.latents(OurWay.no_reference) - self._expected))

    def difference(self, latents: NDArray[np.float32]) -> float:
        """Norm of the difference of latents, as a share of what the references change in them."""
        return float(np.linalg.norm(latents[:1] - self._expected)) / self._effect

    def limit(self, precision: str) -> float:
        """The largest difference of a way that computes in `precision`, see `DIFFERENCES`."""
        return GATE * DIFFERENCES[f"{self.kind} {precision}"]


def latents_of(way: PublishedWay) -> NDArray[np.float32]:
    """Of the picture that a published way drew last."""
    assert way.latents is not None
    found: NDArray[np.float32] = way.latents.float().cpu().numpy()
    return found


def add_noise(
    latents: NDArray[np.float32],
    timesteps: NDArray[np.int64],
    *,
    noise_schedule: NoiseSchedule,
) -> NDArray[np.float32]:
    """Reference latents [R, C, h, w] at timesteps [T], as `exact` does: [T, R, C, h, w]."""
    return reference_latents(
        latents,
        ReferenceSchedule("exact"),
        timesteps,
        noise_seed=0,
        noise_schedule=noise_schedule,
    )
