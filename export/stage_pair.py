"""A pair in any layout, put into the folder of a bundle: linked where it fits, else converted.

Graphs point into the weights files beside them, so those must be one safetensors file a module with
today's tensor names. A pair that `save_pair` wrote is linked, and its weights take their place on
the disk once; the published layout and sharded weights are written anew.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from bootpig_rt.bundle.control import (
    CONTROL_PREFIX,
    CONTROL_WEIGHTS,
    ControlFolder,
    find_controls,
)
from bootpig_rt.bundle.files import list_files
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.model_index import with_tiny
from bootpig_rt.bundle.pair_config import TINY_VAE, read_json, read_pair_config
from bootpig_rt.bundle.text_parts import text_encoders, text_parts
from bootpig_rt.errors import ParameterError
from bootpig_rt.export.build_options import Stored, Weights
from bootpig_rt.export.work_folder import link_or_copy, remove
from bootpig_rt.models.load import TOKENIZER_FILES, Pair
from bootpig_rt.models.module_folder import TEXT_STEM, UNET_STEM
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.weights import fit_half

logger = logging.getLogger(__name__)

CARD = "README.md"
"""The model card: a text for people, which no manifest lists."""

_GRAPH_SUFFIXES = (".onnx", ".engine", ".layers.json")


def pair_files(folder: Path) -> list[str] | None:
    """Paths of the files of a checked pair that graphs can point into, or None if they cannot."""
    if not (folder / "pair.json").is_file():
        return None
    config = read_pair_config(folder / "pair.json")
    files = ["pair.json", "scheduler/scheduler_config.json"]
    unet = read_json(folder / "base_unet" / "config.json")
    encoders = text_encoders(unet)
    modules = {"base_unet": UNET_STEM, "vae": UNET_STEM, **dict.fromkeys(encoders, TEXT_STEM)}
    if not config.shared_unet:
        modules["ref_unet"] = UNET_STEM
    if (folder / TINY_VAE).is_dir():
        modules[TINY_VAE] = UNET_STEM
    modules |= {control.path.name: UNET_STEM for control in find_controls(folder)}
    for name, stem in modules.items():
        files += [f"{name}/config.json", f"{name}/{stem}.safetensors"]
    if not all((folder / file).is_file() for file in files):
        return None
    for part in encoders:
        with safe_open(folder / part / f"{TEXT_STEM}.safetensors", framework="pt") as stream:
            if not any(name.startswith("text_model.") for name in stream.keys()):
                return None
    tokenizers = [part for part in text_parts(unet) if part not in encoders]
    optional = [INDEX_FILE, *(f"{part}/{name}" for part in tokenizers for name in TOKENIZER_FILES)]
    return files + [file for file in optional if (folder / file).is_file()]


def are_stored_as(folder: Path, files: list[str], dtype: Stored) -> bool:
    """Whether all weights in the files of `pair_files` have a type."""
    wanted = {"float16": "F16", "float32": "F32"}[dtype]
    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(folder / file, framework="pt") as stream:
                names = stream.keys()
                if any(stream.get_slice(name).get_dtype() != wanted for name in names):
                    return False
    return True


def check_in_place(
    folder: Path, files: list[str] | None, controls: Sequence[ControlFolder] = ()
) -> None:
    """Refuse to turn a pair's own folder into a bundle where that cannot end well.

    Raises:
        ParameterError: The weights would have to be converted, or other files lie in the folder.
        BundleError: One of the files is a symbolic link.
    """
    if files is None:
        raise ParameterError(
            f"{folder} cannot become a bundle in its own place, because its weights must be "
            "written anew: they are not one safetensors file a module that graphs can point into, "
            "or not of the type that --weights asks for, or LoRAs change them; choose another -o"
        )
    if controls:
        raise ParameterError(
            f"{folder} cannot become a bundle in its own place with --control: copy "
            f"{controls[0].path} there as {CONTROL_PREFIX}{controls[0].kind}, or choose another -o"
        )
    for file in list_files(folder):
        if file.path not in files and not file.path.endswith(_GRAPH_SUFFIXES):
            raise ParameterError(
                f"{folder / file.path} is no file of a pair, and a bundle holds nothing else; "
                "move it away, or choose another -o"
            )


def link_pair(
    source: Path, files: list[str], folder: Path, controls: Sequence[ControlFolder] = ()
) -> None:
    """Give a pair with its `pair_files` a second place, where its weights are the same files.

    So do ControlNets from elsewhere, each of one file of weights.

    The folder may hold what an earlier build left.

    Raises:
        OSError: The disk is full, read-only or otherwise refuses.
    """
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        if file.endswith(".safetensors"):
            link_or_copy(source / file, folder / file)
        else:  # small, and edited by hand now and then
            shutil.copyfile(source / file, folder / file)
    for control in controls:
        part = folder / f"{CONTROL_PREFIX}{control.kind}"
        part.mkdir(exist_ok=True)
        link_or_copy(control.path / CONTROL_WEIGHTS, part / CONTROL_WEIGHTS)
        shutil.copyfile(control.path / "config.json", part / "config.json")
    if (folder / TINY_VAE).is_dir() and INDEX_FILE in files:
        index = folder / INDEX_FILE
        index.write_text(with_tiny(index.read_text(encoding="utf-8")), encoding="utf-8")
    if (source / CARD).is_file():
        shutil.copyfile(source / CARD, folder / CARD)


def write_pair(pair: Pair, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a pair anew, as files of type `dtype` that graphs can point into; see `stored_type`.

    The folder may hold what an earlier build left.

    Raises:
        NumericalError: A weight is too large for float16.
        StorageError, OSError: The disk is full, read-only or otherwise refuses.
    """
    folder.mkdir(exist_ok=True)
    written = folder.with_name(f"{folder.name}.pair")
    remove(written)
    save_pair(pair, written, dtype=dtype)
    for entry in written.iterdir():
        target = folder / entry.name
        remove(target)
        os.replace(entry, target)
    shutil.rmtree(written)


def stored_type(pair: Pair, weights: Weights, *, is_exact: bool) -> torch.dtype:
    """The type that weights are written in where they are written anew.

    Args:
        pair: Loaded in float32.
        weights: `BuildOptions.stored_as` where that is a type, else what was asked for. `auto` is
            float16 where the values fit into it.
        is_exact: With `auto`: whoever compares the result with the pair has no stored weights to
            compute with, as for engines in float32.

    Returns:
        float16 or float32. Graphs that compute in float32 read float16 and widen it.
    """
    if weights == "float16":
        return torch.float16
    if weights == "float32":
        return torch.float32
    states = (tensor for module in pair.modules for tensor in module.state_dict().values())
    tensors = [tensor for tensor in states if tensor.is_floating_point()]
    if fit_half(tensors):
        return torch.float16
    if weights == "as-is" or is_exact:
        return torch.float32
    largest = max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
    if largest > torch.finfo(torch.float16).max:
        logger.warning(
            "weights stay float32 on disk: the largest is %.3g, and float16 ends at 65504", largest
        )
        return torch.float32
    return torch.float16
