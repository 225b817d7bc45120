"""A control: a copy of the encoder of a Base U-Net, which reads a map and says what it shows.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543,
section 3: what its blocks give goes through convolutions that began as zeros, and is added to the
skip connections and the middle block of the U-Net. The map is embedded once for all steps. As with
the U-Nets the walk is explicit, and diffusers supplies weights and leaf modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.attention import attention
from bootpig_rt.models.operations import Kind, transform
from bootpig_rt.models.unet import BaseUNet
from bootpig_rt.models.walked_unet import WalkedUNet

_ALIKE: dict[str, object] = {
    "in_channels": 4,
    "block_out_channels": None,
    "down_block_types": None,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 1280,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
"""What a control's configuration shares with that of its U-Net, with diffusers' defaults."""

_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


class Control(WalkedUNet):
    """Reads a map beside the latents: residuals for the skip connections of the Base U-Net.

    Args:
        net: A `ControlNetModel` of diffusers, whose configuration was checked.
    """

    def __init__(self, net: Any) -> None:
        """Plan the walk."""
        super().__init__(net)
        self._is_bgr = net.config.controlnet_conditioning_channel_order == "bgr"

    @property
    def hint_channels(self) -> int:
        """C0 of an embedded map."""
        return int(self.unet.conv_in.out_channels)

    def residual_shapes(self) -> tuple[tuple[int, int], ...]:
        """Channels of each residual, and how often latents were halved before it."""
        shapes, level = [(self.hint_channels, 0)], 0
        for op in self._ops:
            level += op.kind is Kind.DOWNSAMPLE
            if op.push:
                index = len(shapes)
                shapes.append((int(self.unet.controlnet_down_blocks[index].out_channels), level))
        return (*shapes, (int(self.unet.controlnet_mid_block.out_channels), level))

    def embed(self, maps: Tensor) -> Tensor:
        """Maps [M, 3, H, W] in [0, 1] -> hints [M, C0, h, w], the same at all steps."""
        hints: Tensor = self.unet.controlnet_cond_embedding(maps.flip(1) if self._is_bgr else maps)
        return hints

    def forward(
        self, latents: Tensor, t: Tensor, prompt_embeds: Tensor, hints: Tensor
    ) -> tuple[Tensor, ...]:
        """What is added to the Base U-Net.

        Args:
            latents: [N, C, h, w], the noised ones of the pictures.
            t: [N], timesteps.
            prompt_embeds: [N, S, E], text states; of Stable Diffusion XL with what is added
                to timesteps, as `split_text` takes them.
            hints: [N, C0, h, w], of `embed`.

        Returns:
            One residual [N, C_i, h_i, w_i] for each skip connection, in the order that those are
            made in, then that of the middle block.

        Raises:
            ParameterError: Shapes do not fit together.
        """
        self._check(latents, t, prompt_embeds)
        if hints.shape[0] != latents.shape[0] or hints.shape[2:] != latents.shape[2:]:
            raise ParameterError(
                f"hints have shape {list(hints.shape)}, expected {latents.shape[0]} rows of "
                f"{latents.shape[2]} x {latents.shape[3]}: a map has the size of the picture"
            )
        text, added = self.split_text(prompt_embeds)
        temb = self._time_embedding(t, latents)
        temb = temb if added is None else temb + added
        x = self.unet.conv_in(latents) + hints
        skips = [x]
        for op in self._ops:
            if op.kind is not Kind.TRANSFORMER:
                x = self._convolve(op, x, skips, temb)
                continue
            x = self._run(op.module, transform, x, text, _attend, None)
            if op.push:
                skips.append(x)
        nets = (*self.unet.controlnet_down_blocks, self.unet.controlnet_mid_block)
        return tuple(net(part) for net, part in zip(nets, (*skips, x), strict=True))


def _attend(block: int, attn: Any, tokens: Tensor) -> Tensor:
    return attention(attn, tokens, tokens)


def check_control_config(config: Mapping[str, Any], pixels_per_latent: int) -> None:
    """Refuse options of a `ControlNetModel` that this walk does not compute.

    Args:
        config: Of the ControlNet.
        pixels_per_latent: Along a side, of the autoencoder: how much smaller an embedded map is.

    Raises:
        CheckpointError: Names the option.
    """
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    channels = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    factor = 2 ** (len(channels) - 1)
    if factor != pixels_per_latent:
        raise CheckpointError(
            f"the ControlNet makes a map {factor} times smaller, expected {pixels_per_latent} "
            "times, as the autoencoder of this pair does with pictures; take one that was trained "
            "for the base model of the pair"
        )
    for name, value, fits in (
        ("global_pool_conditions", config.get("global_pool_conditions"), (None, False)),
        ("controlnet_conditioning_channel_order", order, ("rgb", "bgr")),
        ("conditioning_channels", config.get("conditioning_channels", 3), (3,)),
    ):
        if value not in fits:
            raise CheckpointError(
                f"ControlNet option {name} is {value!r}, supported: "
                f"{' or '.join(map(repr, fits))}; take a ControlNet that reads maps of the size of "
                "the picture"
            )


def check_control_fits(config: Mapping[str, Any], base: BaseUNet, where: object) -> None:
    """Compare the configuration of a control with the Base U-Net that it is for.

    Raises:
        CheckpointError: It is of another family or size; names the option and both values.
    """
    own = base.unet.config
    for name, default in _ALIKE.items():
        got, wanted = _plain(config.get(name, default)), _plain(own.get(name, default))
        if name == "in_channels":
            wanted = base.latent_channels
        if name in ("transformer_layers_per_block", "layers_per_block", "cross_attention_dim"):
            got, wanted = _one(got), _one(wanted)
        if got != wanted:
            raise CheckpointError(
                f"{where}: the ControlNet has {name} {got!r}{_family(name, got)}, expected "
                f"{wanted!r}{_family(name, wanted)} as the Base U-Net of this pair; take one that "
                "was trained for the base model of the pair"
            )
    heads = [
        _one(_plain(each.get("num_attention_heads") or each.get("attention_head_dim", 8)))
        for each in (config, own)
    ]
    if heads[0] != heads[1]:
        raise CheckpointError(
            f"{where}: the ControlNet has attention_head_dim {heads[0]!r}, expected {heads[1]!r} "
            "as the Base U-Net of this pair; take one that was trained for its base model"
        )


def _family(name: str, value: object) -> str:
    known = _FAMILIES.get(value) if name == "cross_attention_dim" and isinstance(value, int) else ""
    return f" ({known})" if known else ""


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def _one(value: object) -> object:
    """One number for a list of equal ones: configurations have either."""
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        return value[0]
    return value
