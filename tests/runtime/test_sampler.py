from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.errors import Cancelled, NumericalError
from bootpig_rt.sampler import Progress, StepEvent, denoise
from bootpig_rt.solver import NoiseSchedule, solver_table

STEPS = 4


class CountingBackend:
    """A backend whose step adds one, and that can break at a given step."""

    def __init__(self, bad_picture: int | None = None) -> None:
        self.steps: list[int] = []
        self.decoded = 0
        self.bad_picture = bad_picture

    def start(self, batch: DenoiseBatch) -> CountingBackend:
        self.array = batch.latents.copy()
        return self

    def step(self, index: int) -> None:
        self.steps.append(index)
        self.array += 1
        if self.bad_picture is not None:
            self.array[self.bad_picture, 0, 0, 0] = np.nan

    def latents(self) -> np.ndarray:
        return self.array

    def estimate(self) -> np.ndarray:
        return self.array / 10

    def decode(self, latents: np.ndarray) -> np.ndarray:
        self.decoded += 1
        return np.repeat(latents[:, :1], 3, axis=1)


@pytest.fixture
def batch() -> DenoiseBatch:
    empty: Any = np.zeros(0)
    return DenoiseBatch(
        latents=np.zeros((2, 4, 8, 8), dtype=np.float32),
        prompt_embeds=None,
        text_of_row=empty,
        picture_of_row=empty,
        ref_of_row=empty,
        rows_of_picture=empty,
        image_guidance_scale=empty,
        text_guidance_scale=empty,
        tables=(),
        num_references=(),
        solver=solver_table("ddim", NoiseSchedule.from_config({}), STEPS),
        merge="argmax",
    )


def run(
    backend: Any, batch: DenoiseBatch, callback: Callable[[StepEvent], object] | None = None
) -> np.ndarray:
    progress = Progress(callback, total=STEPS)
    return denoise(backend, batch, progress=progress, pictures=range(2))


def test_each_step_is_one_launch_in_order(batch: DenoiseBatch) -> None:
    backend = CountingBackend()
    latents = run(backend, batch)
    assert backend.steps == [0, 1, 2, 3]
    assert (latents == STEPS).all()


def test_the_callback_hears_of_every_step(batch: DenoiseBatch) -> None:
    events: list[StepEvent] = []
    run(CountingBackend(), batch, events.append)
    assert [event.index for event in events] == [0, 1, 2, 3]
    assert [event.timestep for event in events] == batch.solver.timesteps.tolist()
    assert {event.total for event in events} == {STEPS}
    assert {event.pictures for event in events} == {range(2)}


def test_a_preview_is_decoded_only_when_it_is_asked_for(batch: DenoiseBatch) -> None:
    backend = CountingBackend()
    run(backend, batch, lambda event: None)
    assert backend.decoded == 0
    previews = []
    run(backend, batch, lambda event: previews.append(event.preview()) if event.index == 2 else 0)
    assert backend.decoded == 1
    assert [image.size for image in previews[0]] == [(8, 8), (8, 8)]
    assert previews[0][0].getpixel((0, 0)) == (166, 166, 166)  # 0.3 after three steps


def test_cancelling_stops_ahead_of_the_next_step(batch: DenoiseBatch) -> None:
    backend = CountingBackend()

    def cancel_twice_at_one(event: StepEvent) -> None:
        if event.index == 1:
            event.cancel()
            event.cancel()

    with pytest.raises(Cancelled, match="after step 2 of 4"):
        run(backend, batch, cancel_twice_at_one)
    assert backend.steps == [0, 1]


def test_cancelling_at_the_last_step_gives_no_picture(batch: DenoiseBatch) -> None:
    with pytest.raises(Cancelled):
        run(CountingBackend(), batch, lambda event: event.cancel() if event.index == 3 else None)


def test_an_event_kept_from_an_earlier_step_can_still_cancel(batch: DenoiseBatch) -> None:
    events: list[StepEvent] = []

    def cancel_late(event: StepEvent) -> None:
        events.append(event)
        if event.index == 2:
            events[0].cancel()

    with pytest.raises(Cancelled, match="after step 3"):
        run(CountingBackend(), batch, cancel_late)


def test_what_a_callback_raises_comes_out_unchanged(batch: DenoiseBatch) -> None:
    def broken(event: StepEvent) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(CountingBackend(), batch, broken)


def test_nan_latents_are_an_error_that_names_the_picture(batch: DenoiseBatch) -> None:
    with pytest.raises(NumericalError, match="NaN or Inf in picture 1 of the batch"):
        run(CountingBackend(bad_picture=1), batch)


def test_a_preview_of_nan_is_an_error(batch: DenoiseBatch) -> None:
    with pytest.raises(NumericalError, match="picture 0"):
        run(CountingBackend(bad_picture=0), batch, lambda event: event.preview())
