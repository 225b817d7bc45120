"""A pair on disk, in two layouts, read into modules that are checked before anyone runs them.

- Ours, one folder: `pair.json`, `base_unet`, `ref_unet`, `vae`, `text_encoder`, `tokenizer`,
  `scheduler`.
- The published trainer's: `base_unet` and `ref_unet`, with the other four in the Stable Diffusion
  folder that the pair was trained from.

`bootpig_rt.models.save` writes ours.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig_rt.bundle.pair_config import (
    PairConfig,
    published_pair_config,
    read_json,
    read_pair_config,
    trained_size_px,
)
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.errors import CheckpointError, ConfigError, shown
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.models.unet_config import check_unet_config
from bootpig_rt.models.weights import check_names_and_shapes, digest_tensors, read_weights

UNET_STEM = "diffusion_pytorch_model"
TEXT_STEM = "model"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

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


@dataclass(frozen=True, eq=False)
class Pair:
    """A trained pair with everything that it needs to draw.

    Attributes:
        base: Base U-Net.
        reference: Reference U-Net; wraps the same U-Net as `base` when `config.shared_unet`.
        vae: Autoencoder between pixels and latents.
        text_encoder: CLIP text encoder; the states are its `last_hidden_state`.
        tokenizer_folder: Where the vocabulary lies.
        scheduler: Contents of `scheduler_config.json`.
        config: Contents of `pair.json`.
        fingerprint: sha256 over the tensors and whatever else changes the numbers, independent of
            sharding and of the order of keys.
    """

    base: BaseUNet
    reference: ReferenceUNet
    vae: AutoencoderKL | AutoencoderTiny | PatchAutoencoder
    text_encoder: CLIPTextModel
    tokenizer_folder: Path
    scheduler: dict[str, Any]
    config: PairConfig
    fingerprint: str


def load_pair(
    folder: str | Path,
    *,
    base_model: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    upcasts_vae: bool = False,
) -> Pair:
    """Load a pair in either layout, in evaluation mode.

    Args:
        folder: The pair.
        base_model: For the published layout: the Stable Diffusion folder with `vae`,
            `text_encoder`, `tokenizer` and `scheduler`. By default they lie in `folder`.
        device: Where the modules go.
        dtype: Type of the weights in memory; on disk they may be float32, float16 or bfloat16.
        upcasts_vae: The autoencoder stays in float32 where its configuration says `force_upcast`,
            which is diffusers' default: in float16 the activations of Stable Diffusion's overflow.

    Raises:
        CheckpointError: A file is missing, a pickle, damaged or wrong, or the parts do not fit
            together. Nothing is run and no pickle is opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"model {folder} {what}, expected the folder of a pair with base_unet and ref_unet",
            folder,
        )
    rest = folder if base_model is None else Path(base_model)
    _check_folders(folder, rest)
    config: PairConfig | None = None
    if (folder / "pair.json").is_file():
        config = read_pair_config(folder / "pair.json")
    base_unet, ref_unet = folder / "base_unet", folder / "ref_unet"
    if config is not None and config.shared_unet:
        ref_unet = base_unet
    return assemble_pair(
        base_unet, ref_unet, rest, config, device=device, dtype=dtype, upcasts_vae=upcasts_vae
    )


def assemble_pair(
    base_unet: Path,
    ref_unet: Path,
    rest: Path,
    config: PairConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    upcasts_vae: bool = False,
) -> Pair:
    """Put a pair together from the folders of its parts, each checked.

    Args:
        base_unet: Folder of the Base U-Net.
        ref_unet: Folder of the Reference U-Net; the same folder means one U-Net for both.
        rest: Holds `vae`, `text_encoder`, `tokenizer` and `scheduler`.
        config: Settings of the pair; by default those of the published trainer.
        device: Where the modules go.
        dtype: Type of the weights in memory.
        upcasts_vae: As for `load_pair`.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    digest = hashlib.sha256()
    load = _Loader(device, dtype, digest)
    base_module = load.unet(base_unet)
    ref_module = base_module if ref_unet == base_unet else load.unet(ref_unet)
    vae = load.vae(rest / "vae", upcasts=upcasts_vae)
    text_encoder = load.text_encoder(rest / "text_encoder")
    scheduler = _read_scheduler(rest / "scheduler" / "scheduler_config.json")
    tokenizer_folder = rest / "tokenizer"
    _check_tokenizer(tokenizer_folder)
    if config is None:
        config = published_pair_config(trained_size_px(base_unet, rest / "vae"))
    base, reference = BaseUNet(base_module), ReferenceUNet(ref_module)
    _check_fit(base_unet.parent, base, reference, vae=vae, text_encoder=text_encoder)
    load.add("scheduler", _canonical(scheduler))
    for name in TOKENIZER_FILES[:3]:
        path = tokenizer_folder / name
        load.add(name, path.read_bytes() if path.is_file() else b"")
    load.add("pair", f"{config.reference_timestep} {config.ref_scale}".encode())
    return Pair(
        base=base.eval(),
        reference=reference.eval(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer_folder=tokenizer_folder,
        scheduler=scheduler,
        config=config,
        fingerprint=digest.hexdigest(),
    )


def load_unet(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """Load one U-Net folder, checked as in `load_pair`.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    unet: UNet2DConditionModel = _Loader(device, dtype, hashlib.sha256()).unet(folder)
    return unet


def load_vae(folder: Path, *, device: str | torch.device = "cpu") -> Any:
    """Load one autoencoder folder in float32, checked as in `load_pair`.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    return _Loader(device, torch.float32, hashlib.sha256()).vae(folder)


class _Loader:
    """Reads module folders to one device and type, and feeds what it read to a digest."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype, digest: Any) -> None:
        self._device = device
        self._dtype = dtype
        self._digest = digest

    def add(self, name: str, content: bytes) -> None:
        """Feed one part to the digest; its length keeps parts apart."""
        self._digest.update(f"{name} {len(content)}\n".encode() + content)

    def unet(self, folder: Path) -> Any:
        config = read_json(folder / "config.json")
        check_unet_config(config, folder / "config.json")
        return self._module(
            folder, UNET_STEM, config, lambda: _from_config(UNet2DConditionModel, config)
        )

    def vae(self, folder: Path, *, upcasts: bool = False) -> Any:
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

    def text_encoder(self, folder: Path) -> Any:
        config = read_json(folder / "config.json")
        return self._module(
            folder, TEXT_STEM, config, lambda: CLIPTextModel(CLIPTextConfig.from_dict(config))
        )

    def _module(
        self,
        folder: Path,
        stem: str,
        config: Mapping[str, Any],
        build: Callable[[], nn.Module],
        *,
        dtype: torch.dtype | None = None,
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
        self.add(folder.name, _canonical(config) + digest_tensors(tensors).encode())
        # A copy, because the file's own pages must not stay mapped: it may be replaced.
        placed = {
            name: tensor.to(device=self._device, dtype=dtype or self._dtype, copy=True)
            for name, tensor in tensors.items()
        }
        module.load_state_dict(placed, assign=True)
        _fill_position_ids(module, self._device)
        return module.requires_grad_(False).eval()


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


def _canonical(config: Mapping[str, Any]) -> bytes:
    """The part of a configuration that can change the numbers, in one spelling."""
    ignored = ("transformers_version", "torch_dtype", "dtype", "architectures", "bootpig_mode")
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in ignored
    }
    return json.dumps(kept, sort_keys=True).encode()


def _check_folders(folder: Path, rest: Path) -> None:
    """Say what is missing before gigabytes are read.

    Raises:
        CheckpointError: A folder is missing.
    """
    if not (folder / "base_unet").is_dir():
        raise CheckpointError(
            f"{folder} has no base_unet folder, expected a pair: base_unet and ref_unet; "
            "check the path",
            folder,
        )
    if rest != folder and not rest.is_dir():
        raise CheckpointError(f"base model {rest} is not a folder; check the path", rest)
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    missing = [name for name in names if not (rest / name).is_dir()]
    if missing:
        fix = (
            "copy the model folder again"
            if (folder / "pair.json").is_file() or rest != folder
            else "give base_model, the Stable Diffusion folder that the pair was trained from"
        )
        raise CheckpointError(f"{rest} has no {missing[0]} folder; {fix}", rest)


def _check_tokenizer(folder: Path) -> None:
    has_pieces = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not has_pieces and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} holds neither vocab.json and merges.txt nor tokenizer.json; "
            "copy the model folder again",
            folder,
        )


def _read_scheduler(path: Path) -> dict[str, Any]:
    scheduler = read_json(path)
    try:
        NoiseSchedule.from_config(scheduler)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}", path) from error
    return scheduler


def _check_fit(
    folder: Path, base: BaseUNet, reference: ReferenceUNet, *, vae: Any, text_encoder: Any
) -> None:
    """Compare sizes where two modules meet.

    Raises:
        CheckpointError: Names both sides and their sizes.
    """
    latent, text = vae.config.latent_channels, text_encoder.config.hidden_size
    if base.layer_shapes() != reference.layer_shapes():
        raise CheckpointError(
            f"{folder}: base_unet and ref_unet have different self-attentions; "
            "copy both from one pair",
            folder,
        )
    for name, unet in (("base_unet", base.unet), ("ref_unet", reference.unet)):
        if unet.config.in_channels != latent:
            raise CheckpointError(
                f"{folder}: {name} reads {unet.config.in_channels} latent channels, expected "
                f"{latent}, which the vae makes; use the base model that the pair was trained from",
                folder,
            )
        sizes = unet.config.cross_attention_dim
        sizes = {sizes} if isinstance(sizes, int) else set(sizes)
        if sizes != {text}:
            raise CheckpointError(
                f"{folder}: {name} reads text states of width {sorted(sizes)[0]}, expected {text}, "
                "which the text encoder makes; use the base model that the pair was trained from",
                folder,
            )
