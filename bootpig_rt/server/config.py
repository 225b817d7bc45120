"""Where the settings of a service come from: a TOML file, the environment, flags; later ones win.

    bootpig-rt serve --config serve.toml --max-batch 16
    BOOTPIG_RT_OPTION_MAX_BATCH=16 bootpig-rt serve --config serve.toml

All three name the fields of `ServerOptions`, whose docstring describes them for `--help` and the
documentation. Nothing here loads more than the standard library until a value is converted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_origin

from bootpig_rt.errors import ConfigError, describe_os_error, one_line, shown
from bootpig_rt.server.option_values import (
    NONE,
    convert,
    descriptions,
    is_many,
    metavar,
    nearest,
    option_types,
)
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.units import size_text

ENV_PREFIX = "BOOTPIG_RT_OPTION_"
"""Before the name of a field. The plain `BOOTPIG_RT_` is what Kubernetes puts before the address of
a service of our name."""

GROUPS = {
    "model": "models",
    "host": "network and access",
    "max_batch": "limits",
    "tenant_max_waiting": "tenants, subjects and tables",
    "drain_s": "stopping, safety and logs",
}
"""Titles of groups in `--help`, by the field that each begins with."""


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of `ServerOptions`, `--config` and `--print-config`.

    The model may be named without its flag.
    """
    parser.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="FOLDER",
        help="pair or bundle to serve; as --model",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file with any of the options below, named as there with _ for -; flags and "
        f"variables {ENV_PREFIX}NAME go before it",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the options as TOML, and end"
    )
    told, group = descriptions(), parser.add_argument_group("options")
    for field in fields(ServerOptions):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        flag, text = f"--{field.name.replace('_', '-')}", told[field.name]
        text = f"{text.rstrip('.')}{_default_text(field)}".replace("%", "%%")
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if option_types()[field.name] is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = metavar(field.name)
            if is_many(field.name):
                settings["action"] = "append"
        group.add_argument(flag, **settings)


def options_of(args: argparse.Namespace) -> ServerOptions:
    """The options of a service: defaults, `--config`, environment, flags; later ones win.

    Raises:
        ConfigError: The file cannot be read; a name is unknown; a value is of another type.
        ParameterError: A value is out of range.
    """
    values: dict[str, Any] = {}
    if args.config is not None:
        values |= read_config(args.config)
    values |= _of_environment(os.environ)
    for name in option_types():
        if hasattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            values[name] = _of_text(flag, name, getattr(args, name))
    return ServerOptions(**values)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of `ServerOptions` from a TOML file, converted; the others stay at their defaults.

    Raises:
        ConfigError: It cannot be read, is no TOML, has an unknown key or a value of another type.
    """
    return _of_table(repr(str(path)), read_toml(path))


def options_of_table(where: str, table: Mapping[str, Any]) -> ServerOptions:
    """The options of a service that is a part of something larger: defaults, a table, environment.

    Args:
        where: The table lies, for messages.
        table: Values by the names of the options, as a TOML file or JSON has them.

    Raises:
        ConfigError: A name is unknown, or a value is of another type.
        ParameterError: A value is out of range.
    """
    return ServerOptions(**_of_table(where, table) | _of_environment(os.environ))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as it is.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits
        raise ConfigError(f"{str(path)!r} is no TOML file: {one_line(str(error))}") from error


def to_toml(options: ServerOptions) -> str:
    """The options as a file that `read_config` takes, each below its description.

    No option holds a secret: keys are named by their files. Names and passwords in addresses
    (`s3://name:password@host`) are left out all the same.
    """
    told, blocks, tables = descriptions(), [], []
    for field in fields(options):
        name, value = field.name, getattr(options, field.name)
        comment = f"# {told[name]}"
        if isinstance(value, Mapping):
            lines = [f"{_toml(key)} = {_toml(one)}" for key, one in value.items()]
            tables.append("\n".join([comment, f"[{name}]", *lines]))
        elif value is None and field.default is None:
            blocks.append(f"{comment}\n# {name} =")
        else:
            text = size_text(value) if name.endswith("_bytes") and value is not None else value
            blocks.append(f"{comment}\n{name} = {_toml(NONE if text is None else text)}")
    return "\n\n".join([*blocks, *tables]) + "\n"


def _of_table(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    for name in table:
        if name not in option_types():
            raise ConfigError(f"{where} has an unknown key {shown(name)}{nearest(name)}")
    return {name: convert(f"{name} in {where}", name, value) for name, value in table.items()}


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, text in environment.items():
        if variable.startswith(ENV_PREFIX):
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in option_types():
                raise ConfigError(f"the variable {variable} is no option{nearest(name)}")
            values[name] = _of_text(variable, name, text)
    return values


def _of_text(where: str, name: str, given: Any) -> Any:
    """A value from the words of a flag or a variable."""
    if is_many(name):
        words = [given] if isinstance(given, str) else given
        parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
        if get_origin(option_types()[name]) is tuple:
            return convert(where, name, parts, is_text=True)
        pairs = [part.partition("=") for part in parts]
        if not all(key and folder for key, _, folder in pairs):
            raise ConfigError(f"{where} is {given!r}, expected NAME=FOLDER")
        return convert(where, name, {key.strip(): folder.strip() for key, _, folder in pairs})
    return convert(where, name, given, is_text=True)


def _default_text(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING or value is None or value == () or value is False:
        return ""
    if value is True:
        return " (default: yes)"
    if field.name.endswith("_bytes"):
        return f" (default: {size_text(value)})"
    if field.name.endswith("_s"):
        return f" (default: {value:g} s)"
    if isinstance(value, tuple):
        return f" (default: {','.join(str(one) for one in value)})"
    return f" (default: {value})"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        shown = re.sub(r"(?<=://)[^/@\s]+@", "***@", value)
        return json.dumps(shown, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return json.dumps(value)  # numbers and booleans are written alike
