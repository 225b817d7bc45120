"""`pytest benchmarks/`: every suite of `bootpig-rt bench`, one test each.

A test fails where a check before timing fails, never because something is slow.
"""

from __future__ import annotations

import pytest

from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import NEED_DRAWINGS, ON_CUDA, SUITES, run_suite

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", SUITES)
def test_suite(name: str, settings: Settings, results: list[SuiteResult]) -> None:
    """Run the suite once."""
    if settings.is_cuda and name not in ON_CUDA:
        pytest.skip(f"suite {name} is of a CPU")
    if name in NEED_DRAWINGS and not (settings.data / "sprites.npz").is_file():
        pytest.skip(f"no drawings in {settings.data}: `bootpig-rt fetch-data`, or --data DIR")
    result = run_suite(name, settings)
    results.append(result)
    assert result.rows
    assert not result.wrong()
