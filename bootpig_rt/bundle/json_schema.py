"""A checker for the part of JSON Schema that our own schema files use.

Knows types, const, enum, pattern, minimum, required, properties, items, anyOf and local `$ref`s.
A keyword that it does not know is an error in the schema file, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

_KNOWN = frozenset(
    "$schema $defs $ref title description type const enum pattern minimum required properties "
    "additionalProperties items minItems maxItems anyOf".split()
)


class SchemaError(ValueError):
    """A value is not what the schema says; the message begins with the place."""


def check_schema(value: Any, schema: Mapping[str, Any], *, place: str = "") -> None:
    """Compare a parsed json value with a schema.

    Args:
        value: What `json.loads` returned.
        schema: A whole schema; its `$ref`s are looked up in it.
        place: What to call the value in a message.

    Raises:
        SchemaError: Names the first place that differs, what it holds and what was expected.
        NotImplementedError: The schema uses a keyword that is not known here.
    """
    _check(value, schema, schema, place)


def _check(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], place: str) -> None:
    unknown = set(schema) - _KNOWN
    if unknown:
        raise NotImplementedError(f"schema keyword {sorted(unknown)[0]!r}")
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        _check(value, target, root, place)
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], root, place)
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        raise SchemaError(f"{_at(place)} is {_short(value)}, expected {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        expected = ", ".join(map(str, schema["enum"]))
        raise SchemaError(f"{_at(place)} is {_short(value)}, expected one of {expected}")
    if "type" in schema:
        _check_type(value, schema["type"], place)
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        raise SchemaError(f"{_at(place)} is {_short(value)}, expected {schema['pattern']}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not value >= schema.get("minimum", value):
        raise SchemaError(f"{_at(place)} is {value!r}, expected at least {schema['minimum']}")
    if isinstance(value, dict):
        _check_object(value, schema, root, place)
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not low <= len(value) <= high:
            raise SchemaError(f"{_at(place)} has {len(value)} items, expected at least {low}")
        for index, item in enumerate(value):
            _check(item, schema.get("items", {}), root, f"{place}[{index}]")


def _check_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], place: str
) -> None:
    for name in schema.get("required", ()):
        if name not in value:
            raise SchemaError(f"{_join(place, name)} is missing")
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        where = _join(place, name)
        if name in properties:
            _check(item, properties[name], root, where)
        elif others is False:
            raise SchemaError(f"{where} is not a known field")
        elif others is not True:
            _check(item, others, root, where)


def _check_any(
    value: Any, choices: list[Mapping[str, Any]], root: Mapping[str, Any], place: str
) -> None:
    errors = []
    for choice in choices:
        try:
            return _check(value, choice, root, place)
        except SchemaError as error:
            errors.append(error)
    raise errors[0]


def _check_type(value: Any, names: str | list[str], place: str) -> None:
    names = [names] if isinstance(names, str) else names
    for name in names:
        is_bool_for_number = isinstance(value, bool) and name != "boolean"
        if isinstance(value, _TYPES[name]) and not is_bool_for_number:
            return
    raise SchemaError(f"{_at(place)} is {_short(value)}, expected {' or '.join(names)}")


def _at(place: str) -> str:
    return place or "the file"


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
