"""Which diffusers U-Net configurations the pair supports: Stable Diffusion 1.x, 2.x and XL.

An option that would change the arithmetic and that `bootpig_rt.models.unet` does not do is refused
by name. Unknown keys are left to diffusers, which ignores them (the published trainer adds one).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bootpig_rt.errors import CheckpointError

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")

_USE = "use a Stable Diffusion 1.x, 2.x or XL U-Net"

# option -> the values that the walk computes
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "center_input_sample": (False,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "act_fn": ("silu", "swish"),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "class_embeddings_concat": (False,),
    "addition_embed_type": (None, "text_time"),
    "reverse_transformer_layers_per_block": (None,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "time_cond_proj_dim": (None,),
}


def check_unet_config(
    config: Mapping[str, Any], path: str | os.PathLike[str] | None = None
) -> None:
    """Refuse a U-Net configuration that the pair cannot compute.

    Args:
        config: A `UNet2DConditionModel` configuration; absent keys mean diffusers' defaults.
        path: The file that it came from, for the message.

    Raises:
        CheckpointError: Names the option, its value and the supported values.
    """
    where = f"{os.fspath(path)}: " if path is not None else ""
    for key, supported in _SUPPORTED.items():
        value = config.get(key, supported[0])
        if value not in supported:
            choices = " or ".join(repr(item) for item in supported)
            raise CheckpointError(
                f"{where}U-Net option {key} is {value!r}, supported: {choices}; {_USE}",
                path,
            )
    for key, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for block in config.get(key) or ():
            if block not in allowed:
                raise CheckpointError(
                    f"{where}U-Net {key} holds {block!r}, supported: {' and '.join(allowed)}; "
                    f"{_USE}",
                    path,
                )
    if config.get("norm_num_groups", 32) is None:
        raise CheckpointError(
            f"{where}U-Net option norm_num_groups is null, expected a number; {_USE}", path
        )
    depths = config.get("transformer_layers_per_block", 1)
    for depth in depths if isinstance(depths, (list, tuple)) else (depths,):
        if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= 64:
            raise CheckpointError(
                f"{where}U-Net option transformer_layers_per_block holds {depth!r}, expected whole "
                f"numbers 0..64, one for each block; {_USE}",
                path,
            )
    if config.get("addition_embed_type") == "text_time":
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            value = config.get(key)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65536:
                raise CheckpointError(
                    f"{where}U-Net option {key} is {value!r}, expected a whole number 1..65536, as "
                    f"addition_embed_type text_time asks for; {_USE}",
                    path,
                )
