"""ControlNets as a component: loaded from beside a pair or given, told apart by kind, saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import ControlNetModel, MultiControlNetModel
from torch import nn

from bootpig_rt.bundle.control import (
    CONTROL_PREFIX,
    ControlFolder,
    find_controls,
    in_order,
    to_control_folders,
)
from bootpig_rt.checks import check_kind
from bootpig_rt.errors import ParameterError
from bootpig_rt.models.control import check_control_config, check_control_fits
from bootpig_rt.models.control_folder import load_controls
from bootpig_rt.models.unet import BaseUNet
from bootpig_rt.models.unet_config import check_unet_config

Nets: TypeAlias = dict[str, Any]
"""ControlNets by kind, in the order in which a call gives their maps."""

ControlNetArgument: TypeAlias = (
    "Mapping[str, str | os.PathLike[str] | ControlNetModel] | Sequence[ControlNetModel] "
    "| ControlNetModel | MultiControlNetModel | str | os.PathLike[str] | None"
)
"""How ControlNets are given: folders or modules by kind, or modules as diffusers takes them."""

_UNNAMED = "map"


def control_folders(given: Any) -> tuple[ControlFolder, ...]:
    """What was given, for an engine, which loads ControlNets from their folders.

    Raises:
        ParameterError: A module is among them, or a kind is no name or there twice.
    """
    modules, folders = _apart(given)
    if modules:
        raise ParameterError(
            f"controlnet {next(iter(modules))} is a module, but an engine loads ControlNets from "
            'folders; give {"depth": folder}, or save it beside the pair as controlnet_depth'
        )
    return folders


def load_nets(folder: Path | None, given: Any, base_unet: Any, *, pixels_per_latent: int) -> Nets:
    """ControlNets that lie in a pair's folder, and those that were given.

    Args:
        folder: Of the pair; None where its own are loaded already.
        given: As `BootPIGPipeline.from_pretrained` takes them.
        base_unet: That they are for; those that are loaded get its type and its device.
        pixels_per_latent: Along a side, of the autoencoder.

    Raises:
        CheckpointError: One is missing, damaged, or of another base model.
        ParameterError: A kind is no name, or is there twice.
    """
    modules, folders = _apart(given)
    base = BaseUNet(base_unet)
    for kind, module in modules.items():
        where = f"controlnet {kind}"
        check_unet_config(module.config, Path(where))
        check_control_config(module.config, pixels_per_latent)
        check_control_fits(module.config, base, where)
    lying = () if folder is None else find_controls(folder)
    loaded = load_controls(
        in_order([*lying, *folders]),
        base,
        pixels_per_latent=pixels_per_latent,
        device=base_unet.device,
        dtype=base_unet.dtype,
    )
    return joined({one.kind: one.net.unet for one in loaded}, modules)


def joined(nets: Nets, more: Nets) -> Nets:
    """Both.

    Raises:
        ParameterError: A kind is in both.
    """
    twice = next((kind for kind in more if kind in nets), None)
    if twice is not None:
        raise ParameterError(
            f"control {twice} is given twice, expected one of each kind; give the other another "
            f'kind, as in controlnet={{"{twice}2": ...}}'
        )
    return {**nets, **more}


def component_of(nets: Nets) -> Any:
    """The component of some ControlNets, as diffusers has it: one of them, several as one, None."""
    modules = list(nets.values())
    return MultiControlNetModel(modules) if len(modules) > 1 else next(iter(modules), None)


def nets_in(component: Any, kinds: Sequence[str] | None) -> Nets:
    """The ControlNets of a component by kind; those that nobody named are called by their folder.

    Args:
        component: A `ControlNetModel`, a `MultiControlNetModel` or None.
        kinds: Of each; another number of them are of another component.
    """
    modules = _modules_in(component)
    if kinds is not None and len(kinds) == len(modules):
        return dict(zip(kinds, modules, strict=True))
    return _named(modules)


def _apart(given: Any) -> tuple[Nets, tuple[ControlFolder, ...]]:
    """What was given as modules, and what as folders."""
    if isinstance(given, Mapping):
        modules = {kind: one for kind, one in given.items() if isinstance(one, nn.Module)}
        for kind in modules:
            check_kind(kind)
        rest = {kind: one for kind, one in given.items() if kind not in modules}
        return modules, to_control_folders(rest)
    several = list(given) if isinstance(given, list | tuple) else [given]
    if several and all(isinstance(one, nn.Module) for one in several):
        return _named([module for one in several for module in _modules_in(one)]), ()
    return {}, to_control_folders(given)


def _modules_in(component: Any) -> list[Any]:
    if component is None:
        return []
    return list(component.nets) if isinstance(component, MultiControlNetModel) else [component]


def _named(modules: Sequence[Any]) -> Nets:
    """By what their folders are called, `controlnet_depth`; else `map`, or `map0`, `map1`, ..."""
    names = [_kind_of(module) for module in modules]
    if None in names or len(set(names)) < len(names):
        several = len(modules) > 1
        names = [f"{_UNNAMED}{number if several else ''}" for number in range(len(modules))]
    return {name or _UNNAMED: module for name, module in zip(names, modules, strict=True)}


def _kind_of(module: Any) -> str | None:
    name = Path(str(getattr(module.config, "_name_or_path", None) or "")).name
    if name.startswith(CONTROL_PREFIX):
        with contextlib.suppress(ParameterError):
            return check_kind(name.removeprefix(CONTROL_PREFIX))
    return None
