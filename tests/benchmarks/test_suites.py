"""The other suites run on a small untrained pair, and measure what their rows say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bootpig_rt.benchmarks.child import ChildRun
from bootpig_rt.benchmarks.ours import drawing
from bootpig_rt.benchmarks.result import SuiteResult, load_results, save_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import builds, kernels, latency, run_suite
from bootpig_rt.benchmarks.truth import DIFFERENCES
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.errors import BootPIGError

# Inside diffusers' schedulers, with numpy 2.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def settings(tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One round of everything, one thread."""
    return Settings(
        pair=tiny_bundle_folder, rounds=1, threads=1, is_smoke=True,
        work=tmp_path_factory.mktemp("work"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def timed(settings: Settings) -> SuiteResult:
    """The suite `latency` without its processes."""
    with pytest.MonkeyPatch.context() as patch:
        # In a pair with random weights references change little, and rounding is a larger share.
        patch.setitem(DIFFERENCES, "cpu float32", 1e-4)
        return latency.run(replace(settings, only=("onnxruntime", "torch")), Journal())


def test_rows_of_a_backend_are_compared_with_its_own_picture(timed: SuiteResult) -> None:
    for backend in ("onnxruntime", "torch"):
        for part in ("picture", "new subject", "batch 2", "references 2", "steps 4", "size 16"):
            ratio = timed.row(f"{backend} {part}").ratio
            assert ratio is not None
            assert ratio.to == f"{backend} exact"
        for part in ("step", "encode", "text", "decode", "load"):
            assert timed.row(f"{backend} {part}").samples_ms
    assert not any(row.name.startswith("process") for row in timed.rows)


def test_pictures_of_all_backends_are_compared_with_the_published_one(timed: SuiteResult) -> None:
    assert [check.name for check in timed.checks] == ["onnxruntime exact", "torch exact"]


def test_a_step_takes_less_than_its_picture(timed: SuiteResult) -> None:
    step, picture = (timed.row(f"torch {part}").median_ms or 0 for part in ("step", "picture"))
    assert 0 < step < picture


def test_a_process_reports_loading_and_its_first_picture(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[str]] = []

    def child(words: Sequence[str], *, environment: Mapping[str, str]) -> ChildRun:
        seen.append(words)
        assert environment["BOOTPIG_RT_STORE"] == ""  # it would make the subject known
        return ChildRun(5.0, 1000 + len(seen), '{"timings": {"load_ms": 2.0, "total_ms": 3.0}}')

    monkeypatch.setattr(latency, "run_child", child)
    result = latency.run(replace(settings, only=("process",)), Journal())
    assert result.row("process load onnxruntime").samples_ms[-1] == 2
    assert result.row("process first picture torch").samples_ms[-1] == 3
    assert (result.row("process import").values["peak_bytes"] or 0) > 1000
    generate = next(words for words in seen if "generate" in words and "onnxruntime" in words)
    assert "--threads" in generate


def test_the_published_process_writes_a_picture(settings: Settings, tmp_path: Path) -> None:
    reference, output = tmp_path / "r.png", tmp_path / "o.png"
    drawing().save(reference)
    latency.published_process(str(settings.pair), str(reference), str(output), "1", "cpu")
    assert output.stat().st_size > 0


def test_builds_are_timed_in_processes_and_what_fails_says_why(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(words: Sequence[str]) -> ChildRun:
        output = Path(words[words.index("-o") + 1])
        output.mkdir()
        (output / "graph.onnx").write_bytes(b"x" * 10)
        (output / "pair").mkdir()
        (output / "pair" / "weights").write_bytes(b"x" * 90)
        return ChildRun(1234.0, 5678)

    monkeypatch.setattr(builds, "run_child", child)
    (row,) = builds.run(settings, Journal()).rows
    assert (row.name, row.samples_ms) == ("small cpu", (1234.0,))
    assert row.values == {
        "peak_bytes": 5678, "bundle_bytes": 100, "graphs_and_engines_bytes": 10,
    }  # fmt: skip

    def fails(words: Sequence[str]) -> ChildRun:
        raise BootPIGError("no room")

    monkeypatch.setattr(builds, "run_child", fails)
    assert builds.run(settings, Journal()).rows[0].status == "failed: no room"


def test_a_suite_says_what_it_was_measured_on_and_its_file_gives_it_back(
    settings: Settings, tmp_path: Path
) -> None:
    result = run_suite("kernels", replace(settings, only=("32 px, 1 ref",)))
    assert result.machine is not None
    assert result.settings["device"] == "cpu"
    assert not result.wrong()
    save_results([result], tmp_path / "r.json")
    (again,) = load_results(tmp_path / "r.json")
    assert [row.name for row in again.rows] == [row.name for row in result.rows]


def test_attention_grows_with_the_picture() -> None:
    assert kernels._grown([(2, 64, 16)], 1.5) == [(2, 144, 16)]
