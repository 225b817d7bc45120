"""Bodies of the API: every field by name, type and range. Nothing unknown passes, nothing is bent.

What only a loaded model can check is left to its engine. `parse.py` makes them of bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.images.canvas import MAX_EDGE_PX
from bootpig_rt.images.control import MAX_CONTROL_SCALE, MAX_CONTROLS
from bootpig_rt.images.encode_image import ImageFormat

MAX_PROMPT = 10_000
MAX_SEED = 2**63 - 1
REQUEST_ID = r"^[A-Za-z0-9_-]{1,64}$"
SUBJECT_ID = r"^sub_[0-9a-f]{24}$"

_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
_BASE64 = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}(==|[A-Za-z0-9+/]=))?"
_DATA_URL_TEXT = rf"^data:image/(png|jpeg|webp);base64,{_BASE64}$"

_SPACES = r"\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_TEXT = {"pattern": r"^[^\x00]*$"}
_SOME_TEXT = {"pattern": rf"^[^\x00]*[^\x00{_SPACES}][^\x00]*$"}
_WINDOW = r"window:[0-9.]{1,20}-[0-9.]{1,20}"
_MODE = r"exact|clean|anchor:[0-9]{1,3}|stride:[1-9][0-9]{0,2}"
_SCHEDULE = {"pattern": rf"^({_WINDOW}|({_MODE})(\+{_WINDOW})?)$"}
_APPROXIMATION = {"pattern": rf"^(none|cache:(100|[1-9][0-9]?)(\+{_WINDOW})?)$"}
"""For the description alone: these are checked where they are used, with words of their own."""

_MODEL = "A name of `GET /v1/models`; the first of them if left out."
_NOISE_SEED = "Of the reference noise."
_TTL_S = "Seconds that it is kept after its last use."

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, json_schema_extra=_SOME_TEXT)]
ModelName = Annotated[str, Field(max_length=200)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TimeToLive = Annotated[float, Field(gt=0, le=10**8, allow_inf_nan=False)]


class Fields(BaseModel):
    """Of one body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ControlFields(Fields):
    """A map that a picture follows."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,31}$")] = Field(
        description="Of the control that reads it: one of the model's `controls`."
    )
    image_url: Annotated[
        str, Field(max_length=1 << 28, json_schema_extra={"pattern": _DATA_URL_TEXT})
    ] = Field(description="A PNG, JPEG or WebP of the picture's size. No address is fetched.")
    source: Literal["map", "photo"] = Field(
        default="map",
        description="`photo`: the image is one that the map is made of here, for outlines alone.",
    )
    scale: Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False)] = Field(
        default=1.0, description="How closely it is followed."
    )
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)] = Field(
        default=[0.0, 1.0],
        description="Share of the steps in which it is: from, and to above it.",
    )


class ImageFields(Fields):
    """Of a picture, with or without reference images."""

    prompt: Prompt = Field(description="What to draw.")
    model: ModelName | None = Field(default=None, description=_MODEL)
    n: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="Pictures.")
    size: Annotated[str, Field(pattern=_SIZE)] = Field(
        default="auto",
        description="Width and height in pixels, as the model takes them; see its limits.",
    )
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: ImageFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Quality of JPEG and WebP; a PNG loses nothing."
    )
    user: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Not used."
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    partial_images: Annotated[int, Field(ge=0, le=3)] = Field(
        default=0, description="Pictures of a stream that are not finished, of each of the n."
    )

    subject_id: Annotated[str, Field(pattern=SUBJECT_ID)] | None = Field(
        default=None, description="Of a kept subject, in place of images."
    )
    reference_prompt: Prompt | None = Field(
        default=None,
        description="What the images show; the prompt up to its first comma if left out.",
    )
    store_subject: bool = Field(default=True, description="Keep the subject of the images.")
    noise_seed: Seed = Field(default=0, description=_NOISE_SEED)
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, json_schema_extra=_TEXT)] = Field(
        default="", description="What to stay away from."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    image_guidance_scale: Guidance | None = None
    text_guidance_scale: Guidance | None = None
    guidance_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="Share of the steps with guidance: from, and to above it."
    )
    seed: Seed | None = Field(
        default=None, description="Of the first picture; a random one if left out."
    )
    sizes: (
        Annotated[list[Annotated[int, Field(ge=0, le=16384)]], Field(min_length=6, max_length=6)]
        | None
    ) = Field(
        default=None,
        description="What a model of Stable Diffusion XL is told: height and width of the "
        "original, top and left of the crop, height and width of the target.",
    )
    solver: SolverName | None = None
    merge: Merge | None = Field(default=None, description="How several references are combined.")
    reference_schedule: (
        Annotated[str, Field(max_length=100, json_schema_extra=_SCHEDULE)] | None
    ) = Field(default=None, description="At which noise level each step reads the subject.")
    approximation: Annotated[str, Field(max_length=100, json_schema_extra=_APPROXIMATION)] = Field(
        default="none", description="What steps leave out to be quicker."
    )
    controls: (
        Annotated[list[ControlFields], Field(min_length=1, max_length=MAX_CONTROLS)] | None
    ) = Field(
        default=None,
        description="Maps that the pictures follow, which give them their size; in a form as JSON.",
    )
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds in which the pictures must be done."
    )
    preview_every: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Steps between partial pictures, in place of `partial_images`."
    )
    progress: bool = Field(
        default=False, description="A stream also tells of the queue and of steps."
    )

    def without_maps(self) -> Self:
        """All but the maps, which are large."""
        return self.model_copy(update={"controls": None})

    def size_px(self) -> tuple[int, int] | tuple[None, None]:
        """Width and height; None for the model's own."""
        if self.size == "auto":
            return None, None
        width, height = self.size.split("x")
        return int(width), int(height)


class EditOptions(ImageFields):
    """Of a picture from images: the first of them may be one to draw into."""

    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="How much of the first image is drawn anew, which is then no reference: the "
        "picture is drawn into it, or from it.",
    )
    mask_edge_px: Annotated[int, Field(ge=0, le=MAX_EDGE_PX)] | None = Field(
        default=None,
        description="Pixels inside the mask over which what is drawn fades into the image.",
    )


class ImageUrl(Fields):
    """An image in a JSON body."""

    image_url: Annotated[
        str, Field(max_length=1 << 28, json_schema_extra={"pattern": _DATA_URL_TEXT})
    ] = Field(description="A PNG, JPEG or WebP. No other address is fetched.")


class EditFields(EditOptions):
    """Of a picture from images, in JSON."""

    images: Annotated[list[ImageUrl], Field(min_length=1, max_length=64)]
    mask: ImageUrl | None = Field(
        default=None,
        description="Of the size of the first image, and transparent where that is drawn into.",
    )

    def without_images(self) -> EditOptions:
        """All but the images, which are large."""
        return EditOptions.model_construct(
            **{name: getattr(self, name) for name in EditOptions.model_fields}
        )


class SubjectFields(Fields):
    """Of a subject, beside its images."""

    reference_prompt: Prompt = Field(description="What the images show.")
    model: ModelName | None = Field(default=None, description=_MODEL)
    noise_seed: Seed = Field(default=0, description=_NOISE_SEED)
    ttl_s: TimeToLive | None = Field(default=None, description=_TTL_S)


class SubjectFileFields(Fields):
    """Of a subject's file, beside it."""

    model: ModelName | None = Field(default=None, description=_MODEL)
    ttl_s: TimeToLive | None = Field(default=None, description=_TTL_S)


class ReferenceFields(Fields):
    """Of reference images that are only looked at."""

    model: ModelName | None = Field(default=None, description=_MODEL)


class ReloadFields(Fields):
    """Which model is loaded again; the default one if left out."""

    model: ModelName | None = Field(default=None, description=_MODEL)
