"""What `export-triton` writes beside the configuration: a README, a Dockerfile, a `model.py`."""

from __future__ import annotations

MODEL_PY = '''\
"""Written by `bootpig-rt export-triton`; Triton's Python backend loads it."""

from bootpig_rt.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

DOCKERFILE = """\
# docker build -t bootpig-triton .
# docker run --rm {gpus}--shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 bootpig-triton
ARG TRITON=nvcr.io/nvidia/tritonserver:25.10-py3
FROM ${{TRITON}}
ARG BOOTPIG="bootpig-rt[{extra}]=={version}"
# Triton's Python backend is built for numpy 1.
RUN pip install --no-cache-dir "${{BOOTPIG}}" "numpy<2"
COPY {name} /models/{name}
USER triton-server
CMD ["tritonserver", "--model-repository=/models", "--http-max-input-size=33554432"]
"""

README = """\
# {name} for NVIDIA Triton

Written by bootpig-rt {version}. The Python backend runs `bootpig_rt` itself: the same engine
batches the requests between steps, keeps reference tables of subjects, and gives the pictures that
it gives anywhere else.

    docker build -t bootpig-triton .
    docker run --rm {gpus}--shm-size 1g -p 8000:8000 -p 8001:8001 -p 8002:8002 bootpig-triton

Or in a Triton that has `bootpig-rt[{extra}]` and `numpy<2` in the environment of its Python backend
(Tritons that were built for numpy 1 read tensors wrongly with numpy 2; the model refuses to load):

    tritonserver --model-repository=.

A request, with `pip install tritonclient[{client}] pillow`:

```python
{example}```

| input | type | shape | |
|---|---|---|---|
{inputs}

| output | type | shape |
|---|---|---|
{outputs}

- `SUBJECT` is the contents of a file that `bootpig-rt encode-subject` wrote. With
  `REFERENCE_IMAGES` (PNG, JPEG or WebP files) and `REFERENCE_PROMPT` the images are encoded here;
  the same ones again cost nothing.
- `CONTROL_IMAGES` are files of maps that the pictures follow, and `CONTROL_KINDS` what each shows:
  for `depth` the pair has a `controlnet_depth`. `CONTROL_SCALES` and `CONTROL_INTERVALS` (shares of
  the steps, from and to) are for all maps, or one for each.
- A request's `timeout` is its deadline. Cancelling one stops it within a step.
- `max_batch` pictures are drawn at once and `max_waiting` may wait; one more is answered
  UNAVAILABLE.
- `PNG` holds the marks and parameters of a generated picture; `IMAGES` are the bare pixels.
{stream}"""

STREAM = """\
- The model is decoupled: call it over gRPC streams. With `PREVIEW_EVERY` previews are sent on the
  way, with `IMAGES` and `PROGRESS` (steps done, of all) alone.
"""

EXAMPLE = """\
import numpy as np
import tritonclient.http as triton


def text(name, *values):
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
    return tensor


client = triton.InferenceServerClient("localhost:8000")
inputs = [
    text("PROMPT", b"a photo of a dog, on a beach"),
    text("REFERENCE_IMAGES", open("dog.png", "rb").read()),
    text("REFERENCE_PROMPT", b"a photo of a dog"),
]
answer = client.infer("{name}", inputs, outputs=[triton.InferRequestedOutput("PNG")])
open("out.png", "wb").write(answer.as_numpy("PNG")[0])
"""

STREAM_EXAMPLE = """\
import queue

import numpy as np
import tritonclient.grpc as triton


def text(name, *values):
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
    return tensor


every = triton.InferInput("PREVIEW_EVERY", [1], "INT32")
every.set_data_from_numpy(np.array([4], dtype=np.int32))
inputs = [
    text("PROMPT", b"a photo of a dog, on a beach"),
    text("REFERENCE_IMAGES", open("dog.png", "rb").read()),
    text("REFERENCE_PROMPT", b"a photo of a dog"),
    every,
]
answers = queue.Queue()
client = triton.InferenceServerClient("localhost:8001")
client.start_stream(callback=lambda result, error: answers.put((result, error)))
client.async_stream_infer("{name}", inputs)
while True:
    result, error = answers.get(timeout=300)
    if error is not None:
        raise error
    done, total = result.as_numpy("PROGRESS")
    print(done, "of", total, "steps", result.as_numpy("IMAGES").shape)
    if result.as_numpy("PNG") is not None:
        open("out.png", "wb").write(result.as_numpy("PNG")[0])
        break
client.stop_stream()
"""
