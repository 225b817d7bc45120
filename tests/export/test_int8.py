"""Int8 graphs of the tiny pair: made from its own pictures, measured, resumed, refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.bundle_spec import bundle_spec
from bootpig_rt.bundle.bundle import Bundle, read_manifest
from bootpig_rt.errors import EngineError, ImageError, ParameterError
from bootpig_rt.export.build_options import INT8_LIMIT
from bootpig_rt.export.calibration import Calibration, CalibrationOptions, calibration_subjects

pytest.importorskip("openvino")
pytest.importorskip("nncf")

import openvino as ov
import openvino.opset13 as ops

from bootpig_rt.export import int8
from bootpig_rt.export.calibration import record_calibration
from bootpig_rt.export.int8 import Launches, build_int8
from bootpig_rt.export.quantise_choice import WideChoice, max_relative
from bootpig_rt.export.quantise_graph import quantised, stored
from bootpig_rt.export.quantise_parts import Switched, parts_of, with_wide
from bootpig_rt.export.work_folder import WorkFolder

FEW = CalibrationOptions(pictures=3, steps_kept=2, judges=1)
STEP = "denoise_step"
WIDTH = 8


@pytest.fixture(scope="module")
def launches(tiny_bundle_folder: Path) -> Launches:
    return Launches(tiny_bundle_folder)


@pytest.fixture(scope="module")
def spec(tiny_bundle_folder: Path) -> Any:
    return bundle_spec(Bundle(tiny_bundle_folder, read_manifest(tiny_bundle_folder)))


@pytest.fixture(scope="module")
def calibration(launches: Launches, spec: Any) -> Calibration:
    return record_calibration(launches, spec, FEW, merges=("mean",), steps=3)


def test_a_calibration_is_the_same_for_the_same_seed(
    launches: Launches, spec: Any, calibration: Calibration
) -> None:
    again = record_calibration(launches, spec, FEW, merges=("mean",), steps=3)
    assert len(again.drawn) == len(calibration.drawn) == 5
    for one, other in zip(again.drawn, calibration.drawn, strict=True):
        assert one.kept == other.kept
        assert np.array_equal(one.states, other.states)


def test_what_judges_is_not_what_calibrates(calibration: Calibration) -> None:
    used = {sample["state"].tobytes() for sample in calibration.to_calibrate(STEP)}
    judging = {sample["state"].tobytes() for sample in calibration.to_judge(STEP)}
    assert len(used) == 4
    assert len(judging) == 2
    assert not used & judging
    assert {one.graph for one in calibration.drawn} == {STEP, f"{STEP}_mean"}


def test_states_of_a_picture_follow_from_each_other(
    launches: Launches, calibration: Calibration
) -> None:
    picture = calibration.drawn[0]
    for step in range(3):
        made = launches(picture.graph, picture.sample(step))
        assert np.allclose(made["next_state"], picture.states[step + 1], atol=1e-5)


def test_a_folder_to_calibrate_on_names_its_subjects(tmp_path: Path) -> None:
    for name in ("red_car.png", "owl-2.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [prompt for _, prompt in calibration_subjects(tmp_path)] == [
        "a photo of an owl",
        "a photo of a red car",
    ]


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_with_too_few_pictures_is_refused(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(ParameterError, match=rf"has {count} pictures, expected at least 2"):
        calibration_subjects(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is no folder"):
        calibration_subjects(tmp_path / "none")


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_damaged_picture_to_calibrate_on_is_named(
    launches: Launches, spec: Any, tmp_path: Path, red: Image.Image, damage: str
) -> None:
    red.save(tmp_path / "cat.png")
    red.save(tmp_path / "dog.png")
    data = (tmp_path / "dog.png").read_bytes()
    (tmp_path / "dog.png").write_bytes(
        b"no picture" if damage == "text" else data[: len(data) // 2]
    )
    options = CalibrationOptions(tmp_path, pictures=2, judges=1)
    with pytest.raises(ImageError, match=r"calibration picture dog\.png"):
        record_calibration(launches, spec, options, steps=1)


def small_graph() -> ov.Model:
    """state [1, 1, C, h, w] -> next_state: a convolution, and two layers that read one tensor."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        made = ops.constant(rng.standard_normal(shape).astype(np.float32) / WIDTH)
        made.set_friendly_name(f"base.unet.{name}.weight")
        return made

    state = ops.parameter([1, 1, WIDTH, 4, 4], np.float32, name="state")
    state.output(0).get_tensor().set_names({"state"})
    sample = ops.squeeze(state, ops.constant(np.array([0])))
    convolved = ops.convolution(
        sample, weight("conv_in", WIDTH, WIDTH, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1]
    )
    tokens = ops.transpose(
        ops.reshape(ops.swish(convolved), ops.constant([1, WIDTH, 16]), special_zero=False),
        ops.constant([0, 2, 1]),
    )
    q, k = (
        ops.matmul(tokens, weight(f"attn1.{name}", WIDTH, WIDTH), False, True)
        for name in ("to_q", "to_k")
    )
    scores = ops.softmax(ops.matmul(q, k, False, True), -1)
    mixed = ops.transpose(ops.matmul(scores, tokens, False, False), ops.constant([0, 2, 1]))
    out = ops.reshape(mixed, ops.constant([1, 1, WIDTH, 4, 4]), special_zero=False)
    out.output(0).get_tensor().set_names({"next_state"})
    return ov.Model([ops.result(out)], [state], "denoise_step")


def small_samples(count: int = 4) -> list[Any]:
    rng = np.random.default_rng(1)
    return [
        {"state": rng.standard_normal((1, 1, WIDTH, 4, 4)).astype(np.float32)} for _ in range(count)
    ]


@pytest.fixture(scope="module")
def rounded() -> ov.Model:
    return quantised(small_graph(), small_samples())


def outputs(model: ov.Model, samples: list[Any]) -> list[dict[str, np.ndarray[Any, Any]]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made = [compiled.create_infer_request().infer(dict(sample)) for sample in samples]
    return [{key.get_any_name(): np.array(value) for key, value in one.items()} for one in made]


def test_products_with_weights_are_rounded_and_nothing_else(rounded: ov.Model) -> None:
    parts = parts_of(rounded)
    assert {part.name for part in parts} == {"conv_in", "attn1.to_q"}
    assert {part.name: part.weights for part in parts} == {
        "conv_in": 9 * WIDTH**2,
        "attn1.to_q": 2 * WIDTH**2,  # with to_k, which reads the same activation
    }
    rounding = {op.get_friendly_name() for op in rounded.get_ops() if _is_rounding(op)}
    assert rounding == {node for part in parts for node in part.nodes}


def _is_rounding(op: Any) -> bool:
    return bool(op.get_type_name() == "FakeQuantize")


@pytest.mark.parametrize("wide", [[], ["conv_in"], ["attn1.to_q"], ["conv_in", "attn1.to_q"]])
def test_switches_do_what_leaving_parts_wide_does(rounded: ov.Model, wide: list[str]) -> None:
    parts, samples = parts_of(rounded), small_samples(2)
    by_switch = [Switched(rounded, parts).launch(sample, wide) for sample in samples]
    by_graph = outputs(with_wide(rounded, wide, parts), samples)
    assert max_relative(by_graph, by_switch) < 1e-2  # a step of 8 bits, where a sum is on an edge
    true = outputs(small_graph(), samples)
    if len(wide) == 2:
        assert max_relative(true, by_graph) < 1e-5
    if not wide:
        assert max_relative(true, by_graph) > 2e-3


def test_stored_weights_are_bytes_and_compute_the_same(rounded: ov.Model) -> None:
    samples = small_samples(2)
    before = outputs(rounded, samples)
    small = stored(rounded.clone())
    kinds = {op.get_element_type().to_string() for op in small.get_ops() if _is_large(op)}
    assert kinds == {"i8"}
    assert max_relative(before, outputs(small, samples)) < 1e-2


def _is_large(op: Any) -> bool:
    is_constant = op.get_type_name() == "Constant"
    return is_constant and int(np.prod(op.get_output_shape(0))) >= WIDTH**2


def test_equal_samples_make_equal_graphs(rounded: ov.Model) -> None:
    made = [rounded, quantised(small_graph(), small_samples())]
    one, other = (outputs(model, small_samples(1))[0]["next_state"] for model in made)
    assert np.array_equal(one, other)


def test_nncf_prints_nothing_and_tells_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    quantised(small_graph(), small_samples(1))
    import nncf.telemetry.wrapper

    assert "NNCF_CI" not in os.environ
    assert type(nncf.telemetry.wrapper.telemetry).__name__ != "NNCFTelemetry"
    assert capsys.readouterr().out == ""


def test_no_samples_are_an_error() -> None:
    with pytest.raises(EngineError, match="no samples"):
        quantised(small_graph(), [])


def test_an_interrupt_ends_the_work() -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised(small_graph(), small_samples(), stop)


@pytest.fixture
def work(tiny_bundle_folder: Path, tmp_path: Path) -> WorkFolder:
    made = WorkFolder(tmp_path)
    made.resume("a")
    shutil.copytree(tiny_bundle_folder, tmp_path / "graphs")
    return made


@pytest.mark.slow
def test_graphs_that_are_finished_are_not_made_again_and_a_damaged_one_is(
    work: WorkFolder, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, Any]] = []

    def quick(
        _: Any, name: str, calibration: Calibration, known: Any, told: Any, limit: float
    ) -> Any:
        assert limit == INT8_LIMIT
        made.append((name, known))
        told(f"ranges of {name}", 0.5)
        assert calibration.to_calibrate(name)
        return small_graph(), WideChoice(("conv_in",), 2, 0.5, 0.1, 0.01, 0.02, {"conv_in": 0.1})

    monkeypatch.setattr(int8, "quantise_one", quick)
    names = [STEP, f"{STEP}_mean"]
    shares: list[float] = []

    def build() -> Any:
        return build_int8(
            work, "graphs", spec, names, merges=["mean"], options=FEW, steps=2,
            told=lambda _, share: shares.append(share),
        )  # fmt: skip

    first = build()
    assert made == [(STEP, None), (f"{STEP}_mean", {"conv_in": 0.1})]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1
    files = sorted(path.name for path in (work.path / "graphs").glob("*.int8.*"))
    assert files == [f"{name}.int8.{end}" for name in names for end in ("bin", "xml")]
    again = build()
    assert len(made) == 2
    assert [one.resumed for one in again] == [True, True]
    assert [one.choice for one in again] == [one.choice for one in first]
    weights = work.path / "graphs" / f"{STEP}.int8.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert [one.resumed for one in build()] == [False, True]
    assert made[2:] == [(STEP, None)]


@pytest.mark.slow
def test_the_steps_of_the_tiny_pair_are_within_the_limit(
    launches: Launches, calibration: Calibration
) -> None:
    """Random weights round worse than trained ones: parts stay wide until the limit is met."""
    told: list[float] = []
    model, choice = int8.quantise_one(
        launches, STEP, calibration, None, lambda _, share: told.append(share)
    )
    assert choice.error <= INT8_LIMIT
    assert choice.rounded_share > 0.5
    assert told == sorted(told)
    samples = calibration.to_judge(STEP)
    true = [launches(STEP, sample) for sample in samples]
    assert max_relative(true, outputs(model, samples)) < 1.5 * INT8_LIMIT
