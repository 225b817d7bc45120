"""PNG files that remember how they were made: written whole or not at all, read back as a dict.

The parameters are one JSON object in a text chunk named "parameters". Which parameters there are
is the caller's business.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin

from bootpig_rt.errors import ImageError, ParameterError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes

CHUNK_NAME = "parameters"


def save_png(
    image: Image.Image, path: str | os.PathLike[str], parameters: Mapping[str, Any] | None = None
) -> None:
    """Write a picture as PNG, with its parameters in a text chunk.

    Args:
        image: The picture.
        path: The file to make or replace, all at once. Its folder must exist.
        parameters: What made the picture: anything JSON can hold. None leaves the chunk out.

    Raises:
        StorageError: The file cannot be written; whatever was there before is still there.
        ParameterError: JSON cannot hold the parameters.
    """
    chunks = PngImagePlugin.PngInfo()
    if parameters is not None:
        try:
            # ASCII: the chunk is Latin-1 by the format, and a prompt can hold anything.
            text = json.dumps(dict(parameters), ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                f"the parameters of {os.fspath(path)!r} do not fit JSON ({error}); "
                "use text, finite numbers, lists and dicts"
            ) from error
        chunks.add_text(CHUNK_NAME, text)
    # Encoded in memory first, so that the disk is touched once and only a full disk can fail.
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=chunks)
    atomic_write_bytes(path, encoded.getvalue())


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the parameters that `save_png` wrote into a picture.

    Args:
        path: A PNG file.

    Returns:
        The parameters. What they hold is not checked: anyone can write such a chunk.

    Raises:
        ImageError: The file cannot be read, is not a PNG, or holds no parameters.
    """
    shown = repr(os.fspath(path))
    try:
        with open(path, "rb") as stream:
            # The chunk stands before the pixels, so nothing is decoded.
            text = PngImagePlugin.PngImageFile(stream).info.get(CHUNK_NAME)
    except (SyntaxError, ValueError) as error:
        raise ImageError(f"{shown} is no PNG, expected one made by bootpig-rt") from error
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise ImageError(f"cannot read {shown}: {reason}") from error
    try:
        parameters = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise ImageError(f"{shown} holds no parameters, expected a PNG made by bootpig-rt")
    return parameters
