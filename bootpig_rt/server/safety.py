"""SafetyChecker: whether pictures may be shown, and what becomes of those that may not.

It fails closed. A picture that was not judged does not leave: a checker that cannot be loaded keeps
the server from starting, and one that fails keeps back all pictures of that request, previews too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from bootpig_rt.server.errors import ApiError

PLACEHOLDER_COLOUR = (128, 128, 128)

logger = logging.getLogger(__name__)


class SafetyChecker(Protocol):
    """Judges pictures. Called on several threads at once."""

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return for each picture whether it is flagged.

        Args:
            images: Mode RGB, of any size.
        """
        ...


@dataclass(frozen=True)
class Checked:
    """A picture that was judged.

    Attributes:
        image: The picture itself, or plain grey of its size where it was flagged.
        is_flagged: None if there is no checker.
    """

    image: Image.Image
    is_flagged: bool | None


def apply_safety(checker: SafetyChecker | None, images: Sequence[Image.Image]) -> list[Checked]:
    """Judge pictures, and take away those that are flagged.

    Args:
        checker: None lets all of them through, unjudged.
        images: Mode RGB.

    Raises:
        ApiError: 500 `safety_unavailable`: the checker failed, or gave no judgement of each. None
            of the pictures may be shown.
    """
    if checker is None:
        return [Checked(image, None) for image in images]
    try:
        flags = checker(images)
    except Exception as error:  # a checker is anyone's code, and whatever it raises stops pictures
        logger.error("the safety checker failed", exc_info=error)
        raise _unavailable() from error
    if len(flags) != len(images) or not all(isinstance(flag, bool) for flag in flags):
        logger.error("the safety checker returned %r for %d pictures", flags, len(images))
        raise _unavailable()
    return [
        Checked(Image.new("RGB", image.size, PLACEHOLDER_COLOUR) if flag else image, flag)
        for image, flag in zip(images, flags, strict=True)
    ]


def _unavailable() -> ApiError:
    text = "the pictures could not be checked, and none is given out; try again later"
    return ApiError(500, "safety_unavailable", text)
