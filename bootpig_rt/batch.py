"""From requests to one `DenoiseBatch`: rows, references counted through, noise by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, DeviceArray, FloatArray, PairSpec
from bootpig_rt.config import SamplingParams
from bootpig_rt.generation import Request
from bootpig_rt.guidance import PictureBranches, plan_guidance
from bootpig_rt.reference_kv import ReferenceKV
from bootpig_rt.solver import SolverTable

# Keeps the draws of picture noise apart from those of reference noise with the same seed.
_PICTURE_STREAM = 0x71C


def build_batch(
    pictures: Sequence[Request],
    params: SamplingParams,
    solver: SolverTable,
    *,
    spec: PairSpec,
    texts: Sequence[str],
    prompt_embeds: DeviceArray,
    tables: Mapping[str, ReferenceKV],
) -> DenoiseBatch:
    """Lay out one batch.

    Args:
        pictures: Requests of one picture each, with their scales.
        params: What they share.
        solver: The steps.
        spec: Of the pair.
        texts: Distinct prompts and negative prompts.
        prompt_embeds: [P, S, E], text states of `texts`.
        tables: By fingerprint of the subject.
    """
    references: dict[str, tuple[int, ...]] = {}
    for picture in pictures:
        if picture.subject is not None and picture.subject.fingerprint not in references:
            first = sum(map(len, references.values()))
            numbers = range(first, first + picture.subject.num_references)
            references[picture.subject.fingerprint] = tuple(numbers)
    scales = [scales_of(picture, spec) for picture in pictures]
    rows = plan_guidance(
        [
            PictureBranches(
                prompt=texts.index(picture.prompt),
                negative_prompt=texts.index(picture.negative_prompt),
                references=references[picture.subject.fingerprint] if picture.subject else (),
                image_guidance_scale=image_scale,
                text_guidance_scale=text_scale,
            )
            for picture, (image_scale, text_scale) in zip(pictures, scales, strict=True)
        ]
    )
    factor = spec.vae_scale_factor
    shape = (spec.latent_channels, params.height_px // factor, params.width_px // factor)
    return DenoiseBatch(
        latents=np.stack([picture_noise(picture.seed or 0, shape) for picture in pictures]),
        prompt_embeds=prompt_embeds,
        text_of_row=rows.text_of_row,
        picture_of_row=rows.picture_of_row,
        ref_of_row=rows.ref_of_row,
        rows_of_picture=rows.rows_of_picture,
        image_guidance_scale=np.array([scale for scale, _ in scales], dtype=np.float32),
        text_guidance_scale=np.array([scale for _, scale in scales], dtype=np.float32),
        tables=tuple(tables[name].data for name in references),
        num_references=tuple(len(numbers) for numbers in references.values()),
        solver=solver,
        merge=params.merge,
    )


def scales_of(picture: Request, spec: PairSpec) -> tuple[float, float]:
    """s_image and s_text of a picture, from the pair where the request leaves them out."""
    image_scale, text_scale = picture.image_guidance_scale, picture.text_guidance_scale
    return (
        spec.config.image_guidance_scale if image_scale is None else image_scale,
        spec.config.text_guidance_scale if text_scale is None else text_scale,
    )


def picture_noise(seed: int, shape: tuple[int, ...]) -> FloatArray:
    """Initial noise of one picture, float32 of unit variance: from its own seed alone."""
    rng = np.random.default_rng([_PICTURE_STREAM, seed])
    return rng.standard_normal(shape, dtype=np.float32)
