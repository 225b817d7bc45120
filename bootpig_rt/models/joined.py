"""Several small products of a U-Net as one larger one: for a device that waits for launches.

The weights are joined once, when a pair is loaded for inference; the modules that had them keep
views, so nothing is stored twice and whoever else calls them sees the same numbers.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bootpig_rt.models.operations import Kind, list_operations


def join_products(unet: Any) -> None:
    """Join the queries, keys and values of each self-attention, and all time embeddings.

    Args:
        unet: diffusers' U-Net in evaluation mode, in its final type, on its device. Gradients are
            not for its weights any more.
    """
    blocks = []
    for op in list_operations(unet):
        if op.kind is Kind.TRANSFORMER:
            for block in op.module.transformer_blocks:
                _join_attention(block.attn1)
        elif op.kind is Kind.RESNET:
            blocks.append(op.module)
    _join_times(blocks)


def _join(layers: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of layers of one input, one behind the other; the layers keep views."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    has_bias = layers[0].bias is not None
    bias = torch.cat([layer.bias.detach() for layer in layers]) if has_bias else None
    start = 0
    for layer in layers:
        rows = slice(start, start + layer.out_features)
        layer.weight = nn.Parameter(weight[rows], requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias[rows], requires_grad=False)
        start = rows.stop
    return weight, bias


def _join_attention(attn: Any) -> None:
    attn.joined_projections = _join([attn.to_q, attn.to_k, attn.to_v])


class JoinedTimes:
    """The time embeddings of all residual blocks of a U-Net, as one product for each timestep."""

    def __init__(self, blocks: list[Any]) -> None:
        """Join the weights."""
        self._weight, self._bias = _join([block.time_emb_proj for block in blocks])
        self._skips_activation = bool(blocks[0].skip_time_act)
        self._made: tuple[weakref.ref[Tensor], Tensor] | None = None

    def part(self, temb: Tensor, rows: slice) -> Tensor:
        """[B, E] -> [B, C] of one block; the product is made for the first block that asks."""
        made = self._made
        if made is None or made[0]() is not temb:
            active = temb if self._skips_activation else F.silu(temb)
            made = weakref.ref(temb), F.linear(active, self._weight, self._bias)
            self._made = made
        return made[1][:, rows]


def _join_times(blocks: list[Any]) -> None:
    joined = JoinedTimes(blocks)
    start = 0
    for block in blocks:
        rows = slice(start, start + block.time_emb_proj.out_features)
        block.joined_times = joined, rows
        start = rows.stop
