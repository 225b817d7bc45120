"""Pictures of the service are signed: from references to manifests, and back out of each route."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.errors import CredentialsError, ParameterError
from bootpig_rt.images.content_credentials import ContentCredentials, read_credentials
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.images.credentials_report import CredentialsReport
from bootpig_rt.images.encode_image import encode_image
from bootpig_rt.images.picture import read_parameters
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.subject_folder import SubjectFolder, SubjectRecord

pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")

Make = Callable[..., tuple[Path, Path, Path]]
DRAWN = {"prompt": "a photo of a disc, on a beach", "num_inference_steps": "2", "seed": "1"}


@pytest.fixture(scope="module")
def output(make_certificates: Make) -> Output:
    chain, key, _ = make_certificates()
    options = ServerOptions(
        credentials_certificate=str(chain), credentials_key=str(key), credentials_required=True
    )
    return Output.of(options)


@pytest.fixture(scope="module")
def expired(output: Output) -> Output:
    """The same after the certificate's end."""
    assert output.credentials is not None
    files = replace(output.credentials.files, ends=datetime.now(UTC) - timedelta(seconds=1))
    return replace(output, credentials=replace(output.credentials, files=files))


def reports(answer: Any) -> list[CredentialsReport]:
    assert answer.status_code == 200, answer.text
    found = [read_credentials(base64.b64decode(one["b64_json"])) for one in answer.json()["data"]]
    assert None not in found
    return [one for one in found if one is not None]


def digests(report: CredentialsReport) -> list[str]:
    return [one["hash"] for one in report.generation["references"]]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_picture_is_signed_with_the_digest_of_the_file_that_was_sent(
    ask_service: Any, output: Output, reference_png: bytes, format: str
) -> None:
    form = {"data": DRAWN | {"output_format": format}, "files": {"image": reference_png}}
    [report] = reports(ask_service(output, "POST", "/v1/images/edits", **form))
    assert report.state == "Valid"
    assert report.signer == "Test Signer"
    assert digests(report) == [hashlib.sha256(reference_png).hexdigest()]
    assert report.generation["models"][0]["name"]


def test_a_kept_subject_remembers_where_it_came_from(
    ask_service: Any, output: Output, make_certificates: Make
) -> None:
    others = ContentCredentials.load(*make_certificates("Ann Other")[:2], is_required=True)
    drawing = Image.new("RGB", (48, 48), "white")
    drawing.paste("red", (10, 10, 38, 38))
    reference = encode_image(drawing, credentials=others)
    form = {"data": {"reference_prompt": "a photo of a box"}, "files": {"image": reference}}
    made = ask_service(output, "POST", "/v1/subjects", **form).json()
    body = {"prompt": "a photo of a box", "subject_id": made["id"], "num_inference_steps": 2}
    answer = ask_service(output, "POST", "/v1/images/generations", json=body | {"n": 2})
    for report in reports(answer):
        assert digests(report) == [hashlib.sha256(reference).hexdigest()]
        assert list(report.ingredients.values()) == ["inputTo"]


def test_origins_outlive_the_server(tmp_path: Path) -> None:
    record = SubjectRecord(
        id="sub_" + "0" * 24,
        tenant="me",
        model="small",
        reference_prompt="a photo of a box",
        noise_seed=0,
        prepared=(Image.new("RGB", (8, 8), "red"),),
        file=None,
        num_references=1,
        created_at=1.0,
        ttl_s=2.0,
        used_at=3.0,
        is_explicit=True,
        origins=(ReferenceOrigin("a" * 64, b"\0\xff"), ReferenceOrigin("b" * 64)),
    )
    folder = SubjectFolder(tmp_path)
    folder.write(record)
    [again] = folder.records()
    assert again.origins == record.origins
    [file] = tmp_path.iterdir()  # as one that was written before there were origins
    contents = json.loads(file.read_text())
    del contents["origins"]
    file.write_text(json.dumps(contents))
    [old] = folder.records()
    assert old.origins == ()


def test_a_picture_that_cannot_be_signed_does_not_leave(
    ask_service: Any, expired: Output, output: Output
) -> None:
    body = {"prompt": "a disc", "num_inference_steps": 3}
    answer = ask_service(expired, "POST", "/v1/images/generations", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "credentials_unavailable")
    assert "b64_json" not in answer.text
    assert ".pem" not in answer.text
    stream = body | {"stream": True, "partial_images": 1}
    answer = ask_service(expired, "POST", "/v1/images/generations", json=stream)
    assert "event: error" in answer.text
    assert "b64_json" not in answer.text
    answer = ask_service(output, "POST", "/v1/images/generations", json=stream)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    assert len(events) == 2
    for event in events:
        report = read_credentials(base64.b64decode(event["b64_json"]))
        assert report is not None
        assert report.state == "Valid"


def test_a_service_does_not_begin_without_the_files_that_it_must_sign_with(
    make_certificates: Make, caplog: pytest.LogCaptureFixture
) -> None:
    chain, key, _ = make_certificates(days=(-9, -1))
    options = ServerOptions(credentials_certificate=str(chain), credentials_key=str(key))
    with pytest.raises(CredentialsError, match="expired on"):
        Output.of(replace(options, credentials_required=True))
    with caplog.at_level("WARNING", "bootpig_rt"):
        assert Output.of(options) == Output()
    assert "pictures will not be signed" in caplog.text
    with pytest.raises(ParameterError, match="expected both or none"):
        ServerOptions(credentials_certificate=str(chain))


def test_prompts_stay_out_of_files_where_that_is_wished(ask_service: Any) -> None:
    body = {"prompt": "a SECRET disc", "negative_prompt": "SECRET", "num_inference_steps": 2}
    private = Output.of(ServerOptions(omit_prompts=True))
    answer = ask_service(private, "POST", "/v1/images/generations", json=body)
    [one] = answer.json()["data"]
    file = base64.b64decode(one["b64_json"])
    assert b"SECRET" not in file
    assert read_parameters(file)["seed"] == one["seed"]
    assert one["parameters"]["prompt"] == "a SECRET disc"
