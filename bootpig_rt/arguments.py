"""The forms that a call accepts, brought into one: lists of prompts, pictures and seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from bootpig_rt.checks import MAX_IMAGES, check_int, check_prompt, check_seed, wrap_seed
from bootpig_rt.errors import ParameterError, PromptError

logger = logging.getLogger(__name__)


def prompts_of(prompt: object) -> list[str]:
    """One prompt or several as a list.

    Raises:
        PromptError: One of them is missing, empty or not text.
    """
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return [check_prompt(prompt)]
    if not prompt:
        raise PromptError("prompt is an empty list, expected at least one prompt")
    return [check_prompt(one) for one in prompt]


def class_phrase(prompts: Sequence[str]) -> str:
    """A reference prompt for a call that gives none: the prompt up to its first comma.

    The published trainer takes it from its captions in the same way. Never silent: a log line says
    what was taken.

    Raises:
        PromptError: The prompts begin differently.
    """
    phrases = {prompt.partition(",")[0].strip() for prompt in prompts}
    if len(phrases) > 1:
        raise PromptError(
            f"the prompts begin with {len(phrases)} different phrases, so it is not clear what the "
            'reference shows; pass reference_prompt, such as "a photo of a dog"'
        )
    phrase = phrases.pop()
    if phrase == prompts[0].strip():
        logger.warning(
            "no reference prompt and no comma in the prompt: the reference is read as %r; better "
            'say what it shows, such as reference_prompt="a photo of a dog"',
            phrase,
        )
    else:
        logger.info("no reference prompt: the reference is read as %r, from the prompt", phrase)
    return phrase


def seeds_of_prompts(seed: Any, count: int, num_images: int) -> list[int | None]:
    """The first seed of each prompt of a call.

    Args:
        seed: None, one seed for the call, or a list with one seed for each prompt.
        count: Number of prompts.
        num_images: Pictures of each prompt.

    Returns:
        One for each prompt. From a single seed the pictures of the call count on: prompt p starts
        at `seed + p * num_images`.

    Raises:
        InputError: The list has another length, or a seed is out of range.
    """
    check_int("num_images", num_images, 1, MAX_IMAGES, "call again for more")
    if seed is None:
        return [None] * count
    if isinstance(seed, list | tuple):
        if len(seed) != count:
            raise ParameterError(f"{len(seed)} seeds for {count} prompts, expected one for each")
        return [check_seed(one) for one in seed]
    first = check_seed(seed)
    return [wrap_seed(first + index * num_images) for index in range(count)]
