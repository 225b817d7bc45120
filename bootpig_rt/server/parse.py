"""What callers send, JSON and forms, as the fields of a body; pictures in it as bytes.

A form's values are text; they become what the field is, by the same rules as in JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.schema import ControlFields, Fields, ImageUrl

_WHOLE_FLOATS = 2**53
_MAX_MARKS = 50_000
"""Commas, colons and brackets of a body: memory for its values is bounded before they are made."""

_INTEGER = re.compile(r"(-?[0-9]{1,20})(\.0{1,20})?", re.ASCII)
_DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,", re.ASCII)

_EXPECTED = {
    "size": 'expected "auto" or WIDTHxHEIGHT in pixels, such as "512x512"',
    "subject_id": "expected the id of a kept subject, sub_ and 24 hexadecimal digits",
}
"""What fields look like that have a pattern."""

FieldsT = TypeVar("FieldsT", bound=Fields)


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object, of any caller.

    Raises:
        ApiError: Not UTF-8, not JSON, nested too deeply, too many values, a key twice, NaN, or no
            object.
    """
    if sum(map(body.count, b",:[{")) > _MAX_MARKS:
        raise ApiError(400, "invalid_json", "the body has more values than any request needs")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_number,
            parse_constant=_no_constant,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        text = "the body is not JSON in UTF-8 without a byte order mark"
        raise ApiError(400, "invalid_json", text) from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", "the body is JSON but no object")
    return value


def validated(kind: type[FieldsT], values: Mapping[str, Any]) -> FieldsT:
    """Values as the fields of a body.

    Raises:
        ApiError: 422 for a field that is missing, 400 for one that is unknown or out of range;
            `param` names it.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    except RecursionError:
        raise ApiError(400, "invalid_value", "a value is nested too deeply") from None
    param = ".".join(str(part) for part in first["loc"][:3]) or None
    name = printable_name(param or "the body")
    if first["type"] == "missing":
        raise ApiError(422, "missing_field", f"{name} is missing", param=param)
    if first["type"] == "extra_forbidden":
        raise ApiError(400, "unknown_field", f"{name} is no field of this request", param=name)
    told = first["msg"]
    if first["type"] == "string_pattern_mismatch":
        told = _EXPECTED.get(name, told)
    raise ApiError(400, "invalid_value", f"{name}: {told}", param=param)


def from_form(kind: type[FieldsT], items: Iterable[tuple[str, str]]) -> FieldsT:
    """Text fields of a form, as the fields of a body.

    Raises:
        ApiError: As `validated`, or a field that is there twice.
    """
    values: dict[str, Any] = {}
    for name, text in items:
        if name in values:
            shown = printable_name(name)
            raise ApiError(400, "invalid_value", f"{shown} is there twice", param=shown)
        field = kind.model_fields.get(name)
        values[name] = text if field is None else _from_text(field.annotation, text)
    return validated(kind, values)


def image_bytes(images: Iterable[ImageUrl]) -> list[bytes]:
    """Contents of `data:` URLs. No other address is ever opened.

    Raises:
        ApiError: Another scheme or type, or bad base64.
    """
    return [_data_url(one.image_url, f"images.{at}.image_url") for at, one in enumerate(images)]


def mask_bytes(mask: ImageUrl | None) -> bytes | None:
    """Contents of the `data:` URL of a mask, if there is one.

    Raises:
        ApiError: As `image_bytes`.
    """
    return None if mask is None else _data_url(mask.image_url, "mask.image_url")


def map_bytes(controls: Iterable[ControlFields]) -> list[bytes]:
    """Contents of the `data:` URLs of maps.

    Raises:
        ApiError: As `image_bytes`.
    """
    return [_data_url(one.image_url, f"controls.{at}.image_url") for at, one in enumerate(controls)]


def _data_url(url: str, param: str) -> bytes:
    head = _DATA_URL.match(url)
    if head is None:
        text = "expected data:image/png;base64, (or jpeg, webp); addresses are not fetched"
        raise ApiError(400, "invalid_image", f"{param}: {text}", param=param)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid_image", f"{param} is no base64", param=param) from None


def _from_text(annotation: Any, text: str) -> Any:
    """A value of a form as its field's type; left as text where it is none, to be refused."""
    kinds = _plain_types(annotation)
    if bool in kinds:
        return {"true": True, "false": False}.get(text, text)
    if int in kinds and (integer := _INTEGER.fullmatch(text)):
        return int(integer[1])
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            return text
    if list in kinds:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _plain_types(annotation: Any) -> set[type]:
    origin = get_origin(annotation)
    if origin is list:
        return {list}
    if origin is Literal:
        return {str}
    if origin is None:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*(_plain_types(one) for one in get_args(annotation)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _number(text: str) -> float | int:
    """Of JSON: 2.0 is a whole number there."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < _WHOLE_FLOATS else number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def printable_name(name: str) -> str:
    """A caller's name for a field, fit to be repeated: short, and no control characters."""
    shown = "".join(one if one.isprintable() else "?" for one in name[:60])
    return shown + ("..." if len(name) > 60 else "")
