"""The parts of a loaded pair as components of diffusers."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers import CLIPTokenizer

from bootpig_rt.bundle.model_index import SCHEDULERS
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.models.load import Pair
from bootpig_rt.models.text_encoders import TwoTextEncoders


def modules_of(pair: Pair) -> dict[str, Any]:
    """Components by name; the scheduler is that of the pair's own solver."""
    kind = getattr(diffusers, SCHEDULERS[pair.config.default_solver])
    scheduler = kind.from_config(pair.scheduler)
    keep_unclipped(scheduler, pair.scheduler)
    text: Any = pair.text_encoder
    return {
        "vae": pair.vae,
        "text_encoder": text.first if isinstance(text, TwoTextEncoders) else text,
        "tokenizer": CLIPTokenizer.from_pretrained(pair.tokenizer_folder),
        "tiny_vae": pair.tiny_vae,
        **_second_texts(pair),
        "base_unet": pair.base.unet,
        "ref_unet": None if pair.config.shared_unet else pair.reference.unet,
        "scheduler": scheduler,
    }


def _second_texts(pair: Pair) -> dict[str, Any]:
    text: Any = pair.text_encoder
    if not isinstance(text, TwoTextEncoders):
        return {}
    second = CLIPTokenizer.from_pretrained(pair.tokenizer_2_folder)
    return {TEXT_ENCODER_2: text.second, TOKENIZER_2: second}


def keep_unclipped(scheduler: Any, config: dict[str, Any]) -> None:
    """Have a scheduler clip samples only where its file says so.

    diffusers' DDIM clips unless told otherwise, which is right for pixels and wrong for latents.
    """
    if "clip_sample" not in config and "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
