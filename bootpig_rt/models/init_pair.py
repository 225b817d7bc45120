"""An untrained pair from any Stable Diffusion folder: both U-Nets are the folder's one.

It is where training starts. It also draws at once, as the training-free "reference-only" way does:
the base attends to the features that the same U-Net has of the reference image.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bootpig_rt.bundle.model_index import says_zeros
from bootpig_rt.bundle.pair_config import PairConfig, read_json, trained_size_px
from bootpig_rt.bundle.text_parts import has_two_texts, text_parts
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.load import assemble_pair
from bootpig_rt.models.save import save_pair


def init_pair(
    base_model: Path,
    output: Path,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float16,
    subject_share: float = 0.86,
    few_steps: int | None = None,
    overwrite: bool = False,
) -> PairConfig:
    """Write an untrained pair; the U-Net's weights are stored once.

    Args:
        base_model: Holds `unet`, `vae`, `text_encoder`, `tokenizer` and `scheduler`, and of Stable
            Diffusion XL `text_encoder_2` and `tokenizer_2`, all weights as safetensors. Other
            folders are not looked at.
        output: The folder of the pair. Its parent must exist. All of it is written or nothing.
        name: Shown to users; by default the name of the base model's folder.
        dtype: Type of the weights on disk: float16 or float32.
        subject_share: Longest side of the subject over the side of a prepared reference, 0.1 to 1.
        few_steps: The base model was distilled to draw in so many steps without guidance, as Turbo
            and Lightning: the pair's defaults are Euler's steps (DDIM's) at trailing timesteps, and
            both scales are 1.
        overwrite: Replace a folder that is already a pair.

    Returns:
        What went into `pair.json`.

    Raises:
        ConfigError: `subject_share` or `few_steps` is out of range.
        CheckpointError: The base model is incomplete, damaged, holds pickles only, or is no Stable
            Diffusion 1.x, 2.x or XL.
        NumericalError: A weight is too large for float16.
        ParameterError: The output exists and may not be replaced.
        StorageError: The disk is full, read-only or otherwise refuses.
    """
    check_parts(base_model)
    if output.exists() and not overwrite:  # said again by save_pair, after gigabytes were read
        raise ParameterError(
            f"{output} exists already; choose another folder or replace it with --overwrite"
        )
    config = untrained_config(
        base_model, name if name is not None else f"{base_model.resolve().name}, untrained"
    )
    config = replace(config, subject_share=subject_share)
    if few_steps is not None:
        config = replace(
            config,
            default_steps=few_steps,
            default_solver="ddim",
            image_guidance_scale=1.0,
            text_guidance_scale=1.0,
        )
    unet = base_model / "unet"
    pair = assemble_pair(unet, unet, base_model, config, dtype=dtype)
    if few_steps is not None:
        pair = replace(pair, scheduler={**pair.scheduler, "timestep_spacing": "trailing"})
    save_pair(pair, output, dtype=dtype, overwrite=overwrite)
    return config


def check_parts(base_model: Path) -> None:
    """Say what a base model's folder lacks before gigabytes are read.

    Raises:
        CheckpointError: A folder is missing, or the U-Net's configuration.
    """
    names: tuple[str, ...] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    missing = [part for part in names if not (base_model / part).is_dir()]
    kind = "a Stable Diffusion folder"
    if not missing:
        texts = text_parts(read_json(base_model / "unet" / "config.json"))
        names = ("unet", "vae", *texts, "scheduler")
        missing = [part for part in names if not (base_model / part).is_dir()]
        kind = "one of Stable Diffusion XL, whose U-Net reads two text encoders,"
    if missing:
        raise CheckpointError(
            f"{base_model} has no {missing[0]} folder, expected {kind} with {', '.join(names)}; "
            "check the path, or copy the model folder again",
            base_model,
        )


def untrained_config(base_model: Path, name: str) -> PairConfig:
    """`pair.json` of a pair whose two U-Nets are the one of a base model's folder.

    Raises:
        CheckpointError: A configuration is missing or wrong.
    """
    unet = base_model / "unet"
    return PairConfig(
        name=name,
        sample_size_px=trained_size_px(unet, base_model / "vae"),
        shared_unet=True,
        zeros_for_empty_prompt=has_two_texts(read_json(unet / "config.json"))
        and says_zeros(base_model),
    )
