"""Makes the LoRA of the documentation: docs/assets/cyanotype.safetensors.

    bootpig-rt synthesize -o data/style --samples 1500 --seed 300 --shard-size 500
    python tests/tools/style_lora.py data=data/style

Learns a style for the pair inside the package: of each sample the target is printed as a cyanotype,
blue on white, and the references stay as they are. The loss is that of stage `pair`; changes of
rank 4 of the Base U-Net's transformer blocks are trained, all else is frozen. Has to be run again
whenever another pair ships. Run it again to go on after an interruption; key=value changes a
setting of training.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bootpig_rt.models.load import Pair
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.shards import StoredSample
from bootpig_rt.training.stages.diffusion import DiffusionStage
from tests.tools.small_runs import PAIR, ROOT, run_stage

STYLE = ROOT / "docs" / "assets" / "cyanotype.safetensors"
RANK = 4
SETTINGS: dict[str, object] = {
    "start_from": PAIR,
    "output": "runs/style-lora/run",
    "steps": 700,
    "batch_size": 8,
    "seed": 8,
    "validation_data": '""',
    "validate_every": 0,
    "checkpoint_every": 100,
    "diffusion.foreground_weight": 0.0,  # the style is everywhere
    "diffusion.max_references": 1,
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.ema_decay": 0.99,
    "mixed_precision": "no",
}

_DARK, _MIDDLE, _LIGHT = (8, 24, 72), (54, 116, 176), (244, 248, 246)
_CHANGED = ("to_v", "to_out.0", "ff.net.2", "proj_out")
"""Of a transformer block: what is taken from tokens, not where attention looks."""


def cyanotype(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels as a blueprint has them: how light they are decides the colour.

    Args:
        pixels: [..., 3], red, green and blue, 0 to 255.

    Returns:
        float64 [..., 3], 0 to 255, from dark blue to white.
    """
    light = np.asarray(pixels, np.float64) @ (0.299, 0.587, 0.114)
    channels = zip(_DARK, _MIDDLE, _LIGHT, strict=True)
    return np.stack([np.interp(light, (0, 128, 255), levels) for levels in channels], axis=-1)


class LowRank(nn.Module):
    """Adds `up @ down` to the weight of a linear layer; nothing in the beginning.

    Attributes:
        down: float32 [r, in].
        up: float32 [out, r].
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight [out, in] with the change."""
        return weight + self.up @ self.down


class StyleStage(DiffusionStage):
    """A LoRA of the Base U-Net of a frozen pair; see `stage.Stage`."""

    def __init__(self, config: TrainConfig, start: Pair, data: DiffusionData) -> None:
        torch.manual_seed(config.seed)
        unet: Any = start.base.unet
        self._changes: dict[str, LowRank] = {}
        for name, layer in list(unet.named_modules()):
            if ".attentions." in name and name.endswith(_CHANGED):
                self._changes[name] = LowRank(layer, RANK)
                parametrize.register_parametrization(layer, "weight", self._changes[name])
        super().__init__(config, start, data)

    def modules(self) -> dict[str, nn.Module]:
        """What is added."""
        return {"lora": nn.ModuleList(self._changes.values())}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group."""
        changes = self.modules()["lora"].parameters()
        return [{"params": list(changes), "lr": self.config.optimizer.learning_rate}]

    def result(self) -> Any:
        """The LoRA as diffusers names it, float16 by key; alpha is the rank."""
        found: dict[str, Tensor] = {}
        for name, change in self._changes.items():
            found[f"unet.{name}.lora_A.weight"] = change.down.detach().half()
            found[f"unet.{name}.lora_B.weight"] = change.up.detach().half()
        return found


def main() -> None:
    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        folder.mkdir()
        save_file(tensors, folder / STYLE.name, metadata={"format": "pt"})

    def printed(sample: StoredSample) -> NDArray[np.uint8]:
        return cyanotype(sample.target).round().astype(np.uint8)

    made = run_stage(StyleStage, printed, write, settings=SETTINGS, words=sys.argv[1:])
    if made is not None:
        temporary = STYLE.with_suffix(".tmp")
        shutil.copy(made / STYLE.name, temporary)
        os.replace(temporary, STYLE)
        print(f"{STYLE}: {STYLE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
