"""Which parts stay wide: worst first, as many as the limits need, and no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootpig_rt.export.calibration import DrawnPicture
from bootpig_rt.export.quantise_choice import WideChoice, choose_wide, max_relative
from bootpig_rt.export.quantise_parts import Part

ERRORS = {"a": 0.01, "b": 0.04, "c": 0.001, "d": 0.02}


class Graph:
    """A step whose parts each put their own error into a direction of its own."""

    def __init__(self, errors: dict[str, float] | None = None) -> None:
        self.launches = 0
        self.errors = ERRORS if errors is None else errors
        self.parts = tuple(Part(name, (name,), 10) for name in self.errors)

    def launch(self, sample: Any, wide: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
        self.launches += 1
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


def test_nobody_asks_which_part_hurts_where_none_need_stay_wide() -> None:
    told: list[float] = []
    choice = chosen(0.05, told=told.append)
    assert choice.alone == {}
    assert told == [1.0]


def test_of_many_parts_those_that_hurt_are_found_without_measuring_each() -> None:
    errors = {f"p{number}": 1e-4 for number in range(256)} | {
        "p77": 0.03,
        "p78": 0.05,
        "p200": 0.04,
    }
    graph = Graph(errors)
    samples: list[Any] = [{}] * 8
    true = [graph.launch(sample, list(errors)) for sample in samples]
    graph.launches = 0
    choice = choose_wide(graph, samples, true=true, limit=0.01)
    assert choice.wide == ("p78", "p200", "p77")
    assert set(choice.alone) == set(errors)
    assert choice.alone["p78"] == pytest.approx(0.05, rel=0.01)
    # One launch of eight for 16 groups and for the halves of three; all for what is chosen.
    assert graph.launches <= 16 + 3 * 2 * 4 + 8 * 3


def test_launches_that_different_parts_hurt_are_all_asked() -> None:
    names = [f"p{number}" for number in range(40)]

    class Two(Graph):
        def launch(self, sample: Any, wide: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
            hurt = {"early": {"p3": 0.05, "p9": 0.04}, "late": {"p30": 0.03}}[sample["at"]]
            self.errors = {name: hurt.get(name, 1e-5) for name in names}
            return super().launch({}, wide)

    graph = Two(dict.fromkeys(names, 0.0))
    samples: list[Any] = [{"at": "late"}, {"at": "early"}]
    true = [graph.launch(sample, names) for sample in samples]
    choice = choose_wide(graph, samples, true=true, limit=0.01)
    assert choice.wide == ("p3", "p9", "p30")
    assert choice.error <= 0.01


@given(
    errors=st.lists(st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.05]), min_size=1, max_size=60),
    limit=st.sampled_from([1e-3, 0.01, 0.04]),
)
def test_whatever_hurts_the_limit_is_met_with_few_parts_wide(
    errors: list[float], limit: float
) -> None:
    graph = Graph({f"p{number}": error for number, error in enumerate(errors)})
    true = [graph.launch({}, list(graph.errors))]
    choice = choose_wide(graph, [{}], true=true, limit=limit)
    assert choice.error <= limit
    # No more than whoever knew each part would need for a limit half as wide.
    squares = np.sort(np.square(errors))[::-1]
    left = squares.sum() - np.concatenate([[0.0], np.cumsum(squares)])
    assert len(choice.wide) <= np.argmax(left <= (0.5 * limit) ** 2 * (1 + 1e-6) + 1e-15)


def test_progress_is_told_and_may_end_the_work() -> None:
    told: list[float] = []
    chosen(0.015, told=told.append)
    assert told == [0.0625, 0.125, 0.1875, 0.25, 1.0]

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen(0.015, told=stop)


def test_the_report_names_what_stays_wide() -> None:
    text = chosen(0.015).describe("denoise_step")
    assert text.startswith("denoise_step: 2 of 4 parts in int8 with 50% of the weights")
    assert text.endswith("wide: b, d")
