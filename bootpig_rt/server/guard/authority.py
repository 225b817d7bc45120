"""Host names, addresses and origins: read, and compared. Whatever is no such thing is None."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{0,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOOPBACK_NAME = "localhost"


class Authority(NamedTuple):
    """Host and port, as a `Host` header has them.

    Attributes:
        host: In lower case, without brackets or a last dot; an IP address in its usual form.
        port: None where none is given.
    """

    host: str
    port: int | None


class Origin(NamedTuple):
    """Where a page is from: scheme, host, and port, the scheme's own where none is given."""

    scheme: str
    host: str
    port: int | None


def parse_authority(text: str) -> Authority | None:
    """Read `example.org`, `127.0.0.1:8000` or `[::1]:8000`; None for anything else."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    in_brackets, name, port = match.groups()
    if port and int(port) > 65535:
        return None
    if in_brackets is not None:
        host = usual_address(in_brackets)
        if host is None or ":" not in in_brackets:
            return None
    else:
        host = usual_address(name) or name.lower().removesuffix(".")
    return Authority(host, int(port) if port else None) if host else None


def parse_origin(text: str) -> Origin | None:
    """Read an `Origin` header; None for `null` and for anything else that is no origin."""
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower()
    authority = parse_authority(rest)
    if not found or authority is None or not _SCHEME.fullmatch(scheme):
        return None
    return Origin(scheme, authority.host, authority.port or _DEFAULT_PORTS.get(scheme))


def is_same_origin(origin: Origin, host: Authority) -> bool:
    """Whether a page is the server's own.

    The scheme is not compared: where a proxy ends TLS, the server sees http and the page https.
    """
    default = _DEFAULT_PORTS.get(origin.scheme)
    is_web = default is not None
    return is_web and origin.host == host.host and origin.port == (host.port or default)


def is_loopback(host: str) -> bool:
    """Whether an address to bind, or a host as `parse_authority` has it, is this machine alone."""
    name = host.strip("[]").lower().removesuffix(".")
    if name == _LOOPBACK_NAME:
        return True
    address = usual_address(name)
    return address is not None and ipaddress.ip_address(address).is_loopback


def usual_address(text: str) -> str | None:
    """An IP address in its usual form, None for anything else.

    An IPv4 address that is mapped into IPv6 is that IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
