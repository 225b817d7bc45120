"""`model_index.json`: which class loads which part of a pair's folder, as Hugging Face lays it out.

diffusers and its hub find the parts of a model by it. The runtime needs it for nothing but to tell
folders apart: what a pair is stands in `pair.json`. Needs neither torch nor diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.pair_config import TINY_VAE, PairConfig, read_json
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.errors import CheckpointError, shown

FILE = "model_index.json"

PIPELINE = "BootPIGPipeline"
"""Name of the class that loads a pair as a whole, in `bootpig_rt.integrations.diffusers`."""

SCHEDULERS: Mapping[SolverName, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""The class of diffusers that takes the steps of a solver."""

AUTOENCODER_LIBRARIES = {"PatchAutoencoder": "bootpig_rt.models.patch_autoencoder"}
"""Where an autoencoder's class lies, if it is none of diffusers'."""


_TINY = ["diffusers", "AutoencoderTiny"]


def model_index_json(
    config: PairConfig,
    *,
    autoencoder: str,
    diffusers_version: str,
    has_tiny: bool = False,
    has_two_texts: bool = False,
) -> str:
    """The text of `model_index.json`, with a final newline.

    Args:
        config: Of the pair.
        autoencoder: Class of its autoencoder, `AutoencoderKL`.
        diffusers_version: Of the package that wrote the parts.
        has_tiny: It has a tiny autoencoder.
        has_two_texts: It has a second text encoder and tokenizer.
    """
    unet = ["diffusers", "UNet2DConditionModel"]
    values: dict[str, Any] = {
        "_class_name": PIPELINE,
        "_diffusers_version": diffusers_version,
        "base_unet": unet,
        "ref_unet": [None, None] if config.shared_unet else unet,
        "scheduler": ["diffusers", SCHEDULERS[config.default_solver]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": [AUTOENCODER_LIBRARIES.get(autoencoder, "diffusers"), autoencoder],
    }
    if has_tiny:
        values[TINY_VAE] = _TINY
    if has_two_texts:
        values[TEXT_ENCODER_2] = ["transformers", "CLIPTextModelWithProjection"]
        values[TOKENIZER_2] = ["transformers", "CLIPTokenizer"]
    return json.dumps(values, indent=2) + "\n"


def says_zeros(base_model: Path) -> bool:
    """Whether empty prompts are zeros for a base model of two text encoders, by its index.

    As diffusers has it where the index does not say; without an index they are not.

    Raises:
        CheckpointError: The index is damaged.
    """
    path = base_model / FILE
    if not path.is_file():
        return False
    return bool(read_json(path).get("force_zeros_for_empty_prompt", True))


def with_tiny(text: str) -> str:
    """The text of an index of a pair that a tiny autoencoder was put into afterwards."""
    return json.dumps({**json.loads(text), TINY_VAE: _TINY}, indent=2) + "\n"


def check_model_index(folder: Path) -> None:
    """Refuse a folder whose `model_index.json` says that it is no pair, or not all of one.

    A folder without that file is let through, and so is one that holds both U-Nets beside a base
    model's file.

    Raises:
        CheckpointError: It is of another pipeline, or `pair.json` is missing or says otherwise.
    """
    path = folder / FILE
    if not path.is_file():
        return
    values = read_json(path)
    name = values.get("_class_name")
    if name != PIPELINE:
        if (folder / "base_unet").is_dir():
            return
        raise CheckpointError(
            f"{folder} is the folder of a {shown(name)}, expected a pair; to make one of a Stable "
            f"Diffusion folder: bootpig-rt init-pair --base-model {folder} -o PAIR",
            folder,
        )
    if not (folder / "pair.json").is_file():
        raise CheckpointError(
            f"{folder} is a pair by its {FILE}, but its pair.json is missing; copy the model "
            "folder again",
            folder / "pair.json",
        )
    _check_reference_unet(path, values, read_json(folder / "pair.json"))


def _check_reference_unet(path: Path, index: Mapping[str, Any], pair: Mapping[str, Any]) -> None:
    """Both files say whether the Reference U-Net has weights of its own."""
    part = index.get("ref_unet")
    is_shared = not isinstance(part, list) or part[:1] == [None]
    if is_shared != bool(pair.get("shared_unet", False)):
        own = "none" if is_shared else "one of its own"
        raise CheckpointError(
            f"{path} says that the pair has {own} for ref_unet, and pair.json the contrary; copy "
            "both from one pair",
            path,
        )
