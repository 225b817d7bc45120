"""Suite `full-size-512`: as `full-size`, at 512 px, which takes about five times as long."""

from __future__ import annotations

from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites.full_size import measure
from bootpig_rt.benchmarks.way import Journal

HELP = "the same at 512 px; ten rounds are about an hour on two cores"


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """See `full_size.run`."""
    return measure("full-size-512", settings, journal, 512)
