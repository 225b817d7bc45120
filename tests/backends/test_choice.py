"""What draws on this processor: chosen by times and margins, kept, forced, measured again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from bootpig_rt.backends.choice import (
    ENGINE_MARGIN,
    PRECISION_MARGIN,
    Candidate,
    choose,
)
from bootpig_rt.errors import BackendUnavailable

WIDE = Candidate("openvino", "float32")
OTHER = Candidate("onnxruntime", "float32")
HALF = Candidate("openvino", "bfloat16")
NARROW = Candidate("openvino", "int8")
FACTS = {"bundle": "a", "processor": "one"}


class Kept:
    """Files in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads = 0

    def read(self, name: str, more: Mapping[str, Any]) -> bytes | None:
        self.reads += 1
        return self.files.get(json.dumps(more, sort_keys=True))

    def write(self, name: str, more: Mapping[str, Any], blob: bytes) -> None:
        self.files[json.dumps(more, sort_keys=True)] = blob


class Machine:
    """Loads candidates and times them, as told."""

    def __init__(self, **ms: float) -> None:
        self.ms = {WIDE: 100.0, OTHER: 100.0, HALF: 100.0, NARROW: 100.0}
        names = {"wide": WIDE, "other": OTHER, "half": HALF, "narrow": NARROW}
        self.ms |= {names[name]: value for name, value in ms.items()}
        self.loaded: list[Candidate] = []
        self.pairs: list[set[Candidate]] = []

    def load(self, candidate: Candidate) -> Any:
        self.loaded.append(candidate)
        return candidate

    def times(self, backends: Mapping[Candidate, Any]) -> dict[Candidate, float]:
        self.pairs.append(set(backends))
        return {one: self.ms[one] for one in backends}


def chosen(machine: Machine, *candidates: Candidate, kept: Kept | None = None, **facts: Any) -> Any:
    choice, backend = choose(  # candidates stand for backends here
        candidates, machine.load, kept=kept, facts={**FACTS, **facts}, time_steps=machine.times
    )
    loaded: Any = backend
    assert loaded == choice.chosen
    return choice.chosen


def test_the_quickest_is_taken_if_it_is_quicker_by_the_margin() -> None:
    assert chosen(Machine(half=40, narrow=30), WIDE, HALF, NARROW) == NARROW
    assert chosen(Machine(half=40, narrow=60), WIDE, HALF, NARROW) == HALF


def test_what_is_quicker_by_less_than_the_margin_changes_nothing() -> None:
    just_not = 100 / PRECISION_MARGIN + 0.1
    assert chosen(Machine(half=just_not, narrow=just_not), WIDE, HALF, NARROW) == WIDE
    assert chosen(Machine(other=100 / ENGINE_MARGIN + 0.1), WIDE, OTHER) == WIDE
    assert chosen(Machine(other=100 / ENGINE_MARGIN - 0.1), WIDE, OTHER) == OTHER


def test_no_more_than_two_are_loaded_at_once_and_each_meets_the_leader() -> None:
    machine = Machine(half=40, narrow=50)
    chosen(machine, WIDE, HALF, NARROW)
    assert machine.pairs == [{WIDE, HALF}, {HALF, NARROW}]


def test_one_candidate_is_taken_without_a_measurement() -> None:
    machine, kept = Machine(), Kept()
    assert chosen(machine, WIDE, kept=kept) == WIDE
    assert machine.pairs == []
    assert machine.loaded == [WIDE]


def test_a_kept_choice_is_taken_without_a_measurement_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Kept()
    assert chosen(Machine(half=40), WIDE, HALF, kept=kept) == HALF
    later = Machine(half=400)  # busy today
    with caplog.at_level(logging.INFO):
        assert chosen(later, WIDE, HALF, kept=kept) == HALF
    assert later.pairs == []
    assert later.loaded == [HALF]
    assert "measured earlier" in caplog.text
    assert "openvino float32 100.0 ms, openvino bfloat16 40.0 ms" in caplog.text


def test_one_log_line_says_what_was_chosen_and_from_which_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        chosen(Machine(half=40), WIDE, HALF)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "auto: openvino bfloat16, by the time of a step (measured now): "
        "openvino float32 100.0 ms, openvino bfloat16 40.0 ms"
    ]


@pytest.mark.parametrize("changed", ["bundle", "processor"])
def test_another_bundle_or_machine_is_measured_anew(changed: str) -> None:
    kept = Kept()
    chosen(Machine(half=40), WIDE, HALF, kept=kept)
    assert chosen(Machine(half=400), WIDE, HALF, kept=kept, **{changed: "two"}) == WIDE


def test_other_candidates_are_measured_anew() -> None:
    kept = Kept()
    chosen(Machine(half=40), WIDE, HALF, kept=kept)
    assert chosen(Machine(half=40, narrow=20), WIDE, HALF, NARROW, kept=kept) == NARROW


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"backend": "openvino"}',
        b'{"backend": "torch", "precision": "float64", "times_ms": []}',
        b'{"backend": "openvino", "precision": "int8", "times_ms": 3}',
    ],
)
def test_a_kept_choice_that_is_none_is_measured_again(
    text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    chosen(Machine(), WIDE, HALF, kept=kept)
    kept.files = dict.fromkeys(kept.files, text)
    machine = Machine(half=40)
    assert chosen(machine, WIDE, HALF, kept=kept) == HALF
    assert machine.pairs
    assert "not usable" in caplog.text


def test_a_candidate_that_cannot_run_is_left_out_named_and_the_choice_not_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine, kept = Machine(half=40), Kept()

    def load(candidate: Candidate) -> Any:
        if candidate == NARROW:
            raise BackendUnavailable("no int8 here")
        return candidate

    choice, _ = choose([WIDE, HALF, NARROW], load, kept=kept, facts=FACTS, time_steps=machine.times)
    assert choice.chosen == HALF
    assert "openvino int8 was not timed: no int8 here" in caplog.text
    assert not kept.files


def test_the_default_that_cannot_be_loaded_is_an_error() -> None:
    def load(candidate: Candidate) -> Any:
        raise BackendUnavailable("nothing here")

    with pytest.raises(BackendUnavailable, match="nothing here"):
        choose([WIDE, HALF], load, kept=None, facts=FACTS)
