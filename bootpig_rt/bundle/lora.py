"""Which LoRA files are fused into a pair, and how strongly. Knows no tensors and reads no file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from bootpig_rt.errors import ParameterError, shown

MAX_SCALE = 100.0

_SCALE = re.compile(r"(?P<path>.+):(?P<scale>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")

Sha256: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class FusedLora(Struct, frozen=True, forbid_unknown_fields=True):
    """What a pair says of a LoRA that is in its weights.

    Attributes:
        name: Of the file; nothing depends on it.
        sha256: Of the file.
        scale: What its change was multiplied by, beside its own alpha over rank.
        config_sha256: Of the `adapter_config.json` beside it, which an adapter of PEFT takes alpha
            from; None where the file says all.
    """

    name: Annotated[str, Meta(min_length=1, max_length=255)]
    sha256: Sha256
    scale: Annotated[float, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]
    config_sha256: Sha256 | None = None


@dataclass(frozen=True)
class Lora:
    """A LoRA that is to be fused into a pair.

    Attributes:
        path: A safetensors file, or the folder that diffusers or PEFT saved it in.
        scale: What its change is multiplied by, -100 to 100; 1 is as it was trained.

    Raises:
        ParameterError: The path is none, or the scale is no number, out of range or 0.
    """

    path: str | os.PathLike[str]
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check both."""
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise ParameterError(
                f"the path of a LoRA is {shown(self.path)}, expected that of a safetensors file"
            )
        scale = self.scale
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not math.isfinite(scale) or not 0 < abs(scale) <= MAX_SCALE:
            raise ParameterError(
                f"the scale of LoRA {os.fspath(self.path)} is {shown(scale)}, expected a number "
                f"from -{MAX_SCALE:g} to {MAX_SCALE:g} that is not 0; 1 is as it was trained, and "
                "for 0 leave the LoRA out"
            )

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Read `FILE` or `FILE:SCALE`; a file that is named like the whole text is that file.

        Raises:
            ParameterError: As for the class.
        """
        found = _SCALE.fullmatch(text)
        if found is None or Path(text).exists():
            return cls(text)
        return cls(found["path"], float(found["scale"]))


LoraArgument: TypeAlias = (
    str | os.PathLike[str] | Lora | Sequence[str | os.PathLike[str] | Lora] | None
)
"""How an argument gives LoRAs."""


def to_loras(given: LoraArgument) -> tuple[Lora, ...]:
    """LoRAs as an argument gives them: `Lora`s, paths and texts `FILE:SCALE`, one or several.

    Raises:
        ParameterError: It is something else.
    """
    if given is None:
        return ()
    items: list[object] = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        items = list(given)
    loras = []
    for one in items:
        if isinstance(one, Lora):
            loras.append(one)
        elif isinstance(one, str):
            loras.append(Lora.parse(one))
        elif isinstance(one, os.PathLike):
            loras.append(Lora(one))
        else:
            raise ParameterError(
                f"lora holds {shown(one)}, expected a path, FILE:SCALE or Lora(path, scale)"
            )
    return tuple(loras)
