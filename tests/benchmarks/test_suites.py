"""The suites run on a small untrained pair, and measure what their rows say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig_rt.benchmarks.child import ChildRun
from bootpig_rt.benchmarks.ours import OurWay, StepBlock
from bootpig_rt.benchmarks.result import SCHEMA, Check, SuiteResult, save_results
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import baselines, builds, kernels, latency
from bootpig_rt.bundle.json_schema import check_schema
from bootpig_rt.cli.options import add_model_arguments, load_pipeline
from bootpig_rt.errors import NumericalError, ParameterError

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def settings(tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One round of everything, one thread."""
    return Settings(
        pair=tiny_bundle_folder,
        rounds=1,
        threads=1,
        is_smoke=True,
        work=tmp_path_factory.mktemp("work"),
    )


@pytest.fixture(scope="module")
def ours(settings: Settings) -> OurWay:
    return OurWay(settings.pair, threads=1)


@pytest.fixture(scope="module")
def timed(settings: Settings) -> SuiteResult:
    """The suite `latency` without its processes."""
    return latency.run(replace(settings, only=("onnxruntime", "torch")))


def check_file(result: SuiteResult, folder: Path) -> None:
    save_results([result], folder / "r.json")
    check_schema(json.loads((folder / "r.json").read_text()), json.loads(SCHEMA.read_text()))


def test_a_step_has_three_rows_and_one_reference(timed: SuiteResult) -> None:
    for backend in ("onnxruntime", "torch"):
        assert timed.row(f"{backend} step").values == {"rows": 3, "references": 1}
    assert timed.settings["references"] == 1


def test_rows_of_a_backend_are_compared_with_its_own_step_and_picture(
    timed: SuiteResult, tmp_path: Path
) -> None:
    for backend in ("onnxruntime", "torch"):
        for part in ("encode subject", "reference table", "reference table exact", "text"):
            assert timed.row(f"{backend} {part}").ratio_to == f"{backend} step"
        for part in ("new subject", "load", "references 2", "steps 4", "size 16"):
            assert timed.row(f"{backend} {part}").ratio_to == f"{backend} picture"
        assert 0 < (timed.row(f"{backend} text and decoder").values["share"] or 0) < 1
    assert not any(row.name.startswith("process") for row in timed.rows)
    assert all(row.ratio is not None for row in timed.rows if row.samples_ms)
    check_file(timed, tmp_path)


def test_pictures_of_the_backends_are_compared_before_they_are_timed(timed: SuiteResult) -> None:
    assert [check.name for check in timed.checks] == ["pixels: torch"]
    assert timed.checks[0].is_ok


def test_sizes_reach_over_the_whole_profile(settings: Settings, ours: OurWay) -> None:
    assert latency.sides(settings.pair, ours) == [16, 48, 64]


def test_a_subject_is_encoded_and_read_anew_each_time(ours: OurWay) -> None:
    store = ours.forgetful.store
    # This pair reads the subject at every step, so its encoding makes no table.
    assert ours.pipe.sampling_params().reference_schedule.mode == "exact"
    for run in (ours.reference_table, partial(ours.reference_table, "clean"), ours.cold):
        for _ in range(2):
            before = store.stats()
            run()
            after = store.stats()
            assert after.misses == before.misses + 1
            assert after.device_hits == before.device_hits


def test_a_block_of_steps_never_leaves_the_picture(ours: OurWay) -> None:
    block = StepBlock(ours, 5)
    assert block.count == 2  # as many as this pair draws with
    block = StepBlock(ours, 2, num_inference_steps=5)
    seen: list[int] = []

    class Run:
        def step(self, index: int) -> None:
            seen.append(index)

        def latents(self) -> None:
            pass

    block._backend = type("Starts", (), {"start": lambda *_: Run()})()
    for _ in range(3):
        block.prepare()
        block.run()
    assert seen == [0, 1, 2, 3, 0, 1]


def fake_child(seen: list[Sequence[str]]) -> Any:
    """A child that ends at once and reports what `generate --json` does."""

    def run(words: Sequence[str], *, environment: Mapping[str, str]) -> ChildRun:
        seen.append(words)
        assert environment == {"OMP_NUM_THREADS": "1", "BOOTPIG_RT_STORE": ""}
        return ChildRun(1.0, 1000, json.dumps({"timings": {"load_ms": 3.0, "total_ms": 7.0}}))

    return run


def test_processes_have_pinned_threads_and_report_their_first_picture(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Sequence[str]] = []
    dropped: list[Path] = []
    monkeypatch.setattr(latency, "run_child", fake_child(seen))
    monkeypatch.setattr(latency, "drop_cached_files", dropped.extend)
    found = latency.run(replace(settings, only=("process",), is_smoke=False, rounds=8))
    for backend in ("onnxruntime", "torch"):
        assert found.row(f"process first picture {backend}").samples_ms == (7.0, 7.0)
        assert found.row(f"process load {backend}").samples_ms == (3.0, 3.0)
    whole = found.row("process generate onnxruntime")
    assert whole.ratio_to == "process published"
    assert whole.values == {"peak_bytes": 1000}
    assert whole.notes == {"threads": "1"}
    drawn = [words for words in seen if "onnxruntime" in words]
    assert all(words[words.index("--threads") + 1] == "1" for words in drawn)
    assert settings.pair in dropped
    assert found.row("process generate onnxruntime uncached").median_ms is not None
    assert [goal.name for goal in found.goals] == [
        "process to picture, ms",
        "process to picture, not cached, ms",
        "import, ms",
        "import, ms",
    ]
    check_file(found, tmp_path)


def test_the_threads_of_a_command_reach_the_backend(settings: Settings) -> None:
    words = ["--model", str(settings.pair), "--backend", "onnxruntime", "--threads", "1"]
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    backend: Any = load_pipeline(parser.parse_args(words))._backend
    assert backend.options.intra_op_threads == 1


@pytest.mark.slow
def test_real_processes_draw(settings: Settings) -> None:
    found = latency.run(replace(settings, only=("process generate onnxruntime",)))
    assert (found.row("process first picture onnxruntime").median_ms or 0) > 0
    assert (found.row("process published").values["peak_bytes"] or 0) > 2**27


@pytest.fixture(scope="module")
def compared(settings: Settings) -> SuiteResult:
    return baselines.run(settings)


def test_every_way_is_compared_with_the_published_one_and_every_step_with_the_bare_one(
    compared: SuiteResult, tmp_path: Path
) -> None:
    names = ("ours_cold", "ours_warm", "ours_warm_4_images", "torch_warm", "bare_unet")
    assert {compared.row(name).ratio_to for name in names} == {"published"}
    assert compared.row("ours_step").ratio_to == "bare_unet_step"
    assert compared.row("ours_step").values == {"rows": 3, "references": 1}
    assert compared.row("torch_compile_warm").notes["status"].startswith("left out")
    check_file(compared, tmp_path)


def test_what_is_timed_in_baselines_is_checked_first(compared: SuiteResult) -> None:
    names = {check.name for check in compared.checks}
    assert {"pixels: ours new, published", "pixels: ours known, published"} <= names
    assert "pixels: ours four, one by one" in names
    assert all(check.is_ok for check in compared.checks)
    assert {goal.name for goal in compared.goals} >= {
        "ours_warm over published", "ours_step over bare_unet_step",
    }  # fmt: skip


def test_the_floors_say_that_they_are_of_one_picture_with_full_rows(compared: SuiteResult) -> None:
    for name in ("bare_unet", "arithmetic"):
        assert compared.row(name).label.startswith("floor: one picture alone, ")
    assert "3 full rows" in compared.row("bare_unet").label


class _Wrong:
    """Ways that draw something else; none may be timed."""

    def __init__(self, settings: Settings) -> None:
        pass

    def check(self) -> list[Check]:
        return [Check("pixels: ours new, published", 3.0, 0.5)]


def test_ways_that_draw_something_else_are_not_timed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_Ways", _Wrong)
    with pytest.raises(NumericalError, match="ours new, published is 3, expected at most 0.5"):
        baselines.run(settings)


@pytest.fixture(scope="module")
def attended(settings: Settings) -> SuiteResult:
    return kernels.run(replace(settings, only=("256",)))


def test_kernels_are_compared_with_the_oracle_which_is_other_code(
    attended: SuiteResult, tmp_path: Path
) -> None:
    assert {"256 tokens ours, oracle", "256 tokens, 2 references ours argmax, oracle"} <= {
        check.name for check in attended.checks
    }
    assert all(check.is_ok for check in attended.checks)
    assert any(check.value > 0 for check in attended.checks)
    assert attended.row("256 tokens oracle").ratio_to == "256 tokens published"
    check_file(attended, tmp_path)


def test_kernels_time_every_merge_of_several_references(attended: SuiteResult) -> None:
    for merge in ("argmax", "softmax", "mean", "concat"):
        row = attended.row(f"256 tokens, 2 references ours {merge}")
        assert row.ratio_to == "256 tokens, 2 references published"


def test_an_operator_that_computes_something_else_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = kernels.Inputs(16, 2, 16, references=1, device="cpu", dtype=torch.float32)
    assert all(check.is_ok for check in kernels._checks("n", inputs))
    monkeypatch.setattr(
        kernels, "reference_attention", lambda q, *_, **__: q.transpose(1, 2).flatten(-2)
    )
    checks = {check.name: check for check in kernels._checks("n", inputs)}
    assert not checks["n ours, oracle"].is_ok
    assert checks["n concat, oracle"].is_ok


def test_a_build_is_a_row_with_its_memory_and_size(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(words: Sequence[str]) -> ChildRun:
        output = Path(words[words.index("-o") + 1])
        (output / "weights").mkdir(parents=True)
        (output / "a.onnx").write_bytes(b"1" * 10)
        (output / "weights" / "b").write_bytes(b"1" * 100)
        return ChildRun(5.0, 1000)

    monkeypatch.setattr(builds, "run_child", build)
    found = builds.run(settings).row("small cpu")
    assert found.samples_ms == (5.0,)
    assert found.values == {
        "peak_bytes": 1000, "bundle_bytes": 110, "graphs_and_engines_bytes": 10,
    }  # fmt: skip


@pytest.mark.parametrize("suite", [latency, kernels], ids=["latency", "kernels"])
def test_an_only_that_matches_nothing_is_refused(suite: Any, settings: Settings) -> None:
    with pytest.raises(ParameterError, match="--only owrs matches no row"):
        suite.run(replace(settings, only=("owrs",)))
