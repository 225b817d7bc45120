"""The OpenAPI file of one server: its routes, with the limits and keys that it has."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bootpig_rt.server.guard.access import Access
from bootpig_rt.server.openapi import answers
from bootpig_rt.server.openapi.bodies import Schema, value_of
from bootpig_rt.server.openapi.operations import ERRORS, HEADERS, OPERATIONS, PARAMETERS, Operation
from bootpig_rt.server.service import Service
from bootpig_rt.server.stack import access_of

_SCHEME = "key"
_RETRIED = (429, 503)


def describe(app: FastAPI, service: Service) -> dict[str, Any]:
    """The file, for the models that are loaded now.

    Args:
        app: With all routes.
        service: Behind them.
    """
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description="Errors are OpenAI's. With one picture and `Accept: image/png`, or the format "
        "that is asked for, the answer is the picture's file.",
        routes=app.routes,
    )
    access = access_of(service.options)
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            entry = f"{method.upper()} {path}"
            told.update(_operation(OPERATIONS[entry], service, access[entry]))
            told["parameters"] = [*map(_parameter, told.get("parameters", ())), _REQUEST_ID]
    document["components"] = {
        "schemas": _schemas(),
        "responses": {f"Error{status}": _error(status) for status in ERRORS},
        "headers": dict(HEADERS),
        "securitySchemes": {
            _SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of `bootpig-rt keys`, on a server that has some.",
            }
        },
    }
    return document


_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Up to 64 letters, digits, `_` and `-`, to ask after the request by; any other "
    "is passed over for a new one.",
    "schema": {"type": "string"},
}


def _operation(operation: Operation, service: Service, access: Access) -> dict[str, Any]:
    content: Schema = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": _ref("schemas", operation.answer.__name__)}
    content |= {name: {"schema": schema} for name, schema in operation.other.items()}
    answer: Schema = {
        "description": "As asked for.",
        "headers": _headers("X-Request-Id", *operation.headers),
        "content": content,
    }
    if operation.links:
        answer["links"] = {name: dict(link) for name, link in operation.links.items()}
    responses = {str(operation.status): answer}
    responses |= {str(status): _ref("responses", f"Error{status}") for status in operation.errors}
    if operation.may_fail:
        responses["503"] = answer | {"description": "Not now."}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "responses": dict(sorted(responses.items())),
        "security": _security(service, access),
    }
    if operation.body is not None:
        options = service.options
        facts = [one.facts for one in service.clients.values()]
        most = max((one.max_references for one in facts), default=options.max_references)
        body = operation.body(options, most)
        described["requestBody"] = {"required": True, "content": dict(body)}
    return described


def _security(service: Service, access: Access) -> list[dict[str, list[str]]]:
    """None for what is public; a key with a role; either on a server without keys."""
    if access == "public":
        return []
    with_key: dict[str, list[str]] = {_SCHEME: ["admin"] if access == "admin" else []}
    return [with_key] if service.options.keys is not None else [{}, with_key]


def _parameter(parameter: Schema) -> Schema:
    if parameter["in"] == "path":
        return parameter | {"schema": PARAMETERS[parameter["name"]]}
    return parameter | {"schema": value_of(parameter["schema"])}  # nothing is null there


def _error(status: int) -> Schema:
    text, codes = ERRORS[status]
    names = ["X-Request-Id"]
    if status in _RETRIED:
        names.append("Retry-After")
    if status == 401:
        names.append("WWW-Authenticate")
    code = {"properties": {"error": {"properties": {"code": {"enum": list(codes)}}}}}
    schema = {"allOf": [_ref("schemas", "ErrorAnswer"), code]}
    return {
        "description": text,
        "headers": _headers(*names),
        "content": {"application/json": {"schema": schema}},
    }


def _headers(*names: str) -> Schema:
    return {name: _ref("headers", name) for name in names}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schemas() -> Schema:
    """Every model of an answer, by its name."""
    found = [one for one in vars(answers).values() if isinstance(one, type)]
    models = [one for one in found if issubclass(one, BaseModel) and one is not BaseModel]
    _, schema = models_json_schema(
        [(one, "serialization") for one in models if not one.__name__.startswith("_")],
        ref_template="#/components/schemas/{model}",
    )
    definitions: Schema = schema["$defs"]
    return definitions
