"""Options of `pytest benchmarks/`, and the tables that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.benchmarks.pairs import default_pair, write_bundle
from bootpig_rt.benchmarks.result import SuiteResult, save_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.tables import text

RESULTS = pytest.StashKey[list[SuiteResult]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which pair, how many rounds and threads."""
    group = parser.getgroup("bootpig-rt bench")
    group.addoption(
        "--pair",
        help="folder of a bundle; 'random' for an untrained one of 11 M parameters per U-Net; "
        "default: the packaged pair",
    )
    group.addoption("--device", default="cpu", help="cpu or cuda")
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
    chosen, device, is_smoke = option("--pair"), option("--device"), option("--smoke")
    work: Path = option("--work")
    if chosen is None:
        pair = default_pair(device, work, is_smoke=is_smoke)
    elif chosen == "random":
        pair = write_bundle("small", tmp_path_factory.mktemp("pair"))
    else:
        pair = Path(chosen)
    return Settings(
        pair=pair,
        device=device,
        rounds=1 if is_smoke else option("--rounds"),
        threads=option("--threads"),
        is_smoke=is_smoke,
        data=option("--data"),
        work=work,
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
        for line in text(result):
            terminalreporter.line(line)
    path = config.getoption("--results")
    if found and path is not None:
        save_results(found, path)
