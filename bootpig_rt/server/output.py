"""Output: what a picture goes through between its decoder and the network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bootpig_rt.images.encode_image import ImageFormat, encode_image
from bootpig_rt.reference.subject import Subject


@dataclass(frozen=True)
class Output:
    """Encodes pictures, each marked as generated."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse what must not be asked for."""

    def finish(
        self,
        images: Sequence[Image.Image],
        parameters: Sequence[Mapping[str, Any]],
        *,
        format: ImageFormat,
        compression: int | None,
        subject: Subject | None,
    ) -> list[str]:
        """Finished pictures as base64 of their files. Takes milliseconds a picture.

        Args:
            images: RGB.
            parameters: What each was made from, kept in its file.
            format: Of the files.
            compression: Quality of JPEG and WebP, 0 to 100.
            subject: Who is drawn.
        """
        return [
            _base64(image, format, compression, one)
            for image, one in zip(images, parameters, strict=True)
        ]

    def encode(
        self, images: Sequence[Image.Image], *, format: ImageFormat, compression: int | None
    ) -> list[str]:
        """Pictures that are not finished, as base64 of their files."""
        return [_base64(image, format, compression, None) for image in images]


def _base64(
    image: Image.Image,
    format: ImageFormat,
    compression: int | None,
    parameters: Mapping[str, Any] | None,
) -> str:
    quality = None if format == "png" else compression
    data = encode_image(image, format=format, compression=quality, parameters=parameters)
    return base64.b64encode(data).decode()
