"""The arguments of one call, checked, with the pair's defaults filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from bootpig_rt.bundle.pair_config import MERGES, Merge, PairConfig
from bootpig_rt.checks import (
    MAX_IMAGES,
    check_guidance,
    check_int,
    check_name,
    check_prompt,
    check_steps,
)
from bootpig_rt.errors import ParameterError, PromptError
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.control import Control
from bootpig_rt.integrations.diffusers.output import OUTPUT_TYPES, OutputType
from bootpig_rt.integrations.diffusers.seeds import Generators, seeds_of
from bootpig_rt.pipeline import class_phrase
from bootpig_rt.reference.schedule import ReferenceSchedule

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
"""(pipe, index of the step, timestep, the tensors that were asked for) -> those to go on with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What one call draws; P prompts, B pictures.

    Attributes:
        prompts: P; None for each whose states were given.
        negatives: P.
        per_prompt: Pictures of each prompt.
        reference_images: Whatever `load_image` takes, one or several.
        reference_prompt: What they show; None where its states were given.
        steps: T.
        scales: s_image and s_text.
        seeds: B.
        width: Of the pictures, in pixels.
        height: Likewise.
        merge: How several references are combined.
        schedule: At which noise levels the reference is read.
        canvas: What is drawn into, or from; on an engine.
        strength: Share of the steps that are done on it.
        controls: Maps that the pictures follow, with intervals as diffusers means them.
        latents: [B, C, h, w] or None.
        prompt_embeds: [P, S, E] or None.
        negative_prompt_embeds: Likewise.
        reference_prompt_embeds: [1, S, E] or None.
        output_type: Of the pictures.
        on_step_end: Called after each step.
        on_step_end_tensors: What it asked for; None: nothing was said.
    """

    prompts: list[str | None]
    negatives: list[str]
    per_prompt: int
    reference_images: Any
    reference_prompt: str | None
    steps: int
    scales: tuple[float, float]
    seeds: list[int]
    width: int
    height: int
    merge: Merge
    schedule: ReferenceSchedule
    canvas: Canvas | None
    strength: float | None
    controls: tuple[Control, ...]
    latents: Tensor | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    reference_prompt_embeds: Tensor | None
    output_type: OutputType
    on_step_end: Callback | None
    on_step_end_tensors: Sequence[str] | None


def checked_call(
    config: PairConfig,
    *,
    prompt: Any,
    reference_images: Any,
    reference_prompt: str | None,
    height: int | None,
    width: int | None,
    canvas: Canvas | None,
    strength: float | None,
    controls: tuple[Control, ...],
    steps: int | None,
    scales: tuple[float | None, float | None],
    negative_prompt: Any,
    num_images_per_prompt: int,
    generator: Generators,
    latents: Tensor | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    reference_prompt_embeds: Tensor | None,
    merge: str | None,
    reference_schedule: ReferenceSchedule | str | None,
    output_type: OutputType,
    on_step_end: Callback | None,
    on_step_end_tensors: Sequence[str] | None,
) -> Call:
    """Check the arguments of `BootPIGPipeline.__call__`; see there.

    Raises:
        InputError: An argument cannot be used.
    """
    check_name("output_type", output_type, OUTPUT_TYPES)
    per_prompt = check_int("num_images_per_prompt", num_images_per_prompt, 1, MAX_IMAGES)
    prompts = prompts_of(prompt, prompt_embeds)
    s_image, s_text = scales
    s_image = config.image_guidance_scale if s_image is None else s_image
    s_text = config.text_guidance_scale if s_text is None else s_text
    if reference_prompt is None and reference_prompt_embeds is None:
        reference_prompt = class_phrase(texts_of(prompts, "reference_prompt"))
    schedule = ReferenceSchedule.default_for(config.reference_timestep)
    if reference_schedule is not None:
        schedule = ReferenceSchedule.parse(str(reference_schedule), schedule.mode)
    check_name("merge", merge or config.merge, MERGES)
    usual = controls[0].size if controls else (config.sample_size_px,) * 2
    return Call(
        prompts=prompts,
        negatives=negatives_of(negative_prompt, len(prompts)),
        per_prompt=per_prompt,
        reference_images=reference_images,
        reference_prompt=reference_prompt,
        steps=check_steps(config.default_steps if steps is None else steps),
        scales=(
            check_guidance("guidance_scale", s_image),
            check_guidance("txtim_guidance_scale", s_text),
        ),
        seeds=seeds_of(generator, len(prompts) * per_prompt),
        width=usual[0] if width is None else width,
        height=usual[1] if height is None else height,
        merge=cast("Merge", merge or config.merge),
        schedule=schedule,
        canvas=canvas,
        strength=strength,
        controls=controls,
        latents=latents,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        reference_prompt_embeds=reference_prompt_embeds,
        output_type=output_type,
        on_step_end=on_step_end,
        on_step_end_tensors=on_step_end_tensors,
    )


def prompts_of(prompt: Any, embeds: Tensor | None) -> list[str | None]:
    """Prompts as a list; None for each whose states were given.

    Raises:
        ParameterError: Both were given.
        PromptError: A prompt is missing or empty.
    """
    if embeds is not None:
        if prompt is not None:
            raise ParameterError("got prompt and prompt_embeds, expected one of them")
        return [None] * len(embeds)
    several = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not several:
        raise PromptError("prompt is an empty list, expected at least one prompt")
    return [check_prompt(one) for one in several]


def texts_of(prompts: Sequence[str | None], what: str) -> list[str]:
    """Prompts that are all texts.

    Raises:
        PromptError: One is not; says what is missing for it.
    """
    found = [prompt for prompt in prompts if prompt is not None]
    if len(found) < len(prompts):
        raise PromptError(f"{what} is missing, and prompt_embeds do not say it; pass it")
    return found


def negatives_of(negative: Any, count: int) -> list[str]:
    """A negative prompt for each of `count` prompts.

    Raises:
        ParameterError: Another number of them.
    """
    several = list(negative) if isinstance(negative, list | tuple) else [negative or ""] * count
    if len(several) != count:
        raise ParameterError(
            f"{len(several)} negative prompts for {count} prompts, expected one, or one for each"
        )
    return [check_prompt(one, "negative_prompt", allow_empty=True) for one in several]
