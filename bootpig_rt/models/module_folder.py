"""One module of a pair, from its folder: built, compared with its file, and filled in.

Knows the folders of U-Nets, autoencoders and text encoders, and not what they make together.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2
from bootpig_rt.errors import CheckpointError, shown
from bootpig_rt.models.lora import LoraSet
from bootpig_rt.models.lora_file import Part
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.models.unet_config import check_unet_config
from bootpig_rt.models.weights import (
    check_names_and_shapes,
    digest_tensors,
    fit_half,
    read_weights,
)

UNET_STEM = "diffusion_pytorch_model"
TEXT_STEM = "model"

AUTOENCODERS: dict[str, Any] = {
    kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, PatchAutoencoder)
}
"""Kinds of autoencoder, by the `_class_name` of their configuration."""

# What the model classes raise on configurations that make no sense.
_CONFIG_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)

# Attention weights of autoencoders saved before diffusers 0.15.
_OLD_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class ModuleLoader:
    """Reads module folders to one device and type, and feeds what it read to a digest."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype, digest: Any) -> None:
        self._device = device
        self._dtype = dtype
        self._digest = digest

    def add(self, name: str, content: bytes) -> None:
        """Feed one part to the digest; its length keeps parts apart."""
        self._digest.update(f"{name} {len(content)}\n".encode() + content)

    def unet(self, folder: Path, loras: LoraSet | None = None) -> Any:
        """A U-Net, with LoRAs where there are some."""
        config = read_json(folder / "config.json")
        check_unet_config(config, folder / "config.json")
        return self._module(
            folder,
            UNET_STEM,
            config,
            lambda: _from_config(UNet2DConditionModel, config),
            fuse=_fuse(loras, "unet"),
        )

    def vae(self, folder: Path, *, upcasts: bool = False) -> Any:
        """An autoencoder of one of the kinds; `upcasts` is that of `load_pair`."""
        config = read_json(folder / "config.json")
        name = config.get("_class_name", AutoencoderKL.__name__)
        kind = AUTOENCODERS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise CheckpointError(
                f"{folder / 'config.json'}: the autoencoder is of class {shown(name)}, expected "
                f"{', '.join(AUTOENCODERS)}; use a pair or a base model with one of these",
                folder / "config.json",
            )
        # An AutoencoderTiny has the key too, and runs in float16 all the same.
        is_wide = upcasts and config.get("force_upcast", True) and kind is not AutoencoderTiny
        return self._module(
            folder,
            UNET_STEM,
            config,
            lambda: _from_config(kind, config),
            dtype=torch.float32 if is_wide else self._dtype,
        )

    def tiny_vae(self, folder: Path) -> Any:
        """A tiny autoencoder."""
        config = read_json(folder / "config.json")
        name = config.get("_class_name")
        if name != AutoencoderTiny.__name__:
            raise CheckpointError(
                f"{folder / 'config.json'}: the tiny autoencoder is of class {shown(name)}, "
                f"expected {AutoencoderTiny.__name__}, such as TAESD in diffusers' layout",
                folder / "config.json",
            )
        return self._module(
            folder, UNET_STEM, config, lambda: _from_config(AutoencoderTiny, config)
        )

    def control(self, folder: Path, check: Callable[[Mapping[str, Any]], None]) -> Any:
        """A ControlNet; `check` refuses its configuration ahead of its weights."""
        path = folder / "config.json"
        config = read_json(path)
        name = config.get("_class_name", ControlNetModel.__name__)
        if name != ControlNetModel.__name__:
            raise CheckpointError(
                f"{path}: the control is of class {shown(name)}, expected "
                f"{ControlNetModel.__name__}, a ControlNet in diffusers' layout",
                path,
            )
        check_unet_config(config, path)
        check(config)
        return self._module(
            folder,
            UNET_STEM,
            config,
            lambda: _from_config(ControlNetModel, config),
            role="control",  # wherever it lies, and whatever its folder is called
        )

    def text_encoder(self, folder: Path, loras: LoraSet) -> Any:
        """A text encoder, with LoRAs where there are some; `text_encoder_2` has a projection."""
        config, is_second = read_json(folder / "config.json"), folder.name == TEXT_ENCODER_2
        kind: Any = CLIPTextModelWithProjection if is_second else CLIPTextModel
        return self._module(
            folder,
            TEXT_STEM,
            config,
            lambda: kind(CLIPTextConfig.from_dict(config)),
            fuse=_fuse(loras, "text_encoder_2" if is_second else "text_encoder"),
        )

    def _module(
        self,
        folder: Path,
        stem: str,
        config: Mapping[str, Any],
        build: Callable[[], nn.Module],
        *,
        dtype: torch.dtype | None = None,
        fuse: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        role: str | None = None,
    ) -> nn.Module:
        """Build without memory, compare with the file, then fill in the file's tensors."""
        try:
            with torch.device("meta"):
                module = build()
        except _CONFIG_ERRORS as error:
            raise CheckpointError(
                f"{folder / 'config.json'} does not describe a usable model "
                f"({' '.join(str(error).split())[:200]}); copy the model folder again",
                folder / "config.json",
            ) from error
        expected = module.state_dict()
        tensors = renamed(read_weights(folder, stem), expected)
        check_names_and_shapes(tensors, expected, folder)
        name = folder.name if role is None else role
        # A pair is the same in a type that holds all of its numbers.
        told = torch.float16 if fit_half(tensors.values()) else None
        self.add(name, canonical(config) + digest_tensors(tensors, dtype=told).encode())
        if fuse is not None:  # while weights are as they are on disk, not rounded
            tensors = fuse(tensors)
        # A copy, because the file's own pages must not stay mapped: it may be replaced.
        placed = {
            name: tensor.to(device=self._device, dtype=dtype or self._dtype, copy=True)
            for name, tensor in tensors.items()
        }
        module.load_state_dict(placed, assign=True)
        _fill_position_ids(module, self._device)
        return module.requires_grad_(False).eval()


def _fuse(
    loras: LoraSet | None, part: Part
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    return None if loras is None else partial(loras.fuse, part)


def _from_config(kind: Any, config: Mapping[str, Any]) -> Any:
    """A diffusers model from a configuration; keys that the class does not know are left out."""
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in config.items() if key in known and key != "self"})


def renamed(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of older and newer library versions -> those of the installed one."""
    prefix = "text_model."
    wants_prefix = any(name.startswith(prefix) for name in expected)
    by_new_name: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("embeddings.position_ids"):  # a constant that old files carry
            continue
        new = name
        if new not in expected and not wants_prefix:
            new = new.removeprefix(prefix)
        elif new not in expected and wants_prefix and prefix + new in expected:
            new = prefix + new
        if new not in expected and ".attentions." in new:
            parts = new.split(".")
            parts[-2] = _OLD_VAE_NAMES.get(parts[-2], parts[-2])
            new = ".".join(parts)
            if new in expected and tensor.dim() == expected[new].dim() + 2:
                tensor = tensor.flatten(1)  # a 1 x 1 convolution that is a linear layer today
        by_new_name[new] = tensor
    return by_new_name


def _fill_position_ids(module: nn.Module, device: str | torch.device) -> None:
    """Give CLIP its one buffer that is not in the file: 0, 1, 2, ... of shape [1, S]."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if buffer.is_meta and name == "position_ids":
                ids = torch.arange(buffer.shape[-1], device=device).unsqueeze(0)
                child.register_buffer(name, ids, persistent=False)


def canonical(config: Mapping[str, Any]) -> bytes:
    """The part of a configuration that can change the numbers, in one spelling."""
    ignored = ("transformers_version", "torch_dtype", "dtype", "architectures", "bootpig_mode")
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in ignored
    }
    return json.dumps(kept, sort_keys=True).encode()
