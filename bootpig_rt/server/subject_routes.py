"""`/v1/subjects`: encode once, list, look at, download, upload, delete."""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.errors import CheckpointError
from bootpig_rt.images.encode_image import encode_image
from bootpig_rt.reference.subject import Subject
from bootpig_rt.server.calls import (
    MAX_FILES,
    call_of,
    fields_of,
    files_of,
    images_of,
    read_form,
)
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.schema import (
    SUBJECT_ID,
    ReferenceFields,
    SubjectFields,
    SubjectFileFields,
)
from bootpig_rt.server.service import Service
from bootpig_rt.server.subject_folder import read_subject, subject_bytes
from bootpig_rt.server.subjects import KeptSubject, data_url

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(pattern=SUBJECT_ID)]
OfModel = Annotated[str | None, Query(max_length=200)]

_MAX_LATENT, _MAX_STATE = 1e3, 1e4
"""Far above what any encoder gives, far below what makes a model overflow."""


def subject_routes(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(prefix="/v1/subjects")
    library = service.library

    @routes.post("", status_code=201)
    async def make(http: HttpRequest) -> Response:
        """Encode reference images, or take a subject's file, and keep it."""
        service.check_ready()
        call = call_of(http)
        async with read_form(http) as form:
            warnings: list[str] = []
            if "file" in form:
                file_fields = fields_of(SubjectFileFields, form)
                client = service.client(file_fields.model)
                data = (await files_of(form, ("file",), most=1))[0]
                subject = await asyncio.to_thread(_from_file, data)
                client.check_subject(subject)
                _check_count(subject.num_references, client.facts.max_references)
                service.output.check_prompts({"reference_prompt": subject.reference_prompt})
                kept = library.add(
                    call.principal, client, [], subject, ttl_s=file_fields.ttl_s, is_explicit=True
                )
            else:
                fields = fields_of(SubjectFields, form)
                service.output.check_prompts({"reference_prompt": fields.reference_prompt})
                client = service.client(fields.model)
                most = min(client.facts.max_references, MAX_FILES)
                images = await images_of(form, most=most)
                with service.using(client):
                    prepared = await client.prepare(images, warnings=warnings)
                    origins = await asyncio.to_thread(service.output.origins, images)
                    subject = await client.encode(
                        prepared, fields.reference_prompt, noise_seed=fields.noise_seed
                    )
                kept = library.add(
                    call.principal,
                    client,
                    prepared,
                    subject,
                    origins,
                    ttl_s=fields.ttl_s,
                    is_explicit=True,
                )
        await asyncio.to_thread(library.save, kept)
        shown = await asyncio.to_thread(kept.to_dict)  # makes a preview
        return JSONResponse(shown | {"warnings": warnings}, status_code=201)

    @routes.post("/preview")
    async def look(http: HttpRequest) -> Response:
        """What the model would see of reference images. Keeps nothing."""
        service.check_ready()
        async with read_form(http) as form:
            client = service.client(fields_of(ReferenceFields, form).model)
            most = min(client.facts.max_references, MAX_FILES)
            images = await images_of(form, most=most)
            seen = []
            for image in images:
                warnings: list[str] = []
                with service.using(client):
                    (prepared,) = await client.prepare([image], warnings=warnings)
                preview = await asyncio.to_thread(data_url, prepared)
                seen.append({"preview": preview, "warning": next(iter(warnings), None)})
        return JSONResponse({"object": "list", "data": seen})

    @routes.get("")
    async def list_all(http: HttpRequest, limit: Limit = 20, after: After = None) -> Response:
        """Subjects of the caller, newest first; `after` is the last id of the page before."""
        mine = library.of_tenant(call_of(http).tenant)
        ids = [one.id for one in mine]
        first = ids.index(after) + 1 if after in ids else 0
        if after is not None and after not in ids:
            text = "after is no subject of yours; it may be deleted, or its time over"
            raise ApiError(404, "subject_not_found", text, param="after")
        page = mine[first : first + limit]
        data = await asyncio.to_thread(lambda: [one.to_dict() for one in page])  # makes previews
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "has_more": first + limit < len(mine),
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
            }
        )

    def kept_of(http: HttpRequest, subject_id: str) -> KeptSubject:
        return library.get(call_of(http).tenant, subject_id)

    @routes.get("/{subject_id}")
    async def show(http: HttpRequest, subject_id: str) -> Response:
        """One subject."""
        return JSONResponse(await asyncio.to_thread(kept_of(http, subject_id).to_dict))

    @routes.get("/{subject_id}/preview")
    async def preview(http: HttpRequest, subject_id: str) -> Response:
        """Its references as the model sees them, side by side, a PNG."""
        kept = kept_of(http, subject_id)
        data = await asyncio.to_thread(lambda: encode_image(kept.preview(), is_generated=False))
        return Response(data, media_type="image/png")

    @routes.get("/{subject_id}/file")
    async def download(http: HttpRequest, subject_id: str, model: OfModel = None) -> Response:
        """Its file, safetensors, for `Pipeline.load_subject` and for another server."""
        service.check_ready()
        kept = kept_of(http, subject_id)
        client = service.client(model or _known(service, kept))
        with service.using(client):
            subject = await library.subject_for(kept, client)
        data = await asyncio.to_thread(subject_bytes, subject)
        name = f'attachment; filename="{kept.id}.subject"'
        headers = {"content-disposition": name}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @routes.delete("/{subject_id}")
    async def delete(http: HttpRequest, subject_id: str) -> Response:
        """Forget it, its tables too."""
        kept = kept_of(http, subject_id)
        library.remove(kept)
        await service.forget_tables()
        return JSONResponse({"id": kept.id, "object": "subject.deleted", "deleted": True})

    return routes


def _from_file(data: bytes) -> Subject:
    text = "the file is no subject of this version: damaged, changed, or something else"
    try:
        subject = read_subject(data)
    except CheckpointError:
        raise ApiError(400, "invalid_subject_file", text, param="file") from None
    states = subject.prompt_states
    if _is_over(subject.latents, _MAX_LATENT) or (
        states is not None and _is_over(states, _MAX_STATE)
    ):
        raise ApiError(400, "invalid_subject_file", text, param="file")
    return subject


def _is_over(array: FloatArray, most: float) -> bool:
    return bool(np.abs(array).max(initial=0.0) > most)


def _check_count(count: int, most: int) -> None:
    if count > most:
        text = f"the subject has {count} references, expected at most {most} for this model"
        raise ApiError(400, "too_many_images", text, param="file")


def _known(service: Service, kept: KeptSubject) -> str | None:
    """The model that a subject was made with, where it is still there."""
    return kept.model if kept.model in service.clients else None
