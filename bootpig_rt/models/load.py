"""A pair on disk, in two layouts, read into modules that are checked before anyone runs them.

- Ours, one folder: `pair.json`, `base_unet`, `ref_unet`, `vae`, `text_encoder`, `tokenizer`,
  `scheduler`; of Stable Diffusion XL `text_encoder_2` and `tokenizer_2`; where there are some, a
  `tiny_vae` and controls, `controlnet_KIND`; and `model_index.json`, which folders of earlier
  versions lack.
- The published trainer's: `base_unet` and `ref_unet`, with the others in the Stable Diffusion
  folder that the pair was trained from.

`bootpig_rt.models.save` writes ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from bootpig_rt.bundle.control import ControlFolder, all_controls
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.bundle.model_index import check_model_index, says_zeros
from bootpig_rt.bundle.pair_config import (
    TINY_VAE,
    PairConfig,
    published_pair_config,
    read_json,
    read_pair_config,
    trained_size_px,
)
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2, has_two_texts, text_parts
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.errors import CheckpointError, ConfigError
from bootpig_rt.models.control_folder import PairControl, load_controls
from bootpig_rt.models.lora import LoraSet
from bootpig_rt.models.module_folder import ModuleLoader, canonical
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.models.text_encoders import TwoTextEncoders, states_shape
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.text.tokenizer import Tokenizer, whole_picture

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True, eq=False)
class Pair:
    """A trained pair with everything that it needs to draw.

    Attributes:
        base: Base U-Net.
        reference: Reference U-Net; wraps the same U-Net as `base` when `config.shared_unet`.
        vae: Autoencoder between pixels and latents.
        tiny_vae: A small one for the same latents, for previews and quick pictures; None: there is
            none.
        text_encoder: CLIP text encoder, or two as one; the states are its `last_hidden_state`.
        tokenizer_folder: Where the vocabulary lies.
        scheduler: Contents of `scheduler_config.json`.
        config: Contents of `pair.json`.
        fingerprint: sha256 over the tensors and whatever else changes the numbers, LoRAs among it,
            independent of sharding and of the order of keys. Controls have their own: nothing of a
            subject depends on them.
        controls: Beside the pair, by kind.
    """

    base: BaseUNet
    reference: ReferenceUNet
    vae: AutoencoderKL | AutoencoderTiny | PatchAutoencoder
    text_encoder: CLIPTextModel | TwoTextEncoders
    tokenizer_folder: Path
    scheduler: dict[str, Any]
    config: PairConfig
    fingerprint: str
    tiny_vae: AutoencoderTiny | None = None
    controls: tuple[PairControl, ...] = ()
    tokenizer_2_folder: Path | None = None
    """Where the vocabulary of the second text encoder lies; None: there is none."""

    @property
    def keeps_vae_wide(self) -> bool:
        """The autoencoder computes in float32 whatever the rest does.

        So that of Stable Diffusion XL, unless it is one that was mended for float16 and says so by
        `force_upcast`; those of 1.x and 2.x run in float16 whatever theirs says.
        """
        return self.tokenizer_2_folder is not None and bool(
            getattr(self.vae.config, "force_upcast", False)
        )

    def tokenizer(self) -> Tokenizer:
        """Read the vocabularies; prompts are told the size that the pair was trained on.

        Raises:
            CheckpointError: A file is missing, damaged, or of another kind of tokenizer.
        """
        side = self.config.sample_size_px
        return Tokenizer.from_folder(
            self.tokenizer_folder, self.tokenizer_2_folder, sizes=whole_picture(side, side)
        )

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All that hold weights; the U-Nets may be one."""
        parts = (self.base.unet, self.reference.unet, self.vae, self.text_encoder, self.tiny_vae)
        controls = (control.net.unet for control in self.controls)
        return (*(part for part in parts if part is not None), *controls)


def load_pair(
    folder: str | Path,
    *,
    base_model: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    upcasts_vae: bool = False,
    loras: Sequence[Lora] = (),
    controls: Sequence[ControlFolder] = (),
) -> Pair:
    """Load a pair in either layout, in evaluation mode.

    Args:
        folder: The pair.
        base_model: For the published layout: the Stable Diffusion folder with `vae`, text encoders,
            tokenizers and `scheduler`. By default they lie in `folder`.
        device: Where the modules go.
        dtype: Type of the weights in memory; on disk they may be float32, float16 or bfloat16.
        upcasts_vae: The autoencoder stays in float32 where its configuration says `force_upcast`,
            which is diffusers' default: in float16 the activations of Stable Diffusion's overflow.
        loras: Fused into Base U-Net and text encoders, beside those that are in the weights
            already; see `bootpig_rt.models.lora`.
        controls: Beside those that lie in `folder` as `controlnet_KIND`.

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
    check_model_index(folder)
    _check_folders(folder, rest)
    config: PairConfig | None = None
    if (folder / "pair.json").is_file():
        config = read_pair_config(folder / "pair.json")
    base_unet, ref_unet = folder / "base_unet", folder / "ref_unet"
    if config is not None and config.shared_unet:
        ref_unet = base_unet
    return assemble_pair(
        base_unet,
        ref_unet,
        rest,
        config,
        device=device,
        dtype=dtype,
        upcasts_vae=upcasts_vae,
        loras=loras,
        controls=all_controls(folder, controls),
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
    loras: Sequence[Lora] = (),
    controls: Sequence[ControlFolder] = (),
) -> Pair:
    """Put a pair together from the folders of its parts, each checked.

    Args:
        base_unet: Folder of the Base U-Net.
        ref_unet: Folder of the Reference U-Net; the same folder means one U-Net for both.
        rest: Holds `vae`, text encoders, tokenizers and `scheduler`.
        config: Settings of the pair; by default those of the published trainer.
        device: Where the modules go.
        dtype: Type of the weights in memory.
        upcasts_vae: As for `load_pair`.
        loras: As for `load_pair`. One U-Net for both stays one, with the LoRAs in it.
        controls: Folders of all of them.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    digest = hashlib.sha256()
    load = ModuleLoader(device, dtype, digest)
    lora_set = LoraSet(loras)
    base_module = load.unet(base_unet, lora_set)
    ref_module = base_module if ref_unet == base_unet else load.unet(ref_unet)
    vae = load.vae(rest / "vae", upcasts=upcasts_vae)
    tiny_vae = load.tiny_vae(rest / TINY_VAE) if (rest / TINY_VAE).is_dir() else None
    tokenizers = [rest / part for part in text_parts(base_module.config) if "tokenizer" in part]
    for folder in tokenizers:
        _check_tokenizer(folder)
    if config is None:
        config = published_pair_config(trained_size_px(base_unet, rest / "vae"))
        zeros = has_two_texts(base_module.config) and says_zeros(rest)
        config = replace(config, zeros_for_empty_prompt=zeros)
    text_encoder = load.text_encoder(rest / "text_encoder", lora_set)
    if has_two_texts(base_module.config):
        text_encoder = TwoTextEncoders(
            text_encoder,
            load.text_encoder(rest / TEXT_ENCODER_2, lora_set),
            base_module.config,
            zeros_for_empty=config.zeros_for_empty_prompt,
        ).eval()
    else:
        lora_set.fuse("text_encoder_2", {})  # refuses layers for what is not there
    scheduler = _read_scheduler(rest / "scheduler" / "scheduler_config.json")
    base, reference = BaseUNet(base_module), ReferenceUNet(ref_module)
    _check_fit(base_unet.parent, base, reference, vae=vae, text_encoder=text_encoder)
    if tiny_vae is not None:
        _check_tiny(rest / TINY_VAE, tiny_vae, vae)
    load.add("scheduler", canonical(scheduler))
    for folder in tokenizers:
        for name in TOKENIZER_FILES[:3]:
            path = folder / name
            load.add(name, path.read_bytes() if path.is_file() else b"")
    load.add("pair", f"{config.reference_timestep} {config.ref_scale}".encode())
    if config.zeros_for_empty_prompt:
        load.add("zeros_for_empty_prompt", b"")
    for lora in lora_set.fused:
        load.add("lora", f"{lora.sha256} {lora.config_sha256} {lora.scale!r}".encode())
    config = replace(config, loras=(*config.loras, *lora_set.fused))
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return Pair(
        base=base.eval(),
        reference=reference.eval(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer_folder=tokenizers[0],
        scheduler=scheduler,
        config=config,
        fingerprint=digest.hexdigest(),
        tiny_vae=tiny_vae,
        controls=load_controls(
            controls, base, pixels_per_latent=factor, device=device, dtype=dtype
        ),
        tokenizer_2_folder=tokenizers[1] if len(tokenizers) > 1 else None,
    )


def load_unet(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """Load one U-Net folder, checked as in `load_pair`.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    unet: UNet2DConditionModel = ModuleLoader(device, dtype, hashlib.sha256()).unet(folder)
    return unet


def load_vae(folder: Path, *, device: str | torch.device = "cpu") -> Any:
    """Load one autoencoder folder in float32, checked as in `load_pair`.

    Raises:
        CheckpointError: As for `load_pair`.
    """
    return ModuleLoader(device, torch.float32, hashlib.sha256()).vae(folder)


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
    # A damaged configuration is told of where it is read.
    path = folder / "base_unet" / "config.json"
    names = ("vae", *text_parts(read_json(path) if path.is_file() else {}), "scheduler")
    missing = [name for name in names if not (rest / name).is_dir()]
    if missing:
        fix = (
            "copy the model folder again"
            if (folder / "pair.json").is_file() or rest != folder
            else "give base_model, the Stable Diffusion folder that the pair was trained from"
        )
        why = ""
        if missing[0] in (TEXT_ENCODER_2, TOKENIZER_2):
            why = ", and its U-Net reads two text encoders, as those of Stable Diffusion XL do"
        raise CheckpointError(f"{rest} has no {missing[0]} folder{why}; {fix}", rest)


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
    if str(scheduler.get("_class_name")).startswith("Euler"):
        # What such a scheduler does, said in the key that is part of the fingerprint.
        scheduler["set_alpha_to_one"] = True
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
    latent, text = vae.config.latent_channels, states_shape(text_encoder)[1]
    if base.added_width != reference.added_width:
        raise CheckpointError(
            f"{folder}: base_unet and ref_unet add {base.added_width} and {reference.added_width} "
            "numbers to their timesteps, expected as many; copy both from one pair",
            folder,
        )
    if base.layer_shapes() != reference.layer_shapes():
        raise CheckpointError(
            f"{folder}: base_unet and ref_unet have different self-attentions; "
            "copy both from one pair",
            folder,
        )
    for name, unet in (("base_unet", base.unet), ("ref_unet", reference.unet)):
        channels = unet.config.in_channels, unet.config.out_channels
        if channels not in ((latent, latent), (2 * latent + 1, latent)):
            raise CheckpointError(
                f"{folder}: {name} reads {channels[0]} channels and gives {channels[1]}, expected "
                f"{latent} of each, which the vae makes, or {2 * latent + 1} and {latent} where it "
                "was made for inpainting; use the base model that the pair was trained from",
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


def _check_tiny(folder: Path, tiny: Any, vae: Any) -> None:
    """Compare a tiny autoencoder with the one whose latents it decodes.

    Raises:
        CheckpointError: Names both sizes.
    """
    sizes = [
        (int(each.config.latent_channels), len(channels) - 1)
        for each, channels in (
            (tiny, tiny.config.decoder_block_out_channels),
            (vae, vae.config.block_out_channels),
        )
    ]
    if sizes[0] != sizes[1]:
        told = [f"{channels} channels and {2**levels} px a latent" for channels, levels in sizes]
        raise CheckpointError(
            f"{folder}: the tiny autoencoder has {told[0]}, expected {told[1]}, as the vae; take "
            "the one that was made for this base model's latents",
            folder,
        )
