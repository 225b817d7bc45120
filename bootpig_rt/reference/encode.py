"""From reference images to a `Subject`: checked, cut out, encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bootpig_rt.backends.base import Backend, FloatArray, PairSpec, check_finite
from bootpig_rt.checks import check_prompt
from bootpig_rt.errors import ImageError, ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.image_input import MAX_PIXELS
from bootpig_rt.images.picture import ImageSource, prepare_reference
from bootpig_rt.reference.subject import Subject
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


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
    pixels = prepare(images, backend.spec, background_remover, max_pixels=max_pixels)
    return encode_pixels(pixels, reference_prompt, noise_seed, backend=backend, tokenizer=tokenizer)


def prepare(
    images: ImageSource | Sequence[ImageSource] | None,
    spec: PairSpec,
    background_remover: BackgroundRemover | None,
    *,
    max_pixels: int = MAX_PIXELS,
    warn: Callable[[str], object] = logger.warning,
) -> FloatArray:
    """What a pair is shown of reference images: float32 [R, 3, H, W] in [-1, 1].

    Raises:
        ImageError: No image, or one that cannot be used.
        ParameterError: Too many images.
    """
    sources = sources_of(images)
    most = min(spec.config.max_references, spec.max_references or spec.config.max_references)
    if len(sources) > most:
        raise ParameterError(
            f"{len(sources)} reference images, expected 1..{most} for this pair; leave some out"
        )
    side = spec.config.sample_size_px
    low, high = spec.sides_px or (side, side)
    if not low <= side <= high:
        raise ParameterError(
            f"references are read at {side} px, this bundle was built for {low}..{high}; build it "
            f"again with --resolution {min(low, side)}:{max(high, side)}"
        )
    return np.stack(
        [
            prepare_reference(
                source,
                side,
                background_remover,
                what="reference image" if len(sources) == 1 else f"reference image {index}",
                subject_share=spec.config.subject_share,
                max_pixels=max_pixels,
                warn=warn,
            )
            for index, source in enumerate(sources)
        ]
    )


def encode_pixels(
    pixels: FloatArray,
    reference_prompt: str,
    noise_seed: int,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
) -> Subject:
    """Encode what `prepare` returned.

    Raises:
        PromptError: The reference prompt is empty.
        NumericalError: NaN or Inf from the encoder.
    """
    reference_prompt = check_prompt(reference_prompt, "reference_prompt")
    latents = backend.encode_image(pixels)
    states = backend.download_states(backend.encode_text(tokenizer([reference_prompt])))
    return Subject(
        pixels,
        check_finite(latents, "the image encoder"),
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
