"""Controls from their folders: ControlNets of diffusers, each compared with its Base U-Net."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bootpig_rt.bundle.control import CONTROL_WEIGHTS, ControlFolder
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.control import Control, check_control_config, check_control_fits
from bootpig_rt.models.module_folder import ModuleLoader
from bootpig_rt.models.unet import BaseUNet


@dataclass(frozen=True, eq=False)
class PairControl:
    """A control that was loaded beside a pair.

    Attributes:
        kind: What its maps show.
        net: The module.
        fingerprint: sha256 over its tensors and configuration.
    """

    kind: str
    net: Control
    fingerprint: str


def load_controls(
    folders: Sequence[ControlFolder],
    base: BaseUNet,
    *,
    pixels_per_latent: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[PairControl, ...]:
    """Load controls, in evaluation mode.

    Args:
        folders: One of each kind.
        base: That they are for.
        pixels_per_latent: Along a side, of the pair's autoencoder.
        device: Where the modules go.
        dtype: Type of the weights in memory.

    Raises:
        CheckpointError: A folder is missing or no ControlNet, or belongs to another base model.
    """
    loaded = []
    for folder in folders:
        if not folder.path.is_dir():
            raise CheckpointError(
                f"control {folder.kind}: {folder.path} is no folder, expected a ControlNet in "
                f"diffusers' layout: config.json and {CONTROL_WEIGHTS}; a single file must be "
                "converted first",
                folder.path,
            )
        digest = hashlib.sha256()
        module = ModuleLoader(device, dtype, digest).control(
            folder.path, partial(_check, base, folder, pixels_per_latent)
        )
        loaded.append(PairControl(folder.kind, Control(module).eval(), digest.hexdigest()))
    return tuple(loaded)


def _check(
    base: BaseUNet, folder: ControlFolder, pixels_per_latent: int, config: Mapping[str, Any]
) -> None:
    try:
        check_control_config(config, pixels_per_latent)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}: {error}", folder.path) from error
    check_control_fits(config, base, folder.path)
