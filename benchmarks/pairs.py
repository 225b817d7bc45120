"""Pairs with random weights: drawing with one costs what drawing with a trained one costs.

python -m bootpig_rt.benchmarks.pairs SIZE FOLDER [base-model]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.models.load import Pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

Size: TypeAlias = Literal["toy", "small", "sd21"]

# Random keys and queries are nearly orthogonal: attention would average over all tokens, and no
# comparison could tell whether a reference was read. Larger queries make it choose.
_QUERY_FACTOR = 6.0

# Picture side; channels, layers a block and heads of the U-Net, levels with attention; channels of
# the autoencoder; words, width and layers of the text encoder, tokens of a prompt.
_SIZES: dict[str, dict[str, Any]] = {
    "toy": {"px": 64, "unet": (16, 32), "layers": 1, "heads": (1, 2), "attends": 2,
            "vae": (8, 8, 8), "words": 600, "text": (16, 1, 2), "tokens": 24},
    "small": {"px": 64, "unet": (64, 128, 192), "layers": 1, "heads": (2, 4, 6), "attends": 3,
              "vae": (32, 64, 64), "words": 600, "text": (128, 2, 4), "tokens": 24},
    "sd21": {"px": 512, "unet": (320, 640, 1280, 1280), "layers": 2, "heads": (5, 10, 20, 20),
             "attends": 3, "vae": (128, 256, 512, 512), "words": 49408, "text": (1024, 23, 16),
             "tokens": 77},
}  # fmt: skip


def default_pair(device: str, work: Path, *, is_smoke: bool) -> Path:
    """The packaged pair; on a GPU one of the size that GPUs are bought for.

    Raises:
        BackendUnavailable: There is no CUDA device.
    """
    if device == "cpu":
        return default_model()
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"--device is {device}, and torch {torch.__version__} sees no CUDA device; use "
            "--device cpu, or install a build of torch for your CUDA with: pip install torch "
            "--index-url https://download.pytorch.org/whl/cu126"
        )
    size: Size = "toy" if is_smoke else "sd21"
    return write_pair(size, work / "pairs" / size, device=device)


def write_pair(size: Size, folder: Path, *, device: str = "cpu") -> Path:
    """Save an untrained pair; it is made where it is not there yet.

    Args:
        size: `toy`; `small`, 11 M parameters a U-Net; `sd21`, that of Stable Diffusion 2.1, 4.5 GB.
        folder: Of the pair.
        device: Where the weights are drawn: a GPU is quicker.

    Returns:
        The folder.
    """
    if (folder / "pair.json").is_file():
        return folder
    shape = _SIZES[size]
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    _write_tokenizer(tokenizer, length=shape["tokens"], words=shape["words"])
    half = size == "sd21"
    pair = _make(shape, device, torch.float16 if half else torch.float32, tokenizer, name=size)
    return save_pair(pair, folder, dtype=torch.float16 if half else torch.float32)


def write_bundle(size: Size, folder: Path) -> Path:
    """A pair of `write_pair`, built for a CPU."""
    bundle = folder / "bundle"
    saved = write_pair(size, folder / "pair")
    config = PairConfig(name=size, sample_size_px=_SIZES[size]["px"])
    build_engine(saved, bundle, build_options(config, size_multiple_px=16))
    return bundle


def write_base_model(size: Size, folder: Path) -> Path:
    """Save an untrained Stable Diffusion folder, as diffusers lays one out; kept if it is there.

    Args:
        size: See `write_pair`; the weights are float16 but for `toy` and `small`.
        folder: Of the base model.

    Returns:
        The folder.
    """
    if (folder / "model_index.json").is_file():
        return folder
    shape = _SIZES[size]
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    _write_tokenizer(tokenizer, length=shape["tokens"], words=shape["words"])
    dtype = torch.float16 if size == "sd21" else torch.float32
    pair = _make(shape, "cpu", dtype, tokenizer, name=size, is_shared=True)
    part = folder.with_name(f"{folder.name}-part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
    made = save_pair(pair, part, dtype=dtype)
    (made / "base_unet").rename(made / "unet")
    (made / "pair.json").unlink()
    classes = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    (made / "model_index.json").write_text(json.dumps(index | classes, indent=1))
    made.rename(folder)
    return folder


def _make(
    shape: dict[str, Any],
    device: str,
    dtype: torch.dtype,
    tokenizer: Path,
    *,
    name: str,
    is_shared: bool = False,
) -> Pair:
    levels, attends = len(shape["unet"]), shape["attends"]
    plain = levels - attends
    width, layers, heads = shape["text"]
    unet = {
        "sample_size": shape["px"] // 2 ** (len(shape["vae"]) - 1),
        "block_out_channels": shape["unet"],
        "layers_per_block": shape["layers"],
        "down_block_types": (*("CrossAttnDownBlock2D",) * attends, *("DownBlock2D",) * plain),
        "up_block_types": (*("UpBlock2D",) * plain, *("CrossAttnUpBlock2D",) * attends),
        "attention_head_dim": shape["heads"],
        "cross_attention_dim": width,
        "norm_num_groups": min(32, shape["unet"][0] // 4),
        "use_linear_projection": True,
    }
    forked = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=forked), torch.device(device):
        torch.manual_seed(0)
        base = UNet2DConditionModel(**unet)
        reference = base if is_shared else UNet2DConditionModel(**unet)
        vae = AutoencoderKL(
            block_out_channels=shape["vae"],
            layers_per_block=shape["layers"],
            down_block_types=("DownEncoderBlock2D",) * len(shape["vae"]),
            up_block_types=("UpDecoderBlock2D",) * len(shape["vae"]),
            norm_num_groups=min(32, shape["vae"][0] // 2),
            sample_size=shape["px"],
        )
        words = shape["words"]
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=shape["tokens"],
                bos_token_id=words - 2,
                eos_token_id=words - 1,
                pad_token_id=words - 1,
            )
        )
    for module in (base, reference, vae, text):
        nn.Module.to(module, dtype=dtype)  # diffusers' own `to` warns, of no module at all
        module.eval().requires_grad_(False)
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if "attn1.to_q" in key:
                parameter.mul_(_QUERY_FACTOR)
    return Pair(
        base=BaseUNet(base),
        reference=ReferenceUNet(reference),
        vae=vae,
        text_encoder=text,
        tokenizer_folder=tokenizer,
        scheduler={
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
        config=PairConfig(
            name=f"random, {name}",
            sample_size_px=shape["px"],
            default_solver="unipc",
            image_guidance_scale=4.0,
            text_guidance_scale=6.5,
            shared_unet=is_shared,
        ),
        fingerprint="",
    )


def _write_tokenizer(folder: Path, *, length: int, words: int) -> None:
    """A tokenizer of single letters, filled up to so many words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"unused{number}</w>" for number in range(words - len(tokens) - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))


if __name__ == "__main__":
    write = write_base_model if sys.argv[3:] == ["base-model"] else write_pair
    write(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]
