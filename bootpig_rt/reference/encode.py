"""From reference images to a `Subject`: checked, cut out, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bootpig_rt.backends.base import Backend
from bootpig_rt.backends.finite import check_finite
from bootpig_rt.checks import check_prompt
from bootpig_rt.errors import ImageError, ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.image_input import MAX_PIXELS
from bootpig_rt.images.picture import ImageSource, prepare_reference
from bootpig_rt.reference.subject import Subject
from bootpig_rt.text.tokenizer import Tokenizer


def encode(
    images: ImageSource | Sequence[ImageSource] | None,
    reference_prompt: str,
    noise_seed: int,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
    background_remover: BackgroundRemover | None,
    max_pixels: int = MAX_PIXELS,
) -> Subject:
    """Encode reference images; see `Pipeline.encode_subject`.

    Raises:
        ImageError: No image, or one that cannot be used.
        PromptError: The reference prompt is empty.
        ParameterError: Too many images.
        NumericalError: NaN or Inf from the encoder.
    """
    config = backend.spec.config
    reference_prompt = check_prompt(reference_prompt, "reference_prompt")
    sources = sources_of(images)
    limit = config.max_references
    if len(sources) > limit:
        raise ParameterError(
            f"{len(sources)} reference images, expected 1..{limit} for this pair; leave some out"
        )
    pixels = np.stack(
        [
            prepare_reference(
                source,
                config.sample_size_px,
                background_remover,
                what="reference image" if len(sources) == 1 else f"reference image {index}",
                subject_share=config.subject_share,
                max_pixels=max_pixels,
            )
            for index, source in enumerate(sources)
        ]
    )
    latents = check_finite(backend.encode_image(pixels), "the image encoder")
    states = backend.download_states(backend.encode_text(tokenizer([reference_prompt])))
    return Subject(
        pixels,
        latents,
        reference_prompt,
        noise_seed,
        backend.spec.fingerprint,
        prompt_states=check_finite(states, "the text encoder")[0],
    )


def sources_of(images: ImageSource | Sequence[ImageSource] | None) -> list[Any]:
    """One reference image or several as a list.

    Raises:
        ImageError: There is none.
    """
    if images is None:
        found: list[Any] = []
    elif isinstance(images, list | tuple):
        found = list(images)
    else:
        found = [images]
    if not found:
        raise ImageError("no reference image, expected at least one picture of the subject")
    return found
