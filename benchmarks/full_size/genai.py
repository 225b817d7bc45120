"""Text to image by OpenVINO GenAI from the base of a pair: the peer on CPUs.

python -m bootpig_rt.benchmarks.full_size.genai BASE_MODEL FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from bootpig_rt.benchmarks.way import Unavailable


def peer_packages() -> tuple[Any, Any, Any]:
    """OpenVINO, its GenAI and its tokenizers.

    Raises:
        Unavailable: One is not installed.
    """
    try:
        import openvino
        import openvino_genai
        import openvino_tokenizers
    except ImportError as error:
        raise Unavailable(
            f"{error.name} is not installed; install with: pip install -c constraints.txt "
            '"bootpig-rt[peers]"'
        ) from None
    return openvino, openvino_genai, openvino_tokenizers


def write_genai(base_model: Path, folder: Path) -> None:
    """Convert a Stable Diffusion folder to what OpenVINO GenAI reads, weights as float16.

    Args:
        base_model: As diffusers lays it out.
        folder: Is made, whole or not at all.

    Raises:
        Unavailable: A package of the extra `peers` is missing.
    """
    ov, _, tokenizers = peer_packages()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    unet = _load(UNet2DConditionModel, base_model / "unet")
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    text = _load(CLIPTextModel, base_model / "text_encoder")
    length = int(text.config.max_position_embeddings)
    vae = _load(AutoencoderKL, base_model / "vae")
    channels = int(unet.config.in_channels)
    latents = torch.zeros(1, channels, side, side)
    states = torch.zeros(2, length, width)
    cases: tuple[tuple[str, Any, dict[str, Tensor], tuple[str, ...]], ...] = (
        (
            "unet",
            _unet(unet),
            {
                "sample": latents.repeat(2, 1, 1, 1),
                "timestep": torch.tensor([1]),
                "encoder_hidden_states": states,
            },
            ("out_sample",),
        ),
        ("vae_decoder", _decoder(vae), {"latent_sample": latents}, ("sample",)),
        (
            "text_encoder",
            _text(text),
            {"input_ids": torch.zeros(1, length, dtype=torch.int64)},
            ("last_hidden_state", "pooler_output"),
        ),
    )
    for name, module, inputs, outputs in cases:
        (part / name).mkdir()
        with torch.inference_mode():
            model = ov.convert_model(module, example_input=tuple(inputs.values()))
        for port, known in zip(model.inputs, inputs, strict=True):
            port.tensor.set_names({known})
        for port, known in zip(model.outputs, outputs, strict=True):
            port.tensor.set_names({known})
        ov.save_model(model, part / name / "openvino_model.xml", compress_to_fp16=True)
        del model
        source = base_model / ("vae" if name == "vae_decoder" else name) / "config.json"
        shutil.copy(source, part / name / "config.json")
    (part / "tokenizer").mkdir()
    words = CLIPTokenizer.from_pretrained(base_model / "tokenizer", local_files_only=True)
    words.model_max_length = length
    encoder = tokenizers.convert_tokenizer(words, with_detokenizer=False)
    ov.save_model(encoder, part / "tokenizer" / "openvino_tokenizer.xml")
    (part / "scheduler").mkdir()
    settings = Path("scheduler") / "scheduler_config.json"
    scheduler = json.loads((base_model / settings).read_text(encoding="utf-8"))
    scheduler |= {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False}
    (part / settings).write_text(json.dumps(scheduler), encoding="utf-8")
    index = json.loads((base_model / "model_index.json").read_text(encoding="utf-8"))
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    index = {key: value for key, value in index.items() if value != [None, None]}
    (part / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    part.rename(folder)


def _load(kind: Any, folder: Path) -> Any:
    module = kind.from_pretrained(folder, local_files_only=True)
    return module.float().eval().requires_grad_(False)


class _Called(nn.Module):
    """A module that is a function of tensors."""

    def __init__(self, module: Any, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *inputs: Tensor) -> Any:
        return self._function(self.module, *inputs)


def _unet(unet: Any) -> nn.Module:
    return _Called(unet, lambda module, x, t, states: module(x, t, states, return_dict=False)[0])


def _decoder(vae: Any) -> nn.Module:
    return _Called(vae, lambda module, latents: module.decode(latents, return_dict=False)[0])


def _text(text: Any) -> nn.Module:
    return _Called(text, lambda module, ids: tuple(module(ids, return_dict=False)[:2]))


class GenAiPicture:
    """A pipeline of OpenVINO GenAI with fixed shapes, which is its quickest form.

    Args:
        folder: Of `write_genai`.
        precision: `f32` or `bf16`.
        side_px: Of the pictures.
        guidance_scale: Above 1: two rows a step.
        threads: Pinned.

    Raises:
        Unavailable: A package is missing.
    """

    def __init__(
        self, folder: Path, *, precision: str, side_px: int, guidance_scale: float, threads: int
    ) -> None:
        """Load, fix the shapes, compile."""
        _, genai, _ = peer_packages()
        pipe = genai.Text2ImagePipeline(folder)
        pipe.reshape(1, side_px, side_px, guidance_scale)
        pipe.compile(
            "CPU", INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=threads,
            PERFORMANCE_HINT="LATENCY",
        )  # fmt: skip
        self._pipe = pipe
        self._side_px, self._scale = side_px, guidance_scale

    def draw(
        self, prompt: str, *, steps: int, seed: int, on_step: Callable[[], object]
    ) -> np.ndarray[Any, Any]:
        """One picture, uint8 [H, W, 3]; `on_step` is called after each step."""

        def callback(step: int, count: int, latent: object) -> bool:
            on_step()
            return False

        found = self._pipe.generate(
            prompt,
            num_inference_steps=steps,
            width=self._side_px,
            height=self._side_px,
            guidance_scale=self._scale,
            rng_seed=seed,
            callback=callback,
        )
        return np.array(found.data[0])


if __name__ == "__main__":
    write_genai(Path(sys.argv[1]), Path(sys.argv[2]))
