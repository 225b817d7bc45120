"""What a caller hears while a request is on its way, and who watches the engine of its launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from bootpig_rt.request import GenerationResult


@dataclass(frozen=True)
class ReferenceEvent:
    """A launch of the reference pass has ended.

    Attributes:
        done: (entry, reference) pairs that went through the Reference U-Net.
        total: Of the whole table.
    """

    done: int
    total: int


@dataclass(frozen=True)
class StepEvent:
    """A step has ended.

    Attributes:
        done: Steps done so far, over all pictures of the call.
        total: Steps of the whole call.
        timestep: The training timestep that the step was taken at.
        pictures: Numbers of the pictures that it advanced.
        previews: With `preview_every`, what the model takes those pictures to be: by the pair's
            tiny decoder, where it has one, else by a linear map, in nearly no time. None at the
            steps between.
    """

    done: int
    total: int
    timestep: int
    pictures: tuple[int, ...]
    previews: tuple[Image.Image, ...] | None
    _decode: Callable[[], list[Image.Image]] = field(repr=False, compare=False)
    _cancel: Callable[[], object] = field(repr=False, compare=False)

    def decode(self) -> list[Image.Image]:
        """What the model takes the pictures to be, through the image decoder.

        Costs a launch of the decoder. May be called while the callback that got the event runs.

        Raises:
            NumericalError: The estimate holds NaN or Inf.
        """
        return self._decode()

    def cancel(self) -> None:
        """Stop the request ahead of its next step. May be called twice, from any thread."""
        self._cancel()


@dataclass(frozen=True)
class DoneEvent:
    """The last event of `Engine.stream`."""

    result: GenerationResult


@dataclass(frozen=True)
class Launch:
    """One step of one batch has ended: for who watches the engine, not for a caller.

    Attributes:
        num_pictures: Pictures that it took a step further.
        num_rows: Rows of the Base U-Net that it ran for them: up to three a picture.
        took_s: Time in seconds.
    """

    num_pictures: int
    num_rows: int
    took_s: float


Event: TypeAlias = ReferenceEvent | StepEvent | DoneEvent

OnEvent: TypeAlias = Callable[[Event], object]
"""Called on the thread that runs the engine; what it raises ends the request, and no other."""

OnLaunch: TypeAlias = Callable[[Launch], object]
"""Called on the thread that runs the engine; what it raises is logged and changes nothing."""
