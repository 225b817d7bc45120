"""A pair or a Stable Diffusion folder: its path, or its id on a hub where one can be reached.

Only the files that a pair is made of are fetched, and never a pickle. A folder needs no network and
no package beyond those of torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from bootpig_rt.bundle.control import CONTROL_PREFIX
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.errors import BackendUnavailable, CheckpointError
from bootpig_rt.models.load import TOKENIZER_FILES
from bootpig_rt.models.module_folder import TEXT_STEM, UNET_STEM

logger = logging.getLogger(__name__)

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_TEXTS = {"text_encoder": TEXT_STEM, TEXT_ENCODER_2: TEXT_STEM}
_STEM_OF_MODULE = {"unet": UNET_STEM, "vae": UNET_STEM, **_TEXTS}
_STEM_OF_PART = {
    "base_unet": UNET_STEM,
    "ref_unet": UNET_STEM,
    "vae": UNET_STEM,
    "tiny_vae": UNET_STEM,
    **_TEXTS,
}
_PAIR_FILES = ("pair.json", INDEX_FILE, "README.md", "manifest.json", "manifest.sig")


def base_model_folder(name: str | Path) -> Path:
    """The folder of a base model, fetched first when `name` is an id on a hub.

    A folder of that name is always preferred. The id is `owner/name`; where it is fetched from and
    kept is what `huggingface_hub` reads from its environment (`HF_ENDPOINT`, `HF_HOME`).

    Raises:
        CheckpointError: Neither a folder nor an id, or the hub cannot be reached or lacks it.
        BackendUnavailable: An id, and `huggingface_hub` is not installed.
    """
    expected = "a Stable Diffusion folder or an id such as stabilityai/stable-diffusion-2-1-base"
    return _folder_or_id(name, "base model", expected) or _fetch(str(name), wanted_model_files)


def pair_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a pair or a bundle, fetched first when `name` is an id on a hub.

    Args:
        name: Of the folder, or the id.
        revision: Of a pair of a hub: a branch, a tag or a commit; its latest by default.

    Raises:
        CheckpointError: Neither a folder nor an id, or the hub cannot be reached or lacks it.
        BackendUnavailable: An id, and `huggingface_hub` is not installed.
    """
    expected = "the folder of a pair or an id such as owner/pair"
    return _folder_or_id(name, "model", expected) or _fetch(str(name), wanted_pair_files, revision)


def _folder_or_id(name: str | Path, what: str, expected: str) -> Path | None:
    """The folder of that name; None where there is none and the name may be an id."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or not _MODEL_ID.fullmatch(str(name)):
        found = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{what} {folder} {found}, expected {expected}; check the path", folder
        )
    return None


def wanted_model_files(names: Iterable[str]) -> list[str]:
    """The files of a listing that `init-pair` reads; sorted.

    Args:
        names: As for `wanted_files`.
    """
    listing = list(names)
    # The one setting in it that the parts do not hold is whether empty prompts are zeros.
    return sorted([*wanted_files(listing), *(name for name in [INDEX_FILE] if name in listing)])


def wanted_pair_files(names: Iterable[str]) -> list[str]:
    """The files of a listing that belong to a pair, and to a bundle all of it; sorted.

    Args:
        names: As for `wanted_files`.
    """
    listing = list(names)
    if "manifest.json" in listing:  # which names every file, and nothing else may lie there
        return sorted(name for name in listing if not name.startswith("."))
    stems = dict(_STEM_OF_PART)
    tops = {PurePosixPath(name).parts[0] for name in listing}
    stems |= {top: UNET_STEM for top in tops if top.startswith(CONTROL_PREFIX)}
    wanted = wanted_files(listing, stems)
    return sorted([*wanted, *(name for name in _PAIR_FILES if name in listing)])


def wanted_files(
    names: Iterable[str], stem_of_module: Mapping[str, str] = _STEM_OF_MODULE
) -> list[str]:
    """The files of a model's listing that a pair is made of, sorted.

    Of each module the weights in the order in which they are looked for on disk: one safetensors
    file, else an index with its shards, else the float16 file.

    Args:
        names: Paths within the model, with forward slashes.
        stem_of_module: Folders with weights, and how their files begin.
    """
    listing = sorted(names)
    wanted: list[str] = []
    for path in map(PurePosixPath, listing):
        folder = str(path.parent)
        is_tokenizer = folder in ("tokenizer", TOKENIZER_2) and path.name in TOKENIZER_FILES
        is_config = folder in stem_of_module and path.name == "config.json"
        if is_tokenizer or is_config or str(path) == "scheduler/scheduler_config.json":
            wanted.append(str(path))
    for folder, stem in stem_of_module.items():
        prefix = f"{folder}/{stem}"
        shards = [name for name in listing if re.fullmatch(rf"{prefix}-\d.*\.safetensors", name)]
        index = f"{prefix}.safetensors.index.json"
        for choice in (
            [f"{prefix}.safetensors"],
            [index, *shards],
            [f"{prefix}.fp16.safetensors"],
        ):
            if choice[0] in listing:
                wanted += choice
                break
    return sorted(wanted)


def _fetch(
    model_id: str, wanted: Callable[[Iterable[str]], list[str]], revision: str | None = None
) -> Path:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"model {model_id!r} is no folder here, and fetching it from a hub needs the "
            "package huggingface_hub; pip install huggingface_hub, or give a folder"
        ) from error
    logger.info("no folder %s here; fetching the model of that name from the hub", model_id)
    try:
        at: dict[str, Any] = {} if revision is None else {"revision": revision}
        info = huggingface_hub.HfApi().model_info(model_id, **at)
        files = wanted(sibling.rfilename for sibling in info.siblings or ())
        return Path(
            huggingface_hub.snapshot_download(model_id, revision=info.sha, allow_patterns=files)
        )
    # The kind depends on the version and on its http library: none, timeouts, refusals, 404, 401.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"model {model_id!r} is no folder here and could not be fetched from the hub "
            f"({reason}); check the id and the network, or give a folder that holds its parts"
        ) from error
