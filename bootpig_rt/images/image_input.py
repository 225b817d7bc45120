"""Pictures in: files, bytes, arrays and PIL images, checked before a pixel is decoded.

This file knows nothing about models and subjects; `picture.py` makes of a loaded picture what the
Reference U-Net is shown.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from bootpig_rt.errors import ImageError, describe_os_error

ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | np.ndarray[Any, Any]

FORMATS = "PNG, JPEG, WebP or BMP"
MIN_SIDE_PX = 8
MAX_SIDE_PX = 16384
MAX_PIXELS = 64 * 2**20

_MAX_SCANS = 100
"""Of a JPEG. Others write ten or so; each is a pass over all pixels, and takes as little as ten
bytes of a file."""

# Pillow warns of EXIF and animations that are damaged, in texts with numbers out of the file. They
# tell nobody anything here, and Python keeps each new text for as long as the process runs.
for _module in ("TiffImagePlugin", "PngImagePlugin"):
    warnings.filterwarnings("ignore", category=UserWarning, module=rf"PIL\.{_module}")

_EXIF_ORIENTATION = 0x0112
_HEAD_BYTES = 512

# The plugins are called directly: `Image.open` would warn about pictures that are refused here
# anyway, and would try the plugins of all other formats. JpegImageFile, unlike the JPEG factory,
# takes the main picture of the multi-picture files that phones write.
_OPENERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}

# First bytes of formats, to say by name what a refused file is. Checked in this order.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS or PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS or PostScript"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC or video"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "PSD"),
    (0, b"SIMPLE", "FITS"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or XML"),
    (0, b"<!DOCTYPE", "HTML or XML"),
    (0, b"<html", "HTML"),
)

# What Pillow's decoders raise on damaged data. Their texts can hold memory addresses and mean
# little to a user, so none is passed on.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def load_image(
    source: ImageSource, *, what: str = "reference image", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Load a picture from wherever it is, upright, in eight bits.

    The size is read from the header and refused before any pixel is decoded. EXIF rotation is
    applied; other metadata and colour profiles are dropped. 16-bit grey keeps its upper eight
    bits, CMYK becomes RGB, transparency of any kind becomes an alpha channel.

    Args:
        source: A path, the contents of a file, a PIL image, or an array: uint8, or float in [0, 1],
            of shape [H, W], [H, W, 1] grey, [H, W, 3] RGB or [H, W, 4] RGBA.
        what: How messages call the picture.
        max_pixels: A larger picture is refused. Decoding takes four bytes of memory a pixel, and a
            file of a few kilobytes may hold many pixels.

    Returns:
        A new image of mode RGB, or RGBA if the picture has an alpha channel.

    Raises:
        ImageError: Not a still PNG, JPEG, WebP or BMP; damaged; outside 8 to 16384 px a side or
            over `max_pixels`; a JPEG of over a hundred scans; an array of another type, shape or
            range; a file that cannot be read. Says which and what to do.
    """
    if isinstance(source, Image.Image):
        return _normalise(source, what, max_pixels, is_ours=False)
    if isinstance(source, np.ndarray):
        return _from_array(source, what, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), what, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _load_file(os.fspath(source), what, max_pixels)
    hint = "; pass the pictures one by one" if isinstance(source, (list, tuple)) else ""
    raise ImageError(
        f"{what} is of type {type(source).__name__}, expected a path, bytes, a PIL image or a "
        f"numpy array{hint}"
    )


def _load_file(path: str, what: str, max_pixels: int) -> Image.Image:
    shown = repr(path if len(path) <= 200 else f"{path[:200]}...")
    what = f"{what} {shown}"
    if path.startswith(("http://", "https://", "data:", "file:")):
        raise ImageError(f"{what} is an address, expected a file; download it and pass its path")
    try:
        # Opening a pipe or a device could wait forever, so look before.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{what} is a folder, expected a picture file; name a file in it")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{what} is no plain file, expected a picture file; copy it to one")
        with open(path, "rb") as stream:
            return _decode(stream, what, max_pixels)
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{what} is no possible path; check the path") from error
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise ImageError(f"cannot read {what}: {reason}") from error


def _decode(stream: IO[bytes], what: str, max_pixels: int) -> Image.Image:
    """Decode a file's contents; what comes back no longer needs the stream."""
    image = open_header(stream, what, max_pixels)
    if image.format == "JPEG":
        _check_scans(stream, what)
    return _normalise(image, what, max_pixels, is_ours=True)


def open_header(stream: IO[bytes], what: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture file as far as its header: no pixel of it is decoded, nor its size checked.

    Args:
        stream: The file, from its beginning.
        what: How messages call the picture.
        max_pixels: For the message about a picture that Pillow itself refuses.

    Raises:
        ImageError: Empty, not PNG, JPEG, WebP or BMP, or damaged.
    """
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if not head:
        raise ImageError(f"{what} is empty (0 bytes), expected {FORMATS}; save the picture again")
    name = format_name(head)
    opener = _OPENERS.get(name)
    if opener is None:
        got = f"is {name}" if name else "is not a picture"
        raise ImageError(f"{what} {got}, expected {FORMATS}; convert it to PNG")
    try:
        return opener(stream)
    except Image.DecompressionBombError as error:  # WebP's own check, before ours
        raise ImageError(
            f"{what} is too large, expected {_limits(max_pixels)}; make it smaller"
        ) from error
    except _DECODER_ERRORS as error:
        raise _damaged(what, name) from error


# A byte of markers, FF, and their code: no stuffed zero, restart or filling.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)


def _check_scans(stream: IO[bytes], what: str) -> None:
    """Refuse a JPEG of so many scans that decoding takes minutes, however few its pixels."""
    before = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(before)
    num_scans = at = 0
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        code, at = marker[1][0], marker.end()
        if code == _END_OF_IMAGE:
            break
        num_scans += code == _START_OF_SCAN
        if num_scans > _MAX_SCANS:
            raise ImageError(
                f"{what} is a JPEG of over {_MAX_SCANS} scans, expected about ten; save it again"
            )
        if code not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")


def format_name(head: bytes) -> str:
    """Name of the format that the first bytes of a file show, "" if none is known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for offset, magic, name in _MAGIC:
        candidate = text if magic.startswith(b"<") else head
        if candidate[offset : offset + len(magic)].lower() == magic.lower():
            return "SVG" if name.endswith("XML") and b"<svg" in head else name
    return ""


def _damaged(what: str, name: str) -> ImageError:
    return ImageError(
        f"{what} is damaged or cut short, expected a whole {name} file; save or copy it again"
    )


def _limits(max_pixels: int) -> str:
    megapixels = max_pixels / 2**20
    return f"{MIN_SIDE_PX} to {MAX_SIDE_PX} px a side and at most {megapixels:.4g} megapixels"


def _check_size(width: int, height: int, what: str, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE_PX:
        fix = "use a larger picture"
    elif max(width, height) > MAX_SIDE_PX or width * height > max_pixels:
        fix = "make it smaller"
    else:
        return
    raise ImageError(f"{what} is {width}x{height} px, expected {_limits(max_pixels)}; {fix}")


def _normalise(image: Image.Image, what: str, max_pixels: int, *, is_ours: bool) -> Image.Image:
    """Check an opened PIL image, decode it, and return it upright as a new RGB or RGBA image.

    One that was opened here is nobody else's, and is returned itself where it need not change.
    """
    _check_size(*image.size, what, max_pixels)
    if getattr(image, "is_animated", False):
        raise ImageError(
            f"{what} is animated ({getattr(image, 'n_frames', 'several')} frames), "
            "expected a still picture; save one frame as PNG"
        )
    try:
        image.load()
        orientation = _read_orientation(image)
        result = _to_rgb_or_rgba(image, what, is_ours=is_ours)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise _damaged(what, image.format or "picture") from error
    result.info.clear()
    return result if orientation is None else result.transpose(orientation)


def _read_orientation(image: Image.Image) -> Image.Transpose | None:
    """How to turn the picture upright by its EXIF tag; None if there is none that can be read."""
    try:
        tag = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:  # broken EXIF is common and says nothing about the pixels
        return None
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(tag)


def _to_rgb_or_rgba(image: Image.Image, what: str, *, is_ours: bool) -> Image.Image:
    """Convert a decoded image of any mode; never the caller's own, so its info can be dropped."""
    if image.mode == "I;16" or image.mode.startswith("I;16") or _is_png_of_old_pillow(image):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{what} has PIL mode {image.mode}, whose range is not known; expected RGB, RGBA, L, "
            "LA, P, CMYK or I;16: convert it to L first"
        )
    target = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != target:
        return image.convert(target)
    return image if is_ours else image.copy()


def _is_png_of_old_pillow(image: Image.Image) -> bool:
    return image.mode == "I" and image.format == "PNG"  # 16-bit grey, before Pillow 11


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey.convert("RGB")
    rgba = grey.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return rgba


def _from_array(array: np.ndarray[Any, Any], what: str, max_pixels: int) -> Image.Image:
    """Check an array and copy it into a new image."""
    shape = list(array.shape)
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        hint = "pass one picture"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "move the channels last with array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "pass the pictures one by one"
        raise ImageError(
            f"{what} is an array of shape {shape}, expected [H, W], [H, W, 1], [H, W, 3] or "
            f"[H, W, 4]; {hint}"
        )
    _check_size(array.shape[1], array.shape[0], what, max_pixels)
    if array.ndim == 3 and channels == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        pixels = array
    elif array.dtype in (np.float16, np.float32, np.float64):
        pixels = _bytes_from_floats(array, what)
    else:
        raise ImageError(
            f"{what} is an array of {array.dtype}, expected uint8 in 0..255 or float in 0..1; "
            "convert it"
        )
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.convert("RGB") if image.mode == "L" else image.copy()


def _bytes_from_floats(array: np.ndarray[Any, Any], what: str) -> npt.NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())  # NaN comes through min and max
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{what} is an array with NaN or infinity, expected floats in 0..1")
    tolerance = 1e-3  # resizing and float16 overshoot by that much
    if low < -tolerance or high > 1 + tolerance:
        fix = "use (x + 1) / 2" if low >= -1 - tolerance and high <= 1 + tolerance else "divide it"
        if low >= -tolerance and high <= 255 + tolerance:
            fix = "divide by 255"
        raise ImageError(f"{what} is a float array in {low:.4g}..{high:.4g}, expected 0..1; {fix}")
    scaled: npt.NDArray[np.uint8] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return scaled
