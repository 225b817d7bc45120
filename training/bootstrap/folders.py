"""Models from local folders in the hub's layout: found, checked, and loaded without a network.

Nothing is fetched, and no pickle is opened.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bootpig_rt.errors import BackendUnavailable, BootPIGError, CheckpointError, ConfigError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of a setting; "auto" is the first GPU, else the CPU.

    Raises:
        ConfigError: No such kind of device.
        BackendUnavailable: This machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"device is {name!r}, and this machine has {torch.cuda.device_count()} CUDA devices "
            "that torch can use; choose another, or install torch for CUDA"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of a setting; "auto" is bf16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return _DTYPES[name]


def check_folder(path: str, what: str, *, config: str = "config.json") -> dict[str, Any]:
    """Check that a folder looks like a model's, and read its configuration.

    Args:
        path: The folder.
        what: What it should be, for errors.
        config: Its file that names the architecture.

    Raises:
        CheckpointError: It is missing, or lacks configuration or safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"{what} {folder} is no folder, expected one in the hub's layout; check the path "
            "(nothing is fetched)",
            folder,
        )
    if not (folder / config).is_file():
        raise CheckpointError(
            f"{what} {folder} has no {config}; expected a whole folder in the hub's layout", folder
        )
    if not any(folder.rglob("*.safetensors")):
        pickles = [file.name for file in folder.rglob("*") if file.suffix in _PICKLES]
        found = f"only {pickles[0]}, a pickle, which is not opened" if pickles else "no weights"
        raise CheckpointError(
            f"{what} {folder} has {found}; expected .safetensors: take the repository's "
            "safetensors, or convert it with save_pretrained(..., safe_serialization=True)",
            folder,
        )
    try:
        values: Any = json.loads((folder / config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{what} {folder}: {config} cannot be read: {error}", folder) from (
            error
        )
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} {folder}: {config} holds no table; copy it again", folder)
    return values


@contextlib.contextmanager
def loading(path: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads a folder into one line that names it.

    Raises:
        CheckpointError: The folder cannot be loaded.
    """
    try:
        yield
    except BootPIGError:
        raise
    except (
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{what} {path} cannot be loaded: {reason}; check that the folder is whole and what "
            "it should be",
            path,
        ) from error


def load_model(
    kind: Any, path: str, what: str, device: torch.device, dtype: torch.dtype, **options: Any
) -> Any:
    """A model of transformers in evaluation mode; `kind` is its class, `options` its own.

    Raises:
        CheckpointError: It cannot be loaded, or the folder lacks some of its weights.
    """
    with loading(path, what):
        model, info = kind.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{what} {path} lacks {len(missing)} weights of {kind.__name__}, such as "
            f"{missing[0]!r}; it is a folder of something else, or not whole",
            path,
        )
    return model.to(device).eval().requires_grad_(False)


def load_processor(kind: Any, path: str, what: str) -> Any:
    """A processor or tokenizer of transformers; `kind` is its class.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    with loading(path, what):
        return kind.from_pretrained(path, local_files_only=True)
