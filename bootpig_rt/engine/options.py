"""Settings of an engine: how many may wait, and what one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootpig_rt.checks import check_int
from bootpig_rt.engine.events import OnLaunch


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that one request may ask for; None leaves it to the pair and the backend.

    Attributes:
        num_inference_steps: Steps of a picture.
        side_px: Width and height of a picture.
        num_references: References of its subject.
        num_images: Pictures of a request.
        table_bytes: Bytes of the reference table that it reads.
    """

    num_inference_steps: int | None = None
    side_px: int | None = None
    num_references: int | None = None
    num_images: int | None = None
    table_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine serves.

    Attributes:
        max_waiting: Pictures that may wait to begin; `EngineFull` refuses more.
        limits: What one request may ask for.
        on_launch: Hears of every step of every batch: for metrics.

    Raises:
        ParameterError: A value is out of range.
    """

    max_waiting: int = 4096
    limits: Limits = field(default_factory=Limits)
    on_launch: OnLaunch | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_int("max_waiting", self.max_waiting, 1, 1 << 20, "4096 is usual")
