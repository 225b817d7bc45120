"""Names of U-Net modules that kohya writes for Stable Diffusion XL, as diffusers has them.

There they are those of Stability's own code: numbered input and output blocks of two residual
blocks a level (one more on the way up), each with what stands beside it.
"""

from __future__ import annotations

import re

_BLOCK = re.compile(r"(?P<way>input|output)_blocks_(?P<block>\d+)_(?P<part>\d+)_(?P<rest>.+)")
_MIDDLE = re.compile(r"middle_block_(?P<part>[012])_(?P<rest>.+)")
_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_WHOLE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


def as_diffusers(name: str) -> str:
    """The name of a module with underscores for dots; one that is none of these stays."""
    if name in _WHOLE:
        return _WHOLE[name]
    found = _MIDDLE.fullmatch(name)
    if found:
        part, rest = int(found["part"]), found["rest"]
        if part == 1:
            return f"mid_block_attentions_0_{rest}"
        return f"mid_block_resnets_{part // 2}_{_RESNET.get(rest, rest)}"
    found = _BLOCK.fullmatch(name)
    if not found:
        return name
    number, part, rest = int(found["block"]), int(found["part"]), found["rest"]
    is_down = found["way"] == "input"
    level, index = divmod(number - 1 if is_down else number, 3)
    side = f"{'down' if is_down else 'up'}_blocks_{level}"
    if rest in ("op", "conv"):
        return f"{side}_{'down' if is_down else 'up'}samplers_0_conv"
    if part == 0:
        return f"{side}_resnets_{index}_{_RESNET.get(rest, rest)}"
    return f"{side}_attentions_{index}_{rest}"
