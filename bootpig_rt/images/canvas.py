"""Canvas: a given picture that is drawn into, or from. Checked once, in the size that it has.

What is outside the mask comes out as it went in, to the last bit. Inside, what was drawn fades into
the given picture over a stated number of pixels along the mask's border.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.errors import ImageError
from bootpig_rt.images.image_input import MAX_PIXELS, ImageSource, load_image

FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

MAX_EDGE_PX = 256
"""Widest soft edge of a mask."""

_DRAWN = 128  # of 255: masks that were saved as JPEG or resized are not quite black and white


@dataclass(frozen=True, eq=False)
class Canvas:
    """A given picture, and which part of it is drawn anew.

    Attributes:
        pixels: uint8 [H, W, 3].
        mask: bool [H, W], true where it is drawn; None: all of it is drawn, from the picture.
        fingerprint: sha256 over both.
    """

    pixels: npt.NDArray[np.uint8]
    mask: BoolArray | None = None
    fingerprint: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Make the arrays read-only: their fingerprint must stay true."""
        digest = hashlib.sha256(f"{self.pixels.shape}".encode())
        for array in (self.pixels, self.mask):
            if array is not None:
                array.setflags(write=False)
                digest.update(np.ascontiguousarray(array).tobytes())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    @classmethod
    def load(
        cls,
        image: ImageSource,
        mask_image: ImageSource | None = None,
        *,
        alpha_mask: ImageSource | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Canvas:
        """Read a picture and its mask from wherever they are.

        Args:
            image: Whatever `load_image` accepts, without transparent pixels.
            mask_image: Black and white, of the same size: white is drawn, black stays. Grey counts
                as the nearer of the two. An array may be of bool too.
            alpha_mask: In its place a picture that is transparent where it is drawn.
            max_pixels: A larger picture is refused.

        Raises:
            ImageError: One cannot be read, the picture is transparent somewhere, or the mask is of
                another size, of another kind, or says all or nothing.
        """
        picture = load_image(image, what="image", max_pixels=max_pixels)
        if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255):
            raise ImageError(
                "image has transparent pixels, expected an opaque picture; put it on a background, "
                "or say with mask_image what is to be drawn"
            )
        pixels = np.array(picture.convert("RGB"))
        mask = None
        if mask_image is not None:
            mask = _load_mask(mask_image, picture.size, max_pixels)
        elif alpha_mask is not None:
            mask = _load_alpha(alpha_mask, picture.size, max_pixels)
        return cls(pixels, mask)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        height, width, _ = self.pixels.shape
        return width, height

    def for_encoder(self) -> FloatArray:
        """The picture, then where it has a mask the one with the drawn part in grey, 0.

        Returns:
            float32 [1 or 2, 3, H, W] in [-1, 1].
        """
        whole = self.pixels.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1.0
        if self.mask is None:
            return np.ascontiguousarray(whole[np.newaxis])
        return np.stack([whole, np.where(self.mask, np.float32(0.0), whole)])

    def latent_mask(self, factor: int) -> FloatArray:
        """Which latents are drawn: all that a drawn pixel lies in.

        Args:
            factor: Pixels per latent, along a side, of which the canvas's are multiples.

        Returns:
            float32 [1, h, w], 0 or 1.
        """
        width, height = self.size
        if self.mask is None:
            return np.ones((1, height // factor, width // factor), np.float32)
        cells = self.mask.reshape(height // factor, factor, width // factor, factor)
        return np.asarray(cells.max(axis=(1, 3)), np.float32)[np.newaxis]

    def paste(self, drawn: Image.Image, edge_px: int) -> Image.Image:
        """What was drawn where the mask is, and the given picture around it.

        Args:
            drawn: RGB, of the canvas's size.
            edge_px: Pixels inside the mask over which the one fades into the other.

        Returns:
            A new picture; outside the mask its pixels equal the canvas's.
        """
        if self.mask is None:
            return drawn
        share = soft_edge(self.mask, edge_px)[..., np.newaxis]
        mixed = share * np.asarray(drawn, np.float32) + (1.0 - share) * self.pixels
        return Image.fromarray(np.rint(mixed).astype(np.uint8))


def soft_edge(mask: BoolArray, edge_px: int) -> FloatArray:
    """How much of what was drawn is seen at each pixel.

    Args:
        mask: bool [H, W]. Beyond the picture's own border nothing fades.
        edge_px: 0 for a hard edge.

    Returns:
        float32 [H, W]: 0 outside the mask, and inside it k / (edge_px + 1) in the k-th pixel from
        its border, up to 1.
    """
    share, inside = np.zeros(mask.shape, np.float32), mask
    for ring in range(edge_px + 1):
        share += inside
        # Squares and crosses in turn wear a shape down by an octagon, which is nearly a circle.
        inside = _worn(inside, is_square=ring % 2 == 1)
    return np.asarray(share / (edge_px + 1), np.float32)


def _worn(mask: BoolArray, *, is_square: bool) -> BoolArray:
    """The pixels of a mask whose neighbours are in it too."""
    wide = np.pad(mask, 1, mode="edge")
    height, width = mask.shape
    worn: Any = mask.copy()
    for y in range(3):
        for x in range(3):
            if is_square or 1 in (x, y):
                worn &= wide[y : y + height, x : x + width]
    return np.asarray(worn, np.bool_)


def _load_mask(source: ImageSource, size: tuple[int, int], max_pixels: int) -> BoolArray:
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.uint8) * 255
    picture = load_image(source, what="mask_image", max_pixels=max_pixels)
    values = np.asarray(picture)
    if picture.mode != "RGB" or (values != values[..., :1]).any():
        got = "in colour" if picture.mode == "RGB" else "with transparency"
        raise ImageError(
            f"mask_image is {got}, expected black and white of mode L or 1, white where it is "
            'drawn; convert it with mask.convert("L")'
        )
    return _checked(values[..., 0] >= _DRAWN, size, "mask_image", ("white", "black"))


def _load_alpha(source: ImageSource, size: tuple[int, int], max_pixels: int) -> BoolArray:
    picture = load_image(source, what="mask", max_pixels=max_pixels)
    if picture.mode != "RGBA":
        raise ImageError(
            "mask has no alpha channel, expected a PNG that is transparent where it is drawn"
        )
    is_drawn = np.asarray(picture.getchannel("A")) < _DRAWN
    return _checked(is_drawn, size, "mask", ("transparent", "opaque"))


def _checked(
    mask: BoolArray, size: tuple[int, int], what: str, words: tuple[str, str]
) -> BoolArray:
    """Refuse a mask of another size, and one of a single value; `words` say what they look like."""
    height, width = mask.shape
    drawn, kept = words
    if (width, height) != size:
        raise ImageError(
            f"{what} is {width}x{height} px, expected {size[0]}x{size[1]} px as the image; make "
            "both of one size"
        )
    if not mask.any():
        raise ImageError(
            f"{what} is {kept} all over, so nothing would be drawn; make {drawn} what is to be "
            "drawn"
        )
    if mask.all():
        raise ImageError(
            f"{what} is {drawn} all over, so nothing of the image would stay; leave out the mask, "
            "and say with strength how much of the image is kept"
        )
    return mask
