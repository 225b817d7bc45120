"""Small random U-Nets for the tests of the pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

MakeUNet = Callable[..., Any]


@pytest.fixture(scope="session")
def make_unet() -> MakeUNet:
    """`make_unet(seed=0, **config)`: a random U-Net of two levels; any option may be replaced."""

    def make(seed: int = 0, **changes: Any) -> Any:
        config: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 12,
            "norm_num_groups": 4,
            "use_linear_projection": True,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            build: Any = UNet2DConditionModel
            return build(**{**config, **changes}).eval()

    return make
