"""What goes wrong around a service that runs for long: clients, disks, and the process itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import resource
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.serving.client import Client
from bootpig_rt.benchmarks.serving.dialects import OurDialect
from bootpig_rt.benchmarks.serving.workload import Mix, asks

_ANSWER_S = 30.0
_FULL_BYTES = 4096
_AWAY = "bad inputs while there was no server"

_NO_IMAGE = base64.b64encode(b"no image at all").decode()
_HUGE = "iVBORw0KGgoAAAANSUhEUgAAw1AAAMNQCAYAAAA="
"""The first bytes of a PNG of 50,000 x 50,000 pixels."""


def bad_inputs() -> Iterator[tuple[str, bytes, str]]:
    """Path, body and type of requests that nobody should send."""

    def body(path: str = "/v1/images/generations", **fields: Any) -> tuple[str, bytes, str]:
        return path, json.dumps({"prompt": "a dog", **fields}).encode(), "application/json"

    yield "/v1/images/generations", b'{"prompt": ', "application/json"
    yield "/v1/images/generations", b"[" * 20_000, "application/json"
    yield "/v1/images/generations", b"\xff\xfe\x00", "application/json"
    yield "/v1/images/generations", b"<p/>", "text/xml"
    yield "/v1/images/edits", b"--x\r\nContent-Disposition: form-data", "multipart/form-data"
    yield "/v1/subjects", b"--x--", "multipart/form-data; boundary=x"
    yield body(n=10**9)
    yield body(size="99999x99999")
    yield body(num_inference_steps=-1)
    yield body(colour="red")
    yield body(prompt=" ")
    yield body(subject_id="sub_000000000000000000000000")
    for image in (_NO_IMAGE, _HUGE, "%%%"):
        url = f"data:image/png;base64,{image}"
        yield body("/v1/images/edits", images=[{"image_url": url}], reference_prompt="a dog")
    yield body("/v1/images/edits", images=[{"image_url": "file:///etc/passwd"}])


async def leave(client: Client, mix: Mix, rate_per_s: float, counts: Counter[str]) -> None:
    """Clients that ask for a picture and go away before it is there; until it is cancelled."""
    rng = np.random.default_rng(7)
    for number in itertools.count(1):
        await asyncio.sleep(rng.exponential(1 / rate_per_s))
        request = client.send("POST", *OurDialect({}).request(asks(mix, 1, 1, seed=number)[0]))
        counts["clients that left"] += 1
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(request, float(rng.uniform(0.0, 0.3)))


async def send_bad(client: Client, every_s: float, counts: Counter[str]) -> None:
    """Requests that must be refused with 4xx, one after the other; until it is cancelled."""
    for bad in itertools.cycle(list(bad_inputs())):
        await asyncio.sleep(every_s)
        try:
            answer = await asyncio.wait_for(client.send("POST", *bad), _ANSWER_S)
        except TimeoutError:
            counts["bad inputs without an answer"] += 1
        except OSError:  # a server that is busy dying
            counts[_AWAY] += 1
        else:
            is_right = 400 <= answer.status < 500
            kind = "4xx" if is_right else str(answer.status)
            gone = answer.status == 503  # it was started again, and is not ready
            counts[_AWAY if gone else f"bad inputs answered with {kind}"] += 1


def fill_disk(pid: int, *, is_full: bool) -> None:
    """No file of a process may grow over a few kilobytes, as on a disk that is full; or again any.

    What it is told is EFBIG in place of ENOSPC: the same kind of error, and nobody needs a disk of
    his own, or rights, to test it.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FULL_BYTES if is_full else hard, hard))
