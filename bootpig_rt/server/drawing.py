"""From the fields of a request to a drawing on its way: the middle of both image routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bootpig_rt.errors import Cancelled, DeadlineExceeded
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.reference.schedule import WHOLE
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.server.calls import Call
from bootpig_rt.server.controls import MapFile, controls_of
from bootpig_rt.server.engine_client import Drawing, EngineClient
from bootpig_rt.server.errors import ApiError, api_error
from bootpig_rt.server.jobs import JobRecord
from bootpig_rt.server.metrics import OUTCOMES
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.request_notes import note
from bootpig_rt.server.schema import EditOptions, ImageFields
from bootpig_rt.server.service import Service
from bootpig_rt.server.subjects import KeptSubject


@dataclass(frozen=True)
class CanvasFiles:
    """Contents of the file of a picture to draw into, or from, and of its mask."""

    image: bytes
    mask: bytes | None


@dataclass
class Uploads:
    """Files of a request.

    Attributes:
        references: Contents of image files; none for a kept subject, or none at all.
        canvas: The picture to draw into; None for none.
        maps: That the pictures follow.
    """

    references: list[bytes]
    canvas: CanvasFiles | None = None
    maps: list[MapFile] = field(default_factory=list)


@dataclass
class Begun:
    """A drawing on its way.

    Attributes:
        fields: That were asked for.
        client: That draws it.
        job: Its record.
        drawing: Its events.
        request: What the engine was given.
        kept: Its subject, where the library has it.
        origins: Of its images, for signed manifests.
        encode_ms: Time in its references.
        warnings: What the caller should know.
    """

    fields: ImageFields
    client: EngineClient
    job: JobRecord
    drawing: Drawing
    request: Request
    kept: KeptSubject | None
    origins: tuple[ReferenceOrigin, ...]
    encode_ms: float
    warnings: list[str] = field(default_factory=list)


async def begin(
    service: Service,
    call: Call,
    client: EngineClient,
    fields: ImageFields,
    uploads: Uploads,
) -> Begun:
    """Check a request, encode its references, hand it to the engine.

    Who gets a drawing closes its job: `close_job`.

    Args:
        service: Behind the route.
        call: Whose it is.
        client: That will draw.
        fields: Of the request.
        uploads: Its files. Emptied once they are read: nobody needs megabytes of files while the
            picture is drawn.

    Raises:
        ApiError: Refused.
        BootPIGError: Not usable, or the engine is full.
    """
    options, references = service.options, uploads.references
    if fields.n > options.most_images:
        text = f"n is {fields.n}, expected 1..{options.most_images} on this server"
        raise ApiError(400, "invalid_value", text, param="n")
    if references and fields.subject_id is not None:
        text = "got images and a subject_id, expected one or the other"
        raise ApiError(400, "invalid_value", text, param="subject_id")
    if fields.reference_prompt is not None and not references:
        text = "reference_prompt says what images show; a kept subject has its own"
        raise ApiError(400, "invalid_value", text, param="reference_prompt")
    deadline_s = options.default_deadline_s if fields.deadline_s is None else fields.deadline_s
    if deadline_s is not None and deadline_s > options.max_deadline_s:
        if fields.deadline_s is not None:
            text = f"deadline_s is {deadline_s:g}, expected at most {options.max_deadline_s:g}"
            raise ApiError(400, "invalid_value", text, param="deadline_s")
        deadline_s = options.max_deadline_s
    width, height = fields.size_px()
    note(
        model=client.facts.name,
        num_images=fields.n,
        steps=fields.num_inference_steps or client.facts.num_inference_steps,
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt,
    )
    request = Request(  # all that needs no subject is refused before references cost anything
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt,
        num_inference_steps=fields.num_inference_steps,
        image_guidance_scale=fields.image_guidance_scale,
        text_guidance_scale=fields.text_guidance_scale,
        num_images_per_prompt=fields.n,
        seed=fields.seed,
        sizes=None if fields.sizes is None else tuple(fields.sizes),
        solver=fields.solver,
        merge=fields.merge,
        reference_schedule=fields.reference_schedule,
        approximation=fields.approximation,
        width=width,
        height=height,
        guidance_interval=_interval(fields),
        tenant=call.tenant,
        controls=await controls_of(uploads.maps, max_pixels=options.max_image_pixels),
        **await _canvas(options, fields, uploads.canvas),
    )
    names = ("prompt", "negative_prompt", "reference_prompt")
    service.output.check_prompts({name: getattr(fields, name) for name in names})
    service.check_room([client])
    job = service.open_job(call.id, call.principal, client, fields.n)
    try:
        return await _begun(service, call, job, fields, uploads, request, deadline_s)
    except BaseException as error:
        close_job(service, job, error)
        raise


async def _begun(
    service: Service,
    call: Call,
    job: JobRecord,
    fields: ImageFields,
    uploads: Uploads,
    request: Request,
    deadline_s: float | None,
) -> Begun:
    client, start, references = job.client, time.monotonic(), uploads.references
    warnings: list[str] = []
    kept: KeptSubject | None = None
    origins: tuple[ReferenceOrigin, ...] = ()
    try:
        async with asyncio.timeout(deadline_s):
            if references:
                prompt = fields.reference_prompt or _class_phrase(fields.prompt, warnings)
                origins = await asyncio.to_thread(service.output.origins, references)
                subject, kept = await _from_references(
                    service, call, client, fields, references, prompt, origins, warnings
                )
                request = request.of_subject(subject)
                references.clear()
            elif fields.subject_id is not None:
                kept = service.library.get(call.tenant, fields.subject_id)
                service.output.check_prompts({"subject_id": kept.reference_prompt})
                origins = kept.origins
                request = request.of_subject(await service.library.subject_for(kept, client))
            if uploads.canvas is not None:
                given = [uploads.canvas.image]
                origins += await asyncio.to_thread(service.output.origins, given)
                uploads.canvas = None
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the request {call.id} ran out of its {deadline_s:g} s before its references were read"
        ) from error
    encode_ms = 1e3 * (time.monotonic() - start)
    for prompt in (fields.prompt, fields.negative_prompt):
        tokens, most_tokens = client.num_tokens(prompt)
        if tokens > most_tokens:
            warnings.append(
                f"a prompt has {tokens} tokens, the model reads {most_tokens}; its end is ignored"
            )
    if job.is_cancelled:
        raise Cancelled("cancelled while its references were encoded")
    job.drawing = await client.submit(
        request,
        request_id=call.id,
        deadline_s=None if deadline_s is None else max(1e-3, deadline_s - encode_ms / 1e3),
        preview_every=_preview_every(fields, client),
    )
    return Begun(fields, client, job, job.drawing, request, kept, origins, encode_ms, warnings)


def close_job(service: Service, job: JobRecord, error: BaseException | None) -> None:
    """Its record ends; how, the error says. May be called twice: the first one counts."""
    if job.outcome is not None:
        return
    job.stop()
    if error is None:
        service.jobs.close(job, "succeeded")
        return
    is_cancelled = job.is_cancelled or isinstance(error, Cancelled | asyncio.CancelledError)
    outcome = "cancelled" if is_cancelled else _outcome_of(error)
    service.metrics.picture_done(job.client.facts.name, outcome, count=job.num_images)
    note(outcome=outcome)
    service.jobs.close(job, "cancelled" if is_cancelled else "failed")


def _outcome_of(error: BaseException) -> str:
    told = api_error(error)
    if told.code in OUTCOMES:
        return told.code
    return "refused" if told.status < 500 else "failed"


async def _from_references(
    service: Service,
    call: Call,
    client: EngineClient,
    fields: ImageFields,
    references: Sequence[bytes],
    reference_prompt: str,
    origins: tuple[ReferenceOrigin, ...],
    warnings: list[str],
) -> tuple[Subject, KeptSubject | None]:
    prepared = await client.prepare(references, warnings=warnings)
    subject = await client.encode(prepared, reference_prompt, noise_seed=fields.noise_seed)
    if not fields.store_subject:
        return subject, None
    try:
        kept = service.library.add(
            call.principal, client, prepared, subject, origins, ttl_s=None, is_explicit=False
        )
    except ApiError as error:
        warnings.append(f"the subject was not kept: {error.message}")
        return subject, None
    return subject, kept


async def _canvas(
    options: ServerOptions, fields: ImageFields, files: CanvasFiles | None
) -> dict[str, Any]:
    """What a request says of the picture that it is drawn into.

    Raises:
        ApiError: A mask's edge without a mask.
        ImageError: A file that cannot be used.
    """
    if not isinstance(fields, EditOptions):
        return {}
    if fields.mask_edge_px is not None and (files is None or files.mask is None):
        text = "mask_edge_px is given without a mask"
        raise ApiError(400, "invalid_value", text, param="mask_edge_px")
    if files is None:
        return {}
    canvas = await asyncio.to_thread(
        Canvas.load, files.image, alpha_mask=files.mask, max_pixels=options.max_image_pixels
    )
    return {
        "canvas": canvas,
        "strength": fields.strength,
        "mask_edge_px": fields.mask_edge_px,
    }


def _interval(fields: ImageFields) -> tuple[float, float]:
    first, last = fields.guidance_interval or WHOLE
    return first, last


def _class_phrase(prompt: str, warnings: list[str]) -> str:
    """What references show, where the caller does not say: the prompt up to its first comma."""
    phrase = prompt.partition(",")[0].strip() or prompt
    if phrase == prompt.strip():
        warnings.append(
            "no reference_prompt and no comma in the prompt: the references are read as the whole "
            "prompt; better say what they show"
        )
    return phrase


def _preview_every(fields: ImageFields, client: EngineClient) -> int | None:
    """Steps between previews: as the request says, or so that its partial images come evenly."""
    if not fields.stream:
        return None
    if fields.preview_every is not None:
        return fields.preview_every
    if not fields.partial_images:
        return None
    steps = fields.num_inference_steps or client.facts.num_inference_steps
    return max(1, steps // (fields.partial_images + 1))
