"""A small network that tells the depth of pictures of the small world, trained where it is asked.

It learns from renderer's pictures of training drawings and their depth; what it is worth is said by
its error on the renderer's pictures of held-out ones. It has seen no picture of the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bootpig_rt.benchmarks.settings import Progress
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.card_depth import card_depth
from bootpig_rt.training.compose import Sample, WorldConfig, draw_sample

Pixels = NDArray[np.uint8]

_BATCH = 16
_SEED = 71
_CHANNELS = (16, 32, 64, 64)


class _Net(nn.Module):
    """Down and up again, with skip connections: [B, 3, S, S] in [0, 1] -> [B, S, S] in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        sides = list(zip((3, *_CHANNELS), _CHANNELS, strict=False))
        self.down = nn.ModuleList(_block(a, b) for a, b in sides)
        ups = list(zip(_CHANNELS[:0:-1], _CHANNELS[-2::-1], strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in ups)
        self.last = nn.Conv2d(_CHANNELS[0], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x, skips = pictures, []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], dim=1))
        depth: Tensor = torch.sigmoid(self.last(x))[:, 0]
        return depth


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(4, out), nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(4, out), nn.SiLU(),
    )  # fmt: skip


class DepthJudge:
    """Tells the depth of pictures of the small world.

    Args:
        sprites: uint8 [N, P, P, 4], training drawings.
        nouns: What they show.
        size_px: Side of the pictures.
        steps: Of its training.
        cache: File that it is kept in.
        progress: Told of its training.
    """

    def __init__(
        self,
        sprites: Pixels,
        nouns: Sequence[str],
        *,
        size_px: int,
        steps: int,
        cache: Path,
        progress: Progress,
    ) -> None:
        """Train it, or read what an earlier run trained."""
        self._sprites, self._nouns, self._size = sprites, nouns, size_px
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self._net = _Net()
        if cache.is_file():
            with np.load(cache) as kept:
                self._net.load_state_dict({k: torch.from_numpy(v) for k, v in kept.items()})
        else:
            self._train(steps, progress)
            self._keep(cache)
        self._net.eval()

    def depth(self, pictures: Pixels) -> NDArray[np.float32]:
        """uint8 [N, S, S, 3] -> float32 [N, S, S] in [0, 1], 1 is near."""
        with torch.inference_mode():
            parts = [
                self._net(_tensor(pictures[start : start + 64]))
                for start in range(0, len(pictures), 64)
            ]
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    def _train(self, steps: int, progress: Progress) -> None:
        optimizer = torch.optim.AdamW(self._net.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        world = WorldConfig(size_px=self._size)
        for step in range(steps):
            samples = [self._sample((_SEED, step, n), world) for n in range(_BATCH)]
            wanted = np.stack([card_depth(one.mask) for one in samples])
            pictures = _tensor(np.stack([one.target for one in samples]))
            loss = (self._net(pictures) - torch.from_numpy(wanted).float() / 255.0).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress("training the estimator of depth", step + 1, steps)

    def _sample(self, seed: tuple[int, ...], world: WorldConfig) -> Sample:
        """The first draw that is not rejected."""
        rng = np.random.default_rng(seed)
        while True:
            row = int(rng.integers(len(self._nouns)))
            found = draw_sample(rng, self._sprites[row], self._nouns[row], world)
            if isinstance(found, Sample):
                return found

    def _keep(self, cache: Path) -> None:
        import io

        stream: Any = io.BytesIO()
        np.savez(stream, **{k: v.numpy() for k, v in self._net.state_dict().items()})
        cache.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(cache, stream.getvalue())


def _tensor(pictures: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255.0
