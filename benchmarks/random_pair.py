"""A pair with random weights: drawing with it costs what drawing with a trained one costs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bootpig_rt.benchmarks.gpu.random_pair import TEXT_TOKENS, make_pair
from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.models.load import Pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet


def write_random_pair(folder: Path) -> Path:
    """Save and build an untrained pair of 11 M parameters per U-Net and 16 x 16 latents.

    Drawing with it costs what drawing with a trained pair of that shape costs.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = folder / "tokenizer"
    num_tokens = _write_tokenizer(tokenizer, length=24)
    torch.manual_seed(0)
    unets = [
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=(2, 4, 6),
            cross_attention_dim=128,
            norm_num_groups=16,
            use_linear_projection=True,
        )
        for _ in range(2)
    ]
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=16,
        sample_size=64,
    )
    text = CLIPTextConfig(
        vocab_size=num_tokens,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=num_tokens - 2,
        eos_token_id=num_tokens - 1,
        pad_token_id=num_tokens - 1,
    )
    pair = Pair(
        base=BaseUNet(unets[0]),
        reference=ReferenceUNet(unets[1]),
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer_folder=tokenizer,
        scheduler={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "timestep_spacing": "trailing",
        },
        config=PairConfig(
            name="random, 11 M parameters per U-Net",
            sample_size_px=64,
            reference_timestep="mixed",
            ref_scale=1.1,
        ),
        fingerprint="",
    )
    bundle = folder / "bundle"
    saved = save_pair(pair, folder / "pair", dtype=torch.float32)
    build_engine(saved, bundle, build_options(pair.config, size_multiple_px=16))
    return bundle


def write_full_size_pair(folder: Path) -> Path:
    """Save an untrained pair of the size of Stable Diffusion 2.1, 4.5 GB in float16."""
    pair = make_pair("cpu", torch.float16, size_px=512, is_toy=False)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    config: Any = pair.text_encoder.config
    _write_tokenizer(tokenizer, length=TEXT_TOKENS, size=config.vocab_size)
    return save_pair(replace(pair, tokenizer_folder=tokenizer), folder, dtype=torch.float16)


def _write_tokenizer(folder: Path, *, length: int, size: int | None = None) -> int:
    """A tokenizer of single letters, filled up to `size` words; returns how many words it has."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"unused{number}</w>" for number in range((size or 0) - len(tokens) - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    return len(tokens)


if __name__ == "__main__":
    write_full_size_pair(Path(sys.argv[1]))
