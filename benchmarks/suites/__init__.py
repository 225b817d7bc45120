"""The suites of `bootpig-rt bench`, by name.

A suite is a module with `NAME`, `HELP` and `run(settings) -> SuiteResult`. It is imported only
when it runs.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings

SUITES = ("latency", "baselines", "reference", "scale", "quality", "kernels", "builds")


class Suite(Protocol):
    """What a suite module offers."""

    NAME: str
    HELP: str

    def run(self, settings: Settings) -> SuiteResult:
        """Measure, and return the rows."""


def load_suite(name: str) -> Suite:
    """Import the module of a suite of `SUITES`."""
    return cast("Suite", importlib.import_module(f"bootpig_rt.benchmarks.suites.{name}"))
