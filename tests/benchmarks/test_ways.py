"""The published way in all its forms, and ours beside it, on a small pair on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.ours import OurWay, backends_here
from bootpig_rt.benchmarks.published import PublishedWay, Recorded
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import baselines
from bootpig_rt.benchmarks.truth import Truth
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Unavailable, Way
from bootpig_rt.benchmarks.ways import (
    attention_shapes,
    diffusers_way,
    known,
    new,
    our_way,
    published_ways,
    text_pipeline,
)
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import BootPIGError
from bootpig_rt.models.load import load_pair

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def pair_folder() -> Path:
    """The packaged pair: in one with random weights a reference changes nearly nothing."""
    return default_model()


@pytest.fixture(scope="module")
def truth(pair_folder: Path) -> Truth:
    return Truth(pair_folder, steps=2)


@pytest.fixture(scope="module")
def ours(pair_folder: Path) -> OurWay:
    return OurWay(pair_folder, backend="torch", steps=2)


def by_name(ways: list[Way]) -> dict[str, Way]:
    return {way.name: way for way in ways}


def test_a_gpu_ladder_has_the_published_way_compiled_and_recorded(truth: Truth) -> None:
    names = [way.name for way in published_ways(truth, "g", kind="cuda")]
    assert names == [
        "published", "published_compile", "published_graph", "published_compile_graph",
    ]  # fmt: skip
    assert [way.name for way in published_ways(truth, "g")] == [
        "published", "published_compile", "published_bf16", "published_compile_bf16",
    ]  # fmt: skip


def test_the_recorded_way_draws_the_same_picture(truth: Truth) -> None:
    # On a CPU a recording is a call over the same buffers.
    ready = by_name(published_ways(truth, "g", kind="cuda"))["published_graph"].make()
    assert ready.difference is not None
    assert ready.difference() == 0


def test_a_recording_reads_new_inputs_and_gives_results_that_stay() -> None:
    twice = Recorded(lambda x: 2 * x, "cpu")
    first = twice(torch.ones(3))
    second = twice(torch.full((3,), 5.0))
    assert first.tolist() == [2, 2, 2]
    assert second.tolist() == [10, 10, 10]


@pytest.mark.slow
def test_bfloat16_is_offered_where_the_processor_has_it_and_nowhere_else(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = by_name(published_ways(truth, "g"))["published_bf16"]
    monkeypatch.setattr(machine, "bf16_flag", lambda: None)
    with pytest.raises(Unavailable, match="avx512_bf16"):
        half.make()
    monkeypatch.setattr(machine, "bf16_flag", lambda: "avx512_bf16")
    ready = half.make()
    assert ready.difference is not None
    assert 0 < ready.difference() <= ready.limit < 1


def test_ours_draws_what_the_published_way_draws_within_five_times_the_known_difference(
    truth: Truth, ours: OurWay
) -> None:
    for draw in (known, new):
        way = our_way(truth, "ours", "ours", lambda: ours, draw, group="g").make()
        assert way.difference is not None
        assert way.difference() <= way.limit


def test_the_gate_sees_a_way_that_does_not_read_the_reference(truth: Truth, ours: OurWay) -> None:
    assert truth.difference(ours.latents(OurWay.no_reference)) == pytest.approx(1, rel=1e-3)
    clean = ours.latents(lambda way: way.warm(reference_schedule="clean"))
    assert truth.difference(clean) > truth.limit("float32")


def test_the_published_way_follows_the_largest_change_of_several_references(
    pair_folder: Path,
) -> None:
    truth = Truth(pair_folder, references=2, steps=1)
    ours = OurWay(pair_folder, backend="torch", references=2, steps=1)
    assert truth.difference(ours.latents(known)) <= truth.limit("float32")


def test_a_new_subject_is_read_anew_each_time_and_a_known_one_never(ours: OurWay) -> None:
    known(ours)
    assert known(ours).reference_passes == 0
    assert [new(ours).reference_passes for _ in range(2)] == [2, 2]


def test_the_strongest_form_of_the_published_way_is_the_baseline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(Settings(Path(), rounds=3, only=("ours",)), Journal())
    ways = [
        Way.of("published", "", lambda: 30.0),
        Way.of("published_graph", "", lambda: 12.0),
        Way.of("published_compile", "", lambda: 20.0),
    ]
    assert baselines.strongest(bench, ways, "g") == "published_graph"
    with pytest.raises(BootPIGError, match="no form of the published way can be timed"):
        baselines.strongest(Bench(Settings(Path())), [Way("published", "", _fails)], "g")


def _fails() -> Ready:
    raise Unavailable("no")


@pytest.mark.slow
def test_the_rungs_of_a_gpu_ladder_run_and_agree(truth: Truth, pair_folder: Path) -> None:
    settings = Settings(pair_folder, rounds=1, is_smoke=True, device="cuda")
    offered = [
        way
        for way in baselines.offered(settings, truth, "g", "")
        if not way.name.startswith("diffusers")
    ]
    on_cpu = Bench(Settings(pair_folder, rounds=1, is_smoke=True))
    rows = on_cpu.rows("t", offered, warmups=0)
    assert [row.name for row in rows] == [
        "rung_table_new", "rung_table_known", "rung_fused_new", "rung_fused_known",
        "rung_rows_new", "rung_rows_known", "rung_joined_new", "rung_joined_known",
        "ours_text", "ours_new", "ours_known", "ours_four",
    ]  # fmt: skip
    assert not [row.status for row in rows if row.status]
    assert all(check.is_ok for check in on_cpu.checks)


@pytest.mark.slow
def test_a_pair_for_cpus_is_drawn_by_both_engines_and_each_is_compared_as_what_it_computes_in(
    pair_folder: Path, truth: Truth
) -> None:
    assert backends_here(pair_folder, "cpu") == ["onnxruntime", "openvino", "torch"]
    ours = OurWay(
        pair_folder, backend="openvino", steps=2, threads=1,
        backend_options={"precision": "float32", "cache": False},
    )  # fmt: skip
    assert ours.compared_as == "openvino float32"
    assert truth.difference(ours.latents(known)) <= truth.limit(ours.compared_as)


def test_diffusers_draws_text_to_image_with_the_same_modules(truth: Truth) -> None:
    picture = diffusers_way(truth, "g").make().run()
    assert isinstance(picture, np.ndarray)
    side = truth.scene.size_px
    assert picture.shape == (side, side, 3)


def test_the_shapes_of_attention_are_those_of_the_pair(pair_folder: Path) -> None:
    side, shapes = attention_shapes(pair_folder)
    assert side == read_pair_config(pair_folder / "pair.json").sample_size_px
    assert shapes[0] == (2, 256, 32)
    assert len(shapes) == 10


def test_the_modules_of_the_published_way_are_its_own(truth: Truth) -> None:
    one, other = (PublishedWay(truth.pair()) for _ in range(2))
    assert one._base is not other._base


def test_diffusers_draws_with_an_autoencoder_of_ours(patch_pair_folder: Path) -> None:
    pipe = text_pipeline(load_pair(patch_pair_folder), "ddim")
    drawn = pipe("a dog", num_inference_steps=1, width=32, height=32, output_type="np")
    assert drawn.images[0].shape == (32, 32, 3)
