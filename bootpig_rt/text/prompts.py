"""What the prompts of a call say: which pictures, with which seeds, and of what subject."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from bootpig_rt.checks import check_prompt, check_seed, wrap_seed
from bootpig_rt.errors import ParameterError, PromptError

logger = logging.getLogger(__name__)


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


def prompts_and_seeds(
    prompt: object, seed: Any, *, num_images: int
) -> list[tuple[str, int | None]]:
    """One prompt or several, each with the first seed of its pictures.

    One seed counts on over all pictures of the call; without any, each prompt draws its own.

    Raises:
        PromptError: No prompt, or one that cannot be used.
        ParameterError: A seed out of range, or not one for each prompt.
    """
    given: list[Any] = [prompt]
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        given = list(prompt)
    if not given:
        raise PromptError("prompt is an empty list, expected at least one prompt")
    prompts = [check_prompt(one) for one in given]
    if seed is None:
        return [(one, None) for one in prompts]
    if not isinstance(seed, list | tuple):
        first = check_seed(seed)
        return [(one, wrap_seed(first + n * num_images)) for n, one in enumerate(prompts)]
    if len(seed) != len(prompts):
        raise ParameterError(f"{len(seed)} seeds for {len(prompts)} prompts, expected one for each")
    return [(one, check_seed(own)) for one, own in zip(prompts, seed, strict=True)]
