"""`pytest benchmarks/`: every suite of `bootpig-rt bench`, one test each.

A test fails where a check before timing fails, never because something is slow.
"""

from __future__ import annotations

from typing import Any

import pytest

from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import SUITES, load_suite

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")

NEED_DRAWINGS = {"reference", "quality"}


@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str, settings: Settings, results: list[SuiteResult], benchmark: Any) -> None:
    """Run the suite once; pytest-benchmark's time is that of the whole suite."""
    if name in NEED_DRAWINGS and not (settings.data / "sprites.npz").is_file():
        pytest.skip(f"no drawings in {settings.data}: `bootpig-rt fetch-data`, or --data DIR")
    watch = Watch(settings.threads)
    result = benchmark.pedantic(load_suite(name).run, args=(settings,), rounds=1)
    result = result.measured_on(watch)
    results.append(result)
    benchmark.extra_info.update(result.to_dict())
    assert all(check.is_ok for check in result.checks), result.checks
    assert result.rows
