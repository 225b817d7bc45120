"""Every way to a picture, by name: the published one, ours, and plain text to image.

Each is compared with the published way before it is timed (`truth.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTokenizer

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.ours import EXACT, PROMPT, SEED, OurWay
from bootpig_rt.benchmarks.published import SCHEDULERS, PublishedWay
from bootpig_rt.benchmarks.truth import Truth, latents_of
from bootpig_rt.benchmarks.way import Ready, Unavailable, Way
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.request import GenerationResult

_COMPILED, _RECORDED = {"compiles": True}, {"records": True}
_HALF = {"autocast": torch.bfloat16}
_VARIANTS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "cpu": {
        "_compile": (", torch.compile", _COMPILED),
        "_bf16": (", bfloat16 autocast", _HALF),
        "_compile_bf16": (", torch.compile, bfloat16 autocast", _COMPILED | _HALF),
    },
    "cuda": {
        "_compile": (", torch.compile", _COMPILED),
        "_graph": (", recorded as a CUDA graph", _RECORDED),
        "_compile_graph": (", torch.compile, recorded as a CUDA graph", _COMPILED | _RECORDED),
    },
}


def published_ways(
    truth: Truth, group: str, *, suffix: str = "", kind: str | None = None
) -> list[Way]:
    """The published way as it is, compiled, recorded, and in bfloat16 where a CPU has that.

    The strongest of them is what ours is compared with.

    Args:
        truth: The scene, and what is right.
        group: Of the rows.
        suffix: Of their names.
        kind: `cpu` or `cuda`, whose variants are meant; that of the device by default.
    """

    def make(options: dict[str, Any]) -> Ready:
        if "autocast" in options and machine.bf16_flag() is None:
            raise Unavailable(
                f"this processor has none of {', '.join(machine.BF16_FLAGS)}: bfloat16 would be "
                "computed by float32"
            )
        way = PublishedWay(truth.pair(), truth.device, **options) if options else truth.published
        draw = partial(way.picture, truth.scene)
        limit = truth.limit("bfloat16" if "autocast" in options else truth.precision)

        def difference() -> float:
            draw()
            return truth.difference(latents_of(way))

        return Ready(draw, difference=difference, limit=limit)

    variants = {"": (", SDPA", {}), **_VARIANTS[kind or truth.kind]}
    return [
        Way(
            f"published{name}{suffix}", f"published way{label}", partial(make, options), group=group
        )
        for name, (label, options) in variants.items()
    ]


def our_way(
    truth: Truth,
    name: str,
    label: str,
    load: Callable[[], OurWay],
    draw: Callable[[OurWay], GenerationResult],
    *,
    group: str,
    precision: str | None = None,
    pictures: int = 1,
) -> Way:
    """One of this package's ways, compared with the published one before it is timed.

    Args:
        truth: What is right.
        name: Of the row.
        label: Of the row.
        load: The pipeline; ways that share one give the same cached function.
        draw: What is timed.
        group: Of the row.
        precision: What it computes in; that of the truth by default.
        pictures: How many it draws; the first of them is compared.
    """

    def make() -> Ready:
        ours = load()
        return Ready(
            partial(draw, ours),
            difference=lambda: truth.difference(ours.latents(draw)),
            limit=truth.limit(precision or ours.compared_as or truth.precision),
        )

    return Way(name, label, make, pictures, group)


def known(ours: OurWay) -> GenerationResult:
    """A picture of the known subject, with the schedule `exact`."""
    return ours.warm(**EXACT)


def new(ours: OurWay) -> GenerationResult:
    """A picture of a new subject, with the schedule `exact`."""
    return ours.cold(**EXACT)


def four(ours: OurWay) -> GenerationResult:
    """Four pictures of the known subject, with the schedule `exact`."""
    return ours.warm(4, **EXACT)


def text_pipeline(pair: Pair, solver: str) -> Any:
    """`StableDiffusionPipeline` over the parts of a pair: no reference."""
    diffusers_logging.set_verbosity_error()  # it advises on checkpoints of a hub
    scheduler = SCHEDULERS[solver].from_config({**pair.scheduler, "steps_offset": 1})
    pipe: Any = StableDiffusionPipeline(
        vae=pair.vae,
        text_encoder=pair.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(pair.tokenizer_folder, local_files_only=True),
        unet=pair.base.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_way(truth: Truth, group: str) -> Way:
    """Text to image of diffusers over the parts of a pair: two guidance rows."""

    def make() -> Ready:
        pair, scene = truth.pair(), truth.scene
        pipe = text_pipeline(pair, scene.solver)
        side = pair.config.sample_size_px

        def draw() -> Any:
            with torch.inference_mode():
                return pipe(
                    PROMPT,
                    generator=torch.Generator().manual_seed(SEED),
                    num_inference_steps=scene.steps,
                    width=side,
                    height=side,
                    output_type="np",
                ).images[0]

        return Ready(draw)

    return Way("diffusers_text_to_image", "diffusers, text to image", make, group=group)


def attention_shapes(folder: Path) -> tuple[int, list[tuple[int, int, int]]]:
    """Side of a pair's pictures, and heads, tokens and head dim of its self-attentions in order."""
    pair = load_pair(folder, dtype=torch.float32)
    vae: Any = pair.vae
    side = pair.config.sample_size_px
    latents = side // 2 ** (len(vae.config.block_out_channels) - 1)
    shapes = zip(pair.base.layer_shapes(), pair.base.layer_levels(), strict=True)
    return side, [
        (heads, (latents >> level) ** 2, width // heads) for (_, heads, width), level in shapes
    ]
