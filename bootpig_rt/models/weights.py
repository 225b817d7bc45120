"""Weights of one module folder, read from safetensors only and checked before they are used.

Knows files and tensors, not what they belong to. A pickle is never opened: opening one can run
code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import CheckpointError, describe_os_error

_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read all tensors of a module folder, as they are on disk.

    Args:
        folder: Holds `{stem}.safetensors`, or `{stem}.safetensors.index.json` and its shards, or
            `{stem}.fp16.safetensors`; looked for in this order.
        stem: `diffusion_pytorch_model` or `model`.

    Raises:
        CheckpointError: No such file, only a pickle, a truncated or damaged file, a shard outside
            the folder, a tensor that is no float, or one with NaN or Inf.
    """
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    half = folder / f"{stem}.fp16.safetensors"
    if single.is_file() or not (index.is_file() or half.is_file()):
        if not single.is_file():
            _refuse_missing(single)
        return read_file(single)
    if not index.is_file():
        return read_file(half)
    return _read_shards(index)


def read_file(path: Path) -> dict[str, Tensor]:
    """Read all tensors of one safetensors file, as they are on disk.

    Raises:
        CheckpointError: Truncated or damaged, a tensor that is no float, or one with NaN or Inf.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {error}; "
            "download or copy it again",
            path,
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {describe_os_error(error)}", path) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue  # integer buffers of old files, dropped or refused by name later
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype}, expected float32, float16 or "
                "bfloat16; convert it",
                path,
            )
        if not is_finite(tensor):
            raise CheckpointError(
                f"{path}: tensor {name!r} holds NaN or Inf; the training that made it diverged or "
                "the file is damaged, take an earlier checkpoint or copy it again",
                path,
            )
    return tensors


def check_names_and_shapes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path
) -> None:
    """Compare the tensors of a folder with those that its configuration asks for.

    Args:
        tensors: Name -> tensor, from the folder.
        expected: Name -> tensor of the right shape; may be on the meta device.
        folder: For the message.

    Raises:
        CheckpointError: Names the first missing, unknown or mis-shaped tensor and counts the rest.
    """
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        kind, names = ("missing", missing) if missing else ("unknown", unknown)
        raise CheckpointError(
            f"{folder}: tensor {names[0]!r} is {kind}{_and_more(names)}; the weights do not belong "
            "to the config.json beside them, copy both from one model",
            folder,
        )
    wrong = [name for name in expected if tensors[name].shape != expected[name].shape]
    if wrong:
        got, want = list(tensors[wrong[0]].shape), list(expected[wrong[0]].shape)
        raise CheckpointError(
            f"{folder}: tensor {wrong[0]!r} has shape {got}, expected {want}{_and_more(wrong)}; "
            "the weights do not belong to the config.json beside them, copy both from one model",
            folder,
        )


def fit_half(tensors: Iterable[Tensor]) -> bool:
    """Whether no number of the floating-point tensors changes in float16."""
    return all(
        torch.equal(tensor, tensor.half().to(tensor.dtype))
        for tensor in tensors
        if tensor.is_floating_point() and tensor.dtype != torch.float16
    )


def digest_tensors(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """sha256 over names, types, shapes and bytes; the same however the tensors were sharded.

    Args:
        tensors: By name.
        dtype: That those of floating point are taken in; None: as they are.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content: Any = tensor.flatten().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no Inf. One sum usually answers; it can only overflow, never hide one."""
    total = tensor.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; copy the model folder again", index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {shard!r}, expected a .safetensors file in the same "
                "folder; do not use this model",
                index,
            )
        path = index.parent / shard
        if not path.is_file():
            _refuse_missing(path)
        tensors.update(read_file(path))
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(
            f"{index}: tensor {lost[0]!r} is in no shard{_and_more(lost)}; "
            "copy the model folder again",
            index,
        )
    return tensors


def _refuse_missing(path: Path) -> None:
    """Say that a weights file is missing, and whether a pickle lies in its place.

    Raises:
        CheckpointError: Always.
    """
    folder = path.parent
    try:
        names: Iterable[str] = sorted(os.listdir(folder))
    except OSError:
        names = ()
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is opened, and no "
            f"{path.name}; convert it to safetensors: model.save_pretrained(folder, "
            "safe_serialization=True)",
            path,
        )
    raise CheckpointError(f"{path} is missing; copy the model folder again", path)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
