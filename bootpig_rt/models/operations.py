"""The operations that the walk of a U-Net is made of: one module each, called with tensors.

`bootpig_rt.models.unet` calls them in order. All weights of a module are read within its own
operations, so whoever calls them can gather those weights, or compute an operation anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from bootpig_rt.models.attention import KV, attention, project, split_heads
from bootpig_rt.models.blocks import add_layer_norm, feed_forward, group_norm, residual_block

TextKVLayers = tuple[KV, ...]
"""Keys and values of the text for every cross-attention, each [B, S, H * D]."""


class Kind(Enum):
    """What an operation does."""

    RESNET = "resnet"
    TRANSFORMER = "transformer"
    DOWNSAMPLE = "downsample"
    UPSAMPLE = "upsample"


@dataclass(frozen=True)
class Operation:
    """One module of the walk; `pop` joins the last skip ahead of it, `push` keeps its output."""

    kind: Kind
    module: Any
    pop: bool = False
    push: bool = False


def list_operations(unet: Any) -> Iterator[Operation]:
    """The modules between `conv_in` and `conv_norm_out`, in the order that they run.

    A control has those down to the middle, and no way up.
    """
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None)
        for index, resnet in enumerate(block.resnets):
            yield Operation(Kind.RESNET, resnet, push=attentions is None)
            if attentions is not None:
                yield Operation(Kind.TRANSFORMER, attentions[index], push=True)
        for downsampler in block.downsamplers or ():
            yield Operation(Kind.DOWNSAMPLE, downsampler, push=True)
    mid = unet.mid_block
    yield Operation(Kind.RESNET, mid.resnets[0])
    for transformer, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        yield Operation(Kind.TRANSFORMER, transformer)
        yield Operation(Kind.RESNET, resnet)
    for block in getattr(unet, "up_blocks", ()):
        attentions = getattr(block, "attentions", None)
        for index, resnet in enumerate(block.resnets):
            yield Operation(Kind.RESNET, resnet, pop=True)
            if attentions is not None:
                yield Operation(Kind.TRANSFORMER, attentions[index])
        for upsampler in block.upsamplers or ():
            yield Operation(Kind.UPSAMPLE, upsampler)


def _residual(block: Any, x: Tensor, skip: Tensor | None, temb: Tensor) -> Tensor:
    return residual_block(block, x if skip is None else torch.cat([x, skip], dim=1), temb)


def _downsample(downsampler: Any, x: Tensor, skip: Tensor | None, temb: Tensor) -> Tensor:
    smaller: Tensor = downsampler(x)
    return smaller


def _upsample(upsampler: Any, x: Tensor, skip: Tensor | None, temb: Tensor) -> Tensor:
    if type(upsampler) is Upsample2D:  # its own `forward` asks how many rows there are
        larger: Tensor = upsampler.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    else:  # one that was rewritten
        larger = upsampler(x)
    return larger


CONVOLUTIONS = {
    Kind.RESNET: _residual,
    Kind.DOWNSAMPLE: _downsample,
    Kind.UPSAMPLE: _upsample,
}

Attend = Callable[[int, Any, Tensor], Tensor]
"""(block of a transformer, attention module, tokens after the norm) -> attended tokens."""

Spread = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(tokens, picture) of the entries -> those of the rows that start from them."""


def transform(
    transformer: Any,
    x: Tensor,
    text: Tensor | TextKVLayers,
    attend: Attend,
    spread: Spread | None,
) -> Tensor:
    """The blocks of one transformer of the Base U-Net; `spread` is called in the first of them."""
    tokens = _tokens_in(transformer, x)
    for index, block in enumerate(transformer.transformer_blocks):
        _, normed = add_layer_norm(block.norm1, tokens, None)
        change = attend(index, block.attn1, normed)
        if spread is not None:  # text tells the rows apart
            tokens, x = spread(tokens, x)
            spread = None
        context = text if isinstance(text, Tensor) else text[index]
        tokens = _text_and_feed_forward(block, tokens, change, context)
    return _tokens_out(transformer, tokens, x)


def read(
    transformer: Any, x: Tensor, text: Tensor, last: nn.Module
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The blocks of one transformer of the Reference U-Net up to the `last`, and its features."""
    features: list[Tensor] = []
    tokens = _tokens_in(transformer, x)
    for block in transformer.transformer_blocks:
        _, normed = add_layer_norm(block.norm1, tokens, None)
        features.append(normed)
        if block is last:
            return x, tuple(features)
        change = attention(block.attn1, normed, normed)
        tokens = _text_and_feed_forward(block, tokens, change, text)
    return _tokens_out(transformer, tokens, x), tuple(features)


def keys_and_values(transformer: Any, ref_scale: float, *features: Tensor) -> list[KV]:
    """Keys and values of reference features, one pair for each block."""
    layers: list[KV] = []
    for block, feature in zip(transformer.transformer_blocks, features, strict=True):
        keys = block.attn1.to_k(feature)
        if ref_scale != 1.0:
            keys = keys * ref_scale
        heads = block.attn1.heads
        layers.append((split_heads(keys, heads), split_heads(block.attn1.to_v(feature), heads)))
    return layers


def text_keys_and_values(transformer: Any, states: Tensor) -> list[KV]:
    """Keys and values of the text, one pair for each block."""
    return [project(block.attn2, states) for block in transformer.transformer_blocks]


def _tokens_in(transformer: Any, x: Tensor) -> Tensor:
    """Picture [B, C, h, w] -> tokens [B, h * w, C], normed and projected."""
    normed = group_norm(transformer.norm, x, silu=False)
    if transformer.use_linear_projection:
        tokens: Tensor = transformer.proj_in(normed.flatten(2).transpose(1, 2))
    else:
        tokens = transformer.proj_in(normed).flatten(2).transpose(1, 2)
    return tokens


def _tokens_out(transformer: Any, tokens: Tensor, residual: Tensor) -> Tensor:
    """Tokens [B, h * w, C] -> picture [B, C, h, w], projected, added to the block's input."""
    size = residual.shape[-2:]
    if transformer.use_linear_projection:
        picture = _to_picture(transformer.proj_out(tokens), size)
    else:
        picture = transformer.proj_out(_to_picture(tokens, size))
    joined: Tensor = picture + residual
    return joined


def _to_picture(tokens: Tensor, size: torch.Size) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)


def _text_and_feed_forward(block: Any, tokens: Tensor, change: Tensor, text: Tensor | KV) -> Tensor:
    """What self-attention changes, cross-attention to the text, the feed-forward."""
    tokens, normed = add_layer_norm(block.norm2, tokens, change)
    tokens, normed = add_layer_norm(block.norm3, tokens, attention(block.attn2, normed, text))
    return feed_forward(block.ff, normed) + tokens
