"""diffusers' own mixins of pipeline tests, over a tiny pair; run by `test_diffusers_common.py`.

A program of its own, in a checkout of diffusers: its tests are a package named `tests`, which only
a process that starts there can import.
"""

from __future__ import annotations

import importlib
import os
import unittest
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from bootpig_rt.integrations.diffusers import BootPIGPipeline
from bootpig_rt.integrations.diffusers.parts import modules_of
from bootpig_rt.models.load import load_pair

common: Any = importlib.import_module("tests.pipelines.test_pipelines_common")
parameters: Any = importlib.import_module("tests.pipelines.pipeline_params")


Base: Any = type(
    "Base",
    (common.PipelineLatentTesterMixin, common.PipelineTesterMixin, unittest.TestCase),
    {"__test__": False},
)


class BootPIGPipelineTests(Base):  # type: ignore[misc]  # diffusers has no types
    """What the mixins ask of a pipeline's own tests."""

    __test__ = True
    pipeline_class = BootPIGPipeline
    params = parameters.TEXT_TO_IMAGE_PARAMS - {"cross_attention_kwargs"}
    batch_params = frozenset({"prompt", "negative_prompt"})
    image_params = frozenset({"ref_image"})
    image_latents_params: frozenset[str] = frozenset()
    callback_cfg_params: frozenset[str] = frozenset()
    test_attention_slicing = False  # the walk has attention of its own
    test_xformers_attention = False

    def get_dummy_components(self) -> dict[str, Any]:
        """The tiny pair."""
        return modules_of(load_pair(Path(os.environ["BOOTPIG_RT_TINY_PAIR"])))

    def get_dummy_inputs(self, device: Any, seed: int = 0) -> dict[str, Any]:
        """A subject and a prompt."""
        disc = Image.new("RGB", (48, 48), "white")
        ImageDraw.Draw(disc).ellipse((8, 8, 40, 40), fill=(200, 60, 30))
        return {
            "prompt": "a dog, on a beach",
            "ref_image": disc,
            "reference_prompt": "a photo of a dog",
            "generator": torch.Generator("cpu").manual_seed(seed),
            "num_inference_steps": 2,
            "output_type": "np",
        }
