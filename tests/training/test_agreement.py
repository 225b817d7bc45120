"""What becomes of a step that is not finite; in several processes, see `test_processes.py`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import NumericalError
from bootpig_rt.training.agreement import Agreement, Skips

GOOD = Agreement(norm=1.0, spoilt=0, stop=0, requeue=0, failed=0)
SPOILT = Agreement(norm=1.0, spoilt=1, stop=0, requeue=0, failed=0)
OVERFLOWN = Agreement(norm=math.inf, spoilt=0, stop=0, requeue=0, failed=0)


def skips(on_nan: Any = "skip", most: int = 2, *, is_scaled: bool = False) -> Skips:
    return Skips(on_nan, most, Path("checkpoints"), is_scaled=is_scaled)


def count(skips: Skips, *steps: Agreement) -> None:
    for number, agreed in enumerate(steps, start=1):
        skips.count(agreed, step=number, processes=4)


def test_a_step_is_finite_if_its_norm_and_every_loss_are() -> None:
    assert [each.is_finite for each in (GOOD, SPOILT, OVERFLOWN)] == [True, False, False]


def test_a_good_step_between_bad_ones_begins_the_count_anew() -> None:
    count(skips(), SPOILT, OVERFLOWN, GOOD, SPOILT, SPOILT)
    with pytest.raises(NumericalError, match="in 1 of 4 processes at step 3, 3 times in a row"):
        count(skips(), SPOILT, OVERFLOWN, SPOILT)


def test_the_first_bad_step_ends_a_run_that_is_told_to_stop() -> None:
    with pytest.raises(NumericalError, match="the norm of the gradients is inf at step 2, expect"):
        count(skips("stop"), GOOD, OVERFLOWN)


def test_overflow_of_a_scaled_loss_is_no_fault_until_the_loss_itself_is_spoilt() -> None:
    scaled = skips(most=0, is_scaled=True)
    count(scaled, *[OVERFLOWN] * 20)
    with pytest.raises(NumericalError):
        count(scaled, SPOILT)
