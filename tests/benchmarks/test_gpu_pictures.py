"""The whole GPU benchmark, rehearsed: every path at toy size on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.benchmarks.gpu import ladder
from bootpig_rt.benchmarks.gpu.ablation_markdown import markdown_of
from bootpig_rt.benchmarks.gpu.our_way import KnownSubject, OurWay, make_backend
from bootpig_rt.benchmarks.gpu.picture_inputs import Stages, draw, make_picture_inputs
from bootpig_rt.benchmarks.gpu.plan import PictureCase, Plan, make_plan
from bootpig_rt.benchmarks.gpu.published_way import PublishedWay
from bootpig_rt.benchmarks.gpu.random_pair import make_pair
from bootpig_rt.benchmarks.gpu.timer import NotAvailable
from bootpig_rt.cli.main import main
from bootpig_rt.models.load import Pair

pytestmark = pytest.mark.filterwarnings(  # inside diffusers' schedulers, with numpy 2
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The file and the Markdown of one run of the command."""
    folder = tmp_path_factory.mktemp("rehearsal")
    output, table = folder / "gpu.json", folder / "gpu.md"
    code = main(["bench-gpu", "--rehearse", "-o", str(output), "--markdown", str(table)])
    assert code == 0
    return json.loads(output.read_text()), table.read_text()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(rehearse=True)


@pytest.fixture(scope="module")
def pair(plan: Plan) -> Pair:
    return make_pair("cpu", torch.float32, size_px=plan.size_px, is_toy=True)


def test_a_rehearsal_runs_every_path(rehearsed: tuple[dict[str, Any], str]) -> None:
    report, _ = rehearsed
    assert report["is_rehearsal"]
    assert report["is_finished"]
    assert report["versions"]["torch"]
    assert report["machine"]["processor"]
    statuses = {row["status"] for row in report["rows"]}
    assert statuses <= {"ok", "not available", "skipped"}
    assert all(row["reason"] for row in report["rows"] if row["status"] != "ok")
    sections = {row["section"] for row in report["rows"]}
    assert sections == {"roofline", "kernel", "merge", "attention", "picture", "part", "profile"}


def test_every_rung_of_the_ladder_drew_the_published_picture(
    rehearsed: tuple[dict[str, Any], str],
) -> None:
    report, _ = rehearsed
    for case in ("r1-b1", "r4-b1"):
        rows = {
            r["way"]: r for r in report["rows"] if (r["section"], r["case"]) == ("picture", case)
        }
        for rung in ladder.LADDER:
            for subject in rung.subjects:
                row = rows.get(ladder.way_name(rung, subject))
                if rung.is_aside:
                    continue
                assert row is not None, rung.name
                assert row["status"] == "ok"
                assert row["error"] < 1e-3
                assert row["values"]["step_ms"] > 0
    batch = [r for r in report["rows"] if (r["section"], r["case"]) == ("picture", "r1-b2")]
    assert {r["way"] for r in batch} == {"shared_rows_cold", "shared_rows_warm", "text_to_image"}


def test_a_step_is_profiled_by_kinds_of_work(rehearsed: tuple[dict[str, Any], str]) -> None:
    report, _ = rehearsed
    rows = [row for row in report["rows"] if row["section"] == "profile"]
    assert rows
    for row in rows:
        shares = [value for name, value in row["values"].items() if name.endswith("_share")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-4)
        assert row["values"]["kernels"] > 0


def test_targets_of_a_rehearsal_are_not_measured(rehearsed: tuple[dict[str, Any], str]) -> None:
    report, _ = rehearsed
    assert len(report["targets"]) == 7
    assert {target["verdict"] for target in report["targets"]} == {"not measured"}
    assert all(target["measured"] is None for target in report["targets"])


def test_the_table_of_a_rehearsal_says_that_no_gpu_was_at_hand(
    rehearsed: tuple[dict[str, Any], str],
) -> None:
    report, table = rehearsed
    assert "No GPU was at hand; rows are empty" in table
    for rung in ladder.LADDER:
        assert rung.label in table
    lines = [line for line in table.splitlines() if line.startswith("| published way, eager")]
    assert lines == ["| published way, eager attention | - | - | - | - | - | - | ran |"] * 2
    measured = markdown_of(report | {"is_rehearsal": False})
    assert "No GPU" not in measured
    assert "x |" in measured


def test_without_a_gpu_the_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench-gpu"]) == 2
    assert "--rehearse" in capsys.readouterr().err


def test_a_part_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-gpu", "--rehearse", "--only", "kernel", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "picture" not in {row["section"] for row in found["rows"]}


@pytest.mark.parametrize("mode", ["eager", "sdpa", "single"])
def test_the_modes_of_the_published_way_agree(plan: Plan, pair: Pair, mode: Any) -> None:
    inputs = make_picture_inputs(plan, PictureCase(3, 1, is_ladder=True), pair)
    expected = draw(PublishedWay(pair, "cpu", torch.float32, "eager"), inputs, Stages("cpu"))
    found = draw(PublishedWay(pair, "cpu", torch.float32, mode), inputs, Stages("cpu"))
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("shares_rows", [True, False])
def test_our_rows_draw_the_same_shared_or_apart(plan: Plan, pair: Pair, shares_rows: bool) -> None:
    inputs = make_picture_inputs(plan, PictureCase(2, 2, is_ladder=False), pair)
    backend = make_backend(
        pair, "cpu", TorchOptions(), channels_last=False, shares_rows=shares_rows
    )
    found = draw(OurWay(backend, "cold", KnownSubject()), inputs, Stages("cpu"))
    one = make_picture_inputs(plan, PictureCase(2, 1, is_ladder=False), pair)
    expected = draw(PublishedWay(pair, "cpu", torch.float32, "sdpa"), one, Stages("cpu"))
    assert np.abs(found[:1] - expected).max() < 1e-3
    assert np.abs(found[1:] - expected).max() > 0.1  # another noise, another picture


def test_a_known_subject_is_read_once_for_all_ways(plan: Plan, pair: Pair) -> None:
    inputs = make_picture_inputs(plan, PictureCase(1, 1, is_ladder=False), pair)
    known = KnownSubject()
    backend = make_backend(pair, "cpu", TorchOptions(), channels_last=False, shares_rows=True)
    stages = Stages("cpu")
    first = draw(OurWay(backend, "warm", known), inputs, stages)
    table = known.table
    assert table is not None
    assert "reference" not in stages.ms
    second = draw(OurWay(backend, "warm", known), inputs, stages)
    assert known.table is table
    assert np.array_equal(first, second)


def test_an_option_that_the_backend_lacks_is_a_reason_and_not_a_crash() -> None:
    with pytest.raises(NotAvailable, match="no option warp_drive"):
        ladder.torch_options({"warp_drive": True})


def test_random_weights_are_the_same_in_every_run(plan: Plan, pair: Pair) -> None:
    again = make_pair("cpu", torch.float32, size_px=plan.size_px, is_toy=True)
    for ours, theirs in zip(pair.base.parameters(), again.base.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_failed_picture_is_a_row_and_the_others_go_on(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dataclasses import replace

    from bootpig_rt.benchmarks.gpu.run import run_plan

    def has_no_memory(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(PublishedWay, "output", has_no_memory)
    small = replace(
        plan, parts=("picture",), picture_cases=(PictureCase(1, 1, is_ladder=True),), steps=2
    )
    report, _ = run_plan(small, tmp_path / "gpu.json")
    rows = {row.way: row for row in report.of("picture")}
    assert rows["published"].status == "out of memory"
    assert "9 GiB" in rows["published"].reason
    assert rows["shared_rows_warm"].status == "ok"
    assert "not compared" in rows["shared_rows_warm"].reason


def test_chosen_ways_and_cases_are_all_that_is_drawn(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    words = ["bench-gpu", "--rehearse", "--only", "picture", "--cases", "r1-b1"]
    assert main([*words, "--ways", "sdpa,shared_rows", "-o", str(output)]) == 0
    rows = [row for row in json.loads(output.read_text())["rows"] if row["section"] == "picture"]
    assert {row["case"] for row in rows} == {"r1-b1"}
    ours = {"shared_rows_cold", "shared_rows_warm"}
    assert {row["way"] for row in rows} == {"sdpa", "text_to_image"} | ours


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ways", "fast"], "--ways has 'fast', expected one or more of published"),
        (["--cases", "r9-b9"], "--cases has 'r9-b9', expected one or more of r1-b1"),
    ],
)
def test_a_way_or_case_that_there_is_not_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["bench-gpu", "--rehearse", *words]) == 2
    assert message in capsys.readouterr().err
