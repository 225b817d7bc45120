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
        """The tiny pair; what it has not is named all the same, as diffusers' own tests do."""
        pair = load_pair(Path(os.environ["BOOTPIG_RT_TINY_PAIR"]))
        optional = dict.fromkeys(("text_encoder_2", "tokenizer_2", "controlnet"))
        return {**optional, **modules_of(pair)}

    @unittest.skip("looks the class up in the package diffusers")
    def test_encode_prompt_works_in_isolation(self, *_: Any) -> None:
        """Not for pipelines of other packages."""

    @unittest.skip("tries ConsistencyDecoderVAE, which no pair may have")
    def test_multi_vae(self) -> None:
        """Autoencoders of pairs are told when they load."""

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
