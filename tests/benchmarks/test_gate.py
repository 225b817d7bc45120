"""The gate of a release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from bootpig_rt.benchmarks.gate import Verdict, compare
from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.result import Row, SuiteResult, save_results
from bootpig_rt.benchmarks.stats import Ratio, median_ratio
from bootpig_rt.cli.main import main
from bootpig_rt.errors import ParameterError

SETTINGS = {"pair": "p", "steps": 4}
ENOUGH = (1.0,) * 5


def result(value: float, *, width: float = 0.01, suite: str = "s", pair: str = "p") -> SuiteResult:
    ratio = Ratio("base", value, value - width, value + width)
    base = Row("base", "base", samples_ms=ENOUGH, ratio=Ratio("base", 1, 1, 1))
    row = Row("ours", "ours", samples_ms=ENOUGH, ratio=ratio)
    return SuiteResult(suite, (base, row), settings={**SETTINGS, "pair": pair})


def verdict(before: SuiteResult, now: SuiteResult, limit: float = 0.05) -> Verdict:
    (found,) = compare([before], [now], max_regression=limit)
    return found


def test_an_equal_run_passes() -> None:
    assert verdict(result(3), result(3)).state == "ok"


def test_a_faster_run_passes() -> None:
    assert verdict(result(3), result(4)).state == "ok"


def test_a_run_that_is_slower_by_less_than_the_limit_passes() -> None:
    assert verdict(result(3), result(2.9)).state == "ok"


def test_a_run_that_is_slower_by_more_fails() -> None:
    found = verdict(result(3), result(2.5))
    assert found.state == "worse"
    assert found.fails


def test_intervals_that_touch_do_not_hide_a_slowdown() -> None:
    # 2.8 to 3.2, then 2.3 to 2.9: they overlap, and yet the fall is 2.5 of its standard errors.
    before, now = result(3, width=0.2), result(2.55, width=0.25)
    assert verdict(before, now).state == "worse"


def test_noise_alone_does_not_fail_but_is_said_to_hide_a_fall() -> None:
    found = verdict(result(3, width=1), result(2.5, width=1))
    assert found.state == "blind"
    assert not found.fails
    assert found.visible > 0.3
    assert str(found).startswith("BLIND s/ours: 3 -> 2.5 (-16.7%)")


def test_too_few_rounds_decide_nothing() -> None:
    before = result(3)
    few = replace(before.rows[1], samples_ms=(1.0, 1.0), ratio=Ratio("base", 1, 1, 1))
    found = verdict(before, replace(before, rows=(before.rows[0], few)))
    assert found.state == "blind"
    assert "too few rounds" in str(found)


def synthetic(slower: float, seed: int, *, rounds: int = 20, rows: int = 6) -> SuiteResult:
    """Ways beside a baseline, with slow spells that hit both and 4 % of scatter that does not."""
    rng = np.random.default_rng(seed)
    found = [Row("base", "base", samples_ms=ENOUGH, ratio=Ratio("base", 1, 1, 1))]
    for index in range(rows):
        spell = np.where(rng.random(rounds) < 0.3, 1.4, 1.0)
        base = 900 * spell * rng.lognormal(0, 0.04 / 2**0.5, rounds)
        factor = slower if index == 2 else 1.0
        ours = 300 * factor * spell * rng.lognormal(0, 0.04, rounds)
        ratio = median_ratio("base", base, ours)
        found.append(Row(f"way {index}", "", samples_ms=tuple(ours), ratio=ratio))
    return SuiteResult("s", tuple(found), settings=SETTINGS)


def test_a_row_that_is_a_tenth_slower_fails_at_five_percent_and_an_unchanged_run_passes() -> None:
    alarms = 0
    for seed in range(40):
        before = synthetic(1.0, 2 * seed)
        slowed = compare([before], [synthetic(1.1, 2 * seed + 1)], max_regression=0.05)
        assert [each.name for each in slowed if each.fails] == ["way 2"]
        same = compare([before], [synthetic(1.0, 2 * seed + 1)], max_regression=0.05)
        alarms += any(each.fails for each in same)
    assert alarms <= 2  # of 40; at most a twentieth is promised


def test_what_a_row_can_see_shrinks_with_the_rounds() -> None:
    def visible(rounds: int) -> float:
        before, now = (synthetic(1.0, seed, rounds=rounds) for seed in (0, 1))
        return compare([before], [now], max_regression=0.05)[0].visible

    assert visible(10) > visible(40) > visible(400)
    assert visible(400) < 0.05


def test_a_row_that_is_gone_fails_with_its_reason() -> None:
    before = result(3)
    base, row = before.rows
    gone = replace(row, samples_ms=(), ratio=None, status="no compiler")
    both = (base, row, replace(row, name="other"))
    found = compare(
        [replace(before, rows=both)], [replace(before, rows=(base, gone, both[2]))],
        max_regression=0.05,
    )  # fmt: skip
    assert [each.state for each in found] == ["gone", "ok"]
    assert found[0].fails
    assert "no compiler" in str(found[0])
    found = compare([replace(before, rows=both)], [before], max_regression=0.05)
    assert [(each.name, each.state) for each in found] == [("ours", "ok"), ("other", "gone")]


def test_a_row_that_was_not_asked_for_is_not_missed() -> None:
    before = result(3)
    rows = (*before.rows, replace(before.rows[1], name="other"))
    found = compare([replace(before, rows=rows)], [before], max_regression=0.05, only=["ours"])
    assert [each.name for each in found] == ["ours"]


def test_a_row_with_another_baseline_is_gone() -> None:
    before = result(3)
    now = replace(
        before, rows=(before.rows[0], replace(before.rows[1], ratio=Ratio("else", 3, 2.9, 3.1)))
    )
    with pytest.raises(ParameterError, match="no ratio"):
        compare([replace(before, rows=())], [now], max_regression=0.05)
    assert verdict(before, now).reason == "a ratio to else, before to base"


def test_the_baseline_itself_is_not_compared() -> None:
    assert [v.name for v in compare([result(3)], [result(3)], max_regression=0)] == ["ours"]


def test_runs_of_other_pairs_are_refused() -> None:
    with pytest.raises(ParameterError, match="measured pair 'q'"):
        compare([result(3, pair="q")], [result(3)], max_regression=0.05)


def test_runs_with_other_threads_are_refused() -> None:
    before, now = (replace(result(3), machine=Watch(count).machine()) for count in (1, 2))
    with pytest.raises(ParameterError, match="measured threads 1, this one 2"):
        compare([before], [now], max_regression=0.05)


def test_runs_without_a_common_ratio_are_refused() -> None:
    with pytest.raises(ParameterError, match="no ratio to compare: the earlier run holds other"):
        compare([result(3, suite="other")], [result(3)], max_regression=0.05)


def test_ratios_of_another_device_are_not_compared() -> None:
    before = result(3)
    on_gpu = replace(before, settings=before.settings | {"device": "cuda"})
    with pytest.raises(ParameterError, match="no ratio to compare"):
        compare([before], [on_gpu], max_regression=0.05)


def test_the_command_passes_an_unchanged_build_and_fails_a_slowed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: str(tmp_path / f"{name}.json") for name in ("before", "again", "slowed")}
    for seed, (name, slower) in enumerate(zip(paths, (1.0, 1.0, 1.5), strict=True)):
        save_results([synthetic(slower, seed)], Path(paths[name]))
    against = ["--against", paths["before"], "--max-regression", "10%"]
    assert main(["bench", "--from", paths["again"], *against]) == 0
    assert "0 worse by over 10%, 0 gone" in capsys.readouterr().out
    assert main(["bench", "--from", paths["slowed"], *against]) == 1
    assert "WORSE s/way 2" in capsys.readouterr().out


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
