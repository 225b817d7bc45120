"""Models of all answers. They describe: routes answer with plain values, which tests compare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from bootpig_rt.images.encode_image import ImageFormat
from bootpig_rt.request import PictureParameters
from bootpig_rt.server.jobs import JobStatus
from bootpig_rt.server.schema import REQUEST_ID, SUBJECT_ID
from bootpig_rt.server.service import State

JobId = Annotated[str, Field(pattern=REQUEST_ID, description="The request's id.")]
SubjectId = Annotated[str, Field(pattern=SUBJECT_ID)]
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]*x[1-9][0-9]*$", examples=["512x512"])]
Base64 = Annotated[str, Field(description="A picture's file in base64.")]
DataUrl = Annotated[str, Field(pattern=r"^data:image/png;base64,")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
UnixTime = Annotated[int, Field(ge=0, description="Seconds since 1970.")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str = Field(description="For people.")
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None = Field(description="The field at fault.")
    code: str = Field(description="For programs.")


class ErrorAnswer(BaseModel):
    """The body of every error, as OpenAI's API has it."""

    error: ErrorDetail


class Timings(BaseModel):
    """Milliseconds by stage."""

    queue_ms: Seconds
    encode_ms: Seconds
    text_ms: Seconds
    reference_ms: Seconds = Field(description="Near 0 where the subject's table was there.")
    denoise_ms: Seconds
    decode_ms: Seconds
    total_ms: Seconds


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: Count
    image_tokens: Count


class Usage(BaseModel):
    """Tokens of the prompt."""

    input_tokens: Count
    input_tokens_details: TokenDetails
    output_tokens: Count
    total_tokens: Count


class Picture(BaseModel):
    """One picture."""

    b64_json: Base64
    seed: Count
    flagged: bool | None = Field(
        description="The safety checker kept it back and a grey one is here; null without a checker"
    )
    parameters: PictureParameters = Field(description="All that it was made from.")


class Drawn(BaseModel):
    """What is said of all pictures of a request."""

    created: UnixTime
    id: JobId
    model: str
    output_format: ImageFormat
    size: Size
    quality: Literal["auto"]
    background: Literal["opaque"]
    usage: Usage
    subject_id: SubjectId | None = Field(description="Of the kept subject, for later requests.")
    reference_passes: Count = Field(
        description="How often the Reference U-Net ran; 0 where the subject's table was there."
    )
    timings: Timings
    warnings: list[str]


class ImagesAnswer(Drawn):
    """Pictures that were asked for."""

    data: list[Picture]


class _Event(BaseModel):
    created_at: UnixTime
    size: Size
    quality: Literal["auto"]
    background: Literal["opaque"]
    output_format: ImageFormat
    index: Count = Field(description="Which of the n pictures.")
    b64_json: Base64


class PartialImageEvent(_Event):
    """A picture that is not finished."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: Count
    step: Count
    total_steps: Count


class CompletedEvent(Drawn, Picture, _Event):
    """A finished picture; the last events of a stream that went well."""

    type: Literal["image_generation.completed", "image_edit.completed"]


class ProgressEvent(BaseModel):
    """How far a request is, where `progress` asks for it."""

    type: Literal["bootpig.progress"]
    id: JobId
    stage: Literal["queued", "reference", "steps"]
    done: Count
    total: Count
    position: Count | None = Field(description="Pictures ahead in the queue.")
    expected_wait_s: Seconds | None


class ErrorEvent(ErrorAnswer):
    """What ends a stream in place of its picture."""

    type: Literal["error"]


class Subject(BaseModel):
    """A kept subject."""

    id: SubjectId
    object: Literal["subject"]
    model: str
    reference_prompt: str
    noise_seed: Count
    num_references: Annotated[int, Field(ge=1)]
    fingerprints: list[Sha256]
    created_at: UnixTime
    expires_at: UnixTime
    bytes: Count
    has_table: bool = Field(description="A picture of it needs no reference pass, most likely.")
    preview: DataUrl


class NewSubject(Subject):
    """A subject that is kept from now on."""

    warnings: list[str]


class SubjectList(BaseModel):
    """A page of subjects, newest first."""

    object: Literal["list"]
    data: list[Subject]
    has_more: bool
    first_id: SubjectId | None
    last_id: SubjectId | None


class ReferencePreview(BaseModel):
    """What the model would see of a reference image."""

    preview: DataUrl
    warning: str | None


class ReferencePreviews(BaseModel):
    """One for each image."""

    object: Literal["list"]
    data: list[ReferencePreview]


class DeletedSubject(BaseModel):
    """It is gone, and its tables are."""

    id: SubjectId
    object: Literal["subject.deleted"]
    deleted: Literal[True]


class Job(BaseModel):
    """A request on its way, or one that ended in the last ten minutes."""

    id: JobId
    object: Literal["job"]
    status: JobStatus
    model: str
    position: Count | None = Field(description="Pictures ahead in the queue; null once it began.")
    expected_wait_s: Seconds | None
    done_steps: Count
    total_steps: Count | None
    num_images: Annotated[int, Field(ge=1)]
    created_at: UnixTime


class Defaults(BaseModel):
    """What a model draws with where a request says nothing."""

    num_inference_steps: Annotated[int, Field(ge=1)]
    image_guidance_scale: float
    text_guidance_scale: float
    solver: str
    merge: str
    reference_schedule: str


class Model(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"]
    created: Literal[0]
    owned_by: Literal["bootpig-rt"]
    fingerprint: Sha256
    size_px: Annotated[int, Field(ge=8)]
    size_multiple_px: Annotated[int, Field(ge=1)]
    max_side_px: Annotated[int, Field(ge=8)]
    max_references: Annotated[int, Field(ge=1)]
    is_few_step: bool
    controls: list[str] = Field(description="Kinds of maps that its pictures can follow.")
    runtime: str
    precision: str
    defaults: Defaults


class ModelList(BaseModel):
    """All of them, the one that is drawn with by default first."""

    object: Literal["list"]
    data: list[Model]


class ServerLimits(BaseModel):
    """What this server takes."""

    max_images: int
    max_references: int
    max_steps: int
    max_side_px: int
    max_body_bytes: int
    max_image_pixels: int
    max_prompt_chars: int
    max_deadline_s: float
    default_deadline_s: float | None
    subject_ttl_s: float
    solvers: list[str]
    merges: list[str]
    reference_schedules: list[str] = Field(description="One example of each kind.")
    keys: bool = Field(description="Requests need a key.")
    safety: bool
    credentials: bool
    contact: str | None


class Alive(BaseModel):
    """Whether the process does what it is asked."""

    status: Literal["ok", "failed"]


class Ready(BaseModel):
    """Whether it takes requests."""

    status: State


class Reloaded(BaseModel):
    """The model that draws from now on."""

    model: str
    fingerprint: Sha256
