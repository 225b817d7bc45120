"""PNG files that say how they were made: written whole or not at all.

Which parameters there are is the caller's business; `read_marks.py` reads them back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.images.content_credentials import ContentCredentials
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.images.encode_image import encode_image


def save_png(
    image: Image.Image,
    path: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None = None,
    *,
    is_generated: bool = True,
    credentials: ContentCredentials | None = None,
    references: Sequence[ReferenceOrigin] = (),
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a picture as PNG, with its marks as `encode_image` makes them.

    Args:
        image: The picture.
        path: The file to make or replace, all at once. Its folder must exist.
        parameters: What made the picture: anything JSON can hold. None leaves them out.
        is_generated: False for a picture that no model made.
        credentials: Signs the picture; None leaves it unsigned.
        references: Origins of the reference images.
        texts: Further text chunks by name, of other programs.

    Raises:
        StorageError: The file cannot be written; whatever was there before is still there.
        ParameterError: JSON cannot hold the parameters.
        CredentialsError: The picture must be signed, and cannot be; nothing was written.
    """
    # Encoded in memory first, so that the disk is touched once and only a full disk can fail.
    encoded = encode_image(
        image,
        parameters=parameters,
        is_generated=is_generated,
        credentials=credentials,
        references=references,
        texts=texts,
    )
    atomic_write_bytes(path, encoded)
