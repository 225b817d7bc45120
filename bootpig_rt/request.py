"""What a caller asks for, and what comes back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from PIL import Image

from bootpig_rt.approximation import Approximation
from bootpig_rt.bundle.pair_config import MERGES
from bootpig_rt.checks import (
    MAX_IMAGES,
    check_guidance,
    check_int,
    check_name,
    check_prompt,
    check_seed,
    check_share,
    check_sizes,
    check_steps,
    check_strength,
)
from bootpig_rt.diffusion.noise_schedule import SOLVERS
from bootpig_rt.errors import ParameterError, shown
from bootpig_rt.images.canvas import MAX_EDGE_PX, Canvas
from bootpig_rt.images.control import MAX_CONTROLS, Control
from bootpig_rt.reference.schedule import WHOLE, ReferenceSchedule
from bootpig_rt.reference.subject import Subject

_RANDOM_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to draw, with everything that may differ from picture to picture.

    What is None comes from the pair. Values are checked here, as far as that needs no pair; the
    engine checks the rest when the request is submitted.

    Attributes:
        prompt: "a photo of a dog, on a beach".
        subject: Who is drawn; None draws from the prompt alone.
        negative_prompt: What to stay away from.
        num_inference_steps: T, 1 to 1000.
        image_guidance_scale: How closely to follow the reference, 0 to 100; 1 is no guidance.
        text_guidance_scale: How closely to follow the prompt, 0 to 100; 1 is no guidance.
        num_images_per_prompt: 1 to 64.
        seed: Of the first picture, from which the others count on; None draws one.
        solver: `ddim`, `dpmpp_2m` or `unipc`.
        merge: How several references are combined: `argmax`, `softmax`, `mean` or `concat`.
        reference_schedule: At which noise level the subject is read, see `ReferenceSchedule`.
        guidance_interval: Share of the steps with guidance, (0.0, 1.0) for all of them.
        approximation: What steps leave out, see `Approximation`; `none` leaves out nothing.
        width: Of the pictures, in pixels.
        height: Of the pictures, in pixels.
        sizes: What a pair of Stable Diffusion XL is told of them: height and width of the original,
            top and left of the crop, height and width of the target; by default those of a whole
            picture of their own size.
        canvas: A given picture that they are drawn into where its mask says, or from.
        strength: How much of the canvas is drawn anew, over 0 up to 1: the share of the steps that
            are done. By default 1 with a mask, 0.8 without.
        mask_edge_px: Pixels inside the mask over which what is drawn fades into the canvas, 0 to
            256; by default as many as a latent is wide.
        controls: Maps that they follow, at most one of a kind; a map gives them their size.
        tenant: Whose request it is: tenants take turns, and never share reference tables.

    Raises:
        InputError: A value is of the wrong type or out of range; nothing is clamped.
    """

    prompt: str
    subject: Subject | None = None
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    image_guidance_scale: float | None = None
    text_guidance_scale: float | None = None
    num_images_per_prompt: int = 1
    seed: int | None = None
    solver: str | None = None
    merge: str | None = None
    reference_schedule: ReferenceSchedule | str | None = None
    guidance_interval: tuple[float, float] = WHOLE
    approximation: Approximation | str = "none"
    width: int | None = None
    height: int | None = None
    sizes: tuple[int, ...] | None = None
    canvas: Canvas | None = None
    strength: float | None = None
    mask_edge_px: int | None = None
    controls: tuple[Control, ...] = ()
    tenant: str = ""

    def __post_init__(self) -> None:
        """Check every field, and fix the seed if there is none."""
        if self.subject is not None and not isinstance(self.subject, Subject):
            raise ParameterError(
                f"subject is of type {type(self.subject).__name__}, expected a Subject; make one "
                "with encode_subject(images, reference_prompt)"
            )
        if not isinstance(self.tenant, str):
            raise ParameterError(f"tenant is of type {type(self.tenant).__name__}, expected text")
        seed = secrets.randbelow(_RANDOM_SEEDS) if self.seed is None else check_seed(self.seed)
        put = object.__setattr__
        put(self, "seed", seed)
        put(self, "prompt", check_prompt(self.prompt))
        negative = check_prompt(self.negative_prompt, "negative_prompt", allow_empty=True)
        put(self, "negative_prompt", negative)
        count = check_int("num_images_per_prompt", self.num_images_per_prompt, 1, MAX_IMAGES)
        put(self, "num_images_per_prompt", count)
        put(self, "guidance_interval", check_share("guidance_interval", self.guidance_interval))
        if self.approximation != "none":
            put(self, "approximation", str(Approximation.parse(self.approximation)))
        if self.num_inference_steps is not None:
            put(self, "num_inference_steps", check_steps(self.num_inference_steps))
        for name in ("image_guidance_scale", "text_guidance_scale"):
            if getattr(self, name) is not None:
                put(self, name, check_guidance(name, getattr(self, name)))
        if self.solver is not None:
            check_name("solver", self.solver, SOLVERS)
        if self.merge is not None:
            check_name("merge", self.merge, MERGES)
        if self.reference_schedule is not None:
            ReferenceSchedule.parse(str(self.reference_schedule))  # a window waits for its pair
        for name in ("width", "height"):
            size = getattr(self, name)
            if size is not None:
                put(self, name, check_int(name, size, 8, 4096, "leave it out for the pair's own"))
        if self.sizes is not None:
            put(self, "sizes", check_sizes(self.sizes))
        if self.canvas is not None or self.strength is not None or self.mask_edge_px is not None:
            self._check_canvas()
        if self.controls != ():
            self._check_controls()

    def _check_controls(self) -> None:
        controls = self.controls
        is_list = isinstance(controls, tuple | list)
        if not is_list or not all(isinstance(one, Control) for one in controls):
            raise ParameterError(
                f"controls is {shown(controls)}, expected Controls; make one with "
                'Control.load("depth", image)'
            )
        kinds = [one.kind for one in controls]
        if len(controls) > MAX_CONTROLS or len(set(kinds)) < len(kinds):
            raise ParameterError(
                f"controls are {', '.join(kinds)}, expected at most {MAX_CONTROLS} and one of each "
                "kind"
            )
        ordered = tuple(sorted(controls, key=lambda one: one.kind))  # as they are added up
        object.__setattr__(self, "controls", ordered)

    def _check_canvas(self) -> None:
        canvas = self.canvas
        if canvas is not None and not isinstance(canvas, Canvas):
            raise ParameterError(
                f"canvas is of type {type(canvas).__name__}, expected a Canvas; make one with "
                "Canvas.load(image, mask_image)"
            )
        if self.strength is not None:
            if canvas is None:
                raise ParameterError("strength is given without an image; give both, or neither")
            object.__setattr__(self, "strength", check_strength(self.strength))
        if self.mask_edge_px is not None:
            if canvas is None or canvas.mask is None:
                raise ParameterError(
                    "mask_edge_px is given without a mask; give mask_image too, or leave it out"
                )
            edge = check_int("mask_edge_px", self.mask_edge_px, 0, MAX_EDGE_PX)
            object.__setattr__(self, "mask_edge_px", edge)

    def of_subject(self, subject: Subject) -> Request:
        """The same request, of a subject."""
        return replace(self, subject=subject)


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """What of a request decides how much a picture costs: for `pipe(prompt, **settings)`.

    What is None comes from the pair. Fields are those of `Request`.

    Raises:
        ParameterError: A value is of the wrong type or out of range.
    """

    num_inference_steps: int | None = None
    image_guidance_scale: float | None = None
    text_guidance_scale: float | None = None
    solver: str | None = None
    reference_schedule: str | None = None
    guidance_interval: tuple[float, float] = WHOLE
    approximation: str = "none"

    def __post_init__(self) -> None:
        """Check every field, as a request does."""
        Request(prompt="any", seed=0, **{name: self[name] for name in self.keys()})

    def keys(self) -> list[str]:
        """Names of what is set: with `[]` what `**` asks for."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def __getitem__(self, name: str) -> Any:
        """The value of a name of `keys`."""
        return getattr(self, name)


@dataclass(frozen=True, kw_only=True)
class ControlParameters:
    """One map that a picture followed, and the sha256 of it and of the control that read it."""

    kind: str
    scale: float
    interval: tuple[float, float]
    map_fingerprint: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class PictureParameters:
    """All that one picture was made from.

    The same values give the same picture again: with the same runtime and precision to the last
    bit, with others as closely as those compute.
    """

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
    approximation: str
    decoder: str
    reference_noise_seed: int | None
    table_dtype: str | None
    width: int
    height: int
    sizes: tuple[int, ...]
    strength: float | None
    mask_edge_px: int | None
    canvas_fingerprint: str | None
    controls: tuple[ControlParameters, ...]
    model: str
    model_fingerprint: str
    backend: str
    runtime: str
    precision: str
    device: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the text chunk of a PNG."""
        lists = {"guidance_interval": list(self.guidance_interval), "sizes": list(self.sizes)}
        values = {**asdict(self), **lists}
        values["controls"] = [
            {**one, "interval": list(one["interval"])} for one in values["controls"]
        ]
        return values


@dataclass
class Timings:
    """Wall-clock time of one call by stage, in milliseconds.

    On a GPU stages overlap, and only their sum is exact.

    Attributes:
        queue_ms: From submitting to the first work on it: a table, or a step.
        encode_ms: Preparing reference images and encoding them, and given pictures, to latents.
        text_ms: Tokens and text states.
        reference_ms: The Reference U-Net; near 0 when the subject's table was there already.
        denoise_ms: Steps.
        decode_ms: The image decoder.
    """

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    text_ms: float = 0.0
    reference_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        stages: dict[str, float] = asdict(self)
        return sum(stages.values())

    def to_dict(self) -> dict[str, float]:
        """Stages and their sum, rounded to a microsecond."""
        times = {**asdict(self), "total_ms": self.total_ms}
        return {name: round(value, 3) for name, value in times.items()}


@dataclass(frozen=True)
class GenerationResult:
    """Pictures of one call, in the order of the prompts.

    Attributes:
        images: RGB pictures.
        parameters: One entry for each picture.
        timings: Of the whole call.
        reference_passes: How many (entry, reference) pairs the Reference U-Net was run on; 0 when
            every table was there already.
    """

    images: list[Image.Image]
    parameters: list[PictureParameters]
    timings: Timings
    reference_passes: int

    @classmethod
    def joined(cls, results: Sequence[GenerationResult], timings: Timings) -> GenerationResult:
        """The pictures of several results as one."""
        return cls(
            images=[image for result in results for image in result.images],
            parameters=[one for result in results for one in result.parameters],
            timings=timings,
            reference_passes=sum(result.reference_passes for result in results),
        )
