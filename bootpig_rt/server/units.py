"""Sizes and times as people write them: 64MiB, 1.5GB, 30s, 5m."""

from __future__ import annotations

import re
from fractions import Fraction

_SIZES = {"": 1, "B": 1}
_SIZES |= {f"{letter}B": 1000 ** (n + 1) for n, letter in enumerate("KMGT")}
_SIZES |= {f"{letter}IB": 1024 ** (n + 1) for n, letter in enumerate("KMGT")}
_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes of "64MiB", "1.5 GB" or "4096"; None where that is no size."""
    match = _NUMBER.fullmatch(text.strip())
    unit = None if match is None else _SIZES.get(match[2].upper())
    return None if match is None or unit is None else round(Fraction(match[1]) * unit)


def parse_seconds(text: str) -> float | None:
    """Seconds of "30s", "250ms", "5m", "2h", "1d" or "30"; None where that is no time."""
    match = _NUMBER.fullmatch(text.strip())
    unit = None if match is None else _SECONDS.get(match[2].lower())
    return None if match is None or unit is None else float(match[1]) * unit


def size_text(size: int) -> str | int:
    """A size in its largest binary unit, "64MiB"; the number itself where there is none."""
    for unit in ("TIB", "GIB", "MIB", "KIB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit[0]}iB"
    return size
