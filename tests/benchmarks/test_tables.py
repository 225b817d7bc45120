"""Tables and pages of results."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from bootpig_rt.benchmarks.pages import page_of, write_page, write_pages
from bootpig_rt.benchmarks.result import Row, SuiteResult, Target, load_results, make_check
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.benchmarks.tables import cells, markdown, text

BASE = Row("b", "strong way", "g", samples_ms=(300.0,) * 10, ratio=Ratio("b", 1, 1, 1))
OURS = Row(
    "ours", "ours", "g", samples_ms=(100.0,) * 10, ratio=Ratio("b", 3.187, 2.94, 3.41),
    values={"psnr_db": 21.345, "psnr_db_low": 20.9, "psnr_db_high": 21.8, "peak_bytes": 2.5e8},
)  # fmt: skip


def test_a_ratio_names_what_it_is_to_and_shows_its_interval() -> None:
    head, base, ours = cells([BASE, OURS])
    assert head[:3] == ["", "ms", "faster than strong way"]
    assert base[2] == "1"
    assert ours[2] == "3.2x (2.9 to 3.4)"


def test_fewer_than_ten_rounds_give_no_ratio_and_say_so() -> None:
    few = replace(OURS, samples_ms=(100.0,) * 6)
    line = cells([BASE, few])[2]
    assert "3.2" not in " ".join(line)
    assert line[-1] == "too few rounds for a ratio: 6"


def test_a_measure_has_the_digits_of_its_interval() -> None:
    head, _, ours = cells([BASE, OURS])
    assert ours[head.index("subject PSNR, dB")] == "21.3 (20.9 to 21.8)"
    assert ours[head.index("most memory")] == "250 MB"


def test_a_change_has_its_sign() -> None:
    row = Row("a", "a").with_values(
        network_change=-0.04, network_change_low=-0.09, network_change_high=0.01
    )
    (_, line) = cells([row])
    assert line[1] == "-0.0 (-0.1 to +0.0)"


def test_a_way_that_could_not_run_says_why_in_its_line() -> None:
    missing = Row("fa3", "FlashAttention-3", status="not available: the package is not installed")
    assert markdown([BASE, missing]).splitlines()[-1] == (
        "| FlashAttention-3 |  |  | not available: the package is not installed |"
    )


def result() -> SuiteResult:
    return SuiteResult(
        "baselines", (BASE, OURS), settings={"device": "cpu", "steps": 25},
        checks=(make_check("ours", 1e-5, 4e-5),), remarks=("Compiled ways were not run.",),
    )  # fmt: skip


def test_a_page_shows_each_difference_beside_its_limit_and_what_was_not_run() -> None:
    page = page_of(result())
    assert "| ours | 1e-05 | 4e-05 |" in page
    assert "**Compiled ways were not run.**" in page
    assert page.startswith("# A picture and a step")


def test_a_page_and_its_plot_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in "ab")
    for folder in (first, second):
        (page,) = write_pages([result()], folder)
        assert page.name == "baselines-cpu.md"
    names = sorted(path.name for path in first.iterdir())
    assert names == ["baselines-cpu-1.svg", "baselines-cpu.md"]
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)
    assert (first / "baselines-cpu-1.svg").stat().st_size < 40_000


def test_the_terminal_shows_what_is_wrong() -> None:
    wrong = replace(result(), checks=(make_check("ours", 1.0, 0.5),))
    assert "   WRONG: ours 1.0 (limit 0.5)" in list(text(wrong))


def test_the_pages_of_the_kept_results_can_be_written(root: Path, tmp_path: Path) -> None:
    files = sorted((root / "benchmarks" / "results").glob("*-c*.json"))
    for path in files:
        for result in load_results(path):
            write_page(result, tmp_path, path.stem)
    assert [page.stem for page in sorted(tmp_path.glob("*.md"))] == [path.stem for path in files]
    assert files


def test_a_target_is_met_missed_or_not_measured_and_every_form_says_so() -> None:
    aimed = (
        Target("times", 6.0, 6.5),
        Target("seconds", 0.25, 0.4, is_most=True),
        Target("identity", 1.0, None, is_most=True),
    )
    result = SuiteResult("baselines", (BASE,), targets=aimed)
    assert [target.verdict for target in aimed] == ["met", "missed", "not measured"]
    shown = "\n".join(text(result))
    assert "met: times, at least 6, found 6.5" in shown
    assert "missed: seconds, at most 0.25, found 0.4" in shown
    assert "not measured: identity, at most 1" in shown
    page = page_of(result)
    assert "| seconds | at most 0.25 | 0.4 | missed |" in page
    assert "## Targets" not in page_of(SuiteResult("baselines", (BASE,)))


def test_a_page_says_where_its_targets_were_set_for_another_processor(root: Path) -> None:
    def page(name: str) -> str:
        (found,) = load_results(root / "benchmarks" / "results" / f"{name}.json")
        return page_of(found)

    assert "set for processors with AMX, and this one has none" in page("full-size-cpu-avx512")
    assert "processors with AMX" not in page("full-size-cpu")
