"""Reads a server's metrics in Prometheus' text format."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Scrape:
    """Values of all metrics at one moment.

    Attributes:
        totals: By name, summed over labels.
    """

    totals: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Scrape:
        """What a server answered."""
        totals: dict[str, float] = {}
        for name, _, value in _LINE.findall(text):
            totals[name] = totals.get(name, 0.0) + float(value)
        return cls(totals)

    def mean_since(self, before: Scrape, name: str) -> float | None:
        """Mean of what a histogram saw since another scrape; None where it saw nothing."""
        count, total = (
            self.totals.get(f"{name}_{end}", 0.0) - before.totals.get(f"{name}_{end}", 0.0)
            for end in ("count", "sum")
        )
        return total / count if count > 0 else None
