"""For schemathesis: real pictures and subjects, and what JSON Schema cannot say of a request.

A value that is valid by the schema is made one that the server takes: pairs are put in order, sizes
become such as the model draws. What is not valid by the schema stays as it is.
"""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import schemathesis
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from PIL import Image, ImageDraw
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.file_samples import MEDIA_TYPE_FILE_SAMPLES
from schemathesis.transport.serialization import Binary

_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
_SIZES = ("32x32", "64x32", "auto")
_WINDOW = re.compile(r"window:[0-9.]{1,20}-[0-9.]{1,20}")
_MODEL = "tiny_bundle"


def _picture(format: str, side_px: int, left: int) -> bytes:
    image = Image.new("RGB", (side_px, side_px), "white")
    ImageDraw.Draw(image).ellipse((left, 4, side_px - 4, side_px - 4), fill=(200, 40, 30))
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


_PICTURES = {
    media_type: [_picture(format, side_px, left) for side_px, left in ((16, 2), (40, 6), (48, 9))]
    for media_type, format in _FORMATS.items()
}
_URLS = [
    f"data:{media_type};base64,{base64.b64encode(file).decode()}"
    for media_type, files in _PICTURES.items()
    for file in files
]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _mask() -> bytes:
    image = Image.new("RGBA", (40, 40), "white")
    image.paste((0, 0, 0, 0), (10, 10, 30, 30))
    return _png(image)


_CANVAS, _MASK = _picture("PNG", 40, 6), _mask()

_SUBJECT = Path(os.environ["BOOTPIG_RT_FUZZ_SUBJECT"]).read_bytes()

# Its own pictures have one pixel, fewer than a reference image may have.
MEDIA_TYPE_FILE_SAMPLES.update({name: files[0] for name, files in _PICTURES.items()})
MEDIA_TYPE_FILE_SAMPLES["application/octet-stream"] = _SUBJECT


@schemathesis.hook
def map_case(
    context: schemathesis.HookContext, case: schemathesis.Case[Any]
) -> schemathesis.Case[Any]:
    """Of each request that schemathesis would send, the one that it does."""
    if isinstance(case.body, dict):
        _mend(case.body)
    return case


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Any, case: schemathesis.Case[Any], response: Any
) -> bool:
    """Bytes are no text to its validator, so it takes some valid forms with files for invalid."""
    form = case.operation.get_body_for_media_type(case.media_type)
    if (
        type(failure) is not AcceptedNegativeData
        or form is None
        or "multipart" not in form.media_type
    ):
        return True
    schema, body = form.optimized_schema, _as_text(case.body)
    if isinstance(schema, dict) and isinstance(body, dict):
        known = schema.get("properties", {})
        body = {name: _number_as_text(one, known.get(name, {})) for name, one in body.items()}
    return not Draft202012Validator(schema).is_valid(body)


def _number_as_text(value: Any, schema: Any) -> Any:
    """A form has no numbers: where the field is a text, one is the text that writes it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or Draft202012Validator(schema).is_valid(value):
        return value
    return str(value)


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):  # an empty list is no part of the form
        return {name: _as_text(one) for name, one in value.items() if one != []}
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return "" if isinstance(value, bytes | Binary) else value


def _mend(body: dict[str, Any]) -> None:
    for name in ("image", "file"):
        if isinstance(body.get(name), bytes | Binary):
            body[name] = _SUBJECT if name == "file" else _picture_of(body[name])
    listed = body.get("image[]")
    if isinstance(listed, list):
        body["image[]"] = [
            _picture_of(one) if isinstance(one, bytes | Binary) else one for one in listed
        ]
    size, model = body.get("size"), body.get("model")
    if isinstance(size, str) and re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", size):
        body["size"] = _SIZES[len(size) % len(_SIZES)]
    if isinstance(model, str) and len(model) <= 200 and len(model) % 4:
        body["model"] = _MODEL  # the others are 404
    interval = body.get("guidance_interval")
    if isinstance(interval, list) and _is_share(interval):
        body["guidance_interval"] = [0.0, max([0.01, *interval])]
    sizes = body.get("sizes")
    if isinstance(sizes, list) and len(sizes) == 6:
        if all(type(each) is int and 0 <= each <= 16384 for each in sizes):
            del body["sizes"]  # the model here is told none
    schedule = body.get("reference_schedule")
    if isinstance(schedule, str):
        body["reference_schedule"] = _WINDOW.sub("window:0-0.9", schedule)
    approximation = body.get("approximation")
    if isinstance(approximation, str):
        body["approximation"] = _WINDOW.sub("window:0-0.9", approximation)
    controls = body.get("controls")
    if isinstance(controls, list) and 0 < len(controls) <= 8 and all(map(_is_control, controls)):
        del body["controls"]  # the model of the tests follows no maps
    _mend_canvas(body)
    images = body.get("images") if "mask" not in body else None
    for number, image in enumerate(images if isinstance(images, list) else ()):
        if isinstance(image, dict) and _is_data_url(image.get("image_url")):
            image["image_url"] = _URLS[number % len(_URLS)]


def _mend_canvas(body: dict[str, Any]) -> None:
    """A mask fits the first image; what goes with none is left out where there is none."""
    mask: Any = body.get("mask")
    strength: Any = body.get("strength")
    edge: Any = body.get("mask_edge_px")
    is_file = isinstance(mask, bytes | Binary)
    is_url = isinstance(mask, dict) and set(mask) == {"image_url"}
    has_mask = is_file or (is_url and _is_data_url(mask["image_url"]))
    has_strength = type(strength) in (int, float) and 0 < strength <= 1
    if has_strength:
        body["strength"] = 1.0  # of few steps none would be left
    if has_mask or has_strength:
        body.pop("reference_prompt", None)  # there may be no other image
        if isinstance(body.get("size"), str):
            body["size"] = "auto"
    elif isinstance(body.get("subject_id"), str) and ("images" in body or "image" in body):
        del body["subject_id"]
    if type(edge) is int and 0 <= edge <= 256 and not has_mask and mask is None:
        del body["mask_edge_px"]
    if has_mask:
        for name in ("image", "image[]"):
            if isinstance(body.get(name), list):
                body[name] = [_CANVAS] * len(body[name])
            elif isinstance(body.get(name), bytes | Binary):
                body[name] = _CANVAS
        if is_file:
            body["mask"] = _MASK
        else:
            mask["image_url"] = _url(_MASK)
            for image in body.get("images") or ():
                if isinstance(image, dict) and _is_data_url(image.get("image_url")):
                    image["image_url"] = _url(_CANVAS)


def _is_control(value: Any) -> bool:
    """Whether a map is as the description has it."""
    if not isinstance(value, dict) or not {"kind", "image_url"} <= set(value):
        return False
    scale, interval = value.get("scale", 1.0), value.get("interval")
    return (
        set(value) <= {"kind", "image_url", "source", "scale", "interval"}
        and isinstance(value["kind"], str)
        and re.fullmatch(r"[a-z][a-z0-9]{0,31}", value["kind"]) is not None
        and _is_data_url(value["image_url"])
        and value.get("source", "map") in ("map", "photo")
        and type(scale) in (int, float)
        and 0 <= scale <= 10
        and (interval is None or (isinstance(interval, list) and _is_share(interval)))
    )


def _picture_of(data: bytes | Binary) -> bytes:
    """A picture in place of what is none."""
    files = [file for files in _PICTURES.values() for file in files]
    return files[len(data) % len(files)]


def _is_share(value: list[Any]) -> bool:
    return len(value) == 2 and all(type(one) in (int, float) and 0 <= one <= 1 for one in value)


def _is_data_url(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    head, _, data = value.partition(";base64,")
    if head.removeprefix("data:") not in _FORMATS or not head.startswith("data:"):
        return False
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        return False
    return True
