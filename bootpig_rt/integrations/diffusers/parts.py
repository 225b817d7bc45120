"""The parts of a loaded pair as components of diffusers."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import CLIPTokenizer

from bootpig_rt.bundle.model_index import SCHEDULERS
from bootpig_rt.models.load import Pair


def modules_of(pair: Pair) -> dict[str, Any]:
    """Components by name; the scheduler is that of the pair's own solver."""
    kind = getattr(diffusers, SCHEDULERS[pair.config.default_solver])
    scheduler = kind.from_config(pair.scheduler)
    keep_unclipped(scheduler, pair.scheduler)
    return {
        "vae": pair.vae,
        "text_encoder": pair.text_encoder,
        "tokenizer": CLIPTokenizer.from_pretrained(pair.tokenizer_folder),
        "base_unet": pair.base.unet,
        "ref_unet": None if pair.config.shared_unet else pair.reference.unet,
        "scheduler": scheduler,
    }


def keep_unclipped(scheduler: Any, config: dict[str, Any]) -> None:
    """Have a scheduler clip samples only where its file says so.

    diffusers' DDIM clips unless told otherwise, which is right for pixels and wrong for latents.
    """
    if "clip_sample" not in config and "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
