"""An untrained pair from any Stable Diffusion folder: both U-Nets are the folder's one.

It is where training starts. It also draws at once, as the training-free "reference-only" way does:
the base attends to the features that the same U-Net has of the reference image.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bootpig_rt.bundle.pair_config import PairConfig, trained_size_px
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.load import assemble_pair
from bootpig_rt.models.save import save_pair

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def init_pair(
    base_model: Path,
    output: Path,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.float16,
    subject_share: float = 0.86,
    overwrite: bool = False,
) -> PairConfig:
    """Write an untrained pair; the U-Net's weights are stored once.

    Args:
        base_model: Holds `unet`, `vae`, `text_encoder`, `tokenizer` and `scheduler`, all weights
            as safetensors. Other folders are not looked at.
        output: The folder of the pair. Its parent must exist. All of it is written or nothing.
        name: Shown to users; by default the name of the base model's folder.
        dtype: Type of the weights on disk: float16 or float32.
        subject_share: Longest side of the subject over the side of a prepared reference, 0.1 to 1.
        overwrite: Replace a folder that is already a pair.

    Returns:
        What went into `pair.json`.

    Raises:
        ConfigError: `subject_share` is out of range.
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
        sample_size_px=trained_size_px(base_model / "unet", base_model / "vae"),
        shared_unet=True,
        subject_share=subject_share,
    )
    unet = base_model / "unet"
    pair = assemble_pair(unet, unet, base_model, config, dtype=dtype)
    save_pair(pair, output, dtype=dtype, overwrite=overwrite)
    return config
