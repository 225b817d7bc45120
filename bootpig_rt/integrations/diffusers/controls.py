"""Maps of a call, by diffusers' conventions, and what the eager way adds to its steps for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bootpig_rt.backends.base import IntArray
from bootpig_rt.checks import check_share
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.control import (
    Control,
    check_control_scale,
    for_each_kind,
    is_number,
    load_controls,
)
from bootpig_rt.integrations.diffusers.control_nets import Nets
from bootpig_rt.integrations.diffusers.output import as_sources
from bootpig_rt.models.control import Control as ControlNet

_TOLERANCE = 1e-9  # of writing 0.6 in binary


def controls_of(
    images: Any, scale: Any, start: Any, end: Any, *, kinds: Sequence[str]
) -> tuple[Control, ...]:
    """What a call gives as `control_image` and beside it.

    Args:
        images: One map for each control in order, or maps by kind; None for none.
        scale: `controlnet_conditioning_scale`, one or one for each map, in order or by kind.
        start: `control_guidance_start`, likewise.
        end: `control_guidance_end`, likewise.
        kinds: Of the controls that the pipeline has.

    Raises:
        ImageError: A map cannot be used.
        ParameterError: More or fewer maps or numbers than controls, a kind that there is not, or a
            number out of range.
    """
    if images is None:
        for name, value, usual in (
            ("controlnet_conditioning_scale", scale, 1.0),
            ("control_guidance_start", start, 0.0),
            ("control_guidance_end", end, 1.0),
        ):
            if value != usual:
                raise ParameterError(f"{name} is given without control_image; give both, or none")
        return ()
    maps = _by_kind(images, kinds)
    names = list(maps)
    scales = for_each_kind("controlnet_conditioning_scale", scale, names, is_number)
    for one in scales.values():
        check_control_scale(one, "controlnet_conditioning_scale")
    starts = for_each_kind("control_guidance_start", start, names, is_number)
    ends = for_each_kind("control_guidance_end", end, names, is_number)
    intervals = {
        kind: check_share(
            "control_guidance_start and control_guidance_end", (starts[kind], ends[kind])
        )
        for kind in names
    }
    return load_controls(maps, scales, intervals)


def for_engine(controls: Sequence[Control], num_steps: int) -> tuple[Control, ...]:
    """Maps whose intervals mean on the engine what diffusers means by theirs.

    Where an end lies within a step, diffusers leaves that step out, and the engine counts it in.
    """
    return tuple(
        control.with_options(control.scale, (steps.start / num_steps, steps.stop / num_steps))
        for control in controls
        for steps in [acting_steps(control, num_steps)]
    )


def acting_steps(control: Control, num_steps: int) -> range:
    """The steps i of T with start <= i / T and (i + 1) / T <= end, as diffusers has it.

    Raises:
        ParameterError: There are none.
    """
    start, end = control.interval
    first = math.ceil(start * num_steps - _TOLERANCE)
    steps = range(first, math.floor(end * num_steps + _TOLERANCE))
    if not steps:
        raise ParameterError(
            f"control_guidance_start is {start:g} and control_guidance_end {end:g}, but none of "
            f"{num_steps} steps lies between them; widen them, or leave out the map"
        )
    return steps


def _by_kind(images: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """Maps by kind, of any type that diffusers takes."""
    if not kinds:
        raise ParameterError(
            "control_image is given, but this pipeline has no control; load it with controlnet="
            '{"depth": folder}, or put the ControlNet beside the pair as controlnet_depth'
        )
    if isinstance(images, Mapping):
        unknown = next((kind for kind in images if kind not in kinds), None)
        if unknown is not None or not images:
            raise ParameterError(
                f"control_image has maps of {', '.join(map(repr, images)) or 'nothing'}, expected "
                f"some of {', '.join(kinds)}, the controls of this pipeline"
            )
        return {kind: _one(kind, as_sources(image)) for kind, image in images.items()}
    given = as_sources(list(images) if isinstance(images, list | tuple) else [images])
    if len(given) != len(kinds):
        raise ParameterError(
            f"control_image has {len(given)} maps, expected one for each control, "
            f"{', '.join(kinds)}; or give them by kind, as {{{kinds[0]!r}: map}}"
        )
    return dict(zip(kinds, given, strict=True))


def _one(kind: str, image: Any) -> Any:
    """One picture of what may be a batch of it."""
    if not isinstance(image, list):
        return image
    if len(image) != 1:
        raise ParameterError(f"control_image {kind} has {len(image)} maps, expected one")
    return image[0]


@dataclass(frozen=True, eq=False)
class _Followed:
    """One map: the net that reads it, the map embedded [1, C0, h, w], and how it is followed."""

    net: ControlNet
    hint: Tensor
    scale: float
    steps: range


class EagerControls:
    """The maps of one call, read step by step. All its pictures follow all of them.

    Args:
        nets: ControlNets by kind.
        controls: Maps, each of a kind that `nets` has.
        size: Width and height of the pictures.
        num_steps: T.

    Raises:
        ParameterError: A map has another size, or acts in no step.
    """

    def __init__(
        self, nets: Nets, controls: Sequence[Control], *, size: tuple[int, int], num_steps: int
    ) -> None:
        """Embed the maps."""
        self._followed: list[_Followed] = []
        for control in sorted(controls, key=lambda one: one.kind):  # as they are added up
            if control.size != size:
                raise ParameterError(
                    f"control_image {control.kind} is {control.size[0]}x{control.size[1]} px, but "
                    f"the picture is {size[0]}x{size[1]} px; resize the map"
                )
            steps = acting_steps(control, num_steps)
            module = nets[control.kind]
            net = ControlNet(module).eval()
            maps = torch.from_numpy(control.for_net)[None].to(module.device, module.dtype)
            if control.scale:
                self._followed.append(_Followed(net, net.embed(maps), control.scale, steps))

    def residuals(
        self,
        step: int,
        latents: Tensor,
        t: Tensor,
        texts: Tensor,
        *,
        picture_of_row: IntArray,
        text_of_row: IntArray,
    ) -> list[Tensor]:
        """What is added to the rows of a step, [N, C_i, h_i, w_i] each; empty where none acts.

        Rows that differ by their reference alone share the work: a control reads none.

        Args:
            step: Index of the step.
            latents: [B, C, h, w].
            t: Its timestep, a scalar.
            texts: [P, S, E].
            picture_of_row: int64 [N].
            text_of_row: int64 [N].
        """
        acting = [one for one in self._followed if step in one.steps]
        if not acting:
            return []
        read = list(zip(picture_of_row.tolist(), text_of_row.tolist(), strict=True))
        distinct = list(dict.fromkeys(read))
        of_row = torch.tensor([distinct.index(one) for one in read], device=latents.device)
        pictures, texts_read = (
            torch.tensor(column, device=latents.device) for column in zip(*distinct, strict=True)
        )
        sums: list[Tensor] = []
        for one in acting:
            dtype = one.hint.dtype
            given = one.net(
                latents[pictures].to(dtype),
                t.to(latents.device).expand(len(distinct)),
                texts[texts_read].to(dtype),
                one.hint.expand(len(distinct), -1, -1, -1),
            )
            parts = [one.scale * part[of_row] for part in given]
            sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
        return sums
