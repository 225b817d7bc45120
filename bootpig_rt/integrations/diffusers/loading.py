"""The components of a pair: loaded from its folder or from a hub, saved, moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, cast

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DiffusionPipeline,
    MultiControlNetModel,
    SchedulerMixin,
    UNet2DConditionModel,
)
from packaging.version import Version
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bootpig_rt.backends.options import BackendOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.control import CONTROL_PREFIX, ControlFolder
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.model_index import check_model_index
from bootpig_rt.bundle.pair_config import (
    TINY_VAE,
    PairConfig,
    published_pair_config,
    read_json,
    read_pair_config,
)
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.integrations.diffusers.control_nets import (
    ControlNetArgument,
    Nets,
    component_of,
    control_folders,
    joined,
    load_nets,
    nets_in,
)
from bootpig_rt.integrations.diffusers.folders import copy_pair, finish_folder
from bootpig_rt.integrations.diffusers.on_engine import refuse
from bootpig_rt.integrations.diffusers.parts import keep_unclipped, modules_of
from bootpig_rt.models.hub import pair_folder
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.pipeline import Pipeline

logger = logging.getLogger(__name__)

_OPTIONAL = (TEXT_ENCODER_2, TOKENIZER_2, TINY_VAE, "controlnet")
_PARTS = ("vae", "text_encoder", "tokenizer", "base_unet", "ref_unet", "scheduler")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


class PairComponents(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """What `BootPIGPipeline` is made of; see there.

    Args:
        vae: Autoencoder.
        text_encoder: CLIP's.
        tokenizer: Of the text encoder.
        base_unet: Base U-Net.
        ref_unet: Reference U-Net; None: the Base U-Net reads the reference as well.
        scheduler: Any that takes steps from a U-Net's output.
        pair: Contents of `pair.json`; by default those of the published trainer.
        text_encoder_2: The second one, with a projection, of Stable Diffusion XL.
        tokenizer_2: Of that one.
        tiny_vae: A tiny autoencoder, which comes along and is not drawn with; engines have
            `decoder="tiny"` for that.
        controlnet: A ControlNet, or several; a list becomes a `MultiControlNetModel`.
        control_kinds: What maps of each show, `depth`; by default as their folders are called,
            `controlnet_depth`, else `map` or `map0`, `map1`, ...
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->ref_unet->controlnet->base_unet->vae"
    _optional_components = ["ref_unet", *_OPTIONAL]  # noqa: RUF012  as diffusers has it

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | PatchAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        base_unet: UNet2DConditionModel,
        ref_unet: UNet2DConditionModel | None,
        scheduler: SchedulerMixin,
        pair: dict[str, Any] | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        tiny_vae: AutoencoderTiny | None = None,
        controlnet: ControlNetModel | MultiControlNetModel | None = None,
        control_kinds: Sequence[str] | None = None,
    ) -> None:
        """Register the components."""
        super().__init__()
        if isinstance(controlnet, list | tuple):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            base_unet=base_unet,
            ref_unet=ref_unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            tiny_vae=tiny_vae,
            controlnet=controlnet,
        )
        self.register_to_config(
            pair=pair, control_kinds=None if control_kinds is None else list(control_kinds)
        )
        self.background_remover: BackgroundRemover | None = None
        self._runtime: Pipeline | None = None
        self._folder: Path | None = None
        self._control_folders: tuple[ControlFolder, ...] = ()  # that were given to an engine

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backend: str | BackendOptions | None = None,
        device: str = "auto",
        base_model: str | Path | None = None,
        background_remover: BackgroundRemover | None = None,
        controlnet: ControlNetArgument = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pair's folder, or a pair of a hub by its id.

        Args:
            pretrained_model_name_or_path: The folder or the id.
            backend: None loads the modules, for the eager way. Otherwise what `Pipeline` takes,
                `auto` for one: the engine draws, and there are no components.
            device: Of the engine. The eager way begins on the CPU; move it by `to`.
            base_model: A Stable Diffusion folder, for pairs in the published layout.
            background_remover: Cuts the subject out of pictures without transparency.
            controlnet: ControlNets beside those that lie in the folder as `controlnet_KIND`:
                folders or modules by kind, `{"depth": folder}`, or modules as diffusers takes them.
                An engine takes folders.
            revision: Of a pair of a hub.
            **kwargs: As of `DiffusionPipeline.from_pretrained`, for the eager way: `dtype`,
                by default float32, `variant`, components to use in place of the folder's,
                `device_map`.

        Raises:
            CheckpointError: The folder is no usable pair.
            ParameterError: An argument that this way does not have.
            BackendUnavailable: A package or the device is missing.
        """
        folder = pair_folder(pretrained_model_name_or_path, revision=revision)
        if backend is not None:
            for name in kwargs:
                raise ParameterError(
                    f"{name} is for the eager way; leave it out, or leave out backend"
                )
            given = control_folders(controlnet)
            runtime = Pipeline(
                folder,
                backend=backend,
                device=device,
                background_remover=background_remover,
                pair=PairOptions(
                    controls={one.kind: one.path for one in given}, base_model=base_model
                ),
            )
            parts = dict.fromkeys(_PARTS)
            pipe = cls(**parts, pair=asdict(runtime.spec.config))
            pipe._runtime, pipe._control_folders = runtime, given
        else:
            pipe = cls._from_modules(folder, base_model, controlnet, kwargs)
            if device != "auto":
                pipe.to(device)
        pipe._folder = folder if base_model is None else None
        pipe.background_remover = background_remover
        return pipe

    @classmethod
    def _from_modules(
        cls,
        folder: Path,
        base_model: str | Path | None,
        controlnet: ControlNetArgument,
        kwargs: dict[str, Any],
    ) -> Self:
        for name in _HUB_OPTIONS:
            if name in kwargs:
                raise ParameterError(
                    f"{name} is not taken here; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE in the "
                    "environment say the same"
                )
        if kwargs.pop("use_safetensors", True) is False:
            raise ParameterError("use_safetensors is False, but pickles are never opened")
        check_model_index(folder)
        has_index = (folder / INDEX_FILE).is_file() and (folder / "pair.json").is_file()
        dtype_key = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"
        if not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs[dtype_key] = torch.float32  # or the text encoder would be of its file's type
        if has_index and base_model is None:
            pair = asdict(read_pair_config(folder / "pair.json"))
            pipe = super().from_pretrained(str(folder), pair=pair, use_safetensors=True, **kwargs)
            if "scheduler" not in kwargs:
                said = read_json(folder / "scheduler" / "scheduler_config.json")
                keep_unclipped(pipe.scheduler, said)
            return cast("Self", pipe)._with_controls({}, folder, controlnet)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype")
        if not isinstance(dtype, torch.dtype):
            raise ParameterError(f"dtype is {dtype}, expected one torch.dtype for this folder")
        for name in kwargs:
            raise ParameterError(
                f"{name} is for folders with a {INDEX_FILE}, and {folder} has none; leave it out, "
                "or save the pipeline once with save_pretrained and load that"
            )
        loaded = load_pair(folder, base_model=base_model, dtype=dtype)
        pipe = cls(**modules_of(loaded), pair=asdict(loaded.config))
        nets = {control.kind: control.net.unet for control in loaded.controls}
        return pipe._with_controls(nets, None, controlnet)

    def _with_controls(self, nets: Nets, folder: Path | None, given: ControlNetArgument) -> Self:
        """The same with ControlNets: some that are loaded, those of a folder, and what was given.

        Raises:
            CheckpointError: One cannot be loaded, or is of another base model.
            ParameterError: A kind is no name, or is there twice.
        """
        if self.base_unet is None or self.vae is None:  # which ControlNets are compared with
            if given is not None:
                raise ParameterError(
                    "controlnet is given without base_unet and vae; load all parts"
                )
            return self
        factor = self.vae_scale_factor
        more = load_nets(folder, given, self.base_unet, pixels_per_latent=factor)
        found = joined(nets, more)
        if found:
            self.register_modules(controlnet=component_of(found))
            self.register_to_config(control_kinds=list(found))
        return self

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as a folder that `from_pretrained` and `Pipeline` load, and that a hub takes.

        Args:
            save_directory: The folder.
            safe_serialization: Weights are written as safetensors in any case.
            variant: Goes into the names of weights files, `fp16`.
            **kwargs: As of diffusers.

        Raises:
            ParameterError: The pipeline draws on an engine, and the folder exists; or
                `push_to_hub`.
        """
        target = Path(save_directory)
        if not safe_serialization:
            logger.warning("safe_serialization is False; weights are written as safetensors anyway")
        if self._runtime is not None:
            refuse("variant", variant)
            if self._folder is None:
                raise ParameterError(
                    "the pair lies in two folders; load it without backend, and save that"
                )
            more = {f"{CONTROL_PREFIX}{one.kind}": one.path for one in self._control_folders}
            copy_pair(self._folder, target, more)
            return
        if kwargs.get("push_to_hub"):
            raise ParameterError(
                "push_to_hub would leave pair.json behind; save the folder, then upload it as it "
                "is: hf upload OWNER/NAME FOLDER"
            )
        controlnet, nets = self.controlnet, self.control_nets
        self.register_modules(controlnet=None)  # diffusers' folders would not say their kinds
        try:
            super().save_pretrained(target, safe_serialization=True, variant=variant, **kwargs)
        finally:
            self.register_modules(controlnet=controlnet)
        for kind, net in nets.items():
            net.save_pretrained(
                target / f"{CONTROL_PREFIX}{kind}", safe_serialization=True, variant=variant
            )
        finish_folder(target, self.pair_config, source=self._folder)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the components, or cast them, as diffusers does.

        Raises:
            ParameterError: The pipeline draws on an engine, whose place and precision are fixed.
        """
        if self._runtime is None:
            return cast("Self", super().to(*args, **kwargs))
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        here = torch.device(self._runtime.device)
        if dtype is not None or (device is not None and device.type != here.type):
            raise ParameterError(
                f"this pipeline draws on an engine on {here}, which cannot be moved or cast; load "
                "it with device=..., or with the precision in the options of its backend"
            )
        return self

    def close(self) -> None:
        """End the engine, and let go of its memory; the eager way holds nothing of the kind."""
        if self._runtime is not None:
            self._runtime.close()

    @property
    def pair_config(self) -> PairConfig:
        """Settings of the pair: defaults, limits, and what it was trained for."""
        is_shared = self._runtime is None and self.ref_unet is None
        pair = self.config.pair
        if pair is not None:
            if self._runtime is not None:
                return self._runtime.spec.config
            return PairConfig.from_dict({**pair, "shared_unet": is_shared})
        side = int(self.base_unet.config.sample_size) * self.vae_scale_factor
        return replace(published_pair_config(side), shared_unet=is_shared)

    @property
    def control_nets(self) -> Nets:
        """ControlNets by kind, in the order in which a call gives their maps; none of an engine."""
        return nets_in(self.controlnet, self.config.control_kinds)

    @property
    def control_kinds(self) -> tuple[str, ...]:
        """What maps of each control show, in the order in which a call gives them."""
        if self._runtime is not None:
            return tuple(control.kind for control in self._runtime.spec.controls)
        return tuple(self.control_nets)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a picture per latent, along a side."""
        if self._runtime is not None:
            return self._runtime.spec.vae_scale_factor
        blocks: int = len(self.vae.config.block_out_channels)
        return int(2 ** (blocks - 1))
