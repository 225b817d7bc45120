"""A candidate's files become pictures of one size: square, of the side that shards have.

A target is cropped to a square that holds as much of the subject as it can, and resized. A mask
comes from the candidate, from a target's own transparency, or from a background remover; without
any, the whole picture is the subject. References become what a pair is shown when it draws: the
subject on a white square. Those that come with a candidate are cut out if they show more than the
subject; a candidate without any gets one that is cut from its own target.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import ImageError
from bootpig_rt.images.background import BackgroundRemover, load_remover
from bootpig_rt.images.image_input import load_image
from bootpig_rt.images.picture import prepare_reference, to_pil
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.importing.candidate import Candidate, PictureFile, Refused

MAX_LOST_SHARE = 0.02
"""Of the subject, by cropping to a square."""
MIN_SUBJECT_SHARE = 0.01
"""Of the square, that is the subject."""
MAX_RATIO = 1.25
"""Width and height of a half of a picture of two; more is something else."""

Pixels = NDArray[np.uint8]
MaskOrigin = Literal["given", "transparency", "cut_out", "none"]


@dataclass(frozen=True)
class Fitted:
    """A candidate as pictures.

    `target` and each of `references` are uint8 [S, S, 3], `mask` is uint8 [S, S]. `is_whole` says
    of each reference whether it shows all of a picture, background included.
    """

    target: Pixels
    mask: Pixels
    references: tuple[Pixels, ...]
    caption: str
    subject: str
    mask_origin: MaskOrigin
    is_whole: tuple[bool, ...]
    name: str


@dataclass(frozen=True)
class Fit:
    """How candidates become pictures. Picklable; loads its remover where it is used.

    `size_px` is the side of all pictures; `cut_out` is `grabcut`, an ONNX file or "";
    `needs_mask` refuses candidates of which nobody knows where the subject is; with `is_cut_later`
    they go on without a mask, for somebody else to find it.
    """

    size_px: int
    cut_out: str = ""
    needs_mask: bool = False
    is_cut_later: bool = False
    subject_share: float = REFERENCE_LENGTH

    @cached_property
    def remover(self) -> BackgroundRemover | None:
        """What cuts out, None where nothing does."""
        return load_remover(self.cut_out) if self.cut_out else None

    def __call__(self, candidate: Candidate) -> Fitted | Refused:
        """The candidate as pictures, or why it cannot be used."""
        try:
            return self._fit(candidate)
        except _NoUse as no_use:
            return Refused(candidate.name, no_use.reason, str(no_use))
        except ImageError as error:
            return Refused(candidate.name, "bad_picture", str(error))

    def _fit(self, candidate: Candidate) -> Fitted:
        if not candidate.subject:
            raise _NoUse("no_subject", f"no noun in {candidate.caption[:80]!r}; name a subject")
        target = _load(candidate.target, "target")
        others = [_load(each, "reference") for each in candidate.references]
        if candidate.half is not None:
            left, right = halves(target)
            target, other = (left, right) if candidate.half == "left" else (right, left)
            others = [other]
        mask, origin = self._mask(candidate, target)
        box = _square(target.size, None if origin == "none" else mask, candidate.name)
        if box[2] - box[0] < self.size_px // 2:
            raise _NoUse("too_small", f"{target.width}x{target.height} px, for {self.size_px}")
        if not others and not (self.is_cut_later and origin == "none"):
            if origin == "none":
                raise _NoUse("no_reference", "neither a reference nor a mask to cut one out by")
            cut = target.copy()
            cut.putalpha(mask)
            others = [cut]
        references = [self._reference(each) for each in others]
        return Fitted(
            self._resize(_on_white(target), box),
            self._resize(mask, box),
            tuple(pixels for pixels, _ in references),
            candidate.caption,
            candidate.subject,
            origin,
            tuple(is_whole for _, is_whole in references),
            candidate.name,
        )

    def _mask(self, candidate: Candidate, target: Image.Image) -> tuple[Image.Image, MaskOrigin]:
        """Where the subject of a target is, mode L, and who says so."""
        origin: MaskOrigin = "given"
        if candidate.mask is not None:
            mask = _as_mask(_load(candidate.mask, "mask"))
            if mask.size != target.size:
                if abs(mask.width / mask.height - target.width / target.height) > 0.01:
                    raise _NoUse("mask_shape", f"{mask.size} for a target of {target.size}")
                mask = mask.resize(target.size, Image.Resampling.BILINEAR)
        elif _is_see_through(target):
            mask, origin = target.getchannel("A"), "transparency"
        elif self.remover is not None:
            mask, origin = self.remover(target.convert("RGB")), "cut_out"
        elif self.needs_mask and not self.is_cut_later:
            raise _NoUse("no_mask", "there is none; --cut-out finds one")
        else:
            return Image.new("L", target.size, 255), "none"
        inside = float(np.asarray(mask).mean()) / 255
        if inside < MIN_SUBJECT_SHARE:
            raise _NoUse("empty_mask", f"the subject is {inside:.1%} of the picture")
        return mask, origin

    def _reference(self, picture: Image.Image) -> tuple[Pixels, bool]:
        """A reference as a pair is shown it, and whether that is the whole picture."""
        warnings: list[str] = []
        prepared = prepare_reference(
            picture,
            self.size_px,
            self.remover,
            subject_share=self.subject_share,
            warn=warnings.append,  # that the whole picture is taken as the subject
        )
        return np.asarray(to_pil(prepared[None])[0], np.uint8), bool(warnings)

    def _resize(self, picture: Image.Image, box: tuple[int, int, int, int]) -> Pixels:
        size = (self.size_px, self.size_px)
        resized = picture.crop(box).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return np.asarray(resized, np.uint8)


def halves(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The two square pictures in one, with the same padding around and between them, if any.

    Sides s and padding p of W = 2s + 3p and H = s + 2p are p = 2H - W and s = 2W - 3H. Where that
    is no possible padding the middle is the border.
    """
    width, height = picture.size
    padding, side = 2 * height - width, 2 * width - 3 * height
    if 0 <= padding <= side // 8:
        right = side + 2 * padding
        boxes = [(left, padding, left + side, padding + side) for left in (padding, right)]
    elif 1 / MAX_RATIO <= width / 2 / height <= MAX_RATIO:
        middle = width // 2
        boxes = [(0, 0, middle, height), (width - middle, 0, width, height)]
    else:
        raise _NoUse("not_two_pictures", f"{width}x{height} px, expected two side by side")
    return picture.crop(boxes[0]), picture.crop(boxes[1])


class _NoUse(Exception):
    """Why a candidate cannot be used; never leaves this file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _load(file: PictureFile, what: str) -> Image.Image:
    return load_image(file, what=what)


def _as_mask(picture: Image.Image) -> Image.Image:
    """Mode L of a mask: its transparency if it has any, its brightness otherwise."""
    if _is_see_through(picture):
        return picture.getchannel("A")
    return picture.convert("L")


def _is_see_through(picture: Image.Image) -> bool:
    return picture.mode == "RGBA" and bool((np.asarray(picture.getchannel("A")) < 255).any())


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
    return white


def _square(
    size: tuple[int, int], mask: Image.Image | None, name: str
) -> tuple[int, int, int, int]:
    """The largest square of a picture, moved so that it holds the middle of the subject."""
    width, height = size
    side = min(size)
    subject = mask.point(_above_half).getbbox() if mask is not None else None
    subject = subject or (0, 0, *size)
    left = min(max((subject[0] + subject[2] - side) // 2, 0), width - side)
    top = min(max((subject[1] + subject[3] - side) // 2, 0), height - side)
    box = (left, top, left + side, top + side)
    if mask is not None:
        whole = float(np.asarray(mask).sum())
        kept = float(np.asarray(mask.crop(box)).sum())
        if kept < (1 - MAX_LOST_SHARE) * whole:
            raise _NoUse("not_square", f"a square of {name} would cut {1 - kept / whole:.0%} off")
    return box


def _above_half(value: int) -> int:
    return 255 if value > 127 else 0
