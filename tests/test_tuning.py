"""Tuning: the times of a machine from a few pictures, and the choice from a curve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt import tuning
from bootpig_rt.curve import Curve, CurvePoint, Measure, curve_path, save_curve
from bootpig_rt.errors import ParameterError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import PictureSettings, Request
from bootpig_rt.tuning import StepTimes, choose, measure_times, rows_of_steps

ONE = Measure(1.0, 1.0, 1.0)


def point(name: str, fidelity: float, fingerprint: str = "ab", **settings: Any) -> CurvePoint:
    changes = {"psnr_db": Measure(-0.5, -1.0, 0.0)}
    return CurvePoint(
        name, name, fingerprint, "small", settings, 0.5, ONE, {"psnr_db": ONE}, changes, 40.0,
        fidelity,
    )  # fmt: skip


FULL = point("full", 1.0)
CACHED = point("cache:2", 0.99, approximation="cache:2")
FEW = point("8 steps", 0.9, num_inference_steps=8)
CURVE = Curve("small", "ab", "full", 5, 10, {}, "", (FULL, CACHED, FEW))
PLANNED = [(FULL, 100.0), (CACHED, 60.0), (FEW, 30.0)]


def chosen(target_ms: float | None = None, min_fidelity: float | None = None) -> str:
    found = choose(CURVE, PLANNED, target_ms=target_ms, min_fidelity=min_fidelity)
    return found.point.name


def test_a_target_takes_the_most_faithful_that_is_quick_enough() -> None:
    assert [chosen(target_ms=ms) for ms in (200, 100, 99, 60, 59, 30)] == [
        "full", "full", "cache:2", "cache:2", "8 steps", "8 steps",
    ]  # fmt: skip


def test_a_fidelity_takes_the_quickest_that_keeps_it() -> None:
    assert [chosen(min_fidelity=x) for x in (1.0, 0.995, 0.99, 0.95, 0.9, 0.1)] == [
        "full", "full", "cache:2", "cache:2", "8 steps", "8 steps",
    ]  # fmt: skip


@given(st.floats(1, 300), st.floats(0.01, 1))
def test_what_is_chosen_does_what_was_asked_or_it_is_refused(ms: float, fidelity: float) -> None:
    if not [p for p, t in PLANNED if t <= ms and p.fidelity >= fidelity]:
        with pytest.raises(ParameterError, match="ask for less"):
            choose(CURVE, PLANNED, target_ms=ms, min_fidelity=fidelity)
        return
    found = choose(CURVE, PLANNED, target_ms=ms, min_fidelity=fidelity)
    assert found.expected_ms <= ms
    assert found.point.fidelity >= fidelity


def test_nothing_quick_enough_says_what_is_the_quickest() -> None:
    with pytest.raises(ParameterError, match="target_ms is 5, but the quickest, 8 steps, takes"):
        chosen(target_ms=5)


def test_nothing_that_does_both_says_so() -> None:
    with pytest.raises(ParameterError, match="no settings of the curve do both"):
        chosen(target_ms=40, min_fidelity=0.95)


def test_settings_are_what_a_call_takes_and_say_what_they_cost() -> None:
    found = choose(CURVE, PLANNED, target_ms=60, min_fidelity=None)
    assert dict(found) == {"approximation": "cache:2"}
    assert Request(prompt="a", **found).approximation == "cache:2"
    text = found.describe()
    for part in ("cache:2", "60 ms", "full setting 100 ms", "fidelity   0.990", "psnr_db -0.5"):
        assert part in text


def test_settings_are_checked_as_requests_are() -> None:
    with pytest.raises(ParameterError, match="approximation is 'fast'"):
        PictureSettings(approximation="fast")
    with pytest.raises(ParameterError, match="num_inference_steps is 0"):
        PictureSettings(num_inference_steps=0)


@given(
    st.tuples(st.floats(1, 50), st.floats(0.1, 20)),
    st.tuples(st.floats(0.1, 10), st.floats(0.01, 2)),
    st.floats(0, 100),
)
def test_times_of_steps_follow_from_those_of_pictures(
    deep: tuple[float, float], shallow: tuple[float, float], rest: float
) -> None:
    def draw(num_inference_steps: int, approximation: str, **scales: float) -> float:
        rows = 1 if scales["image_guidance_scale"] == 1 else 3
        of_deep, of_shallow = (times[0] + (rows - 1) * times[1] for times in (deep, shallow))
        num_deep = num_inference_steps if approximation == "none" else 2
        return rest + num_deep * of_deep + (num_inference_steps - num_deep) * of_shallow

    found = measure_times(draw, has_shallow=True)
    assert found.shallow_ms is not None
    for got, wanted in ((found.deep_ms, deep), (found.shallow_ms, shallow)):
        assert sum(got) + got[1] == pytest.approx(sum(wanted) + wanted[1], rel=1e-3, abs=1e-3)
    assert found.rest_ms == pytest.approx(rest, rel=1e-3, abs=1e-3)


def test_the_time_of_a_picture_counts_its_rows_and_its_shallow_steps(pipeline: Pipeline) -> None:
    times = StepTimes((10.0, 5.0), (2.0, 1.0), 7.0)

    def plan(**fields: Any) -> Any:
        request = Request(prompt="a", seed=0, num_inference_steps=5, **fields)
        return pipeline.engine.planner.plan(request)

    no_guidance = {"image_guidance_scale": 1.0, "text_guidance_scale": 1.0}
    assert rows_of_steps(plan(**no_guidance, approximation="cache:4")) == [
        (1, True), (1, False), (1, False), (1, False), (1, True),
    ]  # fmt: skip
    assert times.picture_ms(plan(**no_guidance)) == 7 + 5 * 10
    assert times.picture_ms(plan(**no_guidance, approximation="cache:4")) == 7 + 2 * 10 + 3 * 2
    # Without a subject the uncond row and the image row are one.
    guided = {"image_guidance_scale": 3.0, "text_guidance_scale": 2.0}
    assert times.picture_ms(plan(**guided)) == 7 + 5 * (10 + 5)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({}, "nothing to tune for"),
        ({"target_ms": 0}, "target_ms is 0, expected a number above 0"),
        ({"target_ms": "fast"}, "target_ms is 'fast'"),
        ({"target_ms": float("nan")}, "target_ms is nan"),
        ({"min_fidelity": 1.5}, "min_fidelity is 1.5"),
        ({"min_fidelity": True}, "min_fidelity is True"),
        ({"target_ms": 9}, "no curve .*measure one with: bootpig-rt tune --measure"),
    ],
)
def test_wishes_that_cannot_be_are_refused(
    pipeline: Pipeline, wishes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        pipeline.tune(**wishes)


def test_a_pipeline_tunes_by_the_curve_of_its_pair_and_by_no_other(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = pipeline.spec.fingerprint
    path = curve_path(tmp_path / "pair")
    points = (
        point("full", 1.0, mine),
        point("cache:3", 0.95, mine, num_inference_steps=9, approximation="cache:3"),
        point("student", 0.99, "cd", num_inference_steps=1),
    )
    save_curve(Curve("tiny", mine, "full", 5, 10, {}, "", points), path)
    tuned = pipeline.tune(min_fidelity=0.9, curve=path)
    assert tuned.point.name in ("full", "cache:3")
    assert not tuned.is_student
    assert tuned.expected_ms > 0
    result = pipeline("a dog", subject=None, reference_images=_image(), reference_prompt="a dog",
                      **tuned)  # fmt: skip
    assert result.parameters[0].approximation == dict(tuned).get("approximation", "none")
    # Of a tiny pair times are noise: that fewer steps are quicker is said here.
    times = StepTimes((10.0, 5.0), (2.0, 1.0), 7.0)
    monkeypatch.setattr(tuning, "measure_times", lambda *_, **__: times)
    assert pipeline.tune(min_fidelity=0.98, curve=path, students=True).is_student
    save_curve(Curve("tiny", "ef", "full", 5, 10, {}, "", points), path)
    with pytest.raises(ParameterError, match="the curve is of pair tiny ef, this is"):
        pipeline.tune(target_ms=1e6, curve=path)


def test_tuning_tells_of_no_approximation_that_nobody_asked_for(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each point is planned to count its rows; what is then drawn with one says so as ever."""
    mine = pipeline.spec.fingerprint
    path = curve_path(tmp_path / "pair")
    points = (
        point("full", 1.0, mine),
        point("anchor:7", 0.9, mine, reference_schedule="anchor:7"),
        point("stride:3", 0.8, mine, reference_schedule="stride:3"),
    )
    save_curve(Curve("tiny", mine, "full", 5, 10, {}, "", points), path)
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        pipeline.tune(min_fidelity=0.1, curve=path)
        assert "is an approximation" not in caplog.text
        subject = pipeline.encode_subject(_image(), "a dog")
        pipeline("a dog", subject=subject, num_inference_steps=1, reference_schedule="anchor:7")
    assert caplog.text.count("reference schedule anchor:7 is an approximation") == 1


def _image() -> Any:
    return np.full((32, 32, 4), 200, np.uint8)
