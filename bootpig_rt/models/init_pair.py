"""An untrained pair from any Stable Diffusion folder: both U-Nets are the folder's one.

It is where training starts. It also draws at once, as the training-free "reference-only" way does:
the base attends to the features that the same U-Net has of the reference image.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.load import assemble_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.pair_config import PairConfig, read_json

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def init_pair(
    base_model: Path,
    output: Path,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> PairConfig:
    """Write an untrained pair; the U-Net's weights are stored once.

    Args:
        base_model: Holds `unet`, `vae`, `text_encoder`, `tokenizer` and `scheduler`, all weights
            as safetensors. Other folders are not looked at.
        output: The folder of the pair. Its parent must exist. All of it is written or nothing.
        name: Shown to users; by default the name of the base model's folder.
        dtype: Type of the weights on disk: float16 or float32.
        overwrite: Replace a folder that is already a pair.

    Returns:
        What went into `pair.json`.

    Raises:
        CheckpointError: The base model is incomplete, damaged, holds pickles only, or is no Stable
            Diffusion 1.x or 2.x.
        NumericalError: A weight is too large for float16.
        ParameterError: The output exists and may not be replaced.
        StorageError: The disk is full, read-only or otherwise refuses.
    """
    missing = [part for part in _PARTS if not (base_model / part).is_dir()]
    if missing:
        raise CheckpointError(
            f"{base_model} has no {missing[0]} folder, expected a Stable Diffusion folder with "
            f"{', '.join(_PARTS)}; check the path",
            base_model,
        )
    if output.exists() and not overwrite:  # said again by save_pair, after gigabytes were read
        raise ParameterError(
            f"{output} exists already; choose another folder or replace it with --overwrite"
        )
    config = PairConfig(
        name=name if name is not None else f"{base_model.resolve().name}, untrained",
        sample_size_px=_sample_size_px(base_model),
        shared_unet=True,
    )
    unet = base_model / "unet"
    pair = assemble_pair(unet, unet, base_model, config, dtype=dtype)
    save_pair(pair, output, dtype=dtype, overwrite=overwrite)
    return config


def _sample_size_px(base_model: Path) -> int:
    """Side of the pictures that the base model was trained on.

    Raises:
        CheckpointError: The two configurations do not say it.
    """
    path = base_model / "unet" / "config.json"
    latent_side = read_json(path).get("sample_size", 64)
    blocks = read_json(base_model / "vae" / "config.json").get("block_out_channels")
    is_side = isinstance(latent_side, int) and not isinstance(latent_side, bool)
    if not is_side or not 1 <= latent_side <= 512:
        raise CheckpointError(
            f"{path}: sample_size is {latent_side!r}, expected a whole number 1..512, latents "
            "along a side; repair it or copy the model folder again",
            path,
        )
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
        path = base_model / "vae" / "config.json"
        raise CheckpointError(
            f"{path}: block_out_channels is {blocks!r}, expected a list of 1 to 8 numbers; "
            "copy the model folder again",
            path,
        )
    return min(4096, max(8, int(latent_side * 2 ** (len(blocks) - 1))))
