"""The pair inside the package in the layout of Stable Diffusion XL, to prove that way with weights
that were trained.

XL reads the states ahead of the last layer of two encoders, side by side and without a last norm.
One encoder with a last norm is written as two such ones, exactly but for the rounding of floats:

- what the first encoder carries, x, is made small, and the second carries -x: embeddings and what
  layers add are multiplied, and norms, which do not see how large x is, have gains of that sign, so
  all inside the layers stays as it was;
- a layer more adds to either the normed state y. It is a feed-forward of its own input's norm,
  which passes through the activation unchanged, since g(x) - g(-x) = x for x times a sigmoid or a
  normal distribution; its attention adds zero;
- so the two hold y + x and y - x, and cross-attentions read half of their sum, which is y.

A last layer, which XL leaves out, and a projection for the pooled state are there with random
numbers. Pooled state and sizes go through an embedding whose last layer is zero.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CARRIED = 2.0**-6
"""How large x is beside that of the pair, where it is up to 60 times as
large as y: so little of y is rounded away."""
ADDED_WIDTH = 32
"""Of the sinusoids of one of the six sizes."""
_COPIED = ("scheduler", "tokenizer", "vae")
_LAYER = "text_model.encoder.layers"
_OWN = "model.safetensors"
_UNET = "diffusion_pytorch_model.safetensors"


def write_xl_shaped(pair: Path, folder: Path) -> Path:
    """Write a pair with one CLIP encoder anew, so that it draws the same as one of XL.

    Args:
        pair: In our layout; weights of any type.
        folder: Made; weights float32.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(pair / "pair.json", folder)
    for name in _COPIED:
        shutil.copytree(pair / name, folder / name)
    shutil.copytree(pair / "tokenizer", folder / "tokenizer_2")
    config: dict[str, Any] = json.loads((pair / "text_encoder" / "config.json").read_text())
    weights = _read(pair / "text_encoder" / _OWN)
    for name, scale in (("text_encoder", CARRIED), ("text_encoder_2", -CARRIED)):
        own = _encoder(weights, config, scale)
        changes: dict[str, Any] = {
            "num_hidden_layers": config["num_hidden_layers"] + 2,
            "layer_norm_eps": config["layer_norm_eps"] * CARRIED**2,
        }
        if name == "text_encoder_2":
            generator = torch.Generator().manual_seed(0)
            width = config["hidden_size"]
            projection = torch.randn(width, width, generator=generator) / width**0.5
            own["text_projection.weight"] = projection
            changes |= {
                "architectures": ["CLIPTextModelWithProjection"],
                "projection_dim": width,
            }
        _write(folder / name, _OWN, own, config | changes)
    for name in ("base_unet", "ref_unet"):
        unet: dict[str, Any] = json.loads((pair / name / "config.json").read_text())
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": ADDED_WIDTH,
            "projection_class_embeddings_input_dim": config["hidden_size"] + 6 * ADDED_WIDTH,
            "cross_attention_dim": 2 * config["hidden_size"],
        }
        _write(folder / name, _UNET, _unet(_read(pair / name / _UNET), unet), unet)
    return folder


def _encoder(weights: dict[str, Tensor], config: dict[str, Any], scale: float) -> dict[str, Tensor]:
    """An encoder that carries `scale` times the state, and adds the normed one in a layer more."""
    made, sign = {}, math.copysign(1.0, scale)
    for name, weight in weights.items():
        made[name] = weight.clone()
        if "embedding" in name or ".out_proj." in name or ".mlp.fc2." in name:
            made[name] *= scale
        elif "layer_norm" in name and name.endswith(".weight"):
            made[name] *= sign
    width, inner = config["hidden_size"], config["intermediate_size"]
    gain, offset = (weights[f"text_model.final_layer_norm.{kind}"] for kind in ("weight", "bias"))
    count = config["num_hidden_layers"]
    layer = {
        name.removeprefix(f"{_LAYER}.0."): torch.zeros_like(weight)
        for name, weight in weights.items()
        if name.startswith(f"{_LAYER}.0.")
    }
    one = torch.eye(width)
    both = torch.cat([one, -one, torch.zeros(inner - 2 * width, width)])
    layer |= {
        "layer_norm2.weight": torch.full((width,), sign),
        "mlp.fc1.weight": both,
        "mlp.fc2.weight": gain[:, None] * both.T,
        "mlp.fc2.bias": offset.clone(),
    }
    made |= {f"{_LAYER}.{count}.{name}": weight for name, weight in layer.items()}
    generator = torch.Generator().manual_seed(1)
    for name, weight in layer.items():  # of it the pooled state is made, which adds nothing
        last = torch.randn(weight.shape, generator=generator) / width**0.5
        made[f"{_LAYER}.{count + 1}.{name}"] = last
    return made


def _unet(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """A U-Net that reads half the sum of both states, and adds nothing to its timesteps."""
    made = {
        name: torch.cat([weight, weight], dim=1) / 2
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        else weight
        for name, weight in weights.items()
    }
    width, into = weights["time_embedding.linear_2.weight"].shape[0], "add_embedding.linear_"
    generator = torch.Generator().manual_seed(2)
    read = config["projection_class_embeddings_input_dim"]
    made[f"{into}1.weight"] = torch.randn(width, read, generator=generator) / read**0.5
    made[f"{into}1.bias"] = torch.zeros(width)
    made[f"{into}2.weight"] = torch.zeros(width, width)
    made[f"{into}2.bias"] = torch.zeros(width)
    return made


def _read(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _write(folder: Path, name: str, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / name)
