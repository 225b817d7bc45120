"""Latents of a data set, computed once with a frozen VAE and kept beside the run."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.training.augment import augment
from bootpig_rt.training.config import Augmentation
from bootpig_rt.training.pictures import load_pictures, to_tensor
from bootpig_rt.training.shards import read_manifest


@dataclass(frozen=True)
class Latents:
    """A data set as the U-Nets see it.

    `targets` [N, C, h, w] and `references` [M, C, h, w], float16, scaled by the VAE's factor;
    `masks` uint8 [N, h, w], share of the subject in 0..255; references of sample n from
    `first_reference[n]` to `first_reference[n + 1]`; `captions` and `reference_prompts`, N each.
    """

    targets: Tensor
    references: Tensor
    masks: Tensor
    first_reference: Tensor
    captions: list[str]
    reference_prompts: list[str]


def load_latents(
    data: Path,
    vae_folder: Path,
    vae: Any,
    cache: Path,
    *,
    augmentation: Augmentation,
    max_samples: int,
    device: torch.device,
) -> Latents:
    """Read the cache of a data set, or make it.

    The cache is keyed by the manifest of the shards, the weights of the VAE, the augmentation and
    the number of samples.

    Raises:
        InputError: `data` has no manifest.
        StorageError: The cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(read_manifest(data), sort_keys=True).encode())
    # Weights and scale alone: each stage saves the frozen VAE again with another config.
    for file in sorted(vae_folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    digest.update(f"{vae.config.scaling_factor} {augmentation} {max_samples}".encode())
    key = digest.hexdigest()[:16]
    path = cache / f"latents-{key}.safetensors"
    if not path.exists():
        _write(path, data, vae, augmentation, max_samples, device)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        texts = file.metadata()
    return Latents(
        tensors["targets"],
        tensors["references"],
        tensors["masks"],
        tensors["first_reference"],
        json.loads(texts["captions"]),
        json.loads(texts["reference_prompts"]),
    )


def _write(
    path: Path,
    data: Path,
    vae: Any,
    augmentation: Augmentation,
    max_samples: int,
    device: torch.device,
) -> None:
    pictures = load_pictures(data, max_samples=max_samples)
    references = pictures.references
    if augmentation != "none":
        references = np.stack(
            [
                augment(np.random.default_rng((9, row)), picture, augmentation)
                for row, picture in enumerate(references)
            ]
        )
    scale = pictures.targets.shape[1] // (
        pictures.targets.shape[1] // 2 ** (len(vae.config.block_out_channels) - 1)
    )
    masks = torch.from_numpy(pictures.masks).float()[:, None]
    reduced = torch.nn.functional.avg_pool2d(masks, scale)[:, 0].round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {
        "targets": encode(vae, pictures.targets, device),
        "references": encode(vae, references, device),
        "masks": reduced,
        "first_reference": torch.from_numpy(pictures.first_reference),
    }
    metadata = {
        "captions": json.dumps(pictures.captions),
        "reference_prompts": json.dumps(pictures.reference_prompts),
    }
    try:
        save_file(tensors, temporary, metadata=metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise StorageError(f"cannot write the latents {path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def encode(vae: Any, pixels: NDArray[np.uint8], device: torch.device, batch: int = 64) -> Tensor:
    """Encode pictures uint8 [N, S, S, 3] to scaled latents (the posterior's mean), float16, CPU."""
    parts = []
    for start in tqdm(range(0, len(pixels), batch), desc="latents", leave=False, disable=None):
        chunk = to_tensor(pixels[start : start + batch]).to(device)
        latents = vae.encode(chunk).latent_dist.mode() * vae.config.scaling_factor
        parts.append(latents.to("cpu", torch.float16))
    return torch.cat(parts).contiguous()
