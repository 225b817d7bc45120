"""The eager way: the pair's modules, called step by step, with any scheduler of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import IntArray
from bootpig_rt.checks import check_name
from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.errors import ParameterError
from bootpig_rt.integrations.diffusers.call import Call
from bootpig_rt.integrations.diffusers.controls import EagerControls
from bootpig_rt.integrations.diffusers.output import BootPIGPipelineOutput, from_pixels
from bootpig_rt.integrations.diffusers.steps import (
    EagerSteps,
    bring,
    decode_pictures,
    read_pictures,
    training_noise,
)


def draw_eagerly(pipe: Any, call: Call) -> BootPIGPipelineOutput:
    """Draw the pictures of a call with a pipeline's components.

    Args:
        pipe: A `BootPIGPipeline` with modules.
        call: What to draw. The scales are read from the pipeline at each step.

    Raises:
        InputError: The call cannot be drawn by these components.
        NumericalError: NaN or Inf.
    """
    if call.canvas is not None or call.strength is not None:
        raise ParameterError(
            "image, mask_image and strength are drawn by an engine; load the pipeline with "
            "backend=..., such as backend='torch'"
        )
    unet = pipe.base_unet.config
    if unet.in_channels != unet.out_channels:
        raise ParameterError(
            "this pair's base_unet was made for inpainting and reads a canvas; load the pipeline "
            "with backend=..., such as backend='torch'"
        )
    texts, negatives, reference_states = pipe.encode_prompt(
        None if call.prompt_embeds is not None else call.prompts,
        num_images_per_prompt=call.per_prompt,
        negative_prompt=call.negatives,
        reference_prompt=call.reference_prompt,
        prompt_embeds=call.prompt_embeds,
        negative_prompt_embeds=call.negative_prompt_embeds,
        reference_prompt_embeds=call.reference_prompt_embeds,
    )
    if call.prompt_embeds is None:
        texts = pipe._told_size(texts, call.width, call.height)
    if call.negative_prompt_embeds is None:
        negatives = pipe._told_size(negatives, call.width, call.height)
    config, scheduler, device = pipe.pair_config, pipe.scheduler, pipe._execution_device
    scheduler.set_timesteps(call.steps, device=device)
    timesteps = scheduler.timesteps
    pipe._num_timesteps = len(timesteps)
    bring(pipe.controlnet)
    controls = EagerControls(
        pipe.control_nets,
        call.controls,
        size=(call.width, call.height),
        num_steps=len(timesteps),
    )
    unets = EagerSteps(
        pipe.base_unet,
        pipe.base_unet if pipe.ref_unet is None else pipe.ref_unet,
        config,
        references=read_pictures(pipe.vae, call.reference_images, config, pipe.background_remover),
        reference_states=reference_states,
        timesteps=_rounded(timesteps),
        schedule=call.schedule,
        noise_schedule=training_noise(scheduler.config),
        merge=call.merge,
        controls=controls,
    )
    latents = _noise(pipe, call, unets.size_multiple).to(device) * scheduler.init_noise_sigma
    names = ["latents"] if call.on_step_end_tensors is None else call.on_step_end_tensors
    for name in names:
        check_name("callback_on_step_end_tensor_inputs", name, pipe._callback_tensor_inputs)
    with pipe.progress_bar(total=len(timesteps)) as bar:
        for index, t in enumerate(timesteps):
            if pipe.interrupt:
                break
            output = unets.predict(
                index,
                t,
                scheduler.scale_model_input(latents, t),
                prompt_embeds=texts,
                negative_prompt_embeds=negatives,
                scales=(pipe.guidance_scale, pipe.txtim_guidance_scale),
            )
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
            if call.on_step_end is not None:
                known = {
                    "latents": latents,
                    "prompt_embeds": texts,
                    "negative_prompt_embeds": negatives,
                }
                given = {name: known[name] for name in names}
                known |= call.on_step_end(pipe, index, t, given) or {}
                latents, texts = known["latents"], known["prompt_embeds"]
                negatives = known["negative_prompt_embeds"]
            bar.update()
    images: Any = latents
    if call.output_type != "latent":
        images = from_pixels(decode_pictures(pipe.vae, latents), call.output_type)
    pipe.maybe_free_model_hooks()
    return BootPIGPipelineOutput(images)


def _noise(pipe: Any, call: Call, multiple: int) -> Tensor:
    """What the first step starts from, float32 [B, C, h, w] of unit variance."""
    factor = pipe.vae_scale_factor
    for name, side in (("width", call.width), ("height", call.height)):
        if side <= 0 or side % (factor * multiple):
            raise ParameterError(f"{name} is {side}, expected a multiple of {factor * multiple}")
    channels = int(pipe.base_unet.config.in_channels)
    shape = channels, call.height // factor, call.width // factor
    if call.latents is None:
        return torch.from_numpy(np.stack([picture_noise(seed, shape) for seed in call.seeds]))
    if tuple(call.latents.shape) != (len(call.seeds), *shape):
        raise ParameterError(
            f"latents have shape {list(call.latents.shape)}, expected {[len(call.seeds), *shape]}"
        )
    return call.latents.float()


def _rounded(timesteps: Sequence[Any] | Tensor) -> IntArray:
    """Timesteps of a scheduler as whole numbers, int64 [T]; some schedulers take steps between."""
    found: IntArray = np.rint(torch.as_tensor(timesteps).cpu().double().numpy()).astype(np.int64)
    return found
