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
from bootpig_rt.models.weights import digest_tensors
from bootpig_rt.training.pictures import load_pictures, to_tensor
from bootpig_rt.training.shards import read_manifest


@dataclass(frozen=True)
class Latents:
    """A data set as the U-Nets see it.

    `targets` [N, C, h, w] and `references` [M, C, h, w], float16, scaled by the VAE's factor
    (M is 0 without references); `masks` uint8 [N, h, w], share of the subject in 0..255; references
    of sample n from `first_reference[n]` to `first_reference[n + 1]`; `captions` and
    `reference_prompts`, N each; `size_px`, side of the pictures.
    """

    targets: Tensor
    references: Tensor
    masks: Tensor
    first_reference: Tensor
    captions: list[str]
    reference_prompts: list[str]
    size_px: int


def load_latents(
    data: Path,
    vae: Any,
    cache: Path,
    *,
    device: torch.device,
    max_samples: int = 0,
    with_references: bool = True,
) -> Latents:
    """Read the cache of a data set, or make it.

    The cache is keyed by the manifest of the shards, the weights and the scale of the VAE, the
    number of samples, and whether references are in it.

    Raises:
        InputError: `data` has no manifest.
        StorageError: The cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(read_manifest(data), sort_keys=True).encode())
    digest.update(digest_tensors(vae.state_dict()).encode())
    digest.update(f"{vae.config.scaling_factor} {with_references} {max_samples}".encode())
    path = cache / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if not path.exists():
        _write(path, data, vae, max_samples, device, with_references=with_references)
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
        int(texts["size_px"]),
    )


def _write(
    path: Path,
    data: Path,
    vae: Any,
    max_samples: int,
    device: torch.device,
    *,
    with_references: bool,
) -> None:
    pictures = load_pictures(data, max_samples=max_samples)
    references = pictures.references if with_references else pictures.references[:0]
    targets = encode(vae, pictures.targets, device)
    masks = torch.from_numpy(pictures.masks).float()[:, None]
    reduced = torch.nn.functional.adaptive_avg_pool2d(masks, targets.shape[-1])[:, 0].round()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {
        "targets": targets,
        "references": encode(vae, references, device) if with_references else targets[:0].clone(),
        "masks": reduced.to(torch.uint8),
        "first_reference": torch.from_numpy(pictures.first_reference),
    }
    metadata = {
        "captions": json.dumps(pictures.captions),
        "reference_prompts": json.dumps(pictures.reference_prompts),
        "size_px": str(pictures.targets.shape[1]),
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
    starts: Any = range(0, len(pixels), batch)
    if len(starts) > 1:
        starts = tqdm(starts, desc="latents", leave=False, disable=None)
    parts = []
    for start in starts:
        chunk = to_tensor(pixels[start : start + batch]).to(device)
        latents = vae.encode(chunk).latent_dist.mode() * vae.config.scaling_factor
        parts.append(latents.to("cpu", torch.float16))
    return torch.cat(parts).contiguous()
