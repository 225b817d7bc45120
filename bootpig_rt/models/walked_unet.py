"""What both U-Nets have: the operations of a diffusers U-Net, in the order of their walk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bootpig_rt.errors import ParameterError
from bootpig_rt.models.operations import (
    CONVOLUTIONS,
    Kind,
    Operation,
    list_operations,
)
from bootpig_rt.models.text_encoders import unpack
from bootpig_rt.models.unet_config import check_unet_config

Around = Callable[..., Any]
"""(module of the walk, function, its other arguments) -> function(module, *arguments)."""


class WalkedUNet(nn.Module):
    """What the two U-Nets share: the list of modules and the time embedding.

    Attributes:
        around: What calls each operation of the walk: training computes it anew in the backward
            pass, or gathers its weights. None calls it at once. `conv_in`, `conv_norm_out`,
            `conv_out` and the time embedding are no operations.
    """

    around: Around | None

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.around = None
        self.unet: Any = unet
        check_unet_config(self.unet.config)
        self._ops = tuple(list_operations(unet))
        self._blocks: tuple[Any, ...] = tuple(
            block
            for op in self._ops
            if op.kind is Kind.TRANSFORMER
            for block in op.module.transformer_blocks
        )
        self._transformers = tuple(op.module for op in self._ops if op.kind is Kind.TRANSFORMER)
        # Height and width of latents must be multiples of this.
        self.size_multiple = 2 ** sum(op.kind is Kind.DOWNSAMPLE for op in self._ops)

    @property
    def latent_channels(self) -> int:
        """C, of what it gives out."""
        return int(self.unet.config.out_channels)

    @property
    def reads_canvas(self) -> bool:
        """Made for inpainting: beside C channels it reads a mask, and C of a given picture."""
        return int(self.unet.config.in_channels) == 2 * self.latent_channels + 1

    @property
    def added_width(self) -> int:
        """Numbers of a text's pooled state and of sizes that timesteps are read with; 0 for none.

        They lie in the last rows of the text states, see `bootpig_rt.bundle.text_parts`.
        """
        config = self.unet.config
        is_added = config.addition_embed_type == "text_time"
        return int(config.projection_class_embeddings_input_dim) if is_added else 0

    def split_text(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """What cross-attentions read of text states, and what is added to the time embedding.

        Args:
            states: [N, S, E], or [N, S + A, E] where something is added.

        Returns:
            [N, S, E], and [N, T] of the width of the time embedding; None where nothing is added.
        """
        if not self.added_width:
            return states, None
        tokens, added = unpack(states, self.added_width)
        embedded: Tensor = self.unet.add_embedding(added)
        return tokens, embedded

    @property
    def num_layers(self) -> int:
        """L, number of self-attentions."""
        return len(self._blocks)

    def operations(self) -> tuple[nn.Module, ...]:
        """The modules that `around` is called with, in the order that they run."""
        return tuple(op.module for op in self._ops)

    def _run(self, module: Any, function: Callable[..., Any], *args: Any) -> Any:
        """One operation; weights of the module are read in it and nowhere else."""
        if self.around is None:
            return function(module, *args)
        return self.around(module, function, *args)

    def _convolve(self, op: Operation, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """A residual block, a downsampling or an upsampling, with its skip connections."""
        skip = skips.pop() if op.pop else None
        x = self._run(op.module, CONVOLUTIONS[op.kind], x, skip, temb)
        if op.push:
            skips.append(x)
        return x

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
            level += (op.kind is Kind.DOWNSAMPLE) - (op.kind is Kind.UPSAMPLE)
            if op.kind is Kind.TRANSFORMER:
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
