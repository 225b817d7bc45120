"""Names of kohya's files for Stable Diffusion XL: each names one module of its U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from bootpig_rt.bundle.lora import Lora
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.lora_names import as_diffusers


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """Names of the modules of a U-Net with XL's blocks, with underscores for dots."""
    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = build(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            use_linear_projection=True,
        )
    return {name.replace(".", "_") for name, _ in unet.named_modules()}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        ("input_blocks_4_0_skip_connection", "down_blocks_1_resnets_0_conv_shortcut"),
        (
            "input_blocks_4_1_transformer_blocks_1_attn1_to_q",
            "down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
        ("middle_block_0_emb_layers_1", "mid_block_resnets_0_time_emb_proj"),
        (
            "middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "mid_block_attentions_0_transformer_blocks_9_ff_net_0_proj",
        ),
        ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
        (
            "output_blocks_2_1_transformer_blocks_0_attn2_to_out_0",
            "up_blocks_0_attentions_2_transformer_blocks_0_attn2_to_out_0",
        ),
        ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
        ("output_blocks_5_2_conv", "up_blocks_1_upsamplers_0_conv"),
        ("output_blocks_8_0_in_layers_2", "up_blocks_2_resnets_2_conv1"),
        ("time_embed_2", "time_embedding_linear_2"),
        ("label_emb_0_0", "add_embedding_linear_1"),
        ("out_2", "conv_out"),
    ],
)
def test_a_name_is_that_of_the_same_module(theirs: str, ours: str, modules: set[str]) -> None:
    assert as_diffusers(theirs) == ours
    assert ours in modules
    assert as_diffusers(ours) == ours


def test_layers_for_a_second_text_encoder_that_is_not_there_end_the_load(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    name = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    file = tmp_path / "xl.safetensors"
    down = {f"{name}.lora_{role}.weight": torch.ones(2, 2) for role in ("down", "up")}
    save_file(down, file)
    with pytest.raises(CheckpointError, match="belong to no module of this pair's text encoder 2"):
        load_pair(tiny_pair_folder, loras=[Lora(file)])
