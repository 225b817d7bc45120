"""Options of maps that pictures follow, and what they say. Light: argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import ParameterError

if TYPE_CHECKING:
    from bootpig_rt.images.control import Control


def add_map_arguments(parser: argparse.ArgumentParser) -> None:
    """Which maps pictures follow, and how closely."""
    group = parser.add_argument_group("following a map")
    group.add_argument(
        "--control-image",
        metavar="KIND=FILE",
        action="append",
        default=[],
        help="map that the picture follows, such as depth=FILE; it gives the size; again for more",
    )
    group.add_argument(
        "--make-map",
        metavar="KIND=PHOTO",
        action="append",
        default=[],
        help="likewise, with a map that is made of a photo: canny, or depth with an estimator",
    )
    group.add_argument(
        "--depth-estimator",
        metavar="DIR",
        help="model that transformers loads for depth estimation; it needs torch",
    )
    group.add_argument(
        "--control-scale",
        metavar="[KIND=]X",
        action="append",
        default=[],
        help="how closely maps are followed, 0 to 10 (default: 1); again with KIND= for each",
    )
    group.add_argument(
        "--control-interval",
        metavar="[KIND=]A-B",
        action="append",
        default=[],
        help="share of the steps in which they are followed (0-1)",
    )


def read_maps(args: argparse.Namespace) -> tuple[Control, ...]:
    """What `add_map_arguments` read; maps of photos are made.

    Raises:
        ParameterError: An option is not as it must be, or there are too few scales.
        ImageError: A file cannot be used.
        CheckpointError: The estimator cannot be loaded.
    """
    from bootpig_rt.images.control import load_controls
    from bootpig_rt.reference.schedule import parse_share

    if not (args.control_image or args.make_map):
        for name in ("control_scale", "control_interval", "depth_estimator"):
            if getattr(args, name):
                option = "--" + name.replace("_", "-")
                raise ParameterError(
                    f"{option} is given without --control-image or --make-map; give a map too"
                )
        return ()
    images: dict[str, Any] = {}
    for text in args.control_image:
        kind, file = _pair("--control-image", text)
        _put(images, kind, file)
    for text in args.make_map:
        kind, photo = _pair("--make-map", text)
        _put(images, kind, None)
        images[kind] = _made(kind, photo, args.depth_estimator)

    def share(text: str) -> tuple[float, float]:
        found = parse_share(text)
        if found is None:
            raise ParameterError(
                f"--control-interval is {text!r}, expected A-B with 0 <= A < B <= 1 such as 0-0.6"
            )
        return found

    scales = _values("--control-scale", args.control_scale, 1.0, _number)
    intervals = _values("--control-interval", args.control_interval, (0.0, 1.0), share)
    return load_controls(images, scales, intervals)


def _put(images: dict[str, Any], kind: str, image: Any) -> None:
    if kind in images:
        raise ParameterError(f"there are two maps of kind {kind}, expected one of each kind")
    images[kind] = image


def _pair(option: str, text: str) -> tuple[str, str]:
    kind, equals, rest = text.partition("=")
    if not (equals and kind and rest):
        raise ParameterError(f"{option} is {text!r}, expected KIND=FILE such as depth=depth.png")
    return kind, rest


def _made(kind: str, photo: str, estimator: str | None) -> Any:
    if kind == "canny":
        from bootpig_rt.images.canny import canny_map

        return canny_map(photo)
    if kind == "depth" and estimator is not None:
        from bootpig_rt.models.depth_estimator import depth_map

        return depth_map(photo, estimator)
    fix = "give --depth-estimator DIR" if kind == "depth" else "give the map with --control-image"
    raise ParameterError(
        f"--make-map is {kind}={photo}, but maps of kind {kind} are not made here; {fix}"
    )


def _values(option: str, texts: Sequence[str], usual: Any, read: Callable[[str], Any]) -> Any:
    """One value for all, or by kind."""
    if not texts:
        return usual
    by_kind = dict(_pair(option, text) for text in texts if "=" in text)
    if not by_kind and len(texts) == 1:
        return read(texts[0])
    if len(by_kind) < len(texts):
        raise ParameterError(
            f"{option} is given {len(texts)} times, expected once for all maps, or KIND=VALUE once "
            "for each"
        )
    return {kind: read(text) for kind, text in by_kind.items()}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ParameterError(f"--control-scale is {text!r}, expected a number") from None
