"""The options of a service one by one: what each is, its type, its value from what was written."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bootpig_rt.errors import ConfigError, shown
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.units import parse_seconds, parse_size

NONE = "none"
"""How a file or a flag says that an option has no value, where text could not mean that."""


@cache
def descriptions() -> Mapping[str, str]:
    """What each field of `ServerOptions` is, as its docstring says it."""
    text = inspect.getdoc(ServerOptions) or ""
    section = text.partition("\nAttributes:\n")[2].partition("\n\n")[0]
    found = dict.fromkeys(option_types(), "")
    for entry in re.split(r"\n(?= {4}\w)", section.rstrip()):
        name, _, told = entry.partition(":")
        if name.strip() in found:
            found[name.strip()] = " ".join(told.split())
    return found


@cache
def option_types() -> Mapping[str, Any]:
    """Types of the fields."""
    hints = get_type_hints(ServerOptions)
    return {field.name: hints[field.name] for field in fields(ServerOptions)}


def convert(where: str, name: str, given: Any, *, is_text: bool = False) -> Any:
    """A value as its option has it.

    Args:
        where: A flag, a variable, or a key of a file.
        name: Of the option.
        given: What was written there; sizes and times may have units, optional ones be "none".
        is_text: Numbers may be written as text, too.

    Raises:
        ConfigError: Not of the option's type.
    """
    import msgspec

    kind = option_types()[name]
    is_optional = NoneType in get_args(kind)
    value = given
    if isinstance(given, str):
        text = given.strip()
        if is_optional and (not text or (text.lower() == NONE and str not in get_args(kind))):
            return None
        if name.endswith("_bytes"):
            value = parse_size(text)
        elif name.endswith("_s"):
            value = parse_seconds(text)
    try:
        if value is None:
            raise ValueError("neither a number nor a number with a unit")
        return msgspec.convert(value, kind, strict=not is_text)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{where} is {shown(given)}, expected {_expected(name)}") from error


def is_many(name: str) -> bool:
    """Whether an option is a list or a table."""
    return get_origin(option_types()[name]) in (tuple, Mapping)


def _expected(name: str) -> str:
    kind = option_types()[name]
    inner = [one for one in get_args(kind) if one is not NoneType] or [kind]
    none = f', or "{NONE}"' if NoneType in get_args(kind) and str not in inner else ""
    if get_origin(kind) is Literal:
        return f"one of: {', '.join(get_args(kind))}"
    if name.endswith("_bytes"):
        return f'a size such as 1048576 or "64MiB"{none}'
    if name.endswith("_s"):
        return f'a time such as 30 or "30s"{none}'
    if get_origin(kind) is tuple:
        return "a list of " + ("whole numbers" if int in get_args(kind) else "texts")
    if get_origin(kind) is Mapping:
        return "a table of names and folders"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words[inner[0]] + none


def metavar(name: str) -> str:
    """What stands for the value in `--help`."""
    kind = option_types()[name]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if name.endswith("_bytes"):
        return "SIZE"
    if name.endswith("_s"):
        return "TIME"
    if get_origin(kind) is Mapping:
        return "NAME=FOLDER"
    words = {int: "N", float: "X"}
    return next((words[one] for one in (kind, *get_args(kind)) if one in words), "TEXT")


def nearest(name: str) -> str:
    """The end of a message about an unknown option: the one that was meant, perhaps."""
    close = difflib.get_close_matches(name, list(option_types()), n=1)
    return f"; did you mean {close[0]}?" if close else "; see `bootpig-rt serve --help`"
