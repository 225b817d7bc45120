"""`denoise()`: the loop from noise to latents, with a callback after each step.

The loop does no arithmetic: a step is one call of the backend. It knows nothing about prompts,
subjects or solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from PIL import Image

from bootpig_rt.backends.base import Backend, DenoiseRun, FloatArray
from bootpig_rt.backends.finite import check_finite
from bootpig_rt.engine.batch import TextStates, build_batch, texts_of
from bootpig_rt.engine.flight import Flight, hand_back, joint_state
from bootpig_rt.errors import Cancelled
from bootpig_rt.images.picture import to_pil


@dataclass(frozen=True)
class StepEvent:
    """A step has ended. Valid while the callback that got it runs.

    Attributes:
        index: Steps done in this call before this one, 0 to `total - 1`.
        total: Steps of the whole call, over all of its batches.
        timestep: The training timestep that the step was taken at, of the first of the pictures.
        pictures: Which pictures of the call were drawn at; those with fewer steps leave earlier.
    """

    index: int
    total: int
    timestep: int
    pictures: tuple[int, ...]
    _run: DenoiseRun = field(repr=False)
    _decode: Callable[[FloatArray], FloatArray] = field(repr=False)
    _cancelled: Event = field(repr=False)

    def preview(self) -> list[Image.Image]:
        """What the model takes the finished pictures to be, one for each of `pictures`.

        Costs a pass through the decoder; nothing is computed unless it is called.

        Raises:
            NumericalError: The estimate holds NaN or Inf.
        """
        return to_pil(self._decode(check_finite(self._run.estimate(), f"step {self.index}")))

    def cancel(self) -> None:
        """Stop the call: it raises `Cancelled` ahead of the next step. May be called twice."""
        self._cancelled.set()


StepCallback = Callable[[StepEvent], object]
"""Called after each step; its result is ignored, what it raises ends the call."""


@dataclass
class Progress:
    """Where a call stands that runs one or several batches.

    Attributes:
        callback: Told about each step, if there is one.
        total: Steps of the whole call.
        done: Steps done so far.
        cancelled: Set by `StepEvent.cancel`.
    """

    callback: StepCallback | None
    total: int
    done: int = 0
    cancelled: Event = field(default_factory=Event)


class Segment:
    """One run of the backend: steps in which the same pictures run the same rows.

    Args:
        backend: Computes the steps.
        flights: Pictures of one size and merge, none of them done.
        texts: Gives their text states.
    """

    def __init__(self, backend: Backend, flights: Sequence[Flight], texts: TextStates) -> None:
        """Upload what the steps read."""
        self.flights = tuple(flights)
        self.num_steps = min(flight.steps_alike() for flight in flights)
        self.done = 0
        names = texts_of(flights)
        batch = build_batch(flights, self.num_steps, texts=names, prompt_embeds=texts.of(names))
        self.timesteps = batch.solver.timesteps
        self.run = backend.start(batch, joint_state(flights))

    @property
    def is_over(self) -> bool:
        """All of its steps are done."""
        return self.done == self.num_steps

    def step(self) -> int:
        """Do one step. Returns the timestep of the first picture."""
        self.run.step(self.done)
        self.done += 1
        return int(self.timesteps[self.done - 1, 0])

    def close(self) -> None:
        """Give the pictures their states, after all steps or before."""
        hand_back(self.flights, self.run.state())
        for flight in self.flights:
            flight.step += self.done


def denoise(
    backend: Backend,
    flights: Sequence[Flight],
    *,
    texts: TextStates,
    progress: Progress,
    pictures: Sequence[int],
) -> FloatArray:
    """Draw some pictures: from noise to latents.

    Args:
        backend: Computes the steps.
        flights: Pictures of one size and merge; each may have its own number of steps.
        texts: Gives their text states.
        progress: Advanced by the largest number of steps.
        pictures: Which pictures of the call these are, for the callback.

    Returns:
        Scaled latents, float32 [B, C, h, w], finite.

    Raises:
        Cancelled: The callback asked for it.
        NumericalError: The latents hold NaN or Inf.
    """
    while True:
        running = [index for index, flight in enumerate(flights) if not flight.is_done]
        if not running:
            break
        segment = Segment(backend, [flights[index] for index in running], texts)
        numbers = tuple(pictures[index] for index in running)
        while not segment.is_over:
            timestep = segment.step()
            if progress.callback is not None:
                progress.callback(
                    StepEvent(
                        index=progress.done,
                        total=progress.total,
                        timestep=timestep,
                        pictures=numbers,
                        _run=segment.run,
                        _decode=backend.decode,
                        _cancelled=progress.cancelled,
                    )
                )
            progress.done += 1
            if progress.cancelled.is_set():
                raise Cancelled(f"cancelled after step {progress.done} of {progress.total}")
        segment.close()
    latents = np.stack([flight.latents for flight in flights])
    return check_finite(latents, f"{max(flight.step for flight in flights)} steps")
