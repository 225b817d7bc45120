"""Reference U-Net and Base U-Net: one explicit walk through the submodules of diffusers' U-Net.

Tensors in, tensors out. The diffusers model supplies weights and leaf modules; the order of the
blocks, the skip connections and every attention are here, so that nothing is patched and nothing
is passed through hidden lists. Works under autograd, autocast and `torch.export`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from bootpig_rt.errors import ParameterError
from bootpig_rt.models.attention import (
    KV,
    MergeRule,
    attention,
    project,
    reference_self_attention,
    split_heads,
)
from bootpig_rt.models.blocks import (
    add_layer_norm,
    feed_forward,
    group_norm,
    pick_rows,
    residual_block,
)
from bootpig_rt.models.rows import RowPlan, plain_rows, plan_rows
from bootpig_rt.models.unet_config import check_unet_config

ReferenceKVLayers = tuple[KV, ...]
"""Reference keys and values of every self-attention, in the order down, mid, up."""


class _Kind(Enum):
    RESNET = "resnet"
    TRANSFORMER = "transformer"
    DOWNSAMPLE = "downsample"
    UPSAMPLE = "upsample"


@dataclass(frozen=True)
class _Op:
    """One module of the walk; `pop` joins the last skip ahead of it, `push` keeps its output."""

    kind: _Kind
    module: Any
    pop: bool = False
    push: bool = False


def _operations(unet: Any) -> Iterator[_Op]:
    """The modules between `conv_in` and `conv_norm_out`, in the order that they run."""
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None)
        for index, resnet in enumerate(block.resnets):
            yield _Op(_Kind.RESNET, resnet, push=attentions is None)
            if attentions is not None:
                yield _Op(_Kind.TRANSFORMER, attentions[index], push=True)
        for downsampler in block.downsamplers or ():
            yield _Op(_Kind.DOWNSAMPLE, downsampler, push=True)
    mid = unet.mid_block
    yield _Op(_Kind.RESNET, mid.resnets[0])
    for transformer, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        yield _Op(_Kind.TRANSFORMER, transformer)
        yield _Op(_Kind.RESNET, resnet)
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", None)
        for index, resnet in enumerate(block.resnets):
            yield _Op(_Kind.RESNET, resnet, pop=True)
            if attentions is not None:
                yield _Op(_Kind.TRANSFORMER, attentions[index])
        for upsampler in block.upsamplers or ():
            yield _Op(_Kind.UPSAMPLE, upsampler)


SelfAttention = Callable[[int, Any, Tensor], Tensor]
"""(layer index, attention module, tokens [B, N, C] after the norm) -> attended tokens [B, N, C]."""

TextKVLayers = tuple[KV, ...]
"""Keys and values of the text for every cross-attention, each [B, S, H * D]."""


class _WalkedUNet(nn.Module):
    """What the two U-Nets share: the list of modules and the time embedding."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet: Any = unet
        check_unet_config(self.unet.config)
        self._ops = tuple(_operations(unet))
        self._blocks: tuple[Any, ...] = tuple(
            block
            for op in self._ops
            if op.kind is _Kind.TRANSFORMER
            for block in op.module.transformer_blocks
        )
        # Height and width of latents must be multiples of this.
        self.size_multiple = 2 ** sum(op.kind is _Kind.DOWNSAMPLE for op in self._ops)

    @property
    def num_layers(self) -> int:
        """L, number of self-attentions."""
        return len(self._blocks)

    def layer_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Per self-attention: channels C_l of its features, heads H_l, and width of its keys."""
        return tuple(
            (
                block.attn1.to_k.in_features,
                block.attn1.heads,
                block.attn1.to_k.out_features,
            )
            for block in self._blocks
        )

    def layer_levels(self) -> tuple[int, ...]:
        """Per self-attention: how often the latents were halved along a side before it."""
        levels: list[int] = []
        level = 0
        for op in self._ops:
            level += (op.kind is _Kind.DOWNSAMPLE) - (op.kind is _Kind.UPSAMPLE)
            if op.kind is _Kind.TRANSFORMER:
                levels += [level] * len(op.module.transformer_blocks)
        return tuple(levels)

    def _time_embedding(self, t: Tensor, latents: Tensor) -> Tensor:
        # float32 sinusoids, cast as diffusers casts them.
        embedding: Tensor = self.unet.time_embedding(self.unet.time_proj(t).to(latents.dtype))
        return embedding

    def _check(
        self, latents: Tensor, t: Tensor, prompt_embeds: Tensor, *, is_shared: bool = False
    ) -> None:
        channels, multiple = self.unet.config.in_channels, self.size_multiple
        if latents.dim() != 4 or latents.shape[1] != channels:
            raise ParameterError(
                f"latents have shape {list(latents.shape)}, expected [B, {channels}, h, w]"
            )
        if latents.shape[2] % multiple or latents.shape[3] % multiple:
            raise ParameterError(
                f"latents are {latents.shape[2]} x {latents.shape[3]}, expected multiples of "
                f"{multiple}: choose another picture size"
            )
        rows = latents.shape[0]
        fits = t.shape[:1] == (rows,) and (is_shared or prompt_embeds.shape[:1] == (rows,))
        if t.dim() != 1 or prompt_embeds.dim() != 3 or not fits:
            raise ParameterError(
                f"t {list(t.shape)} and prompt_embeds {list(prompt_embeds.shape)} do not match "
                f"{rows} rows of latents: expected [{rows}] and [{rows}, S, E]"
            )


class ReferenceUNet(_WalkedUNet):
    """Reads the reference images: the features that the Base U-Net attends to.

    Nothing is computed after the last self-attention's norm, so the weights behind it get no
    gradient: the last block's attention and feed-forward, `conv_norm_out` and `conv_out`.

    Args:
        unet: A diffusers U-Net of the supported kind.

    Raises:
        CheckpointError: The configuration has something that this walk does not do.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Plan the walk and cut it after the last transformer block."""
        super().__init__(unet)
        last = max(i for i, op in enumerate(self._ops) if op.kind is _Kind.TRANSFORMER)
        self._ops = self._ops[: last + 1]

    def forward(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """Features ahead of each self-attention, after its norm.

        Args:
            latents: [N, C, h, w], noised to `t` (or clean ones, for a pair trained on t = 0).
            t: [N], timesteps.
            prompt_embeds: [N, S, E], text states of the reference prompt.

        Returns:
            L tensors [N, M_l, C_l], in the order down, mid, up.
        """
        self._check(latents, t, prompt_embeds)
        features: list[Tensor] = []
        temb = self._time_embedding(t, latents)
        x = self.unet.conv_in(latents)
        skips = [x]
        last = self._blocks[-1]
        for op in self._ops:
            if op.kind is not _Kind.TRANSFORMER:
                x = _convolve(op, x, skips, temb)
                continue
            tokens = _tokens_in(op.module, x)
            for block in op.module.transformer_blocks:
                _, normed = add_layer_norm(block.norm1, tokens, None)
                features.append(normed)
                if block is last:
                    break
                change = attention(block.attn1, normed, normed)
                tokens = _text_and_feed_forward(block, tokens, change, prompt_embeds)
            else:
                x = _tokens_out(op.module, tokens, x)
                if op.push:
                    skips.append(x)
        return tuple(features)


class BaseUNet(_WalkedUNet):
    """Draws the picture: a U-Net whose self-attentions may also read reference tokens.

    Args:
        unet: A diffusers U-Net of the supported kind.

    Raises:
        CheckpointError: The configuration has something that this walk does not do.
    """

    def project_reference(
        self, features: tuple[Tensor, ...], *, ref_scale: float = 1.0
    ) -> ReferenceKVLayers:
        """Turn features of the Reference U-Net into keys and values of this U-Net.

        Args:
            features: L tensors [N, M_l, C_l] from `ReferenceUNet`.
            ref_scale: Multiplies the features for the keys only, never for the values. The key
                projection has no bias, so the scale goes into the keys.

        Returns:
            L pairs (keys, values), each [N, H_l, M_l, D_l].

        Raises:
            ParameterError: The number of layers differs from this U-Net's.
        """
        if len(features) != self.num_layers:
            raise ParameterError(
                f"{len(features)} layers of reference features, expected {self.num_layers}: "
                "the two U-Nets must have the same blocks"
            )
        layers: list[KV] = []
        for block, feature in zip(self._blocks, features, strict=True):
            keys = block.attn1.to_k(feature)
            if ref_scale != 1.0:
                keys = keys * ref_scale
            heads = block.attn1.heads
            layers.append((split_heads(keys, heads), split_heads(block.attn1.to_v(feature), heads)))
        return tuple(layers)

    def project_text(self, prompt_embeds: Tensor) -> TextKVLayers:
        """Text states [B, S, E] -> keys and values of every cross-attention.

        They stay the same from step to step.
        """
        return tuple(project(block.attn2, prompt_embeds) for block in self._blocks)

    def text_widths(self) -> tuple[int, ...]:
        """H * D of every cross-attention."""
        return tuple(block.attn2.to_k.out_features for block in self._blocks)

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor | TextKVLayers,
        reference_kv: ReferenceKVLayers | None = None,
        ref_of_row: Tensor | RowPlan | None = None,
        *,
        merge: MergeRule = "argmax",
        entry: Tensor | None = None,
    ) -> Tensor:
        """The model output (noise, v or x0, as the pair was trained).

        A row without references is computed by plain self-attention, exactly as without a table.

        Args:
            latents: [B, C, h, w]; one a picture where the plan knows the pictures of the rows.
            t: [B], timesteps; likewise.
            prompt_embeds: [B, S, E], or what `project_text` made of them.
            reference_kv: L pairs (keys, values) [N, H_l, M_l, D_l] from `project_reference`; with
                `entry` a whole table, [T, N, H_l, M_l, D_l].
            ref_of_row: int64 [B, R], which references each row reads, -1 for none; or the plan
                that `plan_rows` made of it. The tensor is read on the host: on a GPU, in a loop
                and for export pass the plan, whose groups are constants of the graph.
            merge: How several references of one row are combined.
            entry: int32 [1] on the device: the entry of the table that this step reads.

        Returns:
            [B, C, h, w].

        Raises:
            ParameterError: Shapes do not fit together, or an index is outside the table.
        """
        shared = ref_of_row.shared if isinstance(ref_of_row, RowPlan) else None
        states = prompt_embeds if isinstance(prompt_embeds, Tensor) else prompt_embeds[0][0]
        self._check(latents, t, states, is_shared=shared is not None)
        table, plan = self._plan(states.shape[0], reference_kv, ref_of_row, merge)

        def attend(layer: int, attn: Any, tokens: Tensor, rows: RowPlan) -> Tensor:
            if table is None or not rows.uses_references:
                return attention(attn, tokens, tokens)
            return reference_self_attention(
                attn, tokens, table[layer], rows, merge=merge, entry=entry
            )

        def self_attention(layer: int, attn: Any, tokens: Tensor) -> Tensor:
            if layer == 0 and shared is not None:
                pairs = attend(layer, attn, tokens[shared.picture_of_pair], shared.plan)
                return pairs[shared.pair_of_row]
            return attend(layer, attn, tokens, plan)

        if shared is None:
            latents, t = plan.sort(latents), plan.sort(t)
        output = self.walk(
            latents,
            t,
            _sorted_text(plan, prompt_embeds),
            self_attention,
            picture_of_row=None if shared is None else shared.picture_of_row,
        )
        return plan.restore(output)

    def walk(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor | TextKVLayers,
        self_attention: SelfAttention,
        *,
        picture_of_row: Tensor | None = None,
        t_of_row: Tensor | None = None,
    ) -> Tensor:
        """All modules in order, with the self-attentions given: what `forward` and graphs share.

        Args:
            latents: [B, C, h, w].
            t: [B], timesteps.
            text: States of the rows' prompts, [B, S, E], or what `project_text` made of them.
            self_attention: Called for each self-attention, 0 to L - 1.
            picture_of_row: int64 [B], the entry of `latents` and `t` that each row starts from.
                All up to the first self-attention is then computed once for each entry, and that
                attention is called with the tokens of the entries and returns those of the rows.
            t_of_row: [B], the timesteps of the rows, to be embedded for them once more. By default
                the embedding of the entries is picked; TensorRT spreads that over two streams, with
                a wait in every block and more memory.

        Returns:
            [B, C, h, w].
        """
        temb = self._time_embedding(t, latents)
        x = self.unet.conv_in(latents)
        skips = [x]
        layer = 0
        for op in self._ops:
            if op.kind is not _Kind.TRANSFORMER:
                x = _convolve(op, x, skips, temb)
                continue
            tokens = _tokens_in(op.module, x)
            for block in op.module.transformer_blocks:
                _, normed = add_layer_norm(block.norm1, tokens, None)
                change = self_attention(layer, block.attn1, normed)
                if layer == 0 and picture_of_row is not None:  # text tells the rows apart
                    tokens, x, temb, *skips = (
                        pick_rows(part, picture_of_row) for part in (tokens, x, temb, *skips)
                    )
                    if t_of_row is not None:
                        temb = self._time_embedding(t_of_row, latents)
                context = text if isinstance(text, Tensor) else text[layer]
                tokens = _text_and_feed_forward(block, tokens, change, context)
                layer += 1
            x = _tokens_out(op.module, tokens, x)
            if op.push:
                skips.append(x)
        output: Tensor = self.unet.conv_out(group_norm(self.unet.conv_norm_out, x, silu=True))
        return output

    def _plan(
        self,
        rows: int,
        reference_kv: ReferenceKVLayers | None,
        ref_of_row: Tensor | RowPlan | None,
        merge: MergeRule,
    ) -> tuple[ReferenceKVLayers | None, RowPlan]:
        """The table to read, None when no row reads it, and the plan of the rows."""
        if isinstance(merge, str) and merge not in ("argmax", "softmax", "mean", "concat"):
            raise ParameterError(f"merge is {merge!r}, expected argmax, softmax, mean or concat")
        reads_nothing = isinstance(ref_of_row, RowPlan) and not ref_of_row.uses_references
        if not reads_nothing and (reference_kv is None) != (ref_of_row is None):
            raise ParameterError("give reference_kv and ref_of_row together, or neither")
        if reference_kv is None or ref_of_row is None:
            return None, plain_rows(rows)
        if len(reference_kv) != self.num_layers:
            raise ParameterError(
                f"the reference table has {len(reference_kv)} layers, expected {self.num_layers}: "
                "it was made by another pair"
            )
        plan = ref_of_row
        if isinstance(plan, Tensor):
            plan = plan_rows(plan, reference_kv[0][0].shape[-4])
        if plan.num_rows != rows:
            raise ParameterError(
                f"ref_of_row has {plan.num_rows} rows, expected {rows}: one per row of latents"
            )
        if not plan.uses_references:
            return None, plain_rows(rows)
        return reference_kv, plan


def _sorted_text(plan: RowPlan, text: Tensor | TextKVLayers) -> Tensor | TextKVLayers:
    if isinstance(text, Tensor):
        return plan.sort(text)
    return tuple((plan.sort(keys), plan.sort(values)) for keys, values in text)


def _convolve(op: _Op, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
    """A residual block, a downsampling or an upsampling, with its skip connections."""
    if op.pop:
        x = torch.cat([x, skips.pop()], dim=1)
    if op.kind is _Kind.RESNET:
        x = residual_block(op.module, x, temb)
    elif op.kind is _Kind.DOWNSAMPLE:
        x = op.module(x)
    elif type(op.module) is Upsample2D:  # its own `forward` asks how many rows there are
        x = op.module.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    else:  # one that was rewritten
        x = op.module(x)
    if op.push:
        skips.append(x)
    return x


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
