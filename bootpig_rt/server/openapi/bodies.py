"""Schemas of request bodies, as JSON and as forms: made of the models that check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.schema import Fields, SubjectFields, SubjectFileFields

Schema: TypeAlias = dict[str, Any]

_IMAGE_TYPES = "image/png, image/jpeg, image/webp"
_FILE = {"type": "string", "format": "binary"}


def json_body(
    kind: type[Fields], options: ServerOptions, most_references: int, without: Sequence[str] = ()
) -> Schema:
    """The content of a JSON body.

    Args:
        kind: Its fields.
        options: Of the server, whose limits it has.
        most_references: Reference images that any of its models reads.
        without: Fields that its route refuses.
    """
    return {"schema": _fields(kind, options, most_references, without)}


def image_form(
    kind: type[Fields], options: ServerOptions, most_references: int, *, has_canvas: bool = False
) -> Schema:
    """The content of a form with images; arguments as for `json_body`.

    `has_canvas`: the first may be a picture to draw into, with a mask.
    """
    schema = _of_form(_fields(kind, options, most_references, ()))
    if has_canvas:
        told = "Of the size of the first image, and transparent where that is drawn into."
        schema["properties"]["mask"] = _FILE | {"description": told}
    schema["properties"] |= _images(most_references)
    schema["anyOf"] = _some_images(most_references)
    return {"schema": schema, "encoding": _encoding(schema)}


def subject_form(options: ServerOptions, most_references: int) -> Schema:
    """The content of a form with reference images, or with the file of a subject."""
    schema = _of_form(_fields(SubjectFields, options, most_references, ()))
    of_images = set(SubjectFields.model_fields) - set(SubjectFileFields.model_fields)
    images = _images(most_references)
    file = _FILE | {"description": "Of a subject, safetensors, as `/file` gives it."}
    schema["properties"] |= images | {"file": file}
    required = schema.pop("required")
    schema["oneOf"] = [
        {
            "required": required,
            "properties": {"file": False},
            "anyOf": _some_images(most_references),
        },
        {"required": ["file"], "properties": dict.fromkeys([*sorted(of_images), *images], False)},
    ]
    return {"schema": schema, "encoding": _encoding(schema)}


def _fields(
    kind: type[Fields], options: ServerOptions, most_references: int, without: Sequence[str]
) -> Schema:
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})
    properties: dict[str, Schema] = schema["properties"]
    for name in without:
        del properties[name]
    for one in properties.values():
        one.pop("title", None)
    limits: Mapping[str, Mapping[str, Any]] = {
        "n": {"maximum": options.most_images},
        "num_inference_steps": {"maximum": options.max_steps},
        "deadline_s": {"maximum": options.max_deadline_s},
        "images": {"maxItems": most_references},
    }
    for name in limits.keys() & properties.keys():
        value_of(properties[name]).update(limits[name])
    if "images" in properties:
        properties["images"]["items"] = definitions["ImageUrl"]
    if "mask" in properties:
        properties["mask"]["anyOf"][0] = definitions["ImageUrl"]
    if "controls" in properties:
        value_of(properties["controls"])["items"] = definitions["ControlFields"]
    return schema


def value_of(schema: Schema) -> Schema:
    """Of a field that may be null, the schema of its value."""
    value: Schema = next(
        (one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema
    )
    return value


def _of_form(schema: Schema) -> Schema:
    """The same fields in a form, where nothing is null: what is left out is not there."""
    properties = {}
    for name, field in schema["properties"].items():
        kept = {key: value for key, value in field.items() if key != "anyOf"}
        if kept.get("default", "") is None:
            del kept["default"]
        properties[name] = kept | (value_of(field) if "anyOf" in field else {})
    return schema | {"properties": properties}


def _images(most: int) -> dict[str, Schema]:
    told = "A PNG, JPEG or WebP of one frame."
    return {
        "image": _FILE | {"description": f"{told} May be there several times."},
        "image[]": {"type": "array", "items": _FILE, "maxItems": most, "description": told},
    }


def _some_images(most: int) -> list[Schema]:
    """One image at least, and no more than `most` under both names together."""
    return [
        {"required": ["image"], "properties": {"image[]": {"maxItems": most - 1}}},
        {
            "required": ["image[]"],
            "properties": {"image": False, "image[]": {"minItems": 1}},
        },
    ]


def _encoding(schema: Schema) -> Schema:
    types = {
        "image": _IMAGE_TYPES,
        "image[]": _IMAGE_TYPES,
        "mask": "image/png, image/webp",
        "file": "application/octet-stream",
        "guidance_interval": "application/json",
        "controls": "application/json",
    }
    return {name: {"contentType": types[name]} for name in types if name in schema["properties"]}
