"""What of a pair is loaded beside its own folder, and whose it must be."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from bootpig_rt.backends.base import DECODERS, Decoder
from bootpig_rt.bundle.control import ControlFolder, ControlsArgument, to_control_folders
from bootpig_rt.bundle.lora import Lora, LoraArgument, to_loras
from bootpig_rt.checks import check_name


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """LoRAs, controls, and other parts of a pair: `Pipeline("pair", pair=PairOptions(...))`.

    Attributes:
        lora: LoRAs of the base model, fused into the weights: paths, texts such as
            `style.safetensors:0.8`, or `Lora(path, scale)`. It needs weights and torch; a bundle
            that was built with them needs neither.
        controls: ControlNets of the base model, in diffusers' layout, beside those that lie in the
            pair's folder as `controlnet_KIND`: `{"depth": folder}`. They need torch; a bundle that
            was built with them does not. `"depth"` alone is the control of the pair inside the
            package, which needs no torch.
        decoder: What makes pictures of latents: `full`, the pair's autoencoder, or `tiny`, its tiny
            one, many times quicker and less exact. Which one it was is written into each picture.
        base_model: A Stable Diffusion folder, for pairs in the published layout, which hold the
            two U-Nets alone.
        trust: Ed25519 public key, PEM: the folder must be a bundle that was signed with the private
            key that belongs to it, and nothing beside it is loaded: no base model. Graphs and
            engines are the bytes that were checked; weights, which torch and ONNX Runtime read from
            the folder themselves, and what OpenVINO reads, are checked ahead of that, and torch's
            once more when they are loaded.

    Raises:
        ParameterError: A LoRA, a control or the decoder is none.
    """

    lora: LoraArgument = None
    controls: ControlsArgument = None
    decoder: Decoder = "full"
    base_model: str | PathLike[str] | None = None
    trust: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without reading a file."""
        check_name("decoder", self.decoder, DECODERS)
        to_loras(self.lora)

    def loras(self) -> tuple[Lora, ...]:
        """With their scales."""
        return to_loras(self.lora)

    def control_folders(self) -> tuple[ControlFolder, ...]:
        """By kind.

        Raises:
            ParameterError: A kind is no name, is there twice, or names no folder.
        """
        return to_control_folders(self.controls)

    def base_folder(self) -> Path | None:
        """Of Stable Diffusion."""
        return None if self.base_model is None else Path(self.base_model)

    def key(self) -> Path | None:
        """Who must have signed."""
        return None if self.trust is None else Path(self.trust)
