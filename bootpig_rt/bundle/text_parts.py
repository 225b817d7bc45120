"""Which folders of text a pair has: one text encoder, or two as Stable Diffusion XL.

A U-Net whose `addition_embed_type` is `text_time` reads states of two text encoders side by side,
and adds to the embedding of the timestep a pooled state of the second and six numbers of the
picture's size (Podell et al. 2023, arXiv 2307.01952, section 2.2). Needs no torch.

Both travel with the text states: behind the S rows of a prompt's tokens are as many rows as the
added numbers fill, the rest of the last one zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_ENCODER_2, TOKENIZER_2 = "text_encoder_2", "tokenizer_2"

NUM_SIZES = 6
"""Height and width of the original, top and left of the crop, height and width of the target."""


def has_two_texts(unet: Mapping[str, Any]) -> bool:
    """Whether a U-Net of this configuration reads two text encoders and sizes."""
    return unet.get("addition_embed_type") == "text_time"


def text_parts(unet: Mapping[str, Any]) -> tuple[str, ...]:
    """Folders of text beside a U-Net of this configuration."""
    more = (TEXT_ENCODER_2, TOKENIZER_2) if has_two_texts(unet) else ()
    return ("text_encoder", "tokenizer", *more)


def text_encoders(unet: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of them that hold weights."""
    return tuple(part for part in text_parts(unet) if part.startswith("text_encoder"))


def num_added_rows(unet: Mapping[str, Any], width: int) -> int:
    """Rows of text states, `width` numbers each, that hold what is added; 0: nothing is.

    Raises:
        KeyError, TypeError, ValueError: The configuration lacks the number or has a wrong one.
    """
    if not has_two_texts(unet):
        return 0
    return -(-int(unet["projection_class_embeddings_input_dim"]) // width)


def text_shape(unet: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and width of the text states of a prompt, by two configurations.

    Raises:
        KeyError, TypeError, ValueError: A configuration lacks a number or has a wrong one.
    """
    tokens, width = int(text_encoder["max_position_embeddings"]), int(text_encoder["hidden_size"])
    if has_two_texts(unet):
        given = unet["cross_attention_dim"]
        width = int(given if isinstance(given, int) else given[0])
    return tokens + num_added_rows(unet, width), width
