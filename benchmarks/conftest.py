"""Options of `pytest benchmarks/`, and the tables that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.benchmarks.random_pair import write_random_pair
from bootpig_rt.benchmarks.result import SuiteResult, save_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.table import lines
from bootpig_rt.pipeline import default_model

RESULTS = pytest.StashKey[list[SuiteResult]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which pair, how many rounds and threads."""
    group = parser.getgroup("bootpig-rt bench")
    group.addoption(
        "--pair",
        help="folder of a bundle; 'random' for an untrained one of 11 M parameters per U-Net; "
        "default: the packaged pair",
    )
    group.addoption("--rounds", type=int, default=20, help="rounds of all ways in turn")
    group.addoption("--threads", type=int, default=2, help="of torch and ONNX Runtime")
    group.addoption("--smoke", action="store_true", help="small numbers, to see that all runs")
    group.addoption("--data", type=Path, default=Path("data"), help="what `fetch-data` made")
    group.addoption("--work", type=Path, default=Path("bench"), help="graphs and pictures, kept")
    group.addoption("--results", type=Path, help="write all results as one JSON file")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What the suites are asked for."""
    option = request.config.getoption
    chosen = option("--pair")
    pair = default_model() if chosen is None else Path(chosen)
    if chosen == "random":
        pair = write_random_pair(tmp_path_factory.mktemp("pair"))
    return Settings(
        pair=pair,
        rounds=1 if option("--smoke") else option("--rounds"),
        threads=option("--threads"),
        is_smoke=option("--smoke"),
        data=option("--data"),
        work=option("--work"),
    )


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> list[SuiteResult]:
    """Results of the suites that ran, printed after the tests."""
    return request.config.stash.setdefault(RESULTS, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables, and keep them where that was asked for."""
    found = config.stash.get(RESULTS, [])
    for result in found:
        for line in lines(result):
            terminalreporter.line(line)
    path = config.getoption("--results")
    if found and path is not None:
        save_results(found, path)
