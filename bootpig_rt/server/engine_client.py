"""EngineClient: what the service needs of whatever draws, here or on another machine.

The service speaks to a model through this seam alone. `LocalEngine` runs a pipeline in this
process; `bootpig_rt.serving` has one whose pipelines run elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from PIL import Image

from bootpig_rt.engine.events import Event
from bootpig_rt.images.picture import ImageSource
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.storage.stats import StoreStats


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What callers may know about a model.

    Attributes:
        name: By which requests ask for it.
        fingerprint: sha256 over weights and configurations.
        size_px: Side of its pictures where a request says nothing.
        size_multiple_px: Width and height must be multiples of this.
        max_references: Reference images of a subject.
        num_inference_steps: Default, and so are the others.
        image_guidance_scale: Likewise.
        text_guidance_scale: Likewise.
        solver: Likewise.
        merge: Likewise.
        reference_schedule: Likewise.
        is_few_step: It draws in a few steps without guidance, quick enough to follow typing.
        backend: Name of what computes.
        runtime: Its version.
        precision: What it computes in.
        device: Where.
        max_batch: Pictures drawn at once.
        max_side_px: Largest width and height.
        controls: Kinds of maps that its pictures can follow.
    """

    name: str
    fingerprint: str
    size_px: int
    size_multiple_px: int
    max_references: int
    num_inference_steps: int
    image_guidance_scale: float
    text_guidance_scale: float
    solver: str
    merge: str
    reference_schedule: str
    is_few_step: bool
    backend: str
    runtime: str
    precision: str
    device: str
    max_batch: int
    max_side_px: int
    controls: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Load:
    """How busy an engine is.

    Attributes:
        waiting: Pictures that have not begun.
        running: Pictures between their first step and their last.
        expected_wait_s: Until a picture that is asked for now begins.
    """

    waiting: int
    running: int
    expected_wait_s: float


@dataclass(frozen=True)
class Progress:
    """How far a submitted request is.

    Attributes:
        done_steps: Of all its pictures.
        total_steps: Likewise.
        position: Pictures that wait ahead of it; None where it has begun.
        has_begun: Work on it has.
        is_done: It has ended, well or not.
    """

    done_steps: int
    total_steps: int
    position: int | None
    has_begun: bool
    is_done: bool


class Drawing(Protocol):
    """A request that was taken."""

    def events(self) -> AsyncIterator[Event]:
        """Its events as they come, a `DoneEvent` last. Asked for once.

        Raises:
            BootPIGError: What it failed with.
        """
        ...

    def cancel(self) -> None:
        """Stop within a step. May be called twice, also when it is done."""
        ...

    def progress(self) -> Progress:
        """How far it is."""
        ...


class EngineClient(Protocol):
    """One model that draws."""

    @property
    def facts(self) -> ModelFacts:
        """What callers may know about it."""
        ...

    async def prepare(
        self, images: Sequence[ImageSource], *, warnings: list[str] | None = None
    ) -> list[Image.Image]:
        """What the model will see of reference images: cut out, on white squares.

        Args:
            images: One or more.
            warnings: Is given what callers should know of them.

        Raises:
            InputError: An image that cannot be used, or too many.
        """
        ...

    async def encode(
        self, prepared: Sequence[Image.Image], reference_prompt: str, *, noise_seed: int
    ) -> Subject:
        """Encode what `prepare` returned.

        Raises:
            InputError: Not usable.
        """
        ...

    def check_subject(self, subject: Subject) -> None:
        """Refuse a subject of another pair.

        Raises:
            SubjectMismatch: It is one.
        """
        ...

    async def submit(
        self,
        request: Request,
        *,
        request_id: str,
        deadline_s: float | None = None,
        preview_every: int | None = None,
        priority: int = 0,
    ) -> Drawing:
        """Take a request.

        Raises:
            InputError: Not for this model, or more than its limits.
            SubjectMismatch: A subject of another pair.
            EngineFull: Too many wait already.
        """
        ...

    def num_tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them the model reads."""
        ...

    async def forget(self, fingerprint: str, tenant: str) -> None:
        """Drop the reference tables of a tenant's subject, by the subject's fingerprint.

        Raises:
            StorageError: They cannot be removed now.
        """
        ...

    def load(self) -> Load:
        """How busy it is."""
        ...

    def store_stats(self) -> StoreStats:
        """Counters of its reference tables."""
        ...

    def fault(self) -> str | None:
        """Why it will draw nothing more until this process is started again; None where it will."""
        ...

    async def close(self, *, drain_s: float) -> None:
        """End it. What runs may finish within `drain_s`; the rest is cancelled."""
        ...
