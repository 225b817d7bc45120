"""Uploads take memory until they are encoded, and no longer."""

from __future__ import annotations

import base64
import gc
import io
import tracemalloc
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.server.output import Output


@pytest.fixture(scope="module")
def large_png() -> bytes:
    """Of some megabytes."""
    stream = io.BytesIO()
    Image.effect_noise((900, 900), 90).convert("RGB").save(stream, "PNG", compress_level=0)
    return stream.getvalue()


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
def test_uploads_are_not_held_while_their_picture_is_drawn(
    local_service: Any,
    ask_service: Any,
    monkeypatch: pytest.MonkeyPatch,
    large_png: bytes,
    is_json: bool,
    is_stream: bool,
) -> None:
    client = local_service[0].client(None)
    submit, looked = client.submit, list[int]()
    held: list[tracemalloc.Trace] = []

    async def submit_and_look(*args: Any, **options: Any) -> Any:
        gc.collect()
        traces = tracemalloc.take_snapshot().traces
        large = [one for one in traces if one.size >= len(large_png) // 2]
        # The client that asks is in this process, too.
        held.extend(one for one in large if "httpx" not in one.traceback[-1].filename)
        looked.append(len(traces))
        return await submit(*args, **options)

    monkeypatch.setattr(client, "submit", submit_and_look)
    fields: dict[str, Any] = {"prompt": "noise, at sea", "num_inference_steps": 1}
    options: dict[str, Any] = {
        "data": fields | {"stream": "true" if is_stream else "false"},
        "files": {"image": large_png},
    }
    if is_json:
        url = "data:image/png;base64," + base64.b64encode(large_png).decode()
        body = fields | {"images": [{"image_url": url}], "stream": is_stream}
        options = {"json": body}
    tracemalloc.start(10)
    try:
        answer = ask_service(Output(), "POST", "/v1/images/edits", **options)
    finally:
        tracemalloc.stop()
    assert answer.status_code == 200, answer.text
    assert looked
    assert held == []
