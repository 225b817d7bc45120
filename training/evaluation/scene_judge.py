"""The judge of scenes: a small network that has seen nothing but the renderer's pictures.

It learns from drawings of the training split in all scenes, sharp and blurred, and is kept in a
file. The subject covers the middle, so that it has to look at what is around.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.captions import Position
from bootpig_rt.training.compose import place, target_view, turn_hue
from bootpig_rt.training.evaluation.render import blur
from bootpig_rt.training.evaluation.suite import stream
from bootpig_rt.training.pictures import to_tensor
from bootpig_rt.training.scenes import SCENES, draw_scene

SCENE_KEYS = tuple(sorted(SCENES))
TRAIN_PICTURES = 3200
EPOCHS = 6
BATCH = 64


class SceneNet(nn.Module):
    """Four strided convolutions and a linear layer; the mean and the coarse places of features."""

    def __init__(self, scenes: int = len(SCENE_KEYS)) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in pairwise(widths))
        self.out = nn.Linear(64 * 4, scenes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, S, S] in [-1, 1] -> logits, one for each scene."""
        x = pixels
        for conv in self.convs:
            x = F.relu(conv(x))
        # Four bands from top to bottom: sky and ground are told apart by height.
        return self.out(F.adaptive_avg_pool2d(x, (4, 1)).flatten(1))  # type: ignore[no-any-return]


def scene_pictures(
    sprites: NDArray[np.uint8], count: int, *, seed: int, name: str, size_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Renders of any drawings in all scenes in turn, a third of them blurred.

    Sprites are uint8 [M, P, P, 4]. Same seed and name, same pictures; the name keeps those for
    training and for testing apart.

    Returns:
        uint8 [count, S, S, 3] and indices into `SCENE_KEYS`, int64 [count].
    """
    rng = stream(seed, "scene judge", name)
    positions: tuple[Position, ...] = ("left", "centre", "right")
    pictures, labels = [], []
    for number in range(count):
        label = number % len(SCENE_KEYS)
        sprite = turn_hue(sprites[rng.integers(len(sprites))], float(rng.uniform(0, 360)))
        background = draw_scene(SCENE_KEYS[label], rng, size_px)
        view = target_view(rng, positions[int(rng.integers(3))])
        picture = place(sprite, view, background)[0]
        if rng.random() < 0.33:
            picture = blur(picture, float(rng.uniform(0.5, 2.0)))
        pictures.append(picture)
        labels.append(label)
    return np.stack(pictures), np.array(labels)


def train_scene_net(
    sprites: NDArray[np.uint8],
    *,
    seed: int,
    size_px: int,
    pictures: int = TRAIN_PICTURES,
    epochs: int = EPOCHS,
) -> SceneNet:
    """Train on fresh renders, in well under a minute on two cores."""
    drawn, labels = scene_pictures(sprites, pictures, seed=seed, name="train", size_px=size_px)
    return fit_scene_net(drawn, labels, seed=seed, scenes=len(SCENE_KEYS), epochs=epochs)


def fit_scene_net(
    drawn: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    seed: int,
    scenes: int,
    epochs: int = EPOCHS,
) -> SceneNet:
    """Train on pictures, uint8 [N, S, S, 3], with the index of the scene of each, int64 [N]."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SceneNet(scenes)
    steps = epochs * -(-len(drawn) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    answers = torch.from_numpy(labels)
    for _ in range(epochs):
        for part in torch.randperm(len(drawn), generator=generator).split(BATCH):
            pixels = to_tensor(drawn[part.numpy()])
            light = 1.0 + 0.16 * (torch.rand(len(part), 1, 1, 1, generator=generator) - 0.5)
            noise = 0.06 * torch.randn(pixels.shape, generator=generator)
            loss = F.cross_entropy(net(pixels * light + noise), answers[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def scene_net(sprites: NDArray[np.uint8], *, seed: int, size_px: int, cache: Path) -> SceneNet:
    """The trained judge, from its file in a folder where there is one."""
    path = cache / f"scene-judge-{seed}-{size_px}.safetensors"
    net = SceneNet()
    try:
        net.load_state_dict(load_file(path))
        return net.eval().requires_grad_(False)
    except (OSError, SafetensorError, RuntimeError):  # not there, damaged or of another shape
        net = train_scene_net(sprites, seed=seed, size_px=size_px)
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(net.state_dict()))
    return net


def scenes_of(net: SceneNet, pictures: NDArray[np.uint8]) -> list[str]:
    """Name the scene of each picture, uint8 [N, S, S, 3]."""
    return [SCENE_KEYS[k] for k in scene_numbers(net, pictures)]


@torch.inference_mode()
def scene_numbers(net: SceneNet, pictures: NDArray[np.uint8]) -> list[int]:
    """Index of the scene of each picture, uint8 [N, S, S, 3]."""
    found: list[int] = []
    for start in range(0, len(pictures), 256):
        found += net(to_tensor(pictures[start : start + 256])).argmax(1).tolist()
    return found


def scene_accuracy(net: SceneNet, sprites: NDArray[np.uint8], *, seed: int, size_px: int) -> float:
    """Share of fresh renders, none of them seen in training, that are named rightly."""
    pictures, labels = scene_pictures(sprites, 480, seed=seed, name="test", size_px=size_px)
    found = zip(scenes_of(net, pictures), labels, strict=True)
    return float(np.mean([name == SCENE_KEYS[label] for name, label in found]))
