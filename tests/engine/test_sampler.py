from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.diffusion.solver import NoiseSchedule, solver_table
from bootpig_rt.engine.flight import Flight, FlightPlan
from bootpig_rt.engine.sampler import Progress, Segment, StepEvent, denoise
from bootpig_rt.errors import Cancelled, NumericalError
from bootpig_rt.reference.reference_table import ReferenceSchedule
from bootpig_rt.request import Request

STEPS = 4
NOISE_SCHEDULE = NoiseSchedule.from_config({})


class CountingBackend:
    """A backend whose step sets the sample to the number of steps done; it can break a picture."""

    def __init__(self, bad_picture: int | None = None) -> None:
        self.steps: list[int] = []
        self.sizes: list[int] = []
        self.rows: list[int] = []
        self.decoded = 0
        self.bad_picture = bad_picture

    def start(self, batch: DenoiseBatch, state: np.ndarray) -> CountingBackend:
        self.array = state.copy()
        self.sizes.append(state.shape[1])
        self.rows.append(len(batch.text_of_row))
        return self

    def step(self, index: int) -> None:
        self.steps.append(index)
        first = (np.abs(self.array[0]) % 1 != 0).any()  # noise is no whole number
        self.array[0] = 1 if first else self.array[0] + 1
        if self.bad_picture is not None:
            self.array[0, self.bad_picture, 0, 0, 0] = np.nan

    def state(self) -> np.ndarray:
        return self.array

    def estimate(self) -> np.ndarray:
        estimate: np.ndarray = self.array[0] / 10
        return estimate

    def decode(self, latents: np.ndarray) -> np.ndarray:
        self.decoded += 1
        return np.repeat(latents[:, :1], 3, axis=1)


class Texts:
    def of(self, texts: tuple[str, ...]) -> None:
        return None


def flight(seed: int, steps: int = STEPS, solver: Any = "ddim", **request: Any) -> Flight:
    return Flight(
        FlightPlan(
            request=Request(prompt="a dog", subject=None, seed=seed, **request),
            solver=solver_table(solver, NOISE_SCHEDULE, steps),
            schedule=ReferenceSchedule("exact"),
            table=None,
            image_guidance_scale=4.0,
            text_guidance_scale=6.5,
            merge="argmax",
            shape=(4, 8, 8),
        )
    )


def run(
    backend: Any,
    callback: Callable[[StepEvent], object] | None = None,
    flights: list[Flight] | None = None,
) -> np.ndarray:
    flights = [flight(0), flight(1)] if flights is None else flights
    texts: Any = Texts()
    progress = Progress(callback, total=max(one.plan.solver.num_steps for one in flights))
    pictures = range(len(flights))
    return denoise(backend, flights, texts=texts, progress=progress, pictures=pictures)


def test_each_step_is_one_launch_in_order() -> None:
    backend = CountingBackend()
    latents = run(backend)
    assert backend.steps == [0, 1, 2, 3]
    assert backend.sizes == [2]
    assert (latents == STEPS).all()


def test_the_callback_hears_of_every_step() -> None:
    events: list[StepEvent] = []
    run(CountingBackend(), events.append)
    timesteps = solver_table("ddim", NOISE_SCHEDULE, STEPS).timesteps
    assert [event.index for event in events] == [0, 1, 2, 3]
    assert [event.timestep for event in events] == timesteps.tolist()
    assert {event.total for event in events} == {STEPS}
    assert {event.pictures for event in events} == {(0, 1)}


def test_a_picture_with_fewer_steps_leaves_and_the_others_go_on() -> None:
    backend = CountingBackend()
    events: list[StepEvent] = []
    flights = [flight(0, 2), flight(1, 5, "unipc"), flight(2, 4)]
    latents = run(backend, events.append, flights)
    assert backend.sizes == [3, 2, 1]
    assert backend.steps == [0, 1, 0, 1, 0]
    assert latents[:, 0, 0, 0].tolist() == [2, 5, 4]
    pictures = [event.pictures for event in events]
    assert pictures == [(0, 1, 2), (0, 1, 2), (1, 2), (1, 2), (1,)]


def test_guidance_outside_its_interval_costs_no_row() -> None:
    backend = CountingBackend()
    run(backend, flights=[flight(0, 10, guidance_interval=(0.2, 0.6))])
    assert backend.rows == [1, 2, 1]  # without a subject: the prompt, with the negative one beside
    assert backend.steps == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]


def test_a_run_may_be_left_at_any_step_and_gone_on_from() -> None:
    backend: Any = CountingBackend()
    texts: Any = Texts()
    one = flight(3)
    segment = Segment(backend, [one], texts)
    segment.step()
    segment.close()
    assert (one.step, one.is_done) == (1, False)
    run(backend, flights=[one])
    assert (one.step, one.is_done) == (STEPS, True)
    assert (one.latents == STEPS).all()


def test_a_preview_is_decoded_only_when_it_is_asked_for() -> None:
    backend = CountingBackend()
    run(backend, lambda event: None)
    assert backend.decoded == 0
    previews = []
    run(backend, lambda event: previews.append(event.preview()) if event.index == 2 else 0)
    assert backend.decoded == 1
    assert [image.size for image in previews[0]] == [(8, 8), (8, 8)]
    assert previews[0][0].getpixel((0, 0)) == (166, 166, 166)  # 0.3 after three steps


def test_cancelling_stops_ahead_of_the_next_step() -> None:
    backend = CountingBackend()

    def cancel_twice_at_one(event: StepEvent) -> None:
        if event.index == 1:
            event.cancel()
            event.cancel()

    with pytest.raises(Cancelled, match="after step 2 of 4"):
        run(backend, cancel_twice_at_one)
    assert backend.steps == [0, 1]


def test_cancelling_at_the_last_step_gives_no_picture() -> None:
    with pytest.raises(Cancelled):
        run(CountingBackend(), lambda event: event.cancel() if event.index == 3 else None)


def test_an_event_kept_from_an_earlier_step_can_still_cancel() -> None:
    events: list[StepEvent] = []

    def cancel_late(event: StepEvent) -> None:
        events.append(event)
        if event.index == 2:
            events[0].cancel()

    with pytest.raises(Cancelled, match="after step 3"):
        run(CountingBackend(), cancel_late)


def test_what_a_callback_raises_comes_out_unchanged() -> None:
    def broken(event: StepEvent) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(CountingBackend(), broken)


def test_nan_latents_are_an_error_that_names_the_picture() -> None:
    with pytest.raises(NumericalError, match="NaN or Inf in picture 1 of the batch"):
        run(CountingBackend(bad_picture=1))


def test_a_preview_of_nan_is_an_error() -> None:
    with pytest.raises(NumericalError, match="picture 0"):
        run(CountingBackend(bad_picture=0), lambda event: event.preview())
