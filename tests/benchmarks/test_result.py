"""Results and their file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.result import (
    Row,
    SuiteResult,
    load_results,
    make_check,
    ratio_of_rows,
    save_results,
)
from bootpig_rt.benchmarks.stats import Ratio
from bootpig_rt.errors import ParameterError

ROW = Row("a", "A", "g", samples_ms=(1.0, 2.0, 3.0), baseline_ms=(2.0, 4.0, 6.0),
          ratio=Ratio("b", 2.0, 1.9, 2.1), values={"x_bytes": 5.0, "y": None})  # fmt: skip


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    whole = SuiteResult(
        "s", (ROW, Row("m", "M", status="not available: no GPU")), settings={"pair": "p"},
        checks=(make_check("c", 0.1, 0.5),), machine=Watch(1).machine(), remarks=("slow",),
    )  # fmt: skip
    path = tmp_path / "folder" / "r.json"
    save_results([whole, replace(whole, suite="t")], path)
    assert load_results(path) == [whole, replace(whole, suite="t")]


def test_a_row_is_a_line_of_the_file_with_no_more_digits_than_were_measured(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.json"
    long = replace(ROW, samples_ms=(1234.56789, 0.000123456), values={"z": 1 / 3, "n": math.nan})
    save_results([SuiteResult("s", (ROW, long))], path)
    (line,) = [line for line in path.read_text().splitlines() if "0.3333" in line]
    found = json.loads(line)
    assert found["samples_ms"] == [1235.0, 0.0001235]
    assert found["values"] == {"z": 0.333333, "n": None}


def test_a_difference_that_is_no_number_is_never_right() -> None:
    assert not make_check("c", math.nan, 1.0).is_ok
    assert not make_check("c", math.inf, 1.0).is_ok
    assert make_check("c", 1.0, 1.0).is_ok


def test_the_ratio_of_two_rows_is_taken_over_their_common_baseline() -> None:
    # The machine was twice as slow when the second one ran, and its baseline with it.
    one = Row("one", "", samples_ms=(10.0,) * 10, baseline_ms=(20.0,) * 10)
    two = Row("two", "", samples_ms=(80.0,) * 10, baseline_ms=(40.0,) * 10)
    found = ratio_of_rows(one, two)
    assert found is not None
    assert (found.to, found.value) == ("two", 4.0)
    assert ratio_of_rows(one, replace(two, samples_ms=(1.0,))) is None


def test_ways_of_ours_that_failed_and_checks_that_are_wrong_are_named() -> None:
    rows = (
        Row("ours_known", "", status="failed: no"),
        Row("published_graph", "", status="failed: no"),
        Row("ours_compile", "", status="not available: no"),
    )
    found = SuiteResult("s", rows, checks=(make_check("c", 2.0, 1.0),)).wrong()
    assert found == ["c", "ours_known: failed: no"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "holds no results"),
        ("[{]", "holds no results"),
        ('[{"suite": "s"}]', "holds no results"),
        ('[{"suite": "s", "rows": [], "format_version": 1}]', "format version"),
        ('[{"suite": "s", "rows": [{"name": "a"}]}]', "holds no results"),
    ],
)
def test_another_file_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match=reason):
        load_results(path)


def test_a_row_that_is_not_there_is_an_error_with_the_names() -> None:
    with pytest.raises(ParameterError, match="no row 'b' in suite 's', expected one of a"):
        SuiteResult("s", (ROW,)).row("b")
