"""A LoRA file as layers: the names of diffusers, kohya and PEFT, and what alpha says.

A layer changes the weight of one module by `alpha / rank * up @ down`; in files of LoCon the
modules are convolutions as well. Which module is meant is found out by who has them: this file
knows no model. A key that is no part of a layer is kept by name, so that it can be told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bootpig_rt.bundle.files import measure
from bootpig_rt.bundle.lora import FusedLora, Lora
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import CheckpointError, shown
from bootpig_rt.models.lora_names import as_diffusers
from bootpig_rt.models.weights import read_file

Part: TypeAlias = Literal["unet", "text_encoder", "text_encoder_2"]

NAMES_IN_FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG = "adapter_config.json"

# What comes between the name of a module and the end of a key, by who wrote it.
_ENDS: dict[str, re.Pattern[str]] = {
    role: re.compile(rf"(?P<module>.+?)(?:{end})")
    for role, end in {
        "down": r"(?:\.lora_down|\.lora\.down|_lora\.down|\.lora_linear_layer\.down"
        r"|\.lora_A(?:\.\w+)?)\.weight",
        "up": r"(?:\.lora_up|\.lora\.up|_lora\.up|\.lora_linear_layer\.up"
        r"|\.lora_B(?:\.\w+)?)\.weight",
        "mid": r"\.lora_mid\.weight",
        "alpha": r"(?:\.lora|_lora|\.lora_linear_layer)?\.alpha",
    }.items()
}
_FLAT: dict[str, Part] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_DOTTED: dict[str, Part] = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_PEFT = "base_model.model."
_OF_TEXT = ("text_model.", "encoder.layers.", "text_projection")
_DIFFUSERS_METADATA = "lora_adapter_metadata"
_MOST_SHOWN = 8


@dataclass
class Layer:
    """The change of one module.

    Attributes:
        part: Whose module it is.
        module: Its name, as the file writes it but for what all names begin with.
        is_flat: Underscores stand for the dots of the name too, as kohya writes.
        keys: Of the file, by role: `down`, `up`, `mid`, `alpha`.
        tensors: By role. `down` [r, in] or [r, in, kh, kw], `up` [out, r] or [out, r, 1, 1], `mid`
            [r, r, kh, kw] between two of 1 x 1.
        factor: alpha over rank.
    """

    part: Part
    module: str
    is_flat: bool
    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    factor: float = 1.0

    @property
    def rank(self) -> int:
        """r, of its first product."""
        return int(self.tensors["down"].shape[0])

    def describe(self) -> str:
        """Keys and shapes, for messages."""
        return ", ".join(
            f"{named(self.keys[role])} {list(tensor.shape)}"
            for role, tensor in self.tensors.items()
        )


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    Attributes:
        path: Of the file.
        lora: As a pair keeps it in mind.
        layers: One for each module.
        unknown: Keys that are no part of a layer; where there are some, layers were not checked.
    """

    path: Path
    lora: FusedLora
    layers: tuple[Layer, ...]
    unknown: tuple[str, ...] = ()


def read_lora(lora: Lora) -> LoraFile:
    """Read a file and put its keys together as layers.

    Raises:
        CheckpointError: No such file, a pickle, a damaged file, NaN; half a layer, or one whose
            tensors do not fit each other; an adapter of PEFT without the file that says its alpha.
    """
    path = _file(Path(lora.path))
    sha256 = measure(path)[1]
    tensors = read_file(path)
    layers: dict[tuple[Part, str], Layer] = {}
    unknown: list[str] = []
    is_peft = False
    for key, tensor in tensors.items():
        found = _split(key)
        if found is None:
            unknown.append(key)
            continue
        role, layer = found
        layer = layers.setdefault((layer.part, layer.module), layer)
        if role in layer.keys:
            raise CheckpointError(
                f"{path}: {named(layer.keys[role])} and {named(key)} are the same "
                "tensor of one module; the file was put together wrongly, take another",
                path,
            )
        layer.keys[role], layer.tensors[role] = key, tensor
        is_peft = is_peft or _PEFT in key
    if unknown:  # another kind of file: that its layers are not whole would be no help
        fused = FusedLora(path.name, sha256, float(lora.scale))
        return LoraFile(path, fused, tuple(layers.values()), tuple(unknown))
    config = path.parent / CONFIG
    settings, config_sha256 = _metadata(path), None
    if is_peft and not settings:
        if not config.is_file():
            raise CheckpointError(
                f"{path} has names of PEFT, whose alpha stands in {CONFIG}, and there is none "
                "beside it; copy it from where the file came from",
                path,
            )
        settings, config_sha256 = read_json(config), measure(config)[1]
    for layer in layers.values():
        _check_layer(path, layer)
        layer.factor = _factor(path, layer, settings)
    fused = FusedLora(path.name, sha256, float(lora.scale), config_sha256)
    return LoraFile(path, fused, tuple(layers.values()))


def named(name: str) -> str:
    """A key or the name of a module for a message; those of today have about 90 characters."""
    return shown(name, 120)


def names_text(names: list[str]) -> str:
    """Some keys for a message, and how many more there are."""
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(named(name) for name in names[:_MOST_SHOWN]) + more


def _file(path: Path) -> Path:
    """The file of a path, which may be that of a folder.

    Raises:
        CheckpointError: There is none, or another kind.
    """
    if path.is_dir():
        found = [path / name for name in NAMES_IN_FOLDER if (path / name).is_file()]
        if len(found) != 1:
            raise CheckpointError(
                f"LoRA folder {path} holds {len(found)} of {' and '.join(NAMES_IN_FOLDER)}, "
                "expected one; name the file itself",
                path,
            )
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"LoRA {path} does not exist; check the path", path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"LoRA {path} is no .safetensors file; a pickle can run code when it is opened, "
            "convert it where you trust it",
            path,
        )
    return path


def _split(key: str) -> tuple[str, Layer] | None:
    """The role of a key and the empty layer that it belongs to; None for another kind of key."""
    for role, pattern in _ENDS.items():
        match = pattern.fullmatch(key)
        if match is not None:
            return role, _layer(match["module"])
    return None


def _layer(name: str) -> Layer:
    for prefix, part in _FLAT.items():
        if name.startswith(prefix):
            module = name.removeprefix(prefix)
            return Layer(part, as_diffusers(module) if part == "unet" else module, True)
    found: Part | None = None
    for prefix, dotted in _DOTTED.items():
        if name.startswith(prefix):
            found, name = dotted, name.removeprefix(prefix)
            break
    name = name.removeprefix(_PEFT)
    if found is None:
        found = "text_encoder" if name.startswith(_OF_TEXT) else "unet"
    # Of the time when attention processors held the layers.
    name = name.replace(".processor.", ".")
    return Layer(found, f"{name}.0" if name.endswith(".to_out") else name, False)


def _check_layer(path: Path, layer: Layer) -> None:
    """Refuse half a layer, and one whose tensors do not fit each other.

    Raises:
        CheckpointError: Names keys and shapes.
    """
    tensors = layer.tensors
    missing = [role for role in ("down", "up") if role not in tensors]
    if missing:
        raise CheckpointError(
            f"{path}: of module {named(layer.module)} there is {layer.describe()} and no "
            f"{' and no '.join(missing)}; the file is not whole, download or copy it again",
            path,
        )
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    fits = all(tensor.is_floating_point() for tensor in tensors.values() if tensor.dim())
    fits = fits and down.dim() in (2, 4) and up.dim() in (2, 4)
    fits = fits and up.shape[1] == (down.shape[0] if mid is None else mid.shape[0])
    fits = fits and all(side == 1 for side in up.shape[2:]) and layer.rank > 0
    if mid is not None:
        fits = fits and mid.dim() == 4 and mid.shape[1] == down.shape[0]
        fits = fits and all(side == 1 for side in down.shape[2:])
    if not fits:
        raise CheckpointError(
            f"{path}: {layer.describe()} do not fit each other, expected down [rank, in, ...] and "
            "up [out, rank] of one rank; the file is damaged or of another kind, take another",
            path,
        )


def _factor(path: Path, layer: Layer, settings: Mapping[str, Any]) -> float:
    """Alpha over rank: alpha of the layer, else of the adapter's settings, else the rank.

    Raises:
        CheckpointError: It is no positive number, or the adapter is of a kind that is not fused.
    """
    tensor = layer.tensors.pop("alpha", None)
    alpha: object = None
    if tensor is not None:
        alpha = tensor.item() if tensor.numel() == 1 else list(tensor.shape)
    elif settings:
        nested = settings.get(layer.part)
        own: Mapping[str, Any] = nested if isinstance(nested, Mapping) else settings
        if own.get("use_dora"):
            raise CheckpointError(
                f"{path} is a DoRA, which scales weights anew beside what it adds; expected a "
                "LoRA, train or export it as one",
                path,
            )
        alpha = own.get("lora_alpha")
        patterns = own.get("alpha_pattern")
        for pattern, value in (patterns if isinstance(patterns, Mapping) else {}).items():
            if _matches(path, pattern, layer.module):
                alpha = value
                break
        if own.get("use_rslora") and isinstance(alpha, int | float):
            alpha = alpha * layer.rank**0.5
    if alpha is None:
        return 1.0
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not isinstance(alpha, int | float) or not is_number or not 0 < alpha < math.inf:
        raise CheckpointError(
            f"{path}: alpha of module {named(layer.module)} is {shown(alpha)}, expected one "
            "number above 0; take another file",
            path,
        )
    return float(alpha) / layer.rank


def _matches(path: Path, pattern: str, module: str) -> bool:
    """Whether a pattern of PEFT means a module: the end of its name, after a dot.

    Raises:
        CheckpointError: It is no pattern.
    """
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module) is not None
    except re.error as error:
        raise CheckpointError(
            f"{path}: alpha_pattern has {shown(pattern)}, which is no regular expression; repair "
            f"the {CONFIG}",
            path,
        ) from error


def _metadata(path: Path) -> dict[str, Any]:
    """Settings of adapters that diffusers keeps in the file, by part of the pipeline.

    Raises:
        CheckpointError: They are damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_DIFFUSERS_METADATA)
    except (OSError, SafetensorError) as error:
        what = f"{path} has changed while it was read; copy it again"
        raise CheckpointError(what, path) from error
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its {_DIFFUSERS_METADATA} is no json; download or copy it again", path
        ) from error
    parts: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts
