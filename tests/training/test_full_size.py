"""What training needs at the size of Stable Diffusion 2.1, counted on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from msgspec import structs
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet, WalkedUNet
from bootpig_rt.training.config import TrainConfig, load_config
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.estimate import Plan, make_plan
from bootpig_rt.training.road.folders import sd21_configs
from bootpig_rt.training.road.steps import CONFIGS
from bootpig_rt.training.stage import Validation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
GIB = 2**30
SIDE = 64


class FullStage:
    """Both U-Nets at their published widths, 512 px, one reference; see `stage.Stage`."""

    order: Any = None

    def __init__(self) -> None:
        unet, vae, text, _ = sd21_configs()
        wide = {
            "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "sample_size": SIDE,
        }
        self.base, self.reference = (UNet2DConditionModel(**unet | wide) for _ in range(2))
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(".attn1." in name)
        wide = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
        self.vae = AutoencoderKL(**vae | wide | {"norm_num_groups": 32})
        wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        self.text = CLIPTextModel(CLIPTextConfig(**text | wide))
        self._walks = (BaseUNet(self.base), ReferenceUNet(self.reference))
        with torch.utils._python_dispatch._disable_current_modes():
            self._plan = plan_rows(torch.zeros(1, 1, dtype=torch.long), 1)

    def modules(self) -> dict[str, nn.Module]:
        return {"base_unet": self.base, "ref_unet": self.reference}

    def walks(self) -> list[WalkedUNet]:
        return list(self._walks)

    def frozen(self) -> list[nn.Module]:
        return [self.vae, self.text]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []

    def expect(self, upcoming: Iterator[Any]) -> None:
        pass

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        base, reference = self._walks
        latents, states = torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 77, 1024)
        t = torch.zeros(1, dtype=torch.long)
        table = base.project_reference(reference(latents, t, states), ref_scale=1.1)
        predicted = base(latents, t, states, table, self._plan).float()
        return (predicted - latents).pow(2).mean(), {}

    def validate(self) -> Validation:
        return Validation()

    def result(self) -> None:
        pass


@lru_cache
def planned(processes: int, *, checkpointing: Any = "blocks", batch_size: int = 8) -> Plan:
    """The paper's ten thousand updates of 64."""
    config: TrainConfig = load_config(CONFIGS / "paper.toml", [])
    config = structs.replace(
        config, batch_size=batch_size, samples_per_step=64, checkpointing=checkpointing
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage: Any = FullStage()
        return make_plan(stage, config, samples=200_000, caches_of_sample=4e4, processes=processes)


def test_the_widths_are_those_of_the_published_folder() -> None:
    plan = planned(8)
    assert plan.modules["base_unet"].parameters == 865_910_724
    assert plan.modules["ref_unet"].trained == 865_910_724
    assert plan.modules["base_unet"].trained == 49_574_080


def test_eight_samples_of_512_px_fit_into_a_gpu_of_80_gb() -> None:
    memory = planned(8).memory
    kept = memory.weights + memory.gradients + memory.optimizer + memory.average
    assert 20 * GIB < kept < 24 * GIB
    assert memory.activations < 0.3 * planned(8, checkpointing="none").memory.activations
    assert memory.on_device < 60e9  # the rest is for kernels' workspace and what is fragmented


def test_the_papers_training_is_as_many_operations_as_the_docs_say() -> None:
    plan = planned(16, batch_size=4)
    assert plan.samples_seen == 640_000
    assert 6e12 < plan.flops_of_sample < 8e12
    # At 40 % of the peak; the paper took 70 minutes on sixteen A100.
    assert 0.4 < plan.hours_on["a100"] < 0.8
