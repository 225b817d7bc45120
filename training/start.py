"""What a stage starts from: a pair in any layout, or the VAE alone; read from disk, never fetched.

All that the finished model knows (noise schedule, prediction, sizes, text length, scaling factor,
defaults of `pair.json`) comes from here, so that a stage cannot contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.init_pair import check_parts, untrained_config
from bootpig_rt.models.load import Pair, assemble_pair, load_pair, load_vae
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.config import PairSettings


def load_start(folder: Path, device: torch.device) -> Pair:
    """Load a pair, or a diffusers folder as the pair whose two U-Nets are its one; float32, frozen.

    The folder is what stage `base`, `pair` or `init-pair` wrote, a pair in the published layout
    with the rest beside it, or a Stable Diffusion folder.

    Raises:
        CheckpointError: It is none of these, or incomplete, or its parts do not fit together.
    """
    if (folder / "base_unet").is_dir() or not folder.is_dir():
        return load_pair(folder, device=device)
    missing = [
        name
        for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        if not (folder / name).is_dir()
    ]
    if missing:
        raise CheckpointError(
            f"start_from {folder} has neither base_unet nor {missing[0]}, expected a pair or a "
            "Stable Diffusion folder; finish the stage before: its result/ is the start",
            folder,
        )
    check_parts(folder)
    unet, config = folder / "unet", untrained_config(folder, folder.resolve().name)
    return assemble_pair(unet, unet, folder, config, device=device)


def load_start_vae(folder: Path, device: torch.device) -> Any:
    """Load the frozen VAE of a finished stage or of a diffusers folder, in float32.

    Raises:
        CheckpointError: The folder has no VAE, or a damaged one.
    """
    if not (folder / "vae" / "config.json").is_file():
        raise CheckpointError(
            f"start_from {folder} has no vae/; finish that stage first, start_from is its result",
            folder,
        )
    return load_vae(folder / "vae", device=device)


def with_settings(config: PairConfig, settings: PairSettings, **known: Any) -> PairConfig:
    """`pair.json` of a start with what the stage's table [pair] changes.

    Args:
        config: Of the start.
        settings: The table; what it leaves out stays.
        known: What the stage decides itself.
    """
    return replace(config, **settings.changes(), **known)


def subject_share(manifest: Mapping[str, Any]) -> float:
    """How large the references of samples show their subject: `subject_share` of `pair.json`.

    Args:
        manifest: Of the samples: a bootstrap, an import and the 3-D world say it, the drawn world
            has one.
    """
    settings = manifest.get("settings") or {}
    tables = (("triplets", "fill"), ("fit", "subject_share"), ("world", "reference_length"))
    for table, name in tables:
        if name in (settings.get(table) or {}):
            return float(settings[table][name])
    return REFERENCE_LENGTH
