"""Stable Diffusion folders made on the spot, in the layout in which a hub has them.

`write_small` makes one that can draw: the base of the shipped pair, under the file names and keys
of `stable-diffusion-2-1-base`, with latents that nothing scales by channel, as diffusers' pipelines
expect. The shipped base was trained with references, which no Stable
Diffusion was; so its self-attentions are replaced by others of the same shape that have seen texts
alone.
`write_sd21` makes one of random weights whose every configuration is that of
`stable-diffusion-2-1-base` but for widths: it draws noise, and shows that the layout fits.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.bundle.model_index import AUTOENCODER_LIBRARIES
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import ParameterError
from bootpig_rt.models.latent_scale import LatentScale
from bootpig_rt.models.load import load_vae
from bootpig_rt.models.module_folder import TEXT_STEM, UNET_STEM
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder

Attention = Literal["text", "silent"]
"""Self-attentions of the small folder: trained on texts alone, or untrained and silent."""

TEXT_ATTENTION = Path(__file__).with_name("text_attention.safetensors")
"""Self-attentions of the shipped base's shape, trained without references: see training/LOG.md."""

_DIFFUSERS = "0.10.0.dev0"
_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": _DIFFUSERS,
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_FEATURES = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def write_small(folder: Path, *, attention: Attention = "text") -> Path:
    """Write the folder that can draw, whole or not at all; its weights are float32.

    Raises:
        ParameterError: The folder exists.
    """
    pair = default_model()
    with _whole(folder) as new:
        for name in ("text_encoder", "tokenizer"):
            shutil.copytree(pair / name, new / name)
        text = new / "text_encoder"
        _write_weights(text / f"{TEXT_STEM}.safetensors", _wide(text, TEXT_STEM))
        autoencoder = _write_autoencoder(pair / "vae", new / "vae")
        (new / "unet").mkdir()
        shutil.copy(pair / "base_unet" / "config.json", new / "unet" / "config.json")
        weights = _wide(pair / "base_unet", UNET_STEM)
        others = load_file(TEXT_ATTENTION) if attention == "text" else _silent(weights)
        weights |= {name: tensor.float() for name, tensor in others.items()}
        _write_weights(new / "unet" / f"{UNET_STEM}.safetensors", weights)
        scheduler = json.loads(_read(pair / "scheduler" / "scheduler_config.json"))
        # As published. Trailing spacing, which this base has, does not use it.
        scheduler["steps_offset"] = 1
        tokenizer = json.loads(_read(new / "tokenizer" / "tokenizer_config.json"))
        _write_rest(new, scheduler, tokenizer, autoencoder=autoencoder)
    return folder


def _write_autoencoder(source: Path, folder: Path) -> str:
    """The shipped autoencoder in float32; returns its class."""
    vae: Any = load_vae(source)
    if isinstance(vae, PatchAutoencoder):
        vae = with_plain_scale(vae)
    folder.mkdir()
    config = {key: value for key, value in vae.config.items() if key != "_name_or_path"}
    config["_class_name"] = type(vae).__name__
    _write_json(folder / "config.json", config)
    _write_weights(folder / f"{UNET_STEM}.safetensors", vae.state_dict())
    return str(config["_class_name"])


@torch.no_grad()
def with_plain_scale(vae: PatchAutoencoder) -> PatchAutoencoder:
    """The same autoencoder with latents as its U-Net reads them, so that nothing is left to scale.

    What scales each channel goes into the convolutions around the latents. Where those look beyond
    the border of a picture they see zeros, which were means before: there it is not exact.
    """
    made: Any = copy.deepcopy(vae)
    mean, factor = (torch.as_tensor(part).flatten() for part in _numbers(vae))
    encoder, decoder = made.encoder, made.decoder
    for module in (encoder.project, encoder.conv_out):
        module.weight *= factor[:, None, None, None]
        module.bias *= factor
    encoder.project.bias -= mean * factor
    for module in (decoder.project, decoder.conv_in):
        module.bias += (module.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
        module.weight /= factor[None, :, None, None]
    made.register_to_config(scaling_factor=1.0, latents_mean=None, latents_std=None)
    folded: PatchAutoencoder = made
    return folded


def _numbers(vae: Any) -> list[Tensor]:
    channels = int(vae.config.latent_channels)
    return [torch.tensor(part).expand(channels) for part in LatentScale(vae).numbers()]


def self_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a U-Net's self-attentions: queries, keys, values and output."""
    return {name: tensor for name, tensor in weights.items() if ".attn1." in name}


def keep_text_attention(pair: Path, file: Path) -> None:
    """Write the self-attentions of a trained pair's Base U-Net to a file, in float16."""
    weights = load_file(pair / "base_unet" / f"{UNET_STEM}.safetensors")
    halves = {name: tensor.half() for name, tensor in self_attention(weights).items()}
    save_file(halves, file, metadata={"format": "pt"})


def side_px() -> int:
    """Of the pictures of both folders: that of the shipped pair, on whose samples they train."""
    return read_pair_config(default_model() / "pair.json").sample_size_px


def write_sd21(folder: Path, *, seed: int = 0) -> Path:
    """Write the random folder, whole or not at all; its weights are float32.

    Raises:
        ParameterError: The folder exists.
    """
    unet, vae, text, scheduler = sd21_configs()
    with _whole(folder) as new:
        (new / "tokenizer").mkdir()
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(default_model() / "tokenizer" / name, new / "tokenizer" / name)
        vocabulary = json.loads(_read(new / "tokenizer" / "vocab.json"))
        text |= {"vocab_size": len(vocabulary)}
        with torch.device("meta"):
            modules: dict[str, Any] = {
                "unet": (UNet2DConditionModel(**unet), UNET_STEM, unet),
                "vae": (AutoencoderKL(**vae), UNET_STEM, vae),
                "text_encoder": (CLIPTextModel(CLIPTextConfig(**text)), TEXT_STEM, text),
            }
        generator = torch.Generator().manual_seed(seed)
        for name, (module, stem, config) in modules.items():
            (new / name).mkdir()
            kind = {} if name == "text_encoder" else {"_class_name": type(module).__name__}
            _write_json(new / name / "config.json", {**kind, **config})
            _write_weights(new / name / f"{stem}.safetensors", _random(module, generator))
        tokenizer = {
            "add_prefix_space": False,
            "bos_token": "<|startoftext|>",
            "do_lower_case": True,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "!",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": "<|endoftext|>",
        }
        _write_json(new / "tokenizer" / "tokenizer_config.json", tokenizer)
        _write_rest(new, scheduler, tokenizer)
    return folder


def sd21_configs() -> tuple[dict[str, Any], ...]:
    """U-Net, autoencoder, text encoder and scheduler of `stable-diffusion-2-1-base`, but narrow.

    Widths are a tenth to a twentieth, U-Net and autoencoder have one layer a block for two, and
    pictures the size of the shipped pair's. The text encoder has its 23 layers: the 24th is left
    out in the published folder, so that its last state is the second to last of the model that it
    comes from.
    """
    cross = "CrossAttn"
    unet = {
        "act_fn": "silu",
        "attention_head_dim": [2, 4, 8, 8],
        "block_out_channels": [32, 64, 128, 128],
        "center_input_sample": False,
        "cross_attention_dim": 64,
        "down_block_types": [f"{cross}DownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 8,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": 4,
        "sample_size": side_px() // 8,
        "up_block_types": ["UpBlock2D"] + [f"{cross}UpBlock2D"] * 3,
        "use_linear_projection": True,
    }
    vae = {
        "act_fn": "silu",
        "block_out_channels": [8, 16, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": side_px(),
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    text = {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": 64,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 23,
        "pad_token_id": 1,
        "projection_dim": 512,
        "torch_dtype": "float32",
        "vocab_size": 49408,
    }
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": _DIFFUSERS,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
    return unet, vae, text, scheduler


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the name of `folder` when the block ends well."""
    if folder.exists():
        raise ParameterError(f"{folder} exists already; choose another folder, or delete it")
    hidden = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)  # of a process that was killed
    hidden.mkdir(parents=True)
    try:
        yield hidden
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _write_rest(
    folder: Path,
    scheduler: dict[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    autoencoder: str = "AutoencoderKL",
) -> None:
    special = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: tokenizer[name] for name in special}
    for name in ("scheduler", "feature_extractor"):
        (folder / name).mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "feature_extractor" / "preprocessor_config.json", _FEATURES)
    _write_json(folder / "tokenizer" / "special_tokens_map.json", tokens)
    vae = [AUTOENCODER_LIBRARIES.get(autoencoder, "diffusers"), autoencoder]
    index = {**_INDEX, "scheduler": ["diffusers", scheduler["_class_name"]], "vae": vae}
    _write_json(folder / "model_index.json", index)


def _wide(folder: Path, stem: str) -> dict[str, Tensor]:
    tensors = load_file(folder / f"{stem}.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _silent(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Self-attentions as `nn.Linear` begins them, whose output is 0."""
    generator, fresh = torch.Generator().manual_seed(0), {}
    for name, tensor in self_attention(weights).items():
        bound = tensor.shape[-1] ** -0.5
        fresh[name] = torch.empty_like(tensor).uniform_(-bound, bound, generator=generator)
        if ".to_out." in name:
            fresh[name].zero_()
    return fresh


def _random(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights whose states stay of the size of 1 on their way."""
    found = {}
    for name, tensor in module.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            values *= tensor[0].numel() ** -0.5
        elif name.endswith("weight"):  # of a norm
            values = torch.ones(tensor.shape)
        else:
            values *= 0.02
        found[_published(name)] = values
    return found


_TEXT_PARTS = ("embeddings.", "encoder.layers.", "final_layer_norm.")
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _published(name: str) -> str:
    """The name that a tensor has in the published files, which are older than today's libraries."""
    if name.startswith(_TEXT_PARTS):
        return f"text_model.{name}"
    if ".mid_block.attentions." in name and "transformer_blocks" not in name:  # the autoencoder's
        for today, old in _OLD_NAMES.items():
            name = name.replace(f".{today}.", f".{old}.")
    return name


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
