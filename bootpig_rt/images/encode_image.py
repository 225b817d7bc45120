"""From a picture to the bytes of a PNG, JPEG or WebP file that says how it was made.

All pictures that leave the package go through here, so that none leaves without its marks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from PIL import Image, PngImagePlugin

from bootpig_rt.checks import check_int, check_name
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.content_credentials import ContentCredentials
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.images.jpeg_xmp import jpeg_segments
from bootpig_rt.images.marks import to_json, xmp_packet

ImageFormat: TypeAlias = Literal["png", "jpeg", "webp"]

MEDIA_TYPES: dict[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
DEFAULT_QUALITY = 95  # of JPEG and WebP
PARAMETERS_CHUNK = "parameters"
_PNG_LEVEL = 3  # half of the time of zlib's usual 6, and files a tenth larger
XMP_CHUNK = "XML:com.adobe.xmp"

_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "jpeg": ("L", "RGB"),
    "webp": ("RGB", "RGBA"),
}


def encode_image(
    image: Image.Image,
    *,
    format: ImageFormat = "png",
    compression: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    is_generated: bool = True,
    credentials: ContentCredentials | None = None,
    references: Sequence[ReferenceOrigin] = (),
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a picture, with its marks and nothing else that it may have brought along.

    The marks are XMP: that a trained model made the picture (the digital source type
    `trainedAlgorithmicMedia` of the IPTC) and this program's name. Parameters are JSON: in a PNG in
    a text chunk named "parameters", in JPEG and WebP in the XMP.

    Args:
        image: The picture. Its metadata and colour profile are left out.
        format: `png`, `jpeg` or `webp`.
        compression: Quality of JPEG and WebP, 0 to 100, 95 by default. A PNG loses nothing, so
            that it takes 100 or None.
        parameters: What made the picture: anything that JSON can hold. None leaves them out, and
            `without_prompts` of them those that people wrote.
        is_generated: False for the rare picture that no model made, such as a reference image. It
            is not signed either.
        credentials: Signs the picture; None leaves it unsigned.
        references: Origins of the reference images, from `credentials.origin`, for the manifest.
        texts: PNG only. Further text chunks by name, which other programs read.

    Raises:
        CredentialsError: The picture must be signed, and cannot be.
        ParameterError: A format, compression or mode of the picture that there is not, parameters
            that JSON cannot hold, or texts that this format has no place for.
    """
    check_name("format", format, tuple(MEDIA_TYPES))
    quality = _quality(format, compression)
    if image.mode not in _MODES[format]:
        raise ParameterError(
            f"a picture of mode {image.mode} cannot become {format}, expected one of: "
            f"{', '.join(_MODES[format])}; convert it first"
        )
    if texts and (format != "png" or {PARAMETERS_CHUNK, XMP_CHUNK} & texts.keys()):
        raise ParameterError(
            f"texts {', '.join(texts)} for a {format}, expected a png and names other than "
            f"{PARAMETERS_CHUNK} and {XMP_CHUNK}"
        )
    text = None if parameters is None else to_json(parameters)
    clean = image.copy()
    clean.info = {}
    encoded = io.BytesIO()
    if format == "png":
        info = _chunks(text, is_generated=is_generated)
        for name, value in (texts or {}).items():
            info.add_text(name, value)
        clean.save(encoded, "PNG", pnginfo=info, compress_level=_PNG_LEVEL)
    elif format == "jpeg":
        # No subsampling: at the sizes of small pairs the colour of a pixel or two is a detail.
        segments = jpeg_segments(is_generated=is_generated, parameters=text)
        clean.save(encoded, "JPEG", quality=quality, subsampling=0, extra=segments)
    else:
        packet = xmp_packet(is_generated=is_generated, parameters=text)
        clean.save(encoded, "WEBP", quality=quality, xmp=packet)
    if credentials is None or not is_generated:
        return encoded.getvalue()
    return credentials.sign(
        encoded.getvalue(), MEDIA_TYPES[format], parameters=parameters, references=references
    )


def _quality(format: ImageFormat, compression: int | None) -> int:
    if compression is None:
        return DEFAULT_QUALITY
    if format == "png":
        return check_int("compression", compression, 100, 100, "a PNG loses nothing: leave it out")
    return check_int("compression", compression, 0, 100)


def _chunks(parameters: str | None, *, is_generated: bool) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(XMP_CHUNK, xmp_packet(is_generated=is_generated).decode())
    if parameters is not None:
        chunks.add_text(PARAMETERS_CHUNK, parameters)
    return chunks
