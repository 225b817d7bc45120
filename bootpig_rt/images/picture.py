"""Pictures in and out: what the Reference U-Net is shown, and what becomes of the decoder's pixels.

A reference is shown as the subject alone, large, in the middle of a white square. Training shows
references in this way, so a picture that is prepared otherwise is one that the pair has never
learnt to read. Loading, PNG files and sheets have their own files; their names are here as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from bootpig_rt.errors import ImageError, NumericalError, ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.image_input import MAX_PIXELS, MIN_SIDE_PX, ImageSource, load_image
from bootpig_rt.images.png import save_png
from bootpig_rt.images.read_marks import is_marked_generated, read_parameters
from bootpig_rt.images.sheet import SheetRow, grid, label_sheet

__all__ = [
    "SUBJECT_SHARE",
    "FloatArray",
    "ImageSource",
    "SheetRow",
    "from_prepared",
    "grid",
    "is_marked_generated",
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
_STRIP_PX = 128  # rows worked on at once: large pictures are never copied as a whole
_REDUCING_GAP = 3.0  # a picture over this many times its new size is averaged down first
_NO_SUBJECT = "use a picture that shows the subject, cut out or on white"


def prepare_reference(
    image: ImageSource,
    size_px: int,
    remover: BackgroundRemover | None = None,
    *,
    what: str = "reference image",
    subject_share: float = SUBJECT_SHARE,
    max_pixels: int = MAX_PIXELS,
    warn: Callable[[str], object] = logger.warning,
) -> FloatArray:
    """Crop a picture to its subject and put that on a white square.

    The subject is found, in this order, by the picture's alpha channel if anything in it is
    transparent, by `remover`, or by what is not white if the border of the picture is white.
    A picture with none of these is taken whole, fills the square, and a warning is given.
    Takes about six bytes of memory a pixel of the picture, decoding included.

    Args:
        image: Whatever `load_image` accepts.
        size_px: Side of the square, the size the pair works at.
        remover: Finds the subject in pictures without transparency.
        what: How messages call the picture.
        subject_share: Longest side of the subject over the side of the square, in (0, 1], as the
            pair was trained (`PairConfig.subject_share`).
        max_pixels: A larger picture is refused.
        warn: Takes the warning; it is logged by default.

    Returns:
        float32 [3, size_px, size_px] in [-1, 1]; white is 1.

    Raises:
        ImageError: As for `load_image`, or there is no subject, or it is under 8 px.
        ParameterError: `remover` returned something else than a mask of the picture's size.
    """
    picture = load_image(image, what=what, max_pixels=max_pixels)
    alpha, no_subject = _own_alpha(picture), "is transparent all over"
    if alpha is None and remover is not None:
        colour = picture if picture.mode == "RGB" else picture.convert("RGB")
        alpha, no_subject = _remove_background(colour, remover), "is all background to the remover"
    share = subject_share
    if alpha is not None:
        box = alpha.point(_above_alpha_threshold).getbbox()
        if box is None:
            raise ImageError(f"{what} {no_subject}, expected a subject; {_NO_SUBJECT}")
    else:
        box = _box_by_white(picture, what)
        if box is None:
            box, share = (0, 0, *picture.size), 1.0
            warn(
                f"{what} has no transparency and no white border, so the whole picture is taken "
                "as the subject; pass a cut-out or use a background remover"
            )
    return _on_square(picture, alpha, box, size_px, share, what)


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


def from_prepared(images: Sequence[Image.Image], size_px: int) -> FloatArray:
    """Pictures that `to_pil` made of prepared references, as pixels again: the very same.

    Returns:
        float32 [R, 3, size_px, size_px] in [-1, 1].

    Raises:
        ImageError: None, or one of another mode or size.
    """
    if not images:
        raise ImageError("no reference image, expected at least one picture of the subject")
    for image in images:
        if image.mode != "RGB" or image.size != (size_px, size_px):
            raise ImageError(
                f"a prepared reference is {image.mode} of {image.width}x{image.height} px, "
                f"expected RGB of {size_px}x{size_px} px; prepare the references again"
            )
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) / 127.5 - 1.0, np.float32)


def _own_alpha(picture: Image.Image) -> Image.Image | None:
    """The picture's alpha channel, mode L, if anything in it is transparent."""
    if picture.mode != "RGBA":
        return None
    alpha = picture.getchannel("A")
    is_opaque = not any(alpha.histogram()[: 255 - _ALPHA_THRESHOLD])
    return None if is_opaque else alpha


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


def _box_by_white(picture: Image.Image, what: str) -> tuple[int, int, int, int] | None:
    """Box of what is not white; None if the border of the picture is not white.

    A quarter of the border may be something else: a subject on white may touch an edge.
    """
    width, height = picture.size
    content = Image.new("L", picture.size)
    for top in range(0, height, _STRIP_PX):
        strip = picture.crop((0, top, width, min(height, top + _STRIP_PX))).convert("RGB")
        red, green, blue = strip.split()
        darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
        content.paste(darkest.point(_below_white_threshold), (0, top))
    box = content.getbbox()
    if box is None:
        raise ImageError(f"{what} is white all over, expected a subject; {_NO_SUBJECT}")
    sides = [(0, 0, width, 1), (0, height - 1, width, height)]
    sides += [(0, 1, 1, height - 1), (width - 1, 1, width, height - 1)]
    not_white = sum(content.crop(side).histogram()[255] for side in sides)
    return box if not_white <= (2 * width + 2 * (height - 2)) / 4 else None


def _below_white_threshold(value: int) -> int:
    return 255 if value < _WHITE_THRESHOLD else 0


def _on_square(
    picture: Image.Image,
    alpha: Image.Image | None,
    box: tuple[int, int, int, int],
    size_px: int,
    share: float,
    what: str,
) -> FloatArray:
    """Resize the box to `share` of the square and put it in the middle.

    Only the box is resized and no large square is made, so a picture of 8 x 16384 px costs no more
    than its own pixels.
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
    resized = _resized_on_white(picture, alpha, box, new_size)
    square = Image.new("RGB", (size_px, size_px), "white")
    square.paste(resized, ((size_px - new_size[0]) // 2, (size_px - new_size[1]) // 2))
    pixels = np.asarray(square, np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return np.ascontiguousarray(pixels)


def _resized_on_white(
    picture: Image.Image,
    alpha: Image.Image | None,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> Image.Image:
    """The box on white, resized as Pillow's `resize` does with a reducing gap, strip by strip.

    It is on white before it is resized, which is the same as resizing with premultiplied alpha: no
    dark fringe.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    by_x, by_y = (
        max(1, int(length / new / _REDUCING_GAP))
        for length, new in zip((width, height), size, strict=True)
    )
    reduced = Image.new("RGB", (math.ceil(width / by_x), math.ceil(height / by_y)))
    rows = by_y * math.ceil(_STRIP_PX / by_y)
    for start in range(0, height, rows):
        part = (left, top + start, right, min(bottom, top + start + rows))
        strip = picture.crop(part).convert("RGB")
        if alpha is not None:
            on_white = Image.new("RGB", strip.size, "white")
            on_white.paste(strip, mask=alpha.crop(part))
            strip = on_white
        reduced.paste(strip.reduce((by_x, by_y)), (0, start // by_y))
    whole = (0, 0, width / by_x, height / by_y)
    return reduced.resize(size, Image.Resampling.LANCZOS, box=whole)
