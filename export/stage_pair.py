"""A pair in any layout, put into the folder of a bundle: linked where it fits, else converted.

Graphs point into the weights files beside them, so those must be one safetensors file a module with
today's tensor names. A pair that `save_pair` wrote is linked, and its weights take their place on
the disk once; the published layout and sharded weights are written anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from bootpig_rt.bundle_files import list_files
from bootpig_rt.errors import ParameterError
from bootpig_rt.export.work_folder import link_or_copy, remove
from bootpig_rt.models.load import TEXT_STEM, TOKENIZER_FILES, UNET_STEM, Pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.pair_config import read_pair_config

_GRAPH_SUFFIXES = (".onnx", ".engine", ".layers.json")


def pair_files(folder: Path) -> list[str] | None:
    """Paths of the files of a pair that graphs can point into, or None if they cannot.

    Args:
        folder: The pair; checked already.
    """
    if not (folder / "pair.json").is_file():
        return None
    config = read_pair_config(folder / "pair.json")
    files = ["pair.json", "scheduler/scheduler_config.json"]
    modules = {"base_unet": UNET_STEM, "vae": UNET_STEM, "text_encoder": TEXT_STEM}
    if not config.shared_unet:
        modules["ref_unet"] = UNET_STEM
    for name, stem in modules.items():
        files += [f"{name}/config.json", f"{name}/{stem}.safetensors"]
    if not all((folder / file).is_file() for file in files):
        return None
    with safe_open(folder / "text_encoder" / f"{TEXT_STEM}.safetensors", framework="pt") as stream:
        if not any(name.startswith("text_model.") for name in stream.keys()):
            return None
    tokenizer = [f"tokenizer/{name}" for name in TOKENIZER_FILES]
    return files + [file for file in tokenizer if (folder / file).is_file()]


def check_in_place(folder: Path, files: list[str] | None) -> None:
    """Refuse to turn a pair's own folder into a bundle where that cannot end well.

    Args:
        folder: The pair and the bundle.
        files: From `pair_files`.

    Raises:
        ParameterError: The weights would have to be converted, or other files lie in the folder.
        BundleError: One of the files is a symbolic link.
    """
    if files is None:
        raise ParameterError(
            f"{folder} cannot become a bundle in its own place: it is not the single folder with "
            "one safetensors file a module that graphs can point into; choose another -o"
        )
    for file in list_files(folder):
        if file.path not in files and not file.path.endswith(_GRAPH_SUFFIXES):
            raise ParameterError(
                f"{folder / file.path} is no file of a pair, and a bundle holds nothing else; "
                "move it away, or choose another -o"
            )


def stage_pair(source: Path, files: list[str] | None, pair: Pair, folder: Path) -> None:
    """Put a pair into a folder, which may hold what an earlier build left.

    Args:
        source: Where the pair lies.
        files: From `pair_files`.
        pair: What was loaded from there; written when `files` is None.
        folder: Where graphs will be written.

    Raises:
        NumericalError: A weight is too large for float16.
        StorageError, OSError: The disk is full, read-only or otherwise refuses.
    """
    folder.mkdir(exist_ok=True)
    if files is not None:
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            if file.endswith(".safetensors"):
                link_or_copy(source / file, folder / file)
            else:  # small, and edited by hand now and then
                shutil.copyfile(source / file, folder / file)
        return
    written = folder.with_name(f"{folder.name}.pair")
    remove(written)
    save_pair(pair, written, dtype=_stored_type(source))
    for entry in written.iterdir():
        target = folder / entry.name
        remove(target)
        os.replace(entry, target)
    shutil.rmtree(written)


def _stored_type(source: Path) -> torch.dtype:
    """float16 if the Base U-Net is stored so, else float32: nothing is lost."""
    for path in sorted((source / "base_unet").glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():
                if stream.get_slice(name).get_dtype() != "F16":
                    return torch.float32
    return torch.float16
