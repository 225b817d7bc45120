"""`denoise()`: the loop from noise to latents, with a callback after each step.

The loop does no arithmetic: a step is one call of the backend. It knows nothing about prompts,
subjects or solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from PIL import Image

from bootpig_rt.backends.base import Backend, DenoiseBatch, DenoiseRun, FloatArray
from bootpig_rt.errors import Cancelled, NumericalError
from bootpig_rt.image import to_pil


@dataclass(frozen=True)
class StepEvent:
    """A step has ended. Valid while the callback that got it runs.

    Attributes:
        index: Steps done in this call before this one, 0 to `total - 1`.
        total: Steps of the whole call, over all of its batches.
        timestep: The training timestep that the step was taken at.
        pictures: Which pictures of the call the running batch draws.
    """

    index: int
    total: int
    timestep: int
    pictures: range
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


def denoise(
    backend: Backend, batch: DenoiseBatch, *, progress: Progress, pictures: range
) -> FloatArray:
    """Draw a batch: from noise to latents in T steps.

    Args:
        backend: Computes the steps.
        batch: What the steps read.
        progress: Advanced by T.
        pictures: Which pictures of the call these are, for the callback.

    Returns:
        Scaled latents, float32 [B, C, h, w], finite.

    Raises:
        Cancelled: The callback asked for it.
        NumericalError: The latents hold NaN or Inf.
    """
    run = backend.start(batch)
    for index, timestep in enumerate(batch.solver.timesteps):
        run.step(index)
        if progress.callback is not None:
            progress.callback(
                StepEvent(
                    index=progress.done,
                    total=progress.total,
                    timestep=int(timestep),
                    pictures=pictures,
                    _run=run,
                    _decode=backend.decode,
                    _cancelled=progress.cancelled,
                )
            )
        progress.done += 1
        if progress.cancelled.is_set():
            raise Cancelled(f"cancelled after step {progress.done} of {progress.total}")
    return check_finite(run.latents(), f"{len(batch.solver.timesteps)} steps")


def check_finite(array: FloatArray, after: str) -> FloatArray:
    """Return the array if all of it is finite: no picture is ever made from NaN.

    Args:
        array: float32 [B, ...], one entry a picture.
        after: What made it, for the message.

    Raises:
        NumericalError: Says which pictures of the batch are affected.
    """
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        bad = ", ".join(str(index) for index in np.flatnonzero(~finite))
        raise NumericalError(
            f"NaN or Inf in picture {bad} of the batch after {after}, expected finite numbers; "
            "lower the guidance scales, take another solver or check the weights"
        )
    return array
