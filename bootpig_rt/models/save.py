"""Write a pair as one folder, all of it or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save
from torch import Tensor

from bootpig_rt.bundle.control import CONTROL_PREFIX
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.model_index import model_index_json
from bootpig_rt.bundle.pair_config import TINY_VAE
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.errors import (
    BootPIGError,
    NumericalError,
    ParameterError,
    StorageError,
    describe_os_error,
)
from bootpig_rt.models.load import TOKENIZER_FILES, Pair
from bootpig_rt.models.module_folder import TEXT_STEM, UNET_STEM
from bootpig_rt.models.text_encoders import TwoTextEncoders
from bootpig_rt.models.weights import is_finite


def save_pair(
    pair: Pair,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> Path:
    """Save a pair in the single-folder layout, which is that of Hugging Face.

    Everything goes to a hidden folder beside the target, which takes its name at the end: a full
    disk or an interrupt leaves what was there before.

    Args:
        pair: What to save; `pair.fingerprint` is not used.
        folder: The folder to make. Its parent must exist.
        dtype: Type of the weights on disk: float16 or float32.
        overwrite: Replace a folder that is already a pair.

    Returns:
        The folder.

    Raises:
        ParameterError: Another type, or the folder exists and may not be replaced.
        NumericalError: A weight is NaN or Inf, or too large for float16.
        StorageError: The disk is full, read-only or otherwise refuses.
    """
    target = Path(folder)
    if dtype not in (torch.float16, torch.float32):
        raise ParameterError(f"dtype is {dtype}, expected torch.float16 or torch.float32")
    replaceable = overwrite and (target / "pair.json").is_file()
    if target.exists() and not replaceable:
        what = "and is no pair; choose another folder"
        if not overwrite:
            what = "already; choose another folder or pass overwrite=True"
        raise ParameterError(f"{target} exists {what}")
    hidden = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            hidden.mkdir()
            _write(pair, hidden, dtype)
            if replaceable:
                old = hidden.with_name(f"{hidden.name}.old")
                target.rename(old)
                hidden.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                hidden.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(hidden)
            raise
    except BootPIGError:
        raise
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise StorageError(f"cannot save the pair to {str(target)!r}: {reason}") from error
    return target


def _write(pair: Pair, folder: Path, dtype: torch.dtype) -> None:
    unets: dict[str, Any] = {"base_unet": pair.base.unet}
    if not pair.config.shared_unet:
        unets["ref_unet"] = pair.reference.unet
    controls = {f"{CONTROL_PREFIX}{one.kind}": one.net.unet for one in pair.controls}
    modules = {**unets, "vae": pair.vae, TINY_VAE: pair.tiny_vae, **controls}
    for name, module in modules.items():
        if module is None:
            continue
        config = json.loads(module.to_json_string())
        tensors = module.state_dict()
        _write_module(folder / name, config, tensors, UNET_STEM, dtype)
    text: Any = pair.text_encoder
    first = text.first if isinstance(text, TwoTextEncoders) else text
    # The prefix is what published checkpoints have, whichever version of transformers reads them.
    states = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in first.state_dict().items()
    }
    _write_module(folder / "text_encoder", first.config.to_dict(), states, TEXT_STEM, dtype)
    if isinstance(text, TwoTextEncoders):
        states, config = text.second.state_dict(), text.second.config.to_dict()
        _write_module(folder / TEXT_ENCODER_2, config, states, TEXT_STEM, dtype)
    tokenizers = {"tokenizer": pair.tokenizer_folder, TOKENIZER_2: pair.tokenizer_2_folder}
    for part, given in tokenizers.items():
        if given is None:
            continue
        (folder / part).mkdir()
        for name in TOKENIZER_FILES:
            if (given / name).is_file():
                _write_bytes(folder / part / name, (given / name).read_bytes())
    (folder / "scheduler").mkdir()
    _write_bytes(folder / "scheduler" / "scheduler_config.json", _json_bytes(pair.scheduler))
    _write_bytes(folder / "pair.json", pair.config.to_json().encode())
    _write_bytes(folder / INDEX_FILE, index_of(pair).encode())


def index_of(pair: Pair) -> str:
    """The text of a pair's `model_index.json`."""
    return model_index_json(
        pair.config,
        autoencoder=type(pair.vae).__name__,
        diffusers_version=diffusers.__version__,
        has_tiny=pair.tiny_vae is not None,
        has_two_texts=pair.tokenizer_2_folder is not None,
    )


def _write_module(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], stem: str, dtype: torch.dtype
) -> None:
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if not is_finite(stored):
            raise NumericalError(
                f"{folder.name}: tensor {name!r} is NaN, Inf or too large for {dtype}; "
                "save an earlier checkpoint, or save with dtype=torch.float32"
            )
        converted[name] = stored
    folder.mkdir()
    # "_name_or_path" would put a path of this machine into the file.
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    _write_bytes(folder / "config.json", _json_bytes(kept))
    _write_bytes(folder / f"{stem}.safetensors", save(converted, metadata={"format": "pt"}))


def _json_bytes(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
