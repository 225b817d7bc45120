"""Results as files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from bootpig_rt.benchmarks.intervals import Ratio
from bootpig_rt.benchmarks.machine import Watch
from bootpig_rt.benchmarks.result import (
    SCHEMA,
    Check,
    Row,
    SuiteResult,
    load_results,
    save_results,
    with_ratios,
)
from bootpig_rt.benchmarks.table import lines
from bootpig_rt.bundle.json_schema import SchemaError, check_schema
from bootpig_rt.errors import ParameterError


@pytest.fixture(scope="module")
def result() -> SuiteResult:
    rows = (
        Row(
            "published",
            "published <way>",
            "picture",
            (30.0, 31.0, 29.0),
            "published",
            Ratio(1, 1, 1),
        ),
        Row("ours_warm", "ours", "picture", (10.0, 11.0, 9.0), "published", Ratio(3, 2.9, 3.1)),
        Row(
            "exact",
            "exact",
            "",
            (5.0,),
            values={"identity": 0.9, "identity_low": 0.8, "identity_high": 0.95, "bytes": None},
        ),
        Row("gone", "torch.compile", "picture", notes={"status": "no compiler"}),
    )
    checks = (Check("pixels", 0.1, 0.5),)
    return SuiteResult("baselines", rows, {"pair": "p"}, checks, Watch(2).machine())


def test_results_come_back_as_they_were_written(result: SuiteResult, tmp_path: Path) -> None:
    save_results([result], tmp_path / "r.json")
    (again,) = load_results(tmp_path / "r.json")
    assert again == result


def test_what_is_written_is_what_the_schema_says(result: SuiteResult, tmp_path: Path) -> None:
    save_results([result, replace(result, machine=None)], tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    schema = json.loads(SCHEMA.read_text())
    check_schema(written, schema)
    jsonschema.validate(written, schema)
    written[0]["rows"][0]["median_ms"] = "fast"
    with pytest.raises(SchemaError, match="median_ms"):
        check_schema(written, schema)


def test_what_is_no_number_is_written_as_null(result: SuiteResult, tmp_path: Path) -> None:
    assert result.machine is not None
    nan, inf = float("nan"), float("inf")
    odd = replace(
        result,
        rows=(
            replace(result.rows[0], values={"psnr_db": inf, "share": nan, "bytes": 1.0}),
            replace(result.rows[1], ratio=Ratio(inf, inf, inf)),
        ),
        settings={"limit": nan},
        checks=(Check("pixels", nan, 0.5), Check("latents", inf, 0.5)),
        machine=replace(result.machine, busy_share=None),
    )
    save_results([odd], tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert not re.search(r"\b(NaN|Infinity)\b", text)
    check_schema(json.loads(text), json.loads(SCHEMA.read_text()))
    (again,) = load_results(tmp_path / "r.json")
    assert again.rows[0].values == {"psnr_db": None, "share": None, "bytes": 1.0}
    assert again.rows[1].ratio is None
    assert not any(check.is_ok for check in again.checks)
    assert again.machine == odd.machine
    shown = "\n".join(lines(again))
    assert "others unknown" in shown
    assert "WRONG: pixels nan" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "cannot read"),
        ("[1]", "holds no results"),
        ('[{"format_version": 9}]', "format version"),
        ('[{"format_version": 1}]', "holds no results"),
    ],
)
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ParameterError, match=message):
        load_results(tmp_path / "r.json")


def test_a_file_that_is_not_there_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no file .*r\.json; make one with `bootpig-rt bench"):
        load_results(tmp_path / "r.json")


def test_an_unknown_row_is_named_with_those_there_are(result: SuiteResult) -> None:
    with pytest.raises(ParameterError, match="expected one of published, ours_warm"):
        result.row("nothing")


def test_the_table_shows_ratios_intervals_and_reasons(result: SuiteResult) -> None:
    text = "\n".join(lines(result))
    assert "3.00 [2.90, 3.10]" in text
    assert "0.9 [0.8, 0.95]" in text
    assert "no compiler" in text
    assert "ok: pixels" in text


RESULTS = sorted((SCHEMA.parent / "results").glob("*-*.json"))


@pytest.mark.parametrize(
    "path",
    [path for path in RESULTS if not path.name.startswith(("evaluation", "gpu"))],
    ids=lambda p: p.stem,
)
def test_results_that_are_kept_are_what_the_schema_says(path: Path) -> None:
    written = json.loads(path.read_text())
    check_schema(written, json.loads(SCHEMA.read_text()))
    assert [each.suite for each in load_results(path)] == [each["suite"] for each in written]


@pytest.mark.parametrize(
    ("count", "expected"), [(19, set()), (20, {"p95_ms"}), (100, {"p95_ms", "p99_ms"})]
)
def test_a_percentile_is_left_out_where_the_samples_are_too_few(
    count: int, expected: set[str]
) -> None:
    row = Row("a", "a", samples_ms=tuple(float(each) for each in range(1, count + 1)))
    assert {"p95_ms", "p99_ms"} & set(row.to_dict()) == expected
    text = "\n".join(lines(SuiteResult("s", (row,))))
    assert ("p95" in text, "p99" in text) == ("p95_ms" in expected, "p99_ms" in expected)


def test_what_ran_beside_a_row_and_its_spread_are_in_the_file(tmp_path: Path) -> None:
    row = Row("a", "a", samples_ms=(8.0, 9.0, 10.0, 11.0, 12.0), baseline_ms=(1.0,) * 5)
    save_results([SuiteResult("s", (row,), goals=(Check("g", 2.0, 1.0),))], tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    written = json.loads(text)
    check_schema(written, json.loads(SCHEMA.read_text()))
    assert written[0]["rows"][0]["spread"] == 0.1
    (again,) = load_results(tmp_path / "r.json")
    assert again.rows == (row,)
    assert again.goals == (Check("g", 2.0, 1.0),)
    assert "10.0%" in "\n".join(lines(again))


def test_a_file_from_before_goals_and_spreads_is_read(tmp_path: Path) -> None:
    save_results([SuiteResult("s", (Row("a", "a", samples_ms=(1.0,)),))], tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    del written[0]["goals"]
    (tmp_path / "r.json").write_text(json.dumps(written))
    assert load_results(tmp_path / "r.json")[0].goals == ()


def test_ratios_to_a_row_that_is_not_there_name_those_that_are() -> None:
    with pytest.raises(ParameterError, match="no row 'b' to compare with, expected it among a"):
        with_ratios([Row("a", "a")], to="b")
