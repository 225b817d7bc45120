"""The media type that a caller prefers, of those that an answer may have: RFC 9110, 12.5.1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_RANGES = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_RANGE = re.compile(r"\s*([\w!#$&.^+*-]+)/([\w!#$&.^+*-]+)\s*(;.*)?", re.ASCII | re.DOTALL)
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)


def preferred(accept: Iterable[str], offers: Sequence[str]) -> str | None:
    """The offer of the highest quality, of equal ones the first; None where none is acceptable.

    Args:
        accept: Values of the header `Accept`; none, or none that can be read, accept everything.
        offers: Media types without parameters, in lower case.
    """
    ranges = [one for value in accept for one in map(_range, _RANGES.findall(value)) if one]
    if not ranges:
        return offers[0]
    best = max(offers, key=lambda offer: _quality(offer, ranges))  # the first of equal ones
    return best if _quality(best, ranges) > 0 else None


def _range(text: str) -> tuple[str, float] | None:
    """`image/*` and its quality; None for what is no range, or only of a type with parameters."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    quality = 1.0
    for parameter in filter(None, map(str.strip, (match[3] or "").split(";"))):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "q" or not _QUALITY.fullmatch(value.strip()):
            return None
        quality = float(value)
    return f"{match[1]}/{match[2]}".lower(), quality


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range which fits; 0 where none does."""
    for fitting in (offer, offer.partition("/")[0] + "/*", "*/*"):
        found = [quality for name, quality in ranges if name == fitting]
        if found:
            return max(found)
    return 0.0
