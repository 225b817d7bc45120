"""`POST /v1/images/generations` and `/v1/images/edits`: OpenAI's two routes that draw."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from bootpig_rt.engine.events import DoneEvent, ReferenceEvent, StepEvent
from bootpig_rt.errors import Cancelled
from bootpig_rt.images.encode_image import MEDIA_TYPES
from bootpig_rt.request import GenerationResult
from bootpig_rt.server.accept import preferred
from bootpig_rt.server.calls import (
    MAX_FILES,
    Call,
    call_of,
    check_formats,
    fields_of,
    images_of,
    mask_of,
    media_type,
    read_form,
    read_json,
    unless_gone,
)
from bootpig_rt.server.controls import map_files
from bootpig_rt.server.drawing import Begun, CanvasFiles, Uploads, begin, close_job
from bootpig_rt.server.engine_client import EngineClient
from bootpig_rt.server.errors import ApiError, api_error
from bootpig_rt.server.event_stream import EventStream, SendEvent
from bootpig_rt.server.output import Finished
from bootpig_rt.server.parse import image_bytes, mask_bytes, parse_json, validated
from bootpig_rt.server.request_notes import note, note_timings
from bootpig_rt.server.schema import EditFields, EditOptions, ImageFields
from bootpig_rt.server.service import Service

Kind: TypeAlias = Literal["image_generation", "image_edit"]

_JSON = "application/json"

POSITION_EVERY_S = 0.25
"""How soon a caller who waits hears of another place in the queue."""


def image_routes(service: Service) -> APIRouter:
    """Both routes over a service."""
    routes = APIRouter()

    @routes.post("/v1/images/generations")
    async def generations(http: HttpRequest) -> Response:
        """Draw a prompt, with a kept subject or with none."""
        service.check_ready()
        fields = validated(ImageFields, parse_json(await read_json(http)))
        call, uploads = call_of(http), Uploads([], maps=map_files(fields))
        fields = fields.without_maps()
        return await _answer(service, http, call, fields, uploads, "image_generation")

    @routes.post("/v1/images/edits")
    async def edits(http: HttpRequest) -> Response:
        """Draw the subject of reference images in the scene that the prompt says."""
        service.check_ready()
        service.check_room(service.clients.values())  # before the images are read
        if media_type(http) == "application/json":
            edit = validated(EditFields, parse_json(await read_json(http)))
            fields, images = edit.without_images(), image_bytes(edit.images)
            mask = mask_bytes(edit.mask)
            del edit
            check_formats(images)
            check_formats([] if mask is None else [mask], "mask")
            most = _most_images(service, fields, mask)
            if len(images) > most:
                text = f"{len(images)} images, expected at most {most} for this model"
                raise ApiError(400, "too_many_images", text, param="images")
        else:
            async with read_form(http) as form:
                fields = fields_of(EditOptions, form)
                mask = await mask_of(form)
                most = min(_most_images(service, fields, mask), MAX_FILES)
                images = await images_of(form, most=most, beside="mask")
        uploads = Uploads(images)
        if mask is not None or fields.strength is not None:
            uploads = Uploads(images[1:], CanvasFiles(images[0], mask))
        uploads.maps = map_files(fields)
        fields = fields.without_maps()
        return await _answer(service, http, call_of(http), fields, uploads, "image_edit")

    return routes


def _most_images(service: Service, fields: EditOptions, mask: bytes | None) -> int:
    """References that a model reads, and the picture to draw into where there is one."""
    most = service.client(fields.model).facts.max_references
    return most + (mask is not None or fields.strength is not None)


async def _answer(
    service: Service,
    http: HttpRequest,
    call: Call,
    fields: ImageFields,
    uploads: Uploads,
    kind: Kind,
) -> Response:
    """Draw, and answer with JSON, with a stream, or with a picture's file.

    Args:
        service: Behind the route.
        http: The request, its body read.
        call: Whose it is.
        fields: What it asks for.
        uploads: As for `begin`, which empties them.
        kind: Of its events.
    """
    client = service.client(fields.model)
    if fields.stream:
        begun = await unless_gone(http.receive, begin(service, call, client, fields, uploads))
        if begun is None:  # nobody is left to read it
            return Response(status_code=499)
        left = Cancelled("its client left")
        return EventStream(
            partial(_tell, service, begun, kind),
            partial(close_job, service, begun.job, left),
            service.options.max_deadline_s + 60.0,
        )
    answer = await unless_gone(http.receive, _draw(service, call, client, fields, uploads))
    if answer is None:  # nobody is left to read it
        return Response(status_code=499)
    headers = {"vary": "Accept", "x-reference-passes": str(answer["reference_passes"])}
    if answer["subject_id"] is not None:
        headers["x-subject-id"] = answer["subject_id"]
    file_type = MEDIA_TYPES[fields.output_format]
    offers = [_JSON, file_type] if fields.n == 1 else [_JSON]
    if preferred(http.headers.getlist("accept"), offers) == file_type:
        one = answer["data"][0]
        if one["flagged"]:
            headers["x-flagged"] = "true"
        data = base64.b64decode(one["b64_json"])
        return Response(data, media_type=file_type, headers=headers)
    return JSONResponse(answer, headers=headers)


async def _draw(
    service: Service,
    call: Call,
    client: EngineClient,
    fields: ImageFields,
    uploads: Uploads,
) -> dict[str, Any]:
    begun = await begin(service, call, client, fields, uploads)
    try:
        async for event in begun.drawing.events():
            if isinstance(event, DoneEvent):
                files = await _files(service, begun, event.result)
                close_job(service, begun.job, None)
                return _finished(service, begun, event.result, files)
        raise AssertionError("a drawing ended without a result")
    except BaseException as error:
        close_job(service, begun.job, error)
        raise


async def _tell(service: Service, begun: Begun, kind: Kind, send: SendEvent) -> None:
    """The events of one drawing, as OpenAI names them; ours between them where asked for."""
    fields, index = begun.fields, 0
    telling = asyncio.create_task(_tell_position(begun, send)) if fields.progress else None
    try:
        async for event in begun.drawing.events():
            if telling is not None:
                telling.cancel()
                telling = None
            if isinstance(event, ReferenceEvent):
                if fields.progress:
                    await send("bootpig.progress", _progress(begun, "reference", event))
            elif isinstance(event, StepEvent):
                if fields.progress:
                    await send("bootpig.progress", _progress(begun, "steps", event))
                is_last = event.done >= event.total
                if event.previews is None or is_last:
                    continue
                if fields.preview_every is None and index >= fields.partial_images * fields.n:
                    continue
                previews = await asyncio.to_thread(
                    service.output.encode,
                    event.previews,
                    format=fields.output_format,
                    compression=fields.output_compression,
                )
                for number, file in zip(event.pictures, previews, strict=True):
                    data = _described(begun) | {
                        "b64_json": file,
                        "partial_image_index": index,
                        "index": number,
                        "step": event.done,
                        "total_steps": event.total,
                    }
                    await send(f"{kind}.partial_image", data)
                    index += 1
            else:
                files = await _files(service, begun, event.result)
                close_job(service, begun.job, None)
                answer = _finished(service, begun, event.result, files)
                for number, one in enumerate(answer.pop("data")):
                    data = _described(begun) | answer | one | {"index": number}
                    await send(f"{kind}.completed", data)
    except Exception as error:  # the answer has begun: it is told inside of the stream
        close_job(service, begun.job, error)
        told = api_error(error)
        service.metrics.refused(told.code)
        note(error=told.code)
        await send("error", {"type": "error", **told.body()})
    finally:
        if telling is not None:
            telling.cancel()


async def _tell_position(begun: Begun, send: SendEvent) -> None:
    """Where in the queue a drawing is, whenever that changes, until it begins."""
    last: int | None = None
    while True:
        progress = begun.drawing.progress()
        if progress.position is not None and progress.position != last:
            last = progress.position
            data = {
                "stage": "queued",
                "done": 0,
                "total": progress.total_steps,
                "position": last,
                "expected_wait_s": round(begun.client.load().expected_wait_s, 2),
                "id": begun.job.id,
            }
            await send("bootpig.progress", data)
        await asyncio.sleep(POSITION_EVERY_S)


def _progress(begun: Begun, stage: str, event: ReferenceEvent | StepEvent) -> dict[str, Any]:
    return {
        "stage": stage,
        "done": event.done,
        "total": event.total,
        "position": None,
        "expected_wait_s": None,
        "id": begun.job.id,
    }


async def _files(service: Service, begun: Begun, result: GenerationResult) -> list[Finished]:
    fields = begun.fields
    return await asyncio.to_thread(
        service.output.finish,
        result.images,
        [one.to_dict() for one in result.parameters],
        format=fields.output_format,
        compression=fields.output_compression,
        origins=begun.origins,
    )


def _finished(
    service: Service, begun: Begun, result: GenerationResult, files: Sequence[Finished]
) -> dict[str, Any]:
    """The answer of a drawing that is done."""
    timings = result.timings
    timings.encode_ms += begun.encode_ms
    facts = begun.client.facts
    flagged = sum(bool(file.is_flagged) for file in files)
    service.metrics.picture_done(facts.name, "succeeded", count=len(files) - flagged)
    service.metrics.picture_done(facts.name, "flagged", count=flagged)
    service.metrics.request_drawn(facts.name, timings, result.reference_passes)
    note_timings(timings)
    note(outcome="succeeded", reference_passes=result.reference_passes)
    if begun.kept is not None:
        begun.kept.has_table = True
    first = result.parameters[0]
    text_tokens = sum(begun.client.num_tokens(one)[0] for one in (first.prompt,))
    return {
        "created": int(time.time()),
        "id": begun.job.id,
        "model": facts.name,
        "output_format": begun.fields.output_format,
        "size": f"{first.width}x{first.height}",
        "quality": "auto",
        "background": "opaque",
        "data": [
            {
                "b64_json": file.b64_json,
                "seed": one.seed,
                "flagged": file.is_flagged,
                "parameters": one.to_dict(),
            }
            for file, one in zip(files, result.parameters, strict=True)
        ],
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
            "output_tokens": 0,
            "total_tokens": text_tokens,
        },
        "subject_id": None if begun.kept is None else begun.kept.id,
        "reference_passes": result.reference_passes,
        "timings": timings.to_dict(),
        "warnings": begun.warnings,
    }


def _described(begun: Begun) -> dict[str, Any]:
    """What OpenAI's events say of every picture."""
    width, height = begun.fields.size_px()
    side, request = begun.client.facts.size_px, begun.request
    for given in (request.canvas, *request.controls):
        if given is not None:
            width, height = given.size
    return {
        "created_at": int(time.time()),
        "size": f"{width or side}x{height or side}",
        "quality": "auto",
        "background": "opaque",
        "output_format": begun.fields.output_format,
    }
