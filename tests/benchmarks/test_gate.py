"""The gate of a release."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.gate import compare
from bootpig_rt.benchmarks.intervals import Ratio
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.result import Row, SuiteResult, save_results, with_ratios
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.cli import main
from bootpig_rt.errors import ParameterError
from bootpig_rt.pipeline import default_model

SETTINGS = {"pair": "p", "steps": 4}


def result(value: float, *, width: float = 0.01, suite: str = "s", pair: str = "p") -> SuiteResult:
    ratio = Ratio(value, value - width, value + width)
    base = Row("base", "base", samples_ms=(1.0,), ratio_to="base", ratio=Ratio(1, 1, 1))
    row = Row("ours", "ours", samples_ms=(1.0,), ratio_to="base", ratio=ratio)
    return SuiteResult(suite, (base, row), settings={**SETTINGS, "pair": pair})


def is_worse(before: SuiteResult, now: SuiteResult, limit: float = 0.05) -> bool:
    (verdict,) = compare([before], [now], max_regression=limit)
    return verdict.is_worse


def test_an_equal_run_passes() -> None:
    assert not is_worse(result(3), result(3))


def test_a_faster_run_passes() -> None:
    assert not is_worse(result(3), result(4))


def test_a_run_that_is_slower_by_less_than_the_limit_passes() -> None:
    assert not is_worse(result(3), result(2.9))


def test_a_run_that_is_slower_by_more_fails() -> None:
    assert is_worse(result(3), result(2.5))


def test_noise_alone_does_not_fail() -> None:
    assert not is_worse(result(3, width=1), result(2.5, width=1))


def test_the_baseline_itself_is_not_compared() -> None:
    assert [v.name for v in compare([result(3)], [result(3)], max_regression=0)] == ["ours"]


def test_runs_of_other_pairs_are_refused() -> None:
    with pytest.raises(ParameterError, match="measured pair 'q'"):
        compare([result(3, pair="q")], [result(3)], max_regression=0.05)


def test_runs_without_a_common_ratio_are_refused() -> None:
    with pytest.raises(ParameterError, match="no ratio to compare: the earlier run holds other"):
        compare([result(3, suite="other")], [result(3)], max_regression=0.05)


class _Slowed:
    """A backend whose decoder is slow: an artificially slowed build."""

    def __init__(self, backend: object) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def decode(self, latents: object) -> object:
        time.sleep(1.0)
        return self._backend.decode(latents)  # type: ignore[attr-defined]


def measured(ours: OurWay) -> SuiteResult:
    """The packaged pair, two steps, beside a fixed baseline: the same pipeline unslowed."""
    ways = [
        Way("base", "base", lambda: BASE.warm(num_inference_steps=2)),
        Way("ours", "ours", lambda: ours.warm(num_inference_steps=2)),
    ]
    return SuiteResult("s", with_ratios(time_ways(ways, 4), to="base"), settings=SETTINGS)


BASE: OurWay


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Files of an unchanged build twice, and of a slowed one."""
    global BASE
    BASE = OurWay(default_model())
    ours = OurWay(default_model())
    paths = tuple(tmp_path / f"{name}.json" for name in ("before", "again", "slowed"))
    save_results([measured(ours)], paths[0])
    save_results([measured(ours)], paths[1])
    ours.pipe._backend = _Slowed(ours.pipe._backend)  # type: ignore[assignment]
    save_results([measured(ours)], paths[2])
    return paths  # type: ignore[return-value]


def test_the_command_passes_an_unchanged_build_and_fails_a_slowed_one(
    runs: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, again, slowed = map(str, runs)
    # The limit is wide, since other tests may share the machine; the slowed build is far beyond.
    limit = ["--against", before, "--max-regression", "30%"]
    assert main(["bench", "--from", again, *limit]) == 0
    assert "0 worse" in capsys.readouterr().out
    assert main(["bench", "--from", slowed, *limit]) == 1
    assert "WORSE s/ours" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["much", "-5%", "150%"])
def test_a_limit_that_is_no_share_is_refused(
    share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", f"--max-regression={share}"]) == 2
    assert "expected a share such as 5%" in capsys.readouterr().err


def test_an_earlier_run_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--from", str(tmp_path / "none.json")]) == 2
    assert "no file" in capsys.readouterr().err
