"""Reads back what a PNG, JPEG or WebP file says of how it was made, without decoding the picture.

The file may be anybody's: nothing that it says is proof of anything, and what is read is checked
for its form alone.
"""

from __future__ import annotations

import io
import json
import os
from typing import IO, Any, TypeAlias

from PIL import Image, JpegImagePlugin

from bootpig_rt.errors import ImageError, describe_os_error
from bootpig_rt.images.encode_image import PARAMETERS_CHUNK, XMP_CHUNK
from bootpig_rt.images.image_input import open_header
from bootpig_rt.images.jpeg_xmp import packets_of_jpeg
from bootpig_rt.images.marks import Marks, read_packet

FileSource: TypeAlias = str | os.PathLike[str] | bytes

_MAX_DEPTH = 100
"""Of lists and objects within each other. Python reads deeper ones than it writes."""


def read_parameters(source: FileSource) -> dict[str, Any]:
    """Return the parameters that `encode_image` wrote into a picture.

    Args:
        source: A path of a PNG, JPEG or WebP file, or its contents.

    Returns:
        The parameters. What they hold is not checked: anyone can write such a file.

    Raises:
        ImageError: The file cannot be read, is no picture of these kinds, or holds no parameters.
    """
    text = _read(source).parameters
    try:
        parameters = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict) or not _is_within(parameters, _MAX_DEPTH):
        raise ImageError(
            f"{_shown(source)} holds no parameters, expected a picture made by bootpig-rt"
        )
    return parameters


def is_marked_generated(source: FileSource) -> bool:
    """Whether a picture says in its XMP that a trained model made it, or parts of it.

    Of a picture that does not say so nothing follows: the mark is easily lost, by a screenshot
    for instance.

    Args:
        source: A path of a PNG, JPEG or WebP file, or its contents.

    Raises:
        ImageError: The file cannot be read, or is no picture of these kinds.
    """
    return _read(source).is_generated


def _is_within(value: Any, depth: int) -> bool:
    """Whether a value is nested no deeper than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_within(one, depth - 1) for one in inner)


def _read(source: FileSource) -> Marks:
    if isinstance(source, bytes):
        return _marks(io.BytesIO(source), _shown(source))
    try:
        with open(source, "rb") as stream:
            return _marks(stream, _shown(source))
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise ImageError(f"cannot read {_shown(source)}: {reason}") from error


def _shown(source: FileSource) -> str:
    return "the picture" if isinstance(source, bytes) else repr(os.fspath(source))


def _marks(stream: IO[bytes], what: str) -> Marks:
    image = open_header(stream, what)
    found = [read_packet(packet) for packet in _packets(image)]
    texts = [image.info.get(PARAMETERS_CHUNK), *(marks.parameters for marks in found)]
    return Marks(
        is_generated=any(marks.is_generated for marks in found),
        parameters=next((text for text in texts if isinstance(text, str)), None),
    )


def _packets(image: Image.Image) -> list[bytes]:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return packets_of_jpeg(image.applist)
    packet = image.info.get("xmp", image.info.get(XMP_CHUNK))  # the latter before Pillow 11
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "surrogatepass")
    return [packet] if isinstance(packet, bytes) else []
