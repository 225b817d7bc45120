"""`pair.json`: what a pair was trained for, and the defaults that a user of it gets.

Knows the file's fields and limits; knows nothing about weights, and needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from bootpig_rt.bundle.lora import FusedLora
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.errors import CheckpointError, ConfigError, describe_os_error, one_line, shown

FORMAT = 1
"""Version of `pair.json` that this package writes, and the only one it reads."""

TINY_VAE = "tiny_vae"
"""Folder of the tiny autoencoder, which a pair may have: diffusers' `AutoencoderTiny`."""

Merge: TypeAlias = Literal["argmax", "softmax", "mean", "concat"]
"""How a row combines several references; with one reference all four are the same."""

MERGES: tuple[Merge, ...] = get_args(Merge)

ReferenceTimestep: TypeAlias = Literal["same", "clean", "mixed"]
"""What the Reference U-Net was trained to read: latents noised to the base's timestep (the
published way), clean latents at timestep 0, or either."""


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Contents of `pair.json`.

    Attributes:
        format: Version of the file, 1.
        name: Shown to users.
        sample_size_px: Side of the pictures that the pair was trained on.
        reference_timestep: `same`, `clean` or `mixed`, see `ReferenceTimestep`.
        subject_share: Longest side of the subject over the side of a prepared reference image.
        ref_scale: Multiplies reference features for the keys only.
        merge: Default way to combine several references.
        max_references: Most references of one subject that were trained or tried.
        default_steps: Default number of denoising steps.
        default_solver: Default solver.
        image_guidance_scale: Default weight of `image - uncond`.
        text_guidance_scale: Default weight of `text_image - image`.
        shared_unet: Both U-Nets have the same weights; the folder then holds no `ref_unet`.
        zeros_for_empty_prompt: The text states of an empty prompt are zeros, as a base model of two
            text encoders may have been trained; not written where they are not.
        loras: What was fused into the weights; not written where there are none.

    Raises:
        ConfigError: A value is of the wrong type or out of range.
    """

    name: str
    sample_size_px: int
    reference_timestep: ReferenceTimestep = "same"
    subject_share: float = 0.86
    ref_scale: float = 1.0
    merge: Merge = "argmax"
    max_references: int = 4
    default_steps: int = 25
    default_solver: SolverName = "dpmpp_2m"
    image_guidance_scale: float = 4.0
    text_guidance_scale: float = 6.5
    shared_unet: bool = False
    zeros_for_empty_prompt: bool = False
    loras: tuple[FusedLora, ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Check every field."""
        if self.format != FORMAT:
            raise ConfigError(
                f"format is {shown(self.format)}, expected {FORMAT}; install a bootpig-rt that "
                "reads it"
            )
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"name is {shown(self.name)}, expected text")
        for name in ("shared_unet", "zeros_for_empty_prompt"):
            if not isinstance(getattr(self, name), bool):
                got = shown(getattr(self, name))
                raise ConfigError(f"{name} is {got}, expected true or false")
        for name, low, high in (
            ("sample_size_px", 8, 4096),
            ("max_references", 1, 1024),
            ("default_steps", 1, 1000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                got = shown(value)
                raise ConfigError(f"{name} is {got}, expected a whole number {low}..{high}")
        for name in ("subject_share", "ref_scale", "image_guidance_scale", "text_guidance_scale"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 100:  # which NaN is not
                raise ConfigError(f"{name} is {shown(value)}, expected a number 0..100")
        if not 0.1 <= self.subject_share <= 1.0:
            raise ConfigError(f"subject_share is {self.subject_share!r}, expected a share 0.1..1")
        for name, choices in (
            ("reference_timestep", get_args(ReferenceTimestep)),
            ("merge", get_args(Merge)),
            ("default_solver", get_args(SolverName)),
        ):
            value = getattr(self, name)
            if value not in choices:
                got = shown(value)
                raise ConfigError(f"{name} is {got}, expected one of {', '.join(choices)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PairConfig:
        """Build from parsed json.

        Raises:
            ConfigError: A field is unknown, missing or wrong.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            expected = ", ".join(sorted(known))
            raise ConfigError(f"unknown field {shown(unknown[0])}, expected only {expected}")
        missing = sorted({"format", "name", "sample_size_px"} - set(values))
        if missing:
            raise ConfigError(f"field {missing[0]!r} is missing")
        try:
            loras = msgspec.convert(values.get("loras", ()), tuple[FusedLora, ...])
        except msgspec.ValidationError as error:
            raise ConfigError(f"loras is wrong: {one_line(str(error))}") from error
        return cls(**{**values, "loras": loras})

    def to_json(self) -> str:
        """The text of `pair.json`, fields in a fixed order, with a final newline."""
        values = asdict(self)
        values["loras"] = msgspec.to_builtins(self.loras)
        for name in ("loras", "zeros_for_empty_prompt"):
            if not values[name]:
                del values[name]
        return json.dumps({"format": values.pop("format"), **values}, indent=2) + "\n"


def published_pair_config(sample_size_px: int) -> PairConfig:
    """Settings of a pair in the layout of the published trainer, which holds no `pair.json`.

    The reference is noised to the base's timestep, and `ref_scale` is 1.1 as in training. Solver,
    steps and guidance scales are those of the authors' notebook.

    Args:
        sample_size_px: Side of the base model's pictures, 512 for Stable Diffusion 2.1 base.
    """
    return PairConfig(
        name="published layout",
        sample_size_px=sample_size_px,
        ref_scale=1.1,
        default_solver="unipc",
    )


def trained_size_px(unet: Path, vae: Path) -> int:
    """Side of the pictures that a U-Net was trained on, from the configurations of two modules.

    Args:
        unet: Folder of the U-Net.
        vae: Folder of the autoencoder.

    Raises:
        CheckpointError: They do not say it.
    """
    path = unet / "config.json"
    latent_side = read_json(path).get("sample_size")
    latent_side = 64 if latent_side is None else latent_side
    blocks = read_json(vae / "config.json").get("block_out_channels")
    is_side = isinstance(latent_side, int) and not isinstance(latent_side, bool)
    if not is_side or not 1 <= latent_side <= 512:
        raise CheckpointError(
            f"{path}: sample_size is {shown(latent_side)}, expected a whole number 1..512, latents "
            "along a side; repair it or copy the model folder again",
            path,
        )
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
        path = vae / "config.json"
        raise CheckpointError(
            f"{path}: block_out_channels is {shown(blocks)}, expected a list of 1 to 8 numbers; "
            "copy the model folder again",
            path,
        )
    return min(4096, max(8, int(latent_side * 2 ** (len(blocks) - 1))))


def read_pair_config(path: str | os.PathLike[str]) -> PairConfig:
    """Read and check a `pair.json`.

    Raises:
        CheckpointError: The file is missing, is not json, or holds a wrong field.
    """
    try:
        return PairConfig.from_dict(read_json(path))
    except ConfigError as error:
        raise CheckpointError(
            f"{os.fspath(path)}: {error}; repair it or save the pair again", path
        ) from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse a json file that holds one object.

    Raises:
        CheckpointError: The file is missing, unreadable, not UTF-8, not json or not an object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{os.fspath(path)} is missing; copy the model folder again", path
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)} cannot be read: {describe_os_error(error)}", path
        ) from error
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad json are ValueErrors
        raise CheckpointError(
            f"{os.fspath(path)} is not valid json ({error}); copy the model folder again", path
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{os.fspath(path)} holds a json {type(values).__name__}, expected an object; "
            "copy the model folder again",
            path,
        )
    return values
