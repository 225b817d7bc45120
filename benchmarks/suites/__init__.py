"""The suites of `bootpig-rt bench`, by name.

A suite is a module with `HELP` and `run(settings, journal) -> SuiteResult`. It is imported only
when it runs.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Protocol, cast
from unittest import mock

import msgspec

from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal

SUITES = (
    "baselines", "full-size", "full-size-512", "shares", "reference", "quality", "inpaint",
    "latency", "kernels", "builds", "serving", "soak",
)  # fmt: skip
NEED_DRAWINGS = ("reference", "quality", "inpaint")
"""Those that judge pictures of what `fetch-data` fetches."""
ON_CUDA = ("baselines", "latency", "kernels")
"""Those that measure a GPU; the others are of the packaged pair on a CPU."""


class Suite(Protocol):
    """What a suite module offers."""

    HELP: str

    def run(self, settings: Settings, journal: Journal) -> SuiteResult:
        """Measure, and return the rows."""


def load_suite(name: str) -> Suite:
    """Import the module of a suite of `SUITES`."""
    return cast(
        "Suite", importlib.import_module(f"bootpig_rt.benchmarks.suites.{name.replace('-', '_')}")
    )


def run_suite(name: str, settings: Settings) -> SuiteResult:
    """Run a suite, going on where an interrupted run of the same stopped."""
    watch = Watch(settings.threads, settings.device)
    journal = Journal.of(name, settings)
    logger = logging.getLogger("bootpig_rt.storage.store")
    level = logger.level
    logger.setLevel(logging.ERROR)  # some pipelines keep no table, which is meant
    try:
        with mock.patch.dict(os.environ, BOOTPIG_RT_STORE=""):  # it would make subjects known
            result = load_suite(name).run(settings, journal)
    finally:
        logger.setLevel(level)
    journal.forget()
    spreads = [row.spread for row in result.rows if row.spread is not None]
    about = {"device": settings.device, "rounds": settings.rounds} | result.settings
    return msgspec.structs.replace(result, machine=watch.machine(spreads), settings=about)
