"""What goes into a call of the pipeline and what comes out of it: plain, frozen, checked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from PIL import Image

from bootpig_rt.bundle.pair_config import MERGES, Merge
from bootpig_rt.checks import (
    MAX_IMAGES,
    check_guidance,
    check_int,
    check_name,
    check_prompt,
    check_seed,
    check_share,
    check_steps,
    wrap_seed,
)
from bootpig_rt.diffusion.noise_schedule import SOLVERS, SolverName
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.schedule import WHOLE, ReferenceSchedule
from bootpig_rt.reference.subject import Subject

_RANDOM_SEEDS = 2**32


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings that all pictures of one call share.

    Attributes:
        num_inference_steps: T, 1 to 1000.
        solver: `ddim`, `dpmpp_2m` or `unipc`.
        merge: How several references are combined: `argmax`, `softmax`, `mean` or `concat`.
        reference_schedule: Which noise level the reference is read at, see `ReferenceSchedule`.
        width_px: Width of the pictures.
        height_px: Height of the pictures.

    Raises:
        ParameterError: A value is of the wrong type or out of range.
    """

    num_inference_steps: int
    solver: SolverName
    merge: Merge
    reference_schedule: ReferenceSchedule
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        """Check every field; nothing is clamped."""
        check_steps(self.num_inference_steps)
        check_name("solver", self.solver, SOLVERS)
        check_name("merge", self.merge, MERGES)
        check_int("width", self.width_px, 8, 4096, "leave it out for the pair's own size")
        check_int("height", self.height_px, 8, 4096, "leave it out for the pair's own size")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures of one prompt and one subject. What a batch shares is in `SamplingParams`.

    Attributes:
        prompt: What to draw.
        subject: Whom to draw; None draws from the prompt alone.
        negative_prompt: What to stay away from; may be empty.
        image_guidance_scale: s_image, 0 to 100; None takes the pair's default.
        text_guidance_scale: s_text, 0 to 100; None takes the pair's default.
        num_images: 1 to 64; picture i has seed `seed + i`.
        seed: 0 to 2**63 - 1; None draws one, and the result tells which.
        num_inference_steps: T, 1 to 1000; None takes that of the call.
        solver: `ddim`, `dpmpp_2m` or `unipc`; None takes that of the call.
        reference_schedule: A `ReferenceSchedule` or its text; None takes that of the call.
        guidance_interval: Share of the steps with guidance, 0 to 1; the others draw the prompt
            with the subject alone, one row a picture.
        tenant: Whose request it is: tables are never shared between tenants, and a `Scheduler`
            serves tenants in turn.

    Raises:
        InputError: A value is of the wrong type or out of range.
    """

    prompt: str
    subject: Subject | None
    negative_prompt: str = ""
    image_guidance_scale: float | None = None
    text_guidance_scale: float | None = None
    num_images: int = 1
    seed: int | None = None
    num_inference_steps: int | None = None
    solver: SolverName | None = None
    reference_schedule: ReferenceSchedule | str | None = None
    guidance_interval: tuple[float, float] = WHOLE
    tenant: str = ""

    def __post_init__(self) -> None:
        """Check every field, and fix the seed if there is none."""
        put = object.__setattr__
        put(self, "prompt", check_prompt(self.prompt))
        negative = check_prompt(self.negative_prompt, "negative_prompt", allow_empty=True)
        put(self, "negative_prompt", negative)
        if self.subject is not None and not isinstance(self.subject, Subject):
            raise ParameterError(
                f"subject is of type {type(self.subject).__name__}, expected a Subject; make one "
                "with encode_subject(images, reference_prompt)"
            )
        for name in ("image_guidance_scale", "text_guidance_scale"):
            scale = getattr(self, name)
            put(self, name, None if scale is None else check_guidance(name, scale))
        count = check_int("num_images", self.num_images, 1, MAX_IMAGES, "call again for more")
        put(self, "num_images", count)
        seed = secrets.randbelow(_RANDOM_SEEDS) if self.seed is None else check_seed(self.seed)
        put(self, "seed", seed)
        if self.num_inference_steps is not None:
            put(self, "num_inference_steps", check_steps(self.num_inference_steps))
        if self.solver is not None:
            check_name("solver", self.solver, SOLVERS)
        if self.reference_schedule is not None:
            ReferenceSchedule.parse(str(self.reference_schedule))  # a window waits for its pair
        put(self, "guidance_interval", check_share("guidance_interval", self.guidance_interval))
        if not isinstance(self.tenant, str):
            raise ParameterError(f"tenant is of type {type(self.tenant).__name__}, expected text")

    def split(self) -> Iterator[Request]:
        """One request for each picture, each with its own seed."""
        first = self.seed or 0
        for index in range(self.num_images):
            yield replace(self, num_images=1, seed=wrap_seed(first + index))


@dataclass(frozen=True, kw_only=True)
class PictureParameters:
    """All that one picture was made from: the same values give the same picture again."""

    prompt: str
    negative_prompt: str
    reference_prompt: str | None
    num_references: int
    subject_fingerprint: str | None
    seed: int
    num_inference_steps: int
    solver: str
    image_guidance_scale: float
    text_guidance_scale: float
    merge: str
    reference_schedule: str
    guidance_interval: tuple[float, float]
    reference_noise_seed: int | None
    table_dtype: str | None
    width: int
    height: int
    model: str
    model_fingerprint: str
    backend: str
    device: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the text chunk of a PNG."""
        return {**asdict(self), "guidance_interval": list(self.guidance_interval)}


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one call by stage, in milliseconds."""

    encode_ms: float
    """Preparing reference images and encoding them to latents."""
    text_ms: float
    """Tokens and text states."""
    reference_ms: float
    """The Reference U-Net; near 0 when the subject's table was there already."""
    denoise_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        stages: dict[str, float] = asdict(self)
        return sum(stages.values())

    def to_dict(self) -> dict[str, float]:
        """Stages and their sum, rounded to a microsecond."""
        times = {**asdict(self), "total_ms": self.total_ms}
        return {name: round(value, 3) for name, value in times.items()}


@dataclass
class Clock:
    """Milliseconds by stage of one call. On a GPU stages overlap and only their sum is exact."""

    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, 1e3 * (time.perf_counter() - start))

    def add(self, name: str, ms: float) -> None:
        """Add milliseconds to a stage."""
        self.ms[name] = self.ms.get(name, 0.0) + ms

    def timings(self) -> Timings:
        """What was measured so far; a stage that did not run took 0."""
        get = self.ms.get
        return Timings(
            encode_ms=get("encode", 0.0),
            text_ms=get("text", 0.0),
            reference_ms=get("reference", 0.0),
            denoise_ms=get("denoise", 0.0),
            decode_ms=get("decode", 0.0),
        )


@dataclass(frozen=True)
class GenerationResult:
    """Pictures of one call, in the order of the prompts.

    Attributes:
        images: RGB pictures.
        parameters: One entry for each picture.
        timings: Of the whole call.
        reference_passes: How many (entry, reference) pairs the Reference U-Net was run on; 0 when
            every table was in the cache.
    """

    images: list[Image.Image]
    parameters: list[PictureParameters]
    timings: Timings
    reference_passes: int
