"""The networks among the judges: shapes, determinism, and that they can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from bootpig_rt.training.evaluation.efficientnet import EMBEDDING, EfficientNetLite0, embed
from bootpig_rt.training.evaluation.scene_judge import (
    SCENE_KEYS,
    scene_net,
    scene_pictures,
    scenes_of,
    train_scene_net,
)


def sprites() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = Image.new("RGBA", (96, 96))
    ImageDraw.Draw(image).ellipse((6, 6, 90, 90), fill=(220, 60, 60, 255))
    return np.asarray(image, dtype=np.uint8)[None]


def test_efficientnet_has_the_published_number_of_parameters_and_a_feature_of_1280() -> None:
    net = EfficientNetLite0().eval()
    # 4.65 million in Google's table of the Lite models.
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    crops = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    features = embed(net, crops, side_px=32, batch=2)
    assert features.shape == (3, EMBEDDING)
    assert np.allclose(features[2:], embed(net, crops[2:], side_px=32), atol=1e-5)


def test_the_scene_judge_learns_scenes_and_is_the_same_each_time() -> None:
    one, other = (
        train_scene_net(sprites(), seed=0, size_px=32, pictures=48, epochs=2) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    net = train_scene_net(sprites(), seed=0, size_px=32, pictures=160, epochs=3)
    pictures, labels = scene_pictures(sprites(), 64, seed=0, name="test", size_px=32)
    found = [SCENE_KEYS.index(name) for name in scenes_of(net, pictures)]
    assert np.mean(found == labels) > 2 / len(SCENE_KEYS)


def test_a_damaged_scene_judge_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "bootpig_rt.training.evaluation.scene_judge.train_scene_net"
    calls: list[int] = []

    def quick(*args: object, seed: int, size_px: int) -> torch.nn.Module:
        calls.append(seed)
        return train_scene_net(sprites(), seed=seed, size_px=size_px, pictures=16, epochs=1)

    monkeypatch.setattr(module, quick)
    first = scene_net(sprites(), seed=0, size_px=32, cache=tmp_path)
    again = scene_net(sprites(), seed=0, size_px=32, cache=tmp_path)
    assert calls == [0]
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    (path,) = tmp_path.glob("scene-judge-*")
    path.write_bytes(b"damaged")
    scene_net(sprites(), seed=0, size_px=32, cache=tmp_path)
    assert calls == [0, 0]
