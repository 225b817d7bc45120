"""Depth maps of photos by a model that transformers loads, here a tiny one of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation

from bootpig_rt.errors import CheckpointError
from bootpig_rt.images.control import Control
from bootpig_rt.models.depth_estimator import DepthEstimator, depth_map


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpt")
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DPTForDepthEstimation(config).save_pretrained(folder)
    preprocessor = {"size": {"height": 32, "width": 32}, "ensure_multiple_of": 8}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_a_photo_becomes_a_grey_map_of_its_size(estimator: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    made = depth_map(pixels, estimator)
    assert (made.mode, made.size) == ("RGB", (32, 32))
    values = np.asarray(made)
    assert (values.min(), values.max()) == (0, 255)
    assert Control.load("depth", made).size == (32, 32)
    again = depth_map(Image.fromarray(pixels), DepthEstimator(estimator))
    np.testing.assert_array_equal(np.asarray(again), values)


def test_a_folder_that_is_no_estimator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no config.json, expected the folder of a model"):
        DepthEstimator(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        DepthEstimator(tmp_path)
