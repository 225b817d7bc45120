"""What every route takes and answers: the table that the OpenAPI file is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel

from bootpig_rt.server.openapi import answers
from bootpig_rt.server.openapi.bodies import Schema, image_form, json_body, subject_form
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.schema import (
    REQUEST_ID,
    SUBJECT_ID,
    EditFields,
    EditOptions,
    ImageFields,
    ReferenceFields,
    ReloadFields,
)

Bodies: TypeAlias = Callable[[ServerOptions, int], Mapping[str, Schema]]
"""Contents of a body by their media types, of a server with these options and references."""

ERRORS: Mapping[int, tuple[str, tuple[str, ...]]] = {
    400: (
        "Something cannot be so; `param` names the field.",
        (
            *("invalid_value", "unknown_field", "invalid_json", "invalid_form", "invalid_prompt"),
            *("invalid_image", "too_many_images", "invalid_subject_file", "content_policy"),
        ),
    ),
    401: ("No key, or an unknown one.", ("invalid_api_key",)),
    403: (
        "Not with this key, by this name, from this page.",
        ("forbidden", "bad_host", "bad_origin"),
    ),
    404: (
        "There is none.",
        ("not_found", "model_not_found", "subject_not_found", "job_not_found"),
    ),
    408: ("The body did not come in time.", ("body_timeout",)),
    409: (
        "Cancelled, or not together with what there is.",
        ("cancelled", "subject_mismatch", "duplicate_request"),
    ),
    413: ("The body is too large.", ("body_too_large",)),
    415: ("The body is of another type, or compressed.", ("unsupported_media_type",)),
    422: ("A field is missing, or a model cannot be used.", ("missing_field", "reload_failed")),
    429: ("Too much at once.", ("queue_full", "quota_exceeded", "subject_quota")),
    500: (
        "The server failed; its log says why.",
        (
            *("internal_error", "numerical_error"),
            *("safety_unavailable", "credentials_unavailable"),
        ),
    ),
    503: (
        "Not now; try again.",
        (
            *("not_ready", "draining", "engine_lost", "out_of_memory", "storage_error"),
            *("too_many_uploads", "too_many_connections"),
        ),
    ),
    504: ("The picture was not done before its deadline.", ("deadline_exceeded",)),
}
"""Every status of an error: what it means, and its codes."""

_PUBLIC = (400, 403, 500)
_KEYED = (400, 401, 403, 500, 503)
_FOUND = (*_KEYED, 404)
_BODY = (*_FOUND, 408, 413, 415, 422)
_DRAWN = (*_BODY, 409, 429, 504)


@dataclass(frozen=True)
class Operation:
    """What one route takes and answers.

    Attributes:
        id: For programs that are made from the file: the name of a function.
        tag: Of what it is about.
        errors: Statuses, of `ERRORS`.
        answer: Of the JSON answer; None where there is none.
        status: Of the answer.
        other: Schemas of other answers, by media type.
        headers: That the answer has, beside those that every one has.
        body: That it takes.
        links: What its answer leads to: operations, with parameters.
        may_fail: It answers 503 with its own answer.
    """

    id: str
    tag: str
    errors: tuple[int, ...]
    answer: type[BaseModel] | None = None
    status: int = 200
    other: Mapping[str, Schema] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    body: Bodies | None = None
    links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    may_fail: bool = False


_FILE = {"type": "string", "format": "binary"}
_PICTURES = {name: _FILE for name in ("image/png", "image/jpeg", "image/webp")}


def _events(kind: str) -> Schema:
    """Of one event of a stream: its name, and its data as JSON."""
    models: dict[str, type[BaseModel]] = {
        f"{kind}.partial_image": answers.PartialImageEvent,
        f"{kind}.completed": answers.CompletedEvent,
        "bootpig.progress": answers.ProgressEvent,
        "error": answers.ErrorEvent,
    }
    return {
        "description": "One event.",
        "oneOf": [
            {
                "type": "object",
                "required": ["event", "data"],
                "properties": {
                    "event": {"const": name},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {
                            "allOf": [
                                {"$ref": f"#/components/schemas/{model.__name__}"},
                                {"properties": {"type": {"const": name}}},
                            ]
                        },
                    },
                },
            }
            for name, model in models.items()
        ],
    }


_JOB = {
    "ShowJob": {
        "operationId": "showJob",
        "parameters": {"job_id": "$response.header.X-Request-Id"},
    }
}
_DRAWN_HEADERS = ("X-Reference-Passes", "X-Subject-Id", "X-Flagged")


def _of_subject(*operations: str) -> dict[str, Any]:
    return {
        one[0].upper() + one[1:]: {
            "operationId": one,
            "parameters": {"subject_id": "$response.body#/id"},
        }
        for one in operations
    }


OPERATIONS: Mapping[str, Operation] = {
    "POST /v1/images/generations": Operation(
        "createImage",
        "images",
        _DRAWN,
        answers.ImagesAnswer,
        other=_PICTURES | {"text/event-stream": _events("image_generation")},
        headers=_DRAWN_HEADERS,
        body=lambda options, most: {
            "application/json": json_body(ImageFields, options, most, ["reference_prompt"])
        },
        links=_JOB,
    ),
    "POST /v1/images/edits": Operation(
        "createImageEdit",
        "images",
        _DRAWN,
        answers.ImagesAnswer,
        other=_PICTURES | {"text/event-stream": _events("image_edit")},
        headers=_DRAWN_HEADERS,
        body=lambda options, most: {
            "multipart/form-data": image_form(EditOptions, options, most, has_canvas=True),
            "application/json": json_body(EditFields, options, most),
        },
        links=_JOB,
    ),
    "POST /v1/subjects": Operation(
        "createSubject",
        "subjects",
        (*_BODY, 409, 429),
        answers.NewSubject,
        status=201,
        body=lambda options, most: {"multipart/form-data": subject_form(options, most)},
        links=_of_subject("showSubject", "previewSubject", "downloadSubject", "deleteSubject")
        | {
            "DrawSubject": {
                "operationId": "createImage",
                "requestBody": {
                    "prompt": "a photo of it, on a beach",
                    "subject_id": "$response.body#/id",
                },
            }
        },
    ),
    "POST /v1/subjects/preview": Operation(
        "previewReferences",
        "subjects",
        _BODY,
        answers.ReferencePreviews,
        body=lambda options, most: {
            "multipart/form-data": image_form(ReferenceFields, options, most)
        },
    ),
    "GET /v1/subjects": Operation("listSubjects", "subjects", _FOUND, answers.SubjectList),
    "GET /v1/subjects/{subject_id}": Operation("showSubject", "subjects", _FOUND, answers.Subject),
    "GET /v1/subjects/{subject_id}/preview": Operation(
        "previewSubject", "subjects", _FOUND, other={"image/png": _FILE}
    ),
    "GET /v1/subjects/{subject_id}/file": Operation(
        "downloadSubject",
        "subjects",
        (*_FOUND, 409),
        other={"application/octet-stream": _FILE},
        headers=("Content-Disposition",),
    ),
    "DELETE /v1/subjects/{subject_id}": Operation(
        "deleteSubject", "subjects", _FOUND, answers.DeletedSubject
    ),
    "GET /v1/jobs/{job_id}": Operation("showJob", "jobs", _FOUND, answers.Job),
    "POST /v1/jobs/{job_id}/cancel": Operation("cancelJob", "jobs", _FOUND, answers.Job),
    "GET /v1/models": Operation("listModels", "models", _KEYED, answers.ModelList),
    "GET /v1/models/{name}": Operation("showModel", "models", _FOUND, answers.Model),
    "GET /v1/limits": Operation("showLimits", "models", _KEYED, answers.ServerLimits),
    "GET /livez": Operation("isAlive", "operation", _PUBLIC, answers.Alive, may_fail=True),
    "GET /readyz": Operation("isReady", "operation", _PUBLIC, answers.Ready, may_fail=True),
    "GET /metrics": Operation(
        "showMetrics", "operation", (400, 401, 403, 500), other={"text/plain": {"type": "string"}}
    ),
    "POST /v1/admin/reload": Operation(
        "reloadModel",
        "operation",
        _BODY,
        answers.Reloaded,
        body=lambda options, most: {"application/json": json_body(ReloadFields, options, most)},
    ),
}
"""By method and path, as in the table of access."""

PARAMETERS: Mapping[str, Schema] = {
    "subject_id": {"type": "string", "pattern": SUBJECT_ID},
    "job_id": {"type": "string", "pattern": REQUEST_ID},
    "name": {"type": "string", "minLength": 1, "maxLength": 200},
}
"""Schemas of what stands in paths: an id that is none is 404, as one that is not there."""

HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": {
        "description": "That of the request, or a new one; it is the id of the job, too.",
        "required": True,
        "schema": {"type": "string", "pattern": REQUEST_ID},
    },
    "Retry-After": {
        "description": "When to try again, in seconds, where waiting helps.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer "}},
    "Content-Disposition": {"required": True, "schema": {"type": "string"}},
    "X-Reference-Passes": {
        "description": "How often the Reference U-Net ran; 0 where the subject's table was there. "
        "Not of a stream, whose last event says it.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Subject-Id": {
        "description": "Of the kept subject.",
        "schema": {"type": "string", "pattern": SUBJECT_ID},
    },
    "X-Flagged": {
        "description": "The safety checker kept the picture back; the file is a plain grey one.",
        "schema": {"const": "true"},
    },
}
"""Headers of answers."""
