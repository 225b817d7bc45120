"""Schemathesis asks a real server for what its OpenAPI file says it takes, and for other things.

All its checks are on: no status of 500, statuses, types, headers and schemas of answers as they are
documented, valid requests taken and others refused, keys asked for, subjects there until they are
deleted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.server.guard.key_changes import add_key

pytest.importorskip("schemathesis")

HERE = Path(__file__).parent
FLAGS = ("--max-steps", "3", "--max-images", "2", "--max-batch", "4", "--max-waiting", "256")
"""Small limits, which the file tells of: requests at them are quick."""


@dataclass(frozen=True)
class Asked:
    """A server, and what schemathesis needs to ask it."""

    url: str
    folder: Path
    environment: dict[str, str]

    def ask(self, *flags: str) -> str:
        """Run schemathesis; what it said, once it found nothing."""
        command = [sys.executable, "-m", "schemathesis.cli"]
        command += ["--config-file", str(HERE / "schemathesis.toml")]
        command += ["run", "openapi.json", "--url", self.url, "--no-color", *flags]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-30_000:] + done.stderr[-2_000:]
        return done.stdout


@pytest.fixture(scope="module")
def asked(
    run_server: Any, reference_png: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("asked")
    key = add_key(folder / "keys.json", "fuzz", role="admin")[1]
    with run_server("--keys", str(folder / "keys.json"), *FLAGS) as server:
        with server.client(headers={"authorization": f"Bearer {key}"}) as client:
            fields = {"reference_prompt": "a photo of a disc"}
            made = client.post("/v1/subjects", data=fields, files={"image": reference_png}).json()
            subject = client.get(f"/v1/subjects/{made['id']}/file").content
            (folder / "one.subject").write_bytes(subject)
            (folder / "openapi.json").write_bytes(client.get("/openapi.json").content)
        environment = os.environ | {
            "PYTHONSAFEPATH": "1",
            "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"),
            "BOOTPIG_RT_FUZZ_KEY": key,
            "BOOTPIG_RT_FUZZ_SUBJECT": str(folder / "one.subject"),
        }
        yield Asked(server.url, folder, environment)
        assert server.stop() == 0
        text = "".join(server.lines)
        assert "Traceback" not in text, text[-5_000:]


@pytest.mark.slow
def test_a_few_requests_of_each_kind_are_answered_as_documented(asked: Asked) -> None:
    flags = ("--phases", "fuzzing", "--max-examples", "2", "--seed", "7", "--no-shrink")
    assert "18 selected / 18 total" in asked.ask(*flags)


@pytest.mark.slow
@pytest.mark.parametrize("accept", ["application/json", "image/*"])
def test_pictures_are_answered_as_documented_in_every_form(asked: Asked, accept: str) -> None:
    asked.ask(
        *("--phases", "fuzzing", "--max-examples", "100"),
        *("--include-path-regex", "^/v1/images/", "--header", f"Accept: {accept}"),
    )


@pytest.mark.slow
def test_very_many_requests_are_answered_as_documented(asked: Asked) -> None:
    asked.ask("--max-examples", "200")
