"""The one seam between the pipeline and whatever computes the pair.

A backend holds a pair on a device and knows five graphs: text encoder, image encoder, reference
pass, denoising step, image decoder. It knows nothing about prompts as text, schedules, seeds or
files of pictures. Arrays typed `DeviceArray` are the backend's own and stay on its device; the
pipeline only passes them on. All others are numpy.

Every method may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.pair_config import Merge, PairConfig
from bootpig_rt.solver import NoiseSchedule, SolverTable

DeviceArray: TypeAlias = Any
"""An array that only the backend that made it can read."""

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairSpec:
    """What the pipeline must know about a loaded pair.

    Attributes:
        config: Contents of `pair.json`: defaults and limits.
        fingerprint: sha256 over weights and configurations.
        noise_schedule: Of training.
        tokenizer_folder: Where the vocabulary lies.
        latent_channels: C.
        vae_scale_factor: Pixels of a picture per latent, along a side.
        size_multiple_px: Width and height must be multiples of this.
    """

    config: PairConfig
    fingerprint: str
    noise_schedule: NoiseSchedule
    tokenizer_folder: Path
    latent_channels: int
    vae_scale_factor: int
    size_multiple_px: int


@dataclass(frozen=True)
class ReferencePass:
    """A table as the backend keeps it.

    Attributes:
        data: E entries x L layers of keys and values; opaque.
        size_bytes: Device memory that it holds.
        num_passes: How many (entry, reference) pairs went through the Reference U-Net.
    """

    data: DeviceArray
    size_bytes: int
    num_passes: int


@dataclass(frozen=True)
class DenoiseBatch:
    """Everything that a batch of B pictures needs from the first step to the last.

    A picture is drawn by up to three guidance rows. Rows that would be equal are computed once, so
    N is between B and 3 B; `rows_of_picture` says where each branch is found.

    Attributes:
        latents: float32 [B, C, h, w], initial noise of unit variance.
        prompt_embeds: [P, S, E], the distinct text states.
        text_of_row: int64 [N], indices into P.
        picture_of_row: int64 [N], indices into B.
        ref_of_row: int64 [N, R], indices into the references of all `tables`, counted through;
            -1 for none.
        rows_of_picture: int64 [3, B], rows of the branches uncond, image, text_image.
        image_guidance_scale: float32 [B].
        text_guidance_scale: float32 [B].
        tables: `data` of the distinct subjects, each E x L x [R_s, H, M, D]; may be empty.
        num_references: R_s of each table.
        solver: Timesteps and coefficients of the T steps.
        merge: How several references of a row are combined.
    """

    latents: FloatArray
    prompt_embeds: DeviceArray
    text_of_row: IntArray
    picture_of_row: IntArray
    ref_of_row: IntArray
    rows_of_picture: IntArray
    image_guidance_scale: FloatArray
    text_guidance_scale: FloatArray
    tables: tuple[DeviceArray, ...]
    num_references: tuple[int, ...]
    solver: SolverTable
    merge: Merge


class DenoiseRun(Protocol):
    """One batch on its way from noise to latents; its arrays stay on the device.

    Not for use from several threads, unlike the backend that made it.
    """

    def step(self, index: int) -> None:
        """Do step `index` of the solver: U-Net rows, guidance and solver in one go.

        For each picture `eps = uncond + s_image (image - uncond) + s_text (text_image - image)`,
        then `[sample, *history] = matrices[index] @ [sample, eps, *history]`.
        """

    def latents(self) -> FloatArray:
        """Current sample, float32 [B, C, h, w], on the host."""

    def estimate(self) -> FloatArray:
        """What the last step took for the finished latents (x0), float32 [B, C, h, w]."""


class Backend(Protocol):
    """A pair on a device."""

    name: str
    device: str
    spec: PairSpec

    def encode_text(self, ids: IntArray) -> DeviceArray:
        """Token ids int64 [N, S] -> text states [N, S, E]."""

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w].

        The mean of the posterior, so that equal pictures give equal latents.
        """

    def reference_kv(
        self, latents: FloatArray, timesteps: IntArray, prompt_embeds: DeviceArray
    ) -> ReferencePass:
        """Run the Reference U-Net and project its features with the base's weights.

        Args:
            latents: float32 [E, R, C, h, w], already noised to `timesteps`.
            timesteps: int64 [E].
            prompt_embeds: [R, S, E], text states of the reference prompt, one row a reference.
        """

    def start(self, batch: DenoiseBatch) -> DenoiseRun:
        """Upload a batch and return its run, ahead of step 0."""

    def decode(self, latents: FloatArray) -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W] in [-1, 1]."""


BackendLoader: TypeAlias = Callable[[Path, str, "Path | None"], Backend]
"""(folder of the pair, device, folder of the base model or None) -> backend."""
