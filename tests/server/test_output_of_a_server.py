"""Checker, credentials and blocklist as the flags of a server ask for them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.errors import EXIT_BAD_INPUT
from bootpig_rt.images.content_credentials import read_credentials
from bootpig_rt.images.picture import load_image, read_parameters
from bootpig_rt.server.nsfw import OpenNsfw
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output

pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")

Make = Callable[..., tuple[Path, Path, Path]]
FORM = {"prompt": "a disc, on a beach", "n": "4", "num_inference_steps": "2", "seed": "1"}


def files_of(answer: Any) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


@pytest.fixture
def credentials_flags(make_certificates: Make) -> list[str]:
    chain, key, _ = make_certificates()
    return ["--credentials-certificate", str(chain), "--credentials-key", str(key)]


def test_pictures_of_a_server_are_judged_signed_and_without_prompts(
    start_server: Any,
    ask_service: Any,
    write_network: Callable[..., Path],
    credentials_flags: list[str],
    tmp_path: Path,
    reference_png: bytes,
) -> None:
    request = {"data": FORM, "files": {"image": reference_png}}
    unjudged = files_of(ask_service(Output(), "POST", "/v1/images/edits", **request))
    network = write_network()
    scores = OpenNsfw(network).scores([load_image(one) for one in unjudged])
    worst, threshold = scores.index(max(scores)), sum(sorted(scores)[-2:]) / 2
    (tmp_path / "blocked.txt").write_text("grape\n")
    server = start_server(
        *("--safety-model", str(network), "--safety-threshold", repr(threshold)),
        *("--blocklist", str(tmp_path / "blocked.txt"), "--omit-prompts"),
        *(*credentials_flags, "--credentials-required"),
    )
    with server.client() as client:
        answer = client.post("/v1/images/edits", **request)
        blocked = client.post("/v1/images/generations", json={"prompt": "a grape"})
        metrics = client.get("/metrics").text
    assert [one["flagged"] for one in answer.json()["data"]] == [n == worst for n in range(4)]
    for number, file in enumerate(files_of(answer)):
        pixels = load_image(file)
        report = read_credentials(file)
        assert b"a disc" not in file
        if number == worst:
            assert pixels.getcolors() == [(32 * 32, (128, 128, 128))]
            assert report is None
            continue
        assert pixels.tobytes() == load_image(unjudged[number]).tobytes()
        assert read_parameters(file)["seed"] == number + 1
        assert report is not None
        assert report.state == "Valid"
        digest = hashlib.sha256(reference_png).hexdigest()
        assert report.generation["references"] == [{"alg": "sha256", "hash": digest}]
    assert blocked.status_code == 400
    assert blocked.json()["error"]["code"] == "content_policy"
    assert 'outcome="flagged"} 1.0' in metrics
    assert 'refusals_total{reason="content_policy"} 1.0' in metrics
    assert not any("grape" in line for line in server.lines)


def test_a_server_whose_checker_fails_gives_no_picture_and_goes_on(
    ask_service: Any, write_network: Callable[..., Path]
) -> None:
    options = ServerOptions(safety_model=str(write_network(fails=True)))
    body = {"prompt": "a dog", "seed": 1}
    answer = ask_service(Output.of(options), "POST", "/v1/images/generations", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "safety_unavailable"
    assert "b64_json" not in answer.text
    assert ask_service(Output(), "GET", "/readyz").status_code == 200


@pytest.fixture
def start_fails(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that begins a server in this process, which must fail, and returns its words."""
    monkeypatch.setattr("bootpig_rt.server.run.keep_heap_small", lambda: False)

    def start(*flags: str) -> str:
        assert main(["serve", str(tiny_bundle_folder), "--port", "0", *flags]) == EXIT_BAD_INPUT
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return start


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--safety-model", "none.onnx"], "there is no file 'none.onnx'"),
        (["--blocklist", "none.txt"], "cannot read the blocklist 'none.txt'"),
    ],
)
def test_a_server_does_not_begin_without_what_it_was_told_to_have(
    start_fails: Callable[..., str], flags: list[str], expected: str
) -> None:
    said = start_fails(*flags)
    assert expected in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_server_that_must_sign_does_not_begin_with_a_certificate_that_has_expired(
    start_fails: Callable[..., str], make_certificates: Make
) -> None:
    chain, key, _ = make_certificates(days=(-9, -1))
    flags = ["--credentials-certificate", str(chain), "--credentials-key", str(key)]
    said = start_fails(*flags, "--credentials-required").splitlines()
    assert "expired on" in said[-1]
    assert "renew it" in said[-1]
