"""BootPIGPipeline: a pair as a `DiffusionPipeline`, drawn by its modules or by an engine.

The eager way runs the components as diffusers' pipelines do, so schedulers, latents, embeddings and
callbacks are the caller's. With `backend=` the pair is loaded by the runtime instead, and a call
becomes its requests: quicker, and without torch modules in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bootpig_rt.checks import check_prompt
from bootpig_rt.errors import ParameterError
from bootpig_rt.integrations.diffusers.call import (
    Callback,
    checked_call,
    negatives_of,
    prompts_of,
    texts_of,
)
from bootpig_rt.integrations.diffusers.controls import controls_of
from bootpig_rt.integrations.diffusers.eager import draw_eagerly
from bootpig_rt.integrations.diffusers.loading import PairComponents
from bootpig_rt.integrations.diffusers.on_engine import draw
from bootpig_rt.integrations.diffusers.output import (
    BootPIGPipelineOutput,
    OutputType,
    as_sources,
    canvas_of,
)
from bootpig_rt.integrations.diffusers.seeds import Generators
from bootpig_rt.models.text_encoders import TwoTextEncoders
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.text.tokenizer import whole_picture

logger = logging.getLogger(__name__)


class BootPIGPipeline(PairComponents):
    """Draws a subject, of which there are pictures, as a prompt says.

    Made by `from_pretrained`; its arguments are the components, see `PairComponents`.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012
    _interrupt = False
    _guidance_scale = _txtim_guidance_scale = 1.0
    _num_timesteps = 0

    # What a call may be asked while it runs

    @property
    def guidance_scale(self) -> float:
        """s_image: how closely the reference is followed; the eager way reads it at each step."""
        return self._guidance_scale

    @property
    def txtim_guidance_scale(self) -> float:
        """s_text: how closely the prompt is followed; likewise."""
        return self._txtim_guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call that runs stops after the step that it is at; may be set at any time."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    # Drawing

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        ref_image: Any = None,
        reference_prompt: str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float | Sequence[float] | Mapping[str, float] = 1.0,
        control_guidance_start: float | Sequence[float] | Mapping[str, float] = 0.0,
        control_guidance_end: float | Sequence[float] | Mapping[str, float] = 1.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        txtim_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        reference_prompt_embeds: Tensor | None = None,
        merge: str | None = None,
        reference_schedule: ReferenceSchedule | str | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> BootPIGPipelineOutput | tuple[Any]:
        """Draw one subject as one or more prompts say. What is None comes from the pair.

        Args:
            prompt: One or several.
            ref_image: One or several pictures of the subject, of any kind.
            reference_prompt: What they show; by default the prompt up to its first comma.
            height: Of the pictures, in pixels.
            width: Likewise.
            image: Engine. A picture to draw into, or from; it gives the pictures their size.
            mask_image: Engine. White where it is drawn; what is black comes out as it is.
            strength: Engine. Share of the steps that are done on it, over 0 up to 1.
            control_image: Maps that the pictures follow: one for each control, in the order of
                `control_kinds`, or by kind. They give the pictures their size; none is resized.
            controlnet_conditioning_scale: How closely, 0 to 10: one number, or one for each map, in
                order or by kind.
            control_guidance_start: Share of the steps from which they are followed, likewise.
            control_guidance_end: Share of the steps up to which they are, likewise.
            num_inference_steps: T.
            guidance_scale: s_image, how closely to follow the reference.
            txtim_guidance_scale: s_text, how closely to follow the prompt.
            negative_prompt: What to stay away from; one, or one for each prompt.
            num_images_per_prompt: 1 to 64.
            generator: One or one for each picture. One of the CPU that was seeded and not used
                since gives the picture of `Pipeline(...)(seed=...)`; of any other a seed is drawn.
            latents: Eager. Initial noise of unit variance [B, C, h, w].
            prompt_embeds: Eager. Text states [P, S, E] in place of prompts.
            negative_prompt_embeds: Eager. Likewise.
            reference_prompt_embeds: Eager. Likewise, [1, S, E].
            merge: How several references are combined.
            reference_schedule: At which noise levels the reference is read.
            output_type: `pil`, `np`, `pt`, or eager `latent`.
            return_dict: False returns a tuple.
            callback_on_step_end: Called after each step; what it returns takes the place of those
                tensors. An engine calls it with none.
            callback_on_step_end_tensor_inputs: Eager. Which; `latents` by default.

        Returns:
            The pictures. Where `interrupt` was set they are as far as they had come.

        Raises:
            InputError: An argument cannot be used; says which, and what to do.
            NumericalError: The model produced NaN or Inf.
        """
        call = checked_call(
            self.pair_config,
            prompt=prompt,
            reference_images=as_sources(ref_image),
            reference_prompt=reference_prompt,
            height=height,
            width=width,
            canvas=canvas_of(image, mask_image),
            strength=strength,
            controls=controls_of(
                control_image,
                controlnet_conditioning_scale,
                control_guidance_start,
                control_guidance_end,
                kinds=self.control_kinds,
            ),
            steps=num_inference_steps,
            scales=(guidance_scale, txtim_guidance_scale),
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            reference_prompt_embeds=reference_prompt_embeds,
            merge=merge,
            reference_schedule=reference_schedule,
            output_type=output_type,
            on_step_end=callback_on_step_end,
            on_step_end_tensors=callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale, self._txtim_guidance_scale = call.scales
        self._interrupt, self._num_timesteps = False, call.steps
        if self._runtime is None:
            for name in ("vae", "base_unet", "scheduler"):
                if getattr(self, name) is None:
                    raise ParameterError(f"the pipeline has no {name}; load it with all its parts")
        made = (
            draw_eagerly(self, call) if self._runtime is None else draw(self, self._runtime, call)
        )
        return made if return_dict else (made.images,)

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | Sequence[str] | None = None,
        reference_prompt: str | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        reference_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text states of prompts, each repeated for its pictures.

        Args:
            prompt: One or several.
            num_images_per_prompt: Pictures of each.
            negative_prompt: What to stay away from; one, or one for each prompt.
            reference_prompt: What the reference images show.
            prompt_embeds: Given in place of prompts.
            negative_prompt_embeds: Likewise.
            reference_prompt_embeds: Likewise.

        Returns:
            States of prompts and of negative prompts [B, S, E], and of the reference prompt
            [1, S, E].

        Raises:
            PromptError: A text is needed and missing.
        """
        if prompt_embeds is None:
            prompt_embeds = self._states(texts_of(prompts_of(prompt, None), "prompt"))
        if negative_prompt_embeds is None:
            negatives = negatives_of(negative_prompt, len(prompt_embeds))
            negative_prompt_embeds = self._states(negatives)
        if reference_prompt_embeds is None:
            reference = check_prompt(reference_prompt, "reference_prompt")
            reference_prompt_embeds = self._states([reference])
        if len(negative_prompt_embeds) != len(prompt_embeds):
            raise ParameterError(
                f"{len(negative_prompt_embeds)} negative_prompt_embeds for {len(prompt_embeds)} "
                "prompts, expected one for each"
            )
        prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(
            num_images_per_prompt, dim=0
        )
        return prompt_embeds, negative_prompt_embeds, reference_prompt_embeds

    def _states(self, texts: list[str]) -> Tensor:
        """Text states [P, S, E] of the text encoder."""
        length = self.tokenizer.model_max_length
        device = self._execution_device
        for text in texts:
            num = len(self.tokenizer(text).input_ids)
            if num > length:
                logger.warning(
                    "a prompt of %d tokens is cut to the %d that the pair reads", num, length
                )
        both = [self.tokenizer, self.tokenizer_2] if self.tokenizer_2 else [self.tokenizer]
        ids = [
            one(
                texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            for one in both
        ]
        encoder: Any = self.text_encoder
        if self.tokenizer_2:
            encoder, side = self._two_text_encoders(), self.pair_config.sample_size_px
            ids.append(torch.tensor([whole_picture(side, side)] * len(texts)))
        states: Tensor = encoder(torch.cat(ids, dim=1).to(device)).last_hidden_state
        return states

    def _two_text_encoders(self) -> TwoTextEncoders:
        """Both text encoders as one."""
        zeros = self.pair_config.zeros_for_empty_prompt
        return TwoTextEncoders(
            self.text_encoder, self.text_encoder_2, self.base_unet.config, zeros_for_empty=zeros
        )

    def _told_size(self, states: Tensor, width: int, height: int) -> Tensor:
        """Text states that are told the size of what is drawn, where the pair is told sizes."""
        if not self.tokenizer_2:
            return states
        return self._two_text_encoders().told_sizes(states, whole_picture(width, height))
