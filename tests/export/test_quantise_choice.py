"""Which parts stay wide: worst first, as many as the limits need, and no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from bootpig_rt.export.calibration import DrawnPicture
from bootpig_rt.export.quantise_choice import WideChoice, choose_wide, max_relative
from bootpig_rt.export.quantise_parts import Part

ERRORS = {"a": 0.01, "b": 0.04, "c": 0.001, "d": 0.02}


class Graph:
    """A step whose parts each put their own error into a direction of its own."""

    def __init__(self, errors: dict[str, float] | None = None) -> None:
        self.errors = ERRORS if errors is None else errors
        self.parts = tuple(Part(name, (name,), 10) for name in self.errors)

    def launch(self, sample: Any, wide: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
        out = np.zeros((1, 1, 1 + len(self.errors)), np.float32)
        out[..., 0] = 1.0
        for number, (name, error) in enumerate(self.errors.items()):
            out[..., number + 1] = 0.0 if name in wide else error
        state = sample.get("state", np.zeros_like(out))
        return {"next_state": state + out if "state" in sample else out}


def chosen(limit: float, **more: Any) -> WideChoice:
    graph = Graph()
    samples: list[Any] = [{}]
    true = [graph.launch(sample, list(ERRORS)) for sample in samples]
    return choose_wide(graph, samples, true=true, limit=limit, **more)


def test_nothing_stays_wide_where_all_parts_together_are_within_the_limit() -> None:
    choice = chosen(0.05)
    assert choice.wide == ()
    assert choice.rounded_share == 1.0
    assert choice.error == choice.error_of_all == pytest.approx(0.0459, abs=1e-3)


def test_the_worst_parts_stay_wide_and_no_more_than_needed() -> None:
    assert chosen(0.03).wide == ("b",)
    choice = chosen(0.015)
    assert choice.wide == ("b", "d")
    assert choice.rounded_share == 0.5
    assert choice.error <= 0.015 < choice.error_of_all


def test_a_limit_that_nothing_meets_leaves_all_wide() -> None:
    choice = chosen(0.0)
    assert set(choice.wide) == set(ERRORS)
    assert choice.error == 0.0
    assert choice.rounded_share == 0.0


def test_pictures_that_end_too_far_away_make_more_parts_wide() -> None:
    graph, steps = Graph(), 4
    states = [np.zeros((1, 1, 5), np.float32)]
    for _ in range(steps):
        made = graph.launch({"state": states[-1]}, list(ERRORS))
        states.append(made["next_state"])
    picture = DrawnPicture("denoise_step", {}, np.stack(states), (0,))
    loose = chosen(0.05, pictures=[picture], end_limit=0.05)
    tight = chosen(0.05, pictures=[picture], end_limit=0.02)
    assert loose.wide == ()
    assert loose.end_error == pytest.approx(loose.error, rel=0.1)
    assert tight.wide[0] == "b"
    assert tight.end_error is not None
    assert tight.end_error <= 0.02


def test_an_error_that_is_not_finite_is_worse_than_any_limit() -> None:
    true = [{"x": np.ones(2, np.float32)}]
    assert max_relative(true, [{"x": np.array([1.0, np.nan])}]) == float("inf")


def test_progress_is_told_and_may_end_the_work() -> None:
    told: list[float] = []
    chosen(0.05, told=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen(0.05, told=stop)


def test_the_report_names_what_stays_wide() -> None:
    text = chosen(0.015).describe("denoise_step")
    assert text.startswith("denoise_step: 2 of 4 parts in int8 with 50% of the weights")
    assert text.endswith("wide: b, d")
