"""Settings of a service over Ray: those of the service, and how many processes run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import msgspec

from bootpig_rt.checks import check_int
from bootpig_rt.errors import ConfigError, ParameterError
from bootpig_rt.server.config import options_of_table, read_toml
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.units import parse_seconds, parse_size

ENVIRONMENT = "BOOTPIG_RT_RAY_CONFIG"
"""Names a TOML file with the settings, for `serve run bootpig_rt.serving.ray:app`."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How a service runs over Ray.

    Attributes:
        min_replicas: Processes that draw, at least; each holds a model on its device.
        max_replicas: At most; Ray adds and removes them by the requests under way.
        num_cpus: Cores of each.
        num_gpus: GPUs of each; 0 draws on the CPU.
        memory_bytes: Host memory that Ray sets aside for each; None for none.
        target_ongoing: Requests under way for each replica that Ray aims at; None for `max_batch`.
        upscale_delay_s: How long there must be too few replicas.
        downscale_delay_s: How long there must be too many.
        spill_over: Requests that a replica may have before its subjects go to their next choice,
            while the mean is lower.
        is_sticky: Requests of a subject go to the replica that holds its table. False only to
            compare with.
        subjects: Where subjects are shared: a folder, or a URL of object storage for fsspec. None
            sends each along with its requests.
        ingress_replicas: Processes that take requests and encode pictures: 1, for each knows only
            the subjects and jobs that it took.
        ingress_cpus: Cores of each.
        server: Of the service itself. It listens where Ray's proxy does, so it must have keys, or
            be `insecure`.

    Raises:
        ParameterError: A value is out of range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int | None = None
    target_ongoing: float | None = None
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    spill_over: int = 3
    is_sticky: bool = True
    subjects: str | None = None
    ingress_replicas: int = 1
    ingress_cpus: float = 1.0
    server: ServerOptions

    def __post_init__(self) -> None:
        """Check every field."""
        check_int("min_replicas", self.min_replicas, 1, 100_000)
        check_int("max_replicas", self.max_replicas, self.min_replicas, 100_000)
        check_int("ingress_replicas", self.ingress_replicas, 1, 10_000)
        check_int("spill_over", self.spill_over, 1, 1 << 20)
        if self.memory_bytes is not None:
            check_int("memory_bytes", self.memory_bytes, 1 << 20, 1 << 50)
        for name in ("num_cpus", "num_gpus", "ingress_cpus"):
            if not 0 <= getattr(self, name) <= 1024:
                raise ParameterError(f"{name} is {getattr(self, name)!r}, expected 0..1024")
        for name in ("upscale_delay_s", "downscale_delay_s"):
            if not 0 <= getattr(self, name) <= 86400:
                raise ParameterError(f"{name} is {getattr(self, name)!r}, expected 0..86400")
        if self.target_ongoing is not None and not 0 < self.target_ongoing <= 1 << 20:
            raise ParameterError(f"target_ongoing is {self.target_ongoing!r}, expected over 0")
        if self.ingress_replicas > 1:
            raise ParameterError(
                f"ingress_replicas is {self.ingress_replicas}, expected 1: a subject or a job that "
                "one of them took would be unknown to the others"
            )
        if self.server.keys is None and not self.server.insecure:
            raise ParameterError(
                "no keys: Ray's proxy listens where its own options say, so set server.keys to a "
                "file of `bootpig-rt keys`, or server.insecure where nobody else can reach it"
            )

    @property
    def max_ongoing(self) -> int:
        """Requests that a replica has at once: those that it draws and those that may wait."""
        return self.server.max_batch + self.server.max_waiting


def ray_options(values: Mapping[str, Any], where: str = "the settings") -> RayOptions:
    """Options from the `args` of a Serve config, a TOML file or a dictionary.

    Args:
        values: By the names of the fields; those of the service are a table under `server`.
        where: They come from, for messages.

    Raises:
        ConfigError: A name is unknown, or a value of another type.
        ParameterError: A value is out of range.
    """
    known = {one.name for one in fields(RayOptions)}
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{where} have an unknown key {name!r}, expected one of "
                f"{', '.join(sorted(known))}; those of the service go under server"
            )
    of_server = values.get("server", {})
    if not isinstance(of_server, Mapping):
        raise ConfigError(f"server in {where} is {of_server!r}, expected a table")
    server = options_of_table(f"server in {where}", of_server)
    own = {name: _converted(f"{name} in {where}", name, values[name]) for name in values}
    return RayOptions(**(own | {"server": server}))


def options_of_environment() -> RayOptions:
    """Options of the file that the environment names; without one, those of `ServerOptions` alone.

    Raises:
        ConfigError: The file cannot be read, or a setting is wrong.
        ParameterError: A value is out of range.
    """
    path = os.environ.get(ENVIRONMENT)
    return ray_options(read_toml(path) if path else {}, path or "the settings")


def _converted(where: str, name: str, value: Any) -> Any:
    if name == "server":
        return None
    parse = parse_size if name.endswith("_bytes") else parse_seconds
    if isinstance(value, str) and name.endswith(("_bytes", "_s")):
        parsed = parse(value)
        if parsed is None:
            raise ConfigError(f"{where} is {value!r}, expected a number with a unit")
        value = parsed
    try:
        return msgspec.convert(value, get_type_hints(RayOptions)[name])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} is {value!r}: {error}") from error
