"""Forms as the routes read them, without a server around."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest
from starlette import formparsers
from starlette.requests import Request

from bootpig_rt.server.calls import read_form
from bootpig_rt.server.errors import ApiError

HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'


@pytest.mark.parametrize("body", [HEAD + b"abc", HEAD + b"abc\r\n" + HEAD + b"abc"])
def test_a_file_that_was_cut_off_is_closed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(tempfile.SpooledTemporaryFile(**options))
        return made[-1]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> None:
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        async with read_form(Request({"type": "http", "headers": headers}, receive)):
            pass

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", make)
    with pytest.raises(ApiError, match="cut short"):
        asyncio.run(read())
    assert made
    assert all(one.closed for one in made)
