"""The OpenAPI file says what a server answers: its answers fit, and nothing of them is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from bootpig_rt.server.app import create_app
from bootpig_rt.server.openapi import answers
from bootpig_rt.server.openapi.operations import ERRORS, OPERATIONS
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.stack import ACCESS

jsonschema: Any = pytest.importorskip("jsonschema")

SHORT: dict[str, Any] = {"prompt": "a photo of a disc, in the snow", "num_inference_steps": 2}
DRAW = "/v1/images/generations"


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.fixture
def subject(client: httpx.Client, reference_png: bytes) -> dict[str, Any]:
    fields = {"reference_prompt": "a photo of a disc"}
    answer = client.post("/v1/subjects", data=fields, files={"image": reference_png})
    answers.NewSubject.model_validate_json(answer.content, extra="forbid")
    found: dict[str, Any] = answer.json()
    return found


def every(node: Any, key: str) -> Iterator[Any]:
    """Values of a key, wherever it is."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if name == key:
            yield value
        if isinstance(value, dict | list):
            yield from every(value, key)


def test_every_route_is_described_with_a_name_of_its_own(document: dict[str, Any]) -> None:
    described = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert described.keys() == OPERATIONS.keys() == set(ACCESS) - {"GET /openapi.json"}
    assert len({one["operationId"] for one in described.values()}) == len(described)
    for operation in described.values():
        assert operation["summary"]
        assert operation["description"]


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: dict[str, Any]) -> None:
    for reference in every(document, "$ref"):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    for schema in [*every(document["paths"], "schema"), document["components"]["schemas"]]:
        jsonschema.Draft202012Validator.check_schema(schema)
    for link in every(document, "links"):
        for one in link.values():
            assert one["operationId"] in every(document, "operationId")


def test_every_status_has_the_body_of_an_error_or_that_of_its_answer(
    document: dict[str, Any],
) -> None:
    for entry, operation in OPERATIONS.items():
        method, path = entry.split(" ")
        told = document["paths"][path][method.lower()]["responses"]
        expected = {*operation.errors, operation.status, *([503] if operation.may_fail else [])}
        assert set(told) == {str(status) for status in expected}
        for status in operation.errors:
            assert told[str(status)] == {"$ref": f"#/components/responses/Error{status}"}
    assert {f"Error{status}" for status in ERRORS} == set(document["components"]["responses"])


def test_limits_are_those_of_the_server(document: dict[str, Any], client: httpx.Client) -> None:
    limits = client.get("/v1/limits").json()
    (model,) = client.get("/v1/models").json()["data"]
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    fields = content["application/json"]["schema"]["properties"]
    assert fields["n"]["maximum"] == limits["max_images"]
    assert fields["num_inference_steps"]["anyOf"][0]["maximum"] == limits["max_steps"]
    assert fields["deadline_s"]["anyOf"][0]["maximum"] == limits["max_deadline_s"]
    assert fields["images"]["maxItems"] == model["max_references"]
    form = content["multipart/form-data"]["schema"]["properties"]
    assert form["image[]"]["maxItems"] == model["max_references"]
    assert form["num_inference_steps"]["maximum"] == limits["max_steps"]
    assert None not in every(form, "default")


def test_no_more_pictures_are_promised_than_can_wait() -> None:
    assert ServerOptions(max_images=10, max_waiting=4).most_images == 4
    assert ServerOptions(max_images=4, max_waiting=10).most_images == 4


def test_a_key_is_asked_for_where_the_server_asks_for_one(
    document: dict[str, Any], local_service: Any
) -> None:
    service, _ = local_service
    options = service.options
    service.options = replace(options, keys="keys.json", public_metrics=True)
    try:
        paths = create_app(service).openapi()["paths"]
    finally:
        service.options = options
    assert document["paths"]["/v1/models"]["get"]["security"] == [{}, {"key": []}]
    assert paths["/v1/models"]["get"]["security"] == [{"key": []}]
    assert paths["/v1/admin/reload"]["post"]["security"] == [{"key": ["admin"]}]
    assert paths["/livez"]["get"]["security"] == paths["/metrics"]["get"]["security"] == []


@pytest.mark.parametrize(
    ("entry", "body"),
    [
        ("POST /v1/images/generations", SHORT | {"n": 2}),
        ("GET /v1/subjects", None),
        ("GET /v1/subjects/{subject_id}", None),
        ("GET /v1/models", None),
        ("GET /v1/models/{name}", None),
        ("GET /v1/limits", None),
        ("GET /livez", None),
        ("GET /readyz", None),
        ("GET /v1/jobs/{job_id}", None),
        ("POST /v1/jobs/{job_id}/cancel", None),
        ("DELETE /v1/subjects/{subject_id}", None),
        ("POST /v1/admin/reload", {}),
    ],
)
def test_an_answer_has_all_that_its_model_has_and_no_more(
    client: httpx.Client, subject: dict[str, Any], entry: str, body: dict[str, Any] | None
) -> None:
    client.post(DRAW, json=SHORT, headers={"x-request-id": "of-the-file"})
    method, path = entry.split(" ")
    path = path.format(subject_id=subject["id"], name="tiny_bundle", job_id="of-the-file")
    answer = client.request(method, path, json=body)
    assert answer.status_code == OPERATIONS[entry].status, answer.text
    model = OPERATIONS[entry].answer
    assert model is not None
    model.model_validate_json(answer.content, extra="forbid", strict=True)


def test_previews_of_references_and_errors_have_all_that_their_models_have(
    client: httpx.Client, reference_png: bytes
) -> None:
    seen = client.post("/v1/subjects/preview", files={"image": reference_png})
    answers.ReferencePreviews.model_validate_json(seen.content, extra="forbid", strict=True)
    for answer in (client.get("/v1/jobs/none"), client.post(DRAW, json={}), client.put(DRAW)):
        answers.ErrorAnswer.model_validate_json(answer.content, extra="forbid", strict=True)


def test_events_of_a_stream_have_all_that_their_models_have(client: httpx.Client) -> None:
    models: dict[str, Any] = {
        "image_generation.partial_image": answers.PartialImageEvent,
        "image_generation.completed": answers.CompletedEvent,
        "bootpig.progress": answers.ProgressEvent,
        "error": answers.ErrorEvent,
    }
    body = SHORT | {"num_inference_steps": 4, "stream": True, "progress": True, "partial_images": 1}
    text = client.post(DRAW, json=body).text
    late = {"deadline_s": 0.05, "num_inference_steps": 50, "n": 10}
    text += client.post(DRAW, json=body | late).text
    seen = set()
    for block in filter(None, text.split("\n\n")):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        data = json.loads(lines["data"])
        assert data["type"] == lines["event"]
        models[lines["event"]].model_validate_json(lines["data"], extra="forbid", strict=True)
        seen.add(lines["event"])
    assert seen == models.keys()


def test_a_picture_in_a_file_says_beside_it_what_its_subject_cost(
    client: httpx.Client, reference_png: bytes
) -> None:
    fields = {"reference_prompt": "a photo of a file", "num_inference_steps": "2"}
    passes = []
    for accept in ("image/png", "image/png", "application/json"):
        answer = client.post(
            "/v1/images/edits",
            data=fields | {"prompt": "a disc, at sea"},
            files={"image": reference_png},
            headers={"accept": accept},
        )
        assert answer.headers["content-type"] == accept
        assert answer.headers["x-subject-id"].startswith("sub_")
        passes.append(int(answer.headers["x-reference-passes"]))
    assert passes[0] > 0
    assert passes[1:] == [0, 0]
    assert answer.json()["reference_passes"] == 0
