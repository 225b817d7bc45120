"""Pictures in and out: what the Reference U-Net is shown, and what becomes of the decoder's pixels.

A reference is shown as the subject alone, large, in the middle of a white square. Training shows
references in this way, so a picture that is prepared otherwise is one that the pair has never
learnt to read. Loading, PNG files and sheets have their own files; their names are here as well.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from bootpig_rt.errors import ImageError, NumericalError, ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.image_input import MIN_SIDE_PX, ImageSource, load_image
from bootpig_rt.images.png import read_parameters, save_png
from bootpig_rt.images.sheet import SheetRow, grid, label_sheet

__all__ = [
    "SUBJECT_SHARE",
    "FloatArray",
    "ImageSource",
    "SheetRow",
    "grid",
    "label_sheet",
    "load_image",
    "prepare_reference",
    "read_parameters",
    "save_png",
    "to_pil",
]

FloatArray: TypeAlias = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

SUBJECT_SHARE = 0.86
"""Longest side of the subject over the side of the square, where the pair says nothing else."""

_ALPHA_THRESHOLD = 8  # of 255: fainter pixels are leftovers of cutting out, not subject
_WHITE_THRESHOLD = 245  # of 255: JPEG leaves a white paper a little below 255
_NO_SUBJECT = "use a picture that shows the subject, cut out or on white"


def prepare_reference(
    image: ImageSource,
    size_px: int,
    remover: BackgroundRemover | None = None,
    *,
    what: str = "reference image",
    subject_share: float = SUBJECT_SHARE,
) -> FloatArray:
    """Crop a picture to its subject and put that on a white square.

    The subject is found, in this order, by the picture's alpha channel if anything in it is
    transparent, by `remover`, or by what is not white if the border of the picture is white.
    A picture with none of these is taken whole, fills the square, and a warning is logged.

    Args:
        image: Whatever `load_image` accepts.
        size_px: Side of the square, the size the pair works at.
        remover: Finds the subject in pictures without transparency.
        what: How messages call the picture.
        subject_share: Longest side of the subject over the side of the square, in (0, 1], as the
            pair was trained (`PairConfig.subject_share`).

    Returns:
        float32 [3, size_px, size_px] in [-1, 1]; white is 1.

    Raises:
        ImageError: As for `load_image`, or there is no subject, or it is under 8 px.
        ParameterError: `remover` returned something else than a mask of the picture's size.
    """
    picture = load_image(image, what=what)
    colour = picture.convert("RGB")
    alpha, no_subject = _own_alpha(picture), "is transparent all over"
    if alpha is None and remover is not None:
        alpha, no_subject = _remove_background(colour, remover), "is all background to the remover"
    if alpha is not None:
        box = alpha.point(_above_alpha_threshold).getbbox()
        if box is None:
            raise ImageError(f"{what} {no_subject}, expected a subject; {_NO_SUBJECT}")
        on_white = Image.new("RGB", picture.size, "white")
        on_white.paste(colour, mask=alpha)
        share = subject_share
    else:
        on_white = colour
        box, share = _box_by_white(colour, what), subject_share
        if box is None:
            box, share = (0, 0, *colour.size), 1.0
            logger.warning(
                "%s has no transparency and no white border, so the whole picture is taken as the "
                "subject; pass a cut-out or use a background remover",
                what,
            )
    return _on_square(on_white, box, size_px, share, what)


def to_pil(pixels: FloatArray) -> list[Image.Image]:
    """Turn the model's pixels into pictures.

    Args:
        pixels: float [N, 3, H, W] in [-1, 1]; what lies outside is clipped, as decoders overshoot.

    Returns:
        N images of mode RGB.

    Raises:
        ParameterError: Another shape.
        NumericalError: NaN or infinity: a picture made of it would be black without a word.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ParameterError(f"pixels have shape {list(pixels.shape)}, expected [N, 3, H, W]")
    if not np.isfinite(pixels).all():
        raise NumericalError("the decoded picture holds NaN or infinity; try lower guidance scales")
    scaled = np.rint((pixels.astype(np.float32) + 1.0) * 127.5)
    bytes_hwc = np.clip(scaled, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(one)) for one in bytes_hwc]


def _own_alpha(picture: Image.Image) -> Image.Image | None:
    """The picture's alpha channel, mode L, if anything in it is transparent."""
    if picture.mode != "RGBA":
        return None
    alpha = picture.getchannel("A")
    opaque = np.asarray(alpha).min() >= 255 - _ALPHA_THRESHOLD
    return None if opaque else alpha


def _remove_background(colour: Image.Image, remover: BackgroundRemover) -> Image.Image:
    """Call the remover and check what it returns."""
    mask = remover(colour)
    if not isinstance(mask, Image.Image) or mask.mode != "L" or mask.size != colour.size:
        got = f"{mask.mode} {mask.size}" if isinstance(mask, Image.Image) else type(mask).__name__
        raise ParameterError(
            f"the background remover returned {got}, expected a PIL image of mode L and size "
            f"{colour.size}; fix the remover"
        )
    return mask


def _above_alpha_threshold(value: int) -> int:
    return 255 if value > _ALPHA_THRESHOLD else 0


def _box_by_white(colour: Image.Image, what: str) -> tuple[int, int, int, int] | None:
    """Box of what is not white; None if the border of the picture is not white.

    A quarter of the border may be something else: a subject on white may touch an edge.
    """
    red, green, blue = colour.split()
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    content = darkest.point(_below_white_threshold)
    box = content.getbbox()
    if box is None:
        raise ImageError(f"{what} is white all over, expected a subject; {_NO_SUBJECT}")
    mask = np.asarray(content)
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return box if np.count_nonzero(border) <= len(border) / 4 else None


def _below_white_threshold(value: int) -> int:
    return 255 if value < _WHITE_THRESHOLD else 0


def _on_square(
    on_white: Image.Image, box: tuple[int, int, int, int], size_px: int, share: float, what: str
) -> FloatArray:
    """Resize the box to `share` of the square and put it in the middle.

    The subject is on white before it is resized, which is the same as resizing with premultiplied
    alpha: no dark fringe. Only the box is resized and no large square is made, so a picture of
    8 x 16384 px costs no more than its own pixels.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    longest = max(width, height)
    if longest < MIN_SIDE_PX:
        raise ImageError(
            f"{what} shows a subject of {width}x{height} px, expected at least {MIN_SIDE_PX} px; "
            "use a larger picture"
        )
    scale = size_px * share / longest
    new_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = on_white.crop(box).resize(new_size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (size_px, size_px), "white")
    square.paste(resized, ((size_px - new_size[0]) // 2, (size_px - new_size[1]) // 2))
    pixels = np.asarray(square, np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return np.ascontiguousarray(pixels)
