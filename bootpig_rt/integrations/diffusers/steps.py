"""The modules of a pair for the eager way: reference images in, steps, pixels out.

What each step reads is laid out as the engine lays it out: the same reference images, noise, rows
and guidance. So both ways give the same picture, as closely as they compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import FloatArray, IntArray, check_finite
from bootpig_rt.bundle.pair_config import Merge, PairConfig
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.engine.rows import PictureBranches, plan_guidance
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.picture import prepare_reference
from bootpig_rt.integrations.diffusers.controls import EagerControls
from bootpig_rt.models.latent_scale import LatentScale
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers, ReferenceUNet
from bootpig_rt.models.vae import decode, encode
from bootpig_rt.reference.encode import sources_of
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule

_ROWS_PER_LAUNCH = 16
_SCHEDULE_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
    "rescale_betas_zero_snr",
)
"""What of a scheduler's configuration says how much noise a timestep has."""


def training_noise(config: Any) -> NoiseSchedule:
    """The noise schedule of training that a scheduler of any class was configured with.

    Raises:
        ConfigError: One that this package cannot express.
    """
    return NoiseSchedule.from_config({k: config[k] for k in _SCHEDULE_KEYS if k in config})


def read_pictures(
    vae: Any, images: Any, config: PairConfig, remover: BackgroundRemover | None
) -> FloatArray:
    """Reference images, cut out and encoded: scaled latents float32 [R, C, h, w].

    Raises:
        ImageError: No image, or one that cannot be used.
        ParameterError: More than the pair takes.
    """
    sources = sources_of(images)
    if len(sources) > config.max_references:
        raise ParameterError(
            f"{len(sources)} reference images, expected 1..{config.max_references} for this pair; "
            "leave some out"
        )
    pixels = [
        prepare_reference(
            source, config.sample_size_px, remover, subject_share=config.subject_share
        )
        for source in sources
    ]
    bring(vae)
    with torch.no_grad():
        mean = encode(vae, torch.from_numpy(np.stack(pixels)).to(vae.device, vae.dtype)).float()
        latents: FloatArray = LatentScale(vae).scaled(mean).cpu().numpy()
    return check_finite(latents, "the image encoder")


def decode_pictures(vae: Any, latents: Tensor) -> FloatArray:
    """Latents [B, C, h, w] as pixels float32 [B, 3, H, W], about [-1, 1].

    Raises:
        NumericalError: NaN or Inf.
    """
    bring(vae)
    scale, pieces = LatentScale(vae), []
    with torch.no_grad():
        for start in range(0, len(latents), _ROWS_PER_LAUNCH):
            plain = scale.unscaled(latents[start : start + _ROWS_PER_LAUNCH].float())
            pieces.append(decode(vae, plain.to(vae.dtype)).float().cpu().numpy())
    return check_finite(np.concatenate(pieces), "the image decoder")


class EagerSteps:
    """The two U-Nets for the steps of one call.

    Args:
        base_unet: Draws.
        ref_unet: Reads the reference; the same module where both have the same weights.
        config: Of the pair.
        references: float32 [R, C, h, w], of `read_pictures`.
        reference_states: [1 or R, S, E], text states of the reference prompt.
        timesteps: int64 [T], of all steps.
        schedule: At which noise level each step reads the reference.
        noise_schedule: Of training.
        merge: How several references of a row are combined.
        controls: Maps that are followed.
    """

    def __init__(
        self,
        base_unet: Any,
        ref_unet: Any,
        config: PairConfig,
        *,
        references: FloatArray,
        reference_states: Tensor,
        timesteps: IntArray,
        schedule: ReferenceSchedule,
        noise_schedule: NoiseSchedule,
        merge: Merge,
        controls: EagerControls,
    ) -> None:
        """Nothing is computed yet."""
        self._base = BaseUNet(base_unet).eval()
        self._reference = ReferenceUNet(ref_unet).eval()
        self._config, self._merge, self._controls = config, merge, controls
        self._states = reference_states.to(base_unet.device, base_unet.dtype)
        self._entry_of_step = schedule.entry_of_step(len(timesteps)).tolist()
        self._timesteps = schedule.timesteps(timesteps)
        self._latents = reference_latents(
            references,
            schedule,
            self._timesteps,
            noise_seed=0,
            noise_schedule=noise_schedule,
        )
        self._table: tuple[int, ReferenceKVLayers] | None = None

    @property
    def size_multiple(self) -> int:
        """Height and width of latents must be multiples of this."""
        return int(self._base.size_multiple)

    def predict(
        self,
        step: int,
        t: Tensor,
        latents: Tensor,
        *,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        scales: tuple[float, float],
    ) -> Tensor:
        """The model's output with guidance, float32 [B, C, h, w].

        Args:
            step: Index of the step.
            t: Its timestep, a scalar.
            latents: [B, C, h, w].
            prompt_embeds: [B, S, E].
            negative_prompt_embeds: [B, S, E].
            scales: s_image and s_text.
        """
        count, entry = len(latents), self._entry_of_step[step]
        table = None if entry < 0 else self._read(entry)
        references = () if table is None else tuple(range(self._latents.shape[1]))
        rows = plan_guidance(
            [PictureBranches(b, count + b, references, *scales) for b in range(count)]
        )
        unet = self._base.unet
        bring(unet)
        device, dtype = latents.device, unet.dtype
        texts = torch.cat([prompt_embeds, negative_prompt_embeds]).to(device, dtype)
        picture_of_row = torch.from_numpy(rows.picture_of_row).to(device)
        residuals = self._controls.residuals(
            step,
            latents,
            t,
            texts,
            picture_of_row=rows.picture_of_row,
            text_of_row=rows.text_of_row,
        )
        output = self._base.draw(
            latents.to(dtype)[picture_of_row],
            t.to(device).expand(len(picture_of_row)),
            texts[torch.from_numpy(rows.text_of_row).to(device)],
            table,
            None if table is None else torch.from_numpy(rows.ref_of_row),
            merge=self._merge,
            residuals=[one.to(dtype) for one in residuals],
        )[0].float()
        uncond, image, text_image = (
            output[torch.from_numpy(one).to(device)] for one in rows.rows_of_picture
        )
        s_image, s_text = scales
        guided: Tensor = uncond + s_image * (image - uncond) + s_text * (text_image - image)
        return guided

    def _read(self, entry: int) -> ReferenceKVLayers:
        """Keys and values of an entry; the last one is kept for the steps that share it."""
        if self._table is None or self._table[0] != entry:
            unet = self._reference.unet
            bring(unet)
            latents = torch.from_numpy(self._latents[entry]).to(unet.device, unet.dtype)
            t = torch.full((len(latents),), int(self._timesteps[entry]), device=unet.device)
            states = self._states.to(unet.device).expand(len(latents), -1, -1)
            features = self._reference(latents, t, states)
            bring(self._base.unet)
            scale = self._config.ref_scale
            self._table = entry, self._base.project_reference(features, ref_scale=scale)
        return self._table[1]


def bring(module: Any) -> None:
    """Have an offloaded module brought to its device: the walks do not call its `forward`."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
