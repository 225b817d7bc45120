"""An endpoint of your own around the engine.

    uvicorn --app-dir examples service:app

`bootpig-rt serve` has all that a service needs: keys, limits, metrics, a page. This is the way
where drawing is one part of a service that you have. Requests that come at once share a batch; one
whose client goes away is cancelled within a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request, Response, UploadFile

import bootpig_rt
from bootpig_rt import DeadlineExceeded, EngineFull, EngineOptions, InputError, Limits, Pipeline
from bootpig_rt.images.encode_image import encode_image

MAX_BYTES = 8 << 20
LIMITS = Limits(num_inference_steps=50, num_images=1)


@contextlib.asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """The pair is loaded once; the engine runs on a thread of its own."""
    with Pipeline(os.environ.get("PAIR")) as pipe:
        with pipe.serve(EngineOptions(max_waiting=32, limits=LIMITS)) as engine:
            app.state.pipe, app.state.engine = pipe, engine
            yield


app = FastAPI(lifespan=life)


@app.post("/draw")
async def draw(
    call: Request, prompt: str, reference_prompt: str, reference: UploadFile, seed: int = 0
) -> Response:
    """A picture of the subject of `reference`, as a PNG that says what made it."""
    pipe, engine = call.app.state.pipe, call.app.state.engine
    image = await reference.read(MAX_BYTES + 1)
    if len(image) > MAX_BYTES:
        raise HTTPException(413, f"the reference has over {MAX_BYTES} bytes; send a smaller one")
    try:
        subject = await asyncio.to_thread(pipe.encode_subject, image, reference_prompt)
        asked = bootpig_rt.Request(prompt=prompt, subject=subject, seed=seed)
        job = engine.submit(asked, deadline_s=60)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except EngineFull as error:
        wait = {"Retry-After": str(int(error.retry_after_s) + 1)}
        raise HTTPException(429, str(error), wait) from error
    drawing = asyncio.wrap_future(job)
    while not drawing.done():
        await asyncio.wait([drawing], timeout=0.1)
        if await call.is_disconnected():
            job.cancel()
            return Response(status_code=499)
    try:
        result = await drawing
    except DeadlineExceeded as error:
        raise HTTPException(504, str(error)) from error
    parameters = result.parameters[0].to_dict()
    return Response(encode_image(result.images[0], parameters=parameters), media_type="image/png")
