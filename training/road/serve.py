"""The last stretch: the real server in a process of its own, and one picture over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootpig_rt.errors import EngineError
from bootpig_rt.files.atomic import atomic_write_bytes

_STOP_S = 60
_ANSWER_S = 300


def draw_over_http(
    bundle: Path, reference: Path, picture: Path, *, prompt: str, reference_prompt: str, log: Path
) -> dict[str, Any]:
    """Serve a bundle on a free port, ask it for one picture, write that, and stop the server.

    Args:
        bundle: What is served.
        reference: A PNG of the subject.
        picture: The PNG to write.
        prompt: What is drawn.
        reference_prompt: What the reference shows.
        log: Takes what the server logs.

    Returns:
        The request and what the answer says beside the picture.

    Raises:
        EngineError: The server did not begin, refused, or did not end well.
        StorageError: The picture cannot be written.
    """
    encoded = base64.b64encode(reference.read_bytes()).decode()
    body = {
        "prompt": prompt,
        "reference_prompt": reference_prompt,
        "images": [{"image_url": f"data:image/png;base64,{encoded}"}],
        "seed": 1,
    }
    with _server(bundle, log) as address:
        request = urllib.request.Request(
            f"{address}/v1/images/edits",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                found = json.load(answer)
        except (OSError, ValueError) as error:
            said = error.read(2000).decode() if isinstance(error, urllib.error.HTTPError) else ""
            raise EngineError(
                f"the server at {address} gave no picture ({error}) {said}; its log is {log}"
            ) from error
    atomic_write_bytes(picture, base64.b64decode(found["data"][0].pop("b64_json")))
    told = {key: found.get(key) for key in ("reference_passes", "timings", "warnings")}
    return {"route": "POST /v1/images/edits", "prompt": prompt, "seed": 1, **told}


@contextlib.contextmanager
def _server(bundle: Path, log: Path) -> Iterator[str]:
    """The address of a server that is ready; it is told to stop at the end."""
    command = [sys.executable, "-m", "bootpig_rt", "serve", str(bundle), "--port", "0"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment
        )
    try:
        first_line = server.stdout.readline() if server.stdout else ""
        if "is ready at" not in first_line:
            raise EngineError(f"`bootpig-rt serve {bundle}` did not begin; its log is {log}")
        yield first_line.split()[-1]
    except BaseException:
        server.kill()
        server.wait()
        raise
    server.terminate()
    try:
        server.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired as error:
        server.kill()
        server.wait()
        raise EngineError(f"the server did not stop in {_STOP_S} s; its log is {log}") from error
    if server.returncode != 0:
        raise EngineError(f"the server ended with {server.returncode}, not 0; its log is {log}")
