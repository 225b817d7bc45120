"""Maps: what a picture looks like where, as depth, outlines or whatever a control was made for.

A map has the size of the picture. Which kinds there are, the pair says; here is only what can be
told from the map itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bootpig_rt.checks import check_kind, check_share
from bootpig_rt.errors import ImageError, ParameterError, shown
from bootpig_rt.images.image_input import MAX_PIXELS, ImageSource, load_image

FloatArray: TypeAlias = npt.NDArray[np.float32]

ControlImages: TypeAlias = (
    "Mapping[str, ImageSource | Control] | Sequence[Control] | Control | None"
)
"""How a call gives maps: by kind, or checked already."""

ControlScales: TypeAlias = float | Sequence[float] | Mapping[str, float]
"""One number for all maps, or one for each, in order or by kind."""

ControlIntervals: TypeAlias = (
    tuple[float, float] | Sequence[tuple[float, float]] | Mapping[str, tuple[float, float]]
)
"""One share of the steps for all maps, or one for each, in order or by kind."""

MAX_CONTROL_SCALE = 10.0
MAX_CONTROLS = 8
"""Of one picture."""

GREY_KINDS = ("depth", "canny", "outline")
"""Kinds whose maps have no colours: one in colour is the photo that a map is to be made of."""

_MOST_COLOUR = 12
"""Between the channels of a pixel, of 255, in a map that was saved as JPEG."""


@dataclass(frozen=True, eq=False)
class Control:
    """A map that a picture follows.

    Attributes:
        kind: What it shows, and which control of the pair reads it: `depth`, `canny`, ...
        pixels: uint8 [H, W, 3].
        scale: How closely it is followed, 0 to 10; 1 is as the control was trained, 0 not at all.
        interval: Share of the steps in which it acts, (0.0, 1.0) for all of them.
        fingerprint: sha256 over kind and pixels.

    Raises:
        ParameterError: A value is of the wrong type or out of range.
    """

    kind: str
    pixels: npt.NDArray[np.uint8]
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    fingerprint: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Check the fields, and make the map read-only: its fingerprint must stay true."""
        check_kind(self.kind)
        put = object.__setattr__
        put(self, "scale", check_control_scale(self.scale))
        put(self, "interval", check_share("control_interval", self.interval))
        self.pixels.setflags(write=False)
        digest = hashlib.sha256(f"{self.kind} {self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        put(self, "fingerprint", digest.hexdigest())

    @classmethod
    def load(
        cls,
        kind: str,
        image: ImageSource,
        *,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        max_pixels: int = MAX_PIXELS,
    ) -> Control:
        """Read a map from wherever it is.

        Args:
            kind: Of the control that reads it.
            image: Whatever `load_image` accepts, without transparent pixels.
            scale: See the class.
            interval: See the class.
            max_pixels: A larger map is refused.

        Raises:
            ImageError: It cannot be read, is transparent somewhere, or in colour where maps of its
                kind have none.
            ParameterError: As for the class.
        """
        kind, what = check_kind(kind), f"control_image {kind}"
        picture = load_image(image, what=what, max_pixels=max_pixels)
        if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255):
            raise ImageError(
                f"{what} has transparent pixels, expected an opaque map; put it on black, or on "
                "what the control was trained with"
            )
        pixels = np.array(picture.convert("RGB"))
        if kind in GREY_KINDS:
            spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
            if spread.max(initial=0) > _MOST_COLOUR:
                raise ImageError(
                    f"{what} is in colour, expected a grey {kind} map; a map of a photo is made by "
                    f"{_maker(kind)}"
                )
        return cls(kind, pixels, scale, interval)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        height, width, _ = self.pixels.shape
        return width, height

    @cached_property
    def for_net(self) -> FloatArray:
        """float32 [3, H, W] in [0, 1], one object as long as the map lives."""
        return np.ascontiguousarray(self.pixels.transpose(2, 0, 1), np.float32) / np.float32(255)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: all but `for_net`, which is made there."""
        return {name: value for name, value in vars(self).items() if name != "for_net"}

    def with_options(self, scale: float, interval: tuple[float, float]) -> Control:
        """The same map, followed otherwise."""
        return replace(self, scale=scale, interval=interval)


def _maker(kind: str) -> str:
    if kind == "depth":
        return "depth_map(photo, estimator), --make-map depth=PHOTO with --depth-estimator DIR"
    return "canny_map(photo), --make-map canny=PHOTO"


def check_control_scale(value: Any, name: str = "control_scale") -> float:
    """Return how closely a map is followed, 0 to 10.

    Args:
        value: Anything.
        name: How the user calls it.

    Raises:
        ParameterError: Anything else.
    """
    if not is_number(value) or isinstance(value, bool) or not 0 <= value <= MAX_CONTROL_SCALE:
        raise ParameterError(
            f"{name} is {shown(value)}, expected a number from 0 to "
            f"{MAX_CONTROL_SCALE:g}; 1 is as the control was trained"
        )
    return float(value)


def load_controls(
    images: ControlImages,
    scales: ControlScales = 1.0,
    intervals: ControlIntervals = (0.0, 1.0),
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Control, ...]:
    """Controls of a call, as `control_image`, `control_scale` and `control_interval` give them.

    Args:
        images: `{"depth": picture}`, kind to map, or `Control`s; None for none.
        scales: One number for all, a sequence with one for each map, or `{"depth": 0.8}`.
        intervals: A share for all, a sequence with one for each, or by kind.
        max_pixels: A larger map is refused.

    Raises:
        ImageError: A map cannot be used.
        ParameterError: No mapping; scales or intervals for other kinds, or fewer than maps.
    """
    if images is None:
        if scales != 1.0 or intervals != (0.0, 1.0):
            name = "control_scale" if scales != 1.0 else "control_interval"
            raise ParameterError(f"{name} is given without control_image; give both, or neither")
        return ()
    if isinstance(images, Control):
        images = (images,)
    if (
        isinstance(images, tuple | list)
        and images
        and all(isinstance(one, Control) for one in images)
    ):
        images = {one.kind: one for one in _distinct(images)}
    if not isinstance(images, dict) or not images:
        raise ParameterError(
            f"control_image is of type {type(images).__name__}, expected kinds and their maps, "
            'such as {"depth": "depth.png"}'
        )
    kinds = list(images)
    every_scale = for_each_kind("control_scale", scales, kinds, is_number)
    every_interval = for_each_kind("control_interval", intervals, kinds, is_share)
    made = []
    for kind, image in images.items():
        scale, interval = every_scale[kind], every_interval[kind]
        if isinstance(image, Control):
            scale = image.scale if scales == 1.0 else scale
            interval = image.interval if intervals == (0.0, 1.0) else interval
            made.append(image.with_options(scale, interval))
        else:
            check_control_scale(scale)  # ahead of reading a file
            check_share("control_interval", interval)
            made.append(
                Control.load(kind, image, scale=scale, interval=interval, max_pixels=max_pixels)
            )
    return tuple(made)


def _distinct(controls: Any) -> Any:
    kinds = [one.kind for one in controls]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ParameterError(f"control {twice} is given twice, expected one map of each kind")
    return controls


def is_number(value: Any) -> bool:
    """Whether it is one number, not one for each map."""
    return isinstance(value, int | float | np.floating)


def is_share(value: Any) -> bool:
    """Whether it is one share of the steps, not one for each map."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return is_pair and all(is_number(one) for one in value)


def for_each_kind(name: str, given: Any, kinds: list[str], is_one: Any) -> dict[str, Any]:
    """One value a kind, of a value for all, of a sequence in order, or by kind.

    Args:
        name: How the user calls it.
        given: What was given.
        kinds: That have maps, in order.
        is_one: Whether it is a value for all.

    Raises:
        ParameterError: Too few or too many, or for kinds that have no map.
    """
    if is_one(given):
        return dict.fromkeys(kinds, given)
    if isinstance(given, dict):
        unknown = [kind for kind in given if kind not in kinds]
        if unknown:
            raise ParameterError(
                f"{name} is given for {shown(unknown[0])}, but control_image has "
                f"{', '.join(kinds)}; give its map too, or leave it out"
            )
        missing = [kind for kind in kinds if kind not in given]
        if missing:
            raise ParameterError(
                f"{name} has nothing for {missing[0]}; give one value for all maps, or one for each"
            )
        return given
    if isinstance(given, tuple | list):
        if len(given) != len(kinds):
            raise ParameterError(
                f"{name} has {len(given)} values for {len(kinds)} maps ({', '.join(kinds)}), "
                "expected one for all, or one for each"
            )
        return dict(zip(kinds, given, strict=True))
    raise ParameterError(
        f"{name} is {shown(given)}, expected one value for all maps, or one for each"
    )
