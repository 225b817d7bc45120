"""Reference U-Net and Base U-Net: one explicit walk through the submodules of diffusers' U-Net.

Tensors in, tensors out. The diffusers model supplies weights and leaf modules; the order of the
blocks, the skip connections and every attention are here, so that nothing is patched and nothing
is passed through hidden lists. Works under autograd, autocast and `torch.export`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from bootpig_rt.errors import ParameterError
from bootpig_rt.models.attention import KV, MergeRule, attention, reference_self_attention
from bootpig_rt.models.blocks import group_norm, pick_rows
from bootpig_rt.models.operations import (
    Kind,
    Operation,
    Spread,
    TextKVLayers,
    keys_and_values,
    read,
    text_keys_and_values,
    transform,
)
from bootpig_rt.models.rows import RowPlan, plain_rows, plan_rows
from bootpig_rt.models.text_encoders import unpack
from bootpig_rt.models.walked_unet import WalkedUNet

__all__ = ["BaseUNet", "ReferenceKVLayers", "ReferenceUNet", "TextKVLayers", "WalkedUNet"]

ReferenceKVLayers = tuple[KV, ...]
"""Reference keys and values of every self-attention, in the order down, mid, up."""


SelfAttention = Callable[[int, Any, Tensor], Tensor]
"""(layer index, attention module, tokens [B, N, C] after the norm) -> attended tokens [B, N, C]."""


class ReferenceUNet(WalkedUNet):
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
        last = max(i for i, op in enumerate(self._ops) if op.kind is Kind.TRANSFORMER)
        self._ops = self._ops[: last + 1]

    def forward(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """Features ahead of each self-attention, after its norm.

        Args:
            latents: [N, C, h, w], noised to `t` (or clean ones, for a pair trained on t = 0). One
                made for inpainting reads zeros in the place of mask and given picture.
            t: [N], timesteps.
            prompt_embeds: [N, S, E], text states of the reference prompt; with the rows of what
                is added, where the U-Net adds something to its timesteps.

        Returns:
            L tensors [N, M_l, C_l], in the order down, mid, up.
        """
        if self.reads_canvas:
            blank = latents.new_zeros(
                latents.shape[0], self.latent_channels + 1, *latents.shape[2:]
            )
            latents = torch.cat([latents, blank], dim=1)
        self._check(latents, t, prompt_embeds)
        features: list[Tensor] = []
        temb = self._time_embedding(t, latents)
        prompt_embeds, added = self.split_text(prompt_embeds)
        if added is not None:
            temb = temb + added
        x = self.unet.conv_in(latents)
        skips = [x]
        for op in self._ops:
            if op.kind is not Kind.TRANSFORMER:
                x = self._convolve(op, x, skips, temb)
                continue
            x, found = self._run(op.module, read, x, prompt_embeds, self._blocks[-1])
            features.extend(found)
            if op.push:
                skips.append(x)
        return tuple(features)


class BaseUNet(WalkedUNet):
    """Draws the picture: a U-Net whose self-attentions may also read reference tokens.

    Args:
        unet: A diffusers U-Net of the supported kind.

    Raises:
        CheckpointError: The configuration has something that this walk does not do.

    Attributes:
        deep_layers: Self-attentions of the deep blocks: all that runs between `conv_in` and the
            last residual block. What they give changes little from one step to the next (Ma et al.
            2023, "DeepCache", arXiv 2312.00858, section 3), so that a step may use it again.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Plan the walk, and say which blocks are deep."""
        super().__init__(unet)
        kinds = [op.kind for op in self._ops]
        last = len(kinds) - 1 - kinds[::-1].index(Kind.RESNET)
        self._deep, self._rest = self._ops[:last], self._ops[last:]
        self.deep_layers = range(_num_attentions(self._deep))

    def deep_channels(self) -> int:
        """C' of the features of the deep blocks, which have the size of the latents."""
        resnet = self._rest[0].module
        return int(resnet.in_channels) - int(self.unet.conv_in.out_channels)

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
        rest = iter(features)
        for transformer in self._transformers:
            mine = islice(rest, len(transformer.transformer_blocks))
            layers += self._run(transformer, keys_and_values, ref_scale, *mine)
        return tuple(layers)

    def project_text(self, prompt_embeds: Tensor) -> TextKVLayers:
        """Text states -> keys and values of every cross-attention.

        They stay the same from step to step, and so does what `split_text` says is added.
        """
        if self.added_width:
            prompt_embeds = unpack(prompt_embeds, self.added_width)[0]
        layers: list[KV] = []
        for transformer in self._transformers:
            layers += self._run(transformer, text_keys_and_values, prompt_embeds)
        return tuple(layers)

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
        """The model output (noise, v or x0, as the pair was trained), [B, C, h, w].

        Arguments and errors are those of `draw`.
        """
        output, _ = self.draw(
            latents, t, prompt_embeds, reference_kv, ref_of_row, merge=merge, entry=entry
        )
        return output

    def draw(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor | TextKVLayers,
        reference_kv: ReferenceKVLayers | None = None,
        ref_of_row: Tensor | RowPlan | None = None,
        *,
        merge: MergeRule = "argmax",
        entry: Tensor | None = None,
        features: Tensor | None = None,
        residuals: Sequence[Tensor] = (),
        added: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The model output, and the features of the deep blocks, which a later step may reuse.

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
            features: What an earlier call with this plan returned; the deep blocks are then left
                out.
            residuals: Of controls, for each skip connection and the middle block, in the order of
                the caller's rows; empty for none.
            added: [B, T], what `split_text` says of the rows' texts, where those are given as
                keys and values and the U-Net adds something to its timesteps.

        Returns:
            [B, C, h, w] in the order of the caller's rows, and [B, C', h, w] in that of the plan.

        Raises:
            ParameterError: Shapes do not fit together, or an index is outside the table.
        """
        shared = ref_of_row.shared if isinstance(ref_of_row, RowPlan) else None
        states = prompt_embeds if isinstance(prompt_embeds, Tensor) else prompt_embeds[0][0]
        self._check(latents, t, states, is_shared=shared is not None)
        if isinstance(prompt_embeds, Tensor):
            prompt_embeds, added = self.split_text(prompt_embeds)
        elif self.added_width and added is None:
            raise ParameterError("keys and values of texts alone, expected what they add as well")
        table, plan = self._plan(states.shape[0], reference_kv, ref_of_row, merge)

        def attend(layer: int, attn: Any, tokens: Tensor, rows: RowPlan) -> Tensor:
            if table is None or not rows.uses_references:
                return attention(attn, tokens, tokens)
            return reference_self_attention(
                attn, tokens, table[layer], rows, merge=merge, entry=entry
            )

        def self_attention(layer: int, attn: Any, tokens: Tensor) -> Tensor:
            if layer == 0 and shared is not None and added is None:
                pairs = attend(layer, attn, tokens[shared.picture_of_pair], shared.plan)
                return pairs[shared.pair_of_row]
            return attend(layer, attn, tokens, plan)

        if shared is None:
            latents, t = plan.sort(latents), plan.sort(t)
        output, found = self.walk(
            latents,
            t,
            _sorted_text(plan, prompt_embeds),
            self_attention,
            picture_of_row=None if shared is None else shared.picture_of_row,
            features=features,
            residuals=[plan.sort(one) for one in residuals],
            added=None if added is None else plan.sort(added),
        )
        return plan.restore(output), found

    def walk(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor | TextKVLayers,
        self_attention: SelfAttention,
        *,
        picture_of_row: Tensor | None = None,
        t_of_row: Tensor | None = None,
        features: Tensor | None = None,
        residuals: Sequence[Tensor] = (),
        added: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All modules in order, with the self-attentions given: what `forward` and graphs share.

        Args:
            latents: [B, C, h, w].
            t: [B], timesteps.
            text: States of the rows' tokens, [B, S, E], or what `project_text` made of them.
            self_attention: Called for each self-attention, 0 to L - 1.
            picture_of_row: int64 [B], the entry of `latents` and `t` that each row starts from.
                All up to the first self-attention is then computed once for each entry, and that
                attention is called with the tokens of the entries and returns those of the rows.
                With `added` rows differ from the first block on, and only `conv_in` is shared.
            t_of_row: [B], the timesteps of the rows, to be embedded for them once more. By default
                the embedding of the entries is picked; TensorRT spreads that over two streams, with
                a wait in every block and more memory.
            features: What an earlier walk of these rows returned as features of the deep blocks,
                which are then left out; their self-attentions are not called.
            residuals: Of controls, see `bootpig_rt.models.control`: those of each skip connection,
                which are added to it, then that of the middle block, each [B, C_i, h_i, w_i];
                empty for none. Not for a walk without the deep blocks.
            added: [B, T], added to the time embedding of the rows.

        Returns:
            [B, C, h, w], and the features of the deep blocks, [B, C', h, w].
        """
        temb = self._time_embedding(t, latents)
        x = self.unet.conv_in(latents)
        if added is not None:
            if picture_of_row is not None:
                x, temb = pick_rows(x, picture_of_row), pick_rows(temb, picture_of_row)
                if t_of_row is not None:
                    temb = self._time_embedding(t_of_row, latents)
                picture_of_row = None
            temb = temb + added
        skips = [x]
        layer = 0

        def to_rows(tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal temb, skips
            assert picture_of_row is not None  # asked below
            tokens, x, temb, *skips = (
                pick_rows(part, picture_of_row) for part in (tokens, x, temb, *skips)
            )
            if t_of_row is not None:
                temb = self._time_embedding(t_of_row, latents)
            return tokens, x

        spread: Spread | None = None if picture_of_row is None else to_rows

        def run(ops: tuple[Operation, ...], x: Tensor) -> Tensor:
            nonlocal layer, spread, residuals
            for op in ops:
                if op.pop and residuals:  # the way up begins
                    *of_skips, of_middle = residuals
                    x, residuals = x + of_middle, ()
                    skips[:] = [skip + more for skip, more in zip(skips, of_skips, strict=True)]
                if op.kind is not Kind.TRANSFORMER:
                    x = self._convolve(op, x, skips, temb)
                    continue
                attend = partial(_attend, self_attention, layer)
                context = text if isinstance(text, Tensor) else text[layer:]
                x = self._run(op.module, transform, x, context, attend, spread)
                spread = None
                layer += len(op.module.transformer_blocks)
                if op.push:
                    skips.append(x)
            return x

        if features is None:
            features = run(self._deep, x)
        else:
            layer = self.deep_layers.stop
            if spread is not None:  # nothing is left that is alike for the rows of a picture
                spread(x, x)
                spread = None
        x = run(self._rest, features)
        output: Tensor = self.unet.conv_out(group_norm(self.unet.conv_norm_out, x, silu=True))
        return output, features

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


def _num_attentions(ops: Sequence[Operation]) -> int:
    """Self-attentions of some operations."""
    return sum(len(op.module.transformer_blocks) for op in ops if op.kind is Kind.TRANSFORMER)


def _sorted_text(plan: RowPlan, text: Tensor | TextKVLayers) -> Tensor | TextKVLayers:
    if isinstance(text, Tensor):
        return plan.sort(text)
    return tuple((plan.sort(keys), plan.sort(values)) for keys, values in text)


def _attend(
    self_attention: SelfAttention, first: int, block: int, attn: Any, tokens: Tensor
) -> Tensor:
    return self_attention(first + block, attn, tokens)
