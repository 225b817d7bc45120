"""The model that Triton's Python backend loads: our engine behind Triton's queue.

Triton hands over a request and goes on at once; the answer is sent when the engine has it. So many
requests are on their way at a time, and the engine batches them between steps as it does anywhere,
though each is a request of its own to Triton. With the decoupled transaction policy previews are
sent on the way.

`bootpig-rt export-triton` writes the repository whose `model.py` names the class here. Triton calls
its methods; see the documentation of the Python backend for when.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.engine.engine import JobOptions
from bootpig_rt.engine.events import Event, StepEvent
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.errors import (
    BackendUnavailable,
    BootPIGError,
    Cancelled,
    CheckpointError,
    DeadlineExceeded,
    EngineFull,
    InputError,
    SubjectMismatch,
)
from bootpig_rt.images.encode_image import encode_image
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.serving.triton_tensors import INPUTS, TritonCall, read_call, text_tensor

logger = logging.getLogger(__name__)

_READERS = 4
"""Threads that read requests and encode their references, beside the engine's own."""

_SUBJECTS_KEPT = 256

MAX_SUBJECT_BYTES = 64 << 20
"""Of a subject's file in a request."""


class TritonPythonModel:
    """What Triton's Python backend looks for in a `model.py`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the pair that the configuration names, and start its engine."""
        # Only inside of Triton's own process there is such a module.
        import triton_python_backend_utils as triton_utils

        self._triton: Any = triton_utils
        _check_arrays(triton_utils)
        config = json.loads(args["model_config"])
        self._is_decoupled = bool(triton_utils.using_decoupled_model_transaction_policy(config))
        told = {name: one["string_value"] for name, one in config.get("parameters", {}).items()}
        here = Path(args["model_repository"]) / args["model_version"]
        threads, store = int(told.get("threads", 0)), told.get("store")
        device = "cpu"
        if args["model_instance_kind"] == "GPU":
            device = f"cuda:{args['model_instance_device_id']}"
        self._pipeline = Pipeline(
            here / told["model"],
            backend=OnnxRuntimeOptions(intra_op_threads=threads) if threads else "auto",
            device=device,
            max_batch=int(told["max_batch"]),
            tables=TableOptions(folder=store) if store else None,
            pair=PairOptions(trust=here / told["trust"] if "trust" in told else None),
        )
        self._pipeline.warmup()
        self._engine = self._pipeline.serve(EngineOptions(max_waiting=int(told["max_waiting"])))
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._lock = Lock()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="bootpig-triton")
        # One thread: what is sent for a request stays in order.
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="bootpig-triton-send")

    def execute(self, requests: Sequence[Any]) -> list[None] | None:
        """Take requests; each is answered through its response sender, when it is done."""
        for request in requests:
            answer = _Answer(self, request)
            try:
                # Here, not on a thread: the tensors are gone when this method returns.
                call = read_call(self._tensors(request))
            except BootPIGError as error:
                self.later(answer.fail, error)
                continue
            timeout_us = request.timeout()
            options: JobOptions = {
                "on_event": answer.on_event,
                "preview_every": call.preview_every if self._is_decoupled else None,
                "deadline_s": timeout_us / 1e6 if timeout_us else None,
                "request_id": request.request_id(),
            }
            self._readers.submit(self._take, answer, call, options)
        return None if self._is_decoupled else [None] * len(requests)

    def finalize(self) -> None:
        """Draw what was asked for, and end."""
        self._readers.shutdown(wait=True)
        self._engine.close()
        self._sender.shutdown(wait=True)
        self._pipeline.close()

    def _take(self, answer: _Answer, call: TritonCall, options: JobOptions) -> None:
        try:
            job = self._engine.submit(call.request(self._subject(call)), **options)
        except Exception as error:  # whatever it is, Triton waits for an answer
            self.later(answer.fail, error)
            return
        job.add_done_callback(lambda _: self.later(answer.end, job))

    def later(self, send: Callable[..., None], *args: Any) -> None:
        """Send something, in its turn, on the thread that sends."""
        self._sender.submit(_logging_errors(send), *args)

    def _tensors(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        found = {}
        for one in INPUTS:
            tensor = self._triton.get_input_tensor_by_name(request, one.name)
            if tensor is not None:
                found[one.name] = tensor.as_numpy()
        return found

    def _subject(self, call: TritonCall) -> Subject | None:
        """The subject of a call: of its file, or encoded unless the same images were lately."""
        if not call.images and not call.subject_file:
            return None
        digest = hashlib.sha256(call.subject_file + b"|" + call.reference_prompt.encode())
        for image in call.images:
            digest.update(hashlib.sha256(image).digest())
        key = digest.hexdigest()
        with self._lock:
            known = self._subjects.get(key)
            if known is not None:
                self._subjects.move_to_end(key)
                return known
        if call.subject_file:
            subject = _subject_of(call.subject_file, self._pipeline)
        else:
            subject = self._pipeline.encode_subject(list(call.images), call.reference_prompt)
        with self._lock:
            self._subjects[key] = subject
            while len(self._subjects) > _SUBJECTS_KEPT:
                self._subjects.popitem(last=False)
        return subject


class _Answer:
    """Where the answer of one request goes."""

    def __init__(self, model: TritonPythonModel, request: Any) -> None:
        self._model, self._triton = model, model._triton
        self._sender = request.get_response_sender()
        self._wanted = set(request.requested_output_names())
        self._is_decoupled = model._is_decoupled

    def on_event(self, event: Event) -> None:
        """On the engine's thread, after each launch."""
        if self._sender.is_cancelled():
            raise Cancelled("the client cancelled the request")
        if self._is_decoupled and isinstance(event, StepEvent) and event.previews:
            self._model.later(self._preview, event)

    def end(self, job: Job) -> None:
        """The result, or what it failed with."""
        try:
            result = job.result()
        except Exception as error:  # of any runtime: Triton waits for an answer
            self.fail(error)
            return
        parameters = [one.to_dict() for one in result.parameters]
        made: dict[str, Callable[[], npt.NDArray[Any]]] = {
            "IMAGES": lambda: _stack(result.images),
            "PNG": lambda: text_tensor(
                [
                    encode_image(image, parameters=one)
                    for image, one in zip(result.images, parameters, strict=True)
                ]
            ),
            "PARAMETERS": lambda: text_tensor([json.dumps(one).encode() for one in parameters]),
            "REFERENCE_PASSES": lambda: np.array([result.reference_passes], dtype=np.int32),
            "PROGRESS": lambda: np.array([job.total_steps, job.total_steps], dtype=np.int32),
        }
        self._send(made, is_last=True)

    def fail(self, error: BaseException) -> None:
        """What went wrong, in one of the words that Triton has for it."""
        errors = self._triton.TritonError
        message = str(error)
        match error:
            case InputError() | SubjectMismatch() | CheckpointError():
                code = errors.INVALID_ARG
            case EngineFull() | DeadlineExceeded():
                code = errors.UNAVAILABLE
            case Cancelled():
                code = errors.CANCELLED
            case BootPIGError():
                code = errors.INTERNAL
            case _:
                logger.error("a request failed in a way that was not foreseen", exc_info=error)
                code, message = errors.INTERNAL, "the model failed; its log says why"
        response = self._triton.InferenceResponse(error=errors(message, code))
        self._sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _preview(self, event: StepEvent) -> None:
        images = list(event.previews or ())
        progress = np.array([event.done, event.total], dtype=np.int32)
        self._send({"IMAGES": lambda: _stack(images), "PROGRESS": lambda: progress}, is_last=False)

    def _send(self, made: Mapping[str, Callable[[], npt.NDArray[Any]]], *, is_last: bool) -> None:
        """What was asked for; all of it where nothing was named."""
        try:
            tensors = [
                self._triton.Tensor(name, make())
                for name, make in made.items()
                if not self._wanted or name in self._wanted
            ]
        except Exception as error:  # as in `end`
            if not is_last:
                raise
            self.fail(error)
            return
        flags = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0
        self._sender.send(self._triton.InferenceResponse(output_tensors=tensors), flags=flags)


def _check_arrays(triton_utils: Any) -> None:
    """Refuse a Triton that was built for another numpy: it reads every tensor wrongly.

    Raises:
        BackendUnavailable: It is one.
    """
    sent = np.arange(6, dtype=np.int32)
    capsule = triton_utils.Tensor("SENT", sent).to_dlpack()
    read = triton_utils.Tensor.from_dlpack("READ", capsule).as_numpy()
    if not np.array_equal(read, sent):
        raise BackendUnavailable(
            f"this Triton reads {sent.tolist()} as {read.tolist()}: it was built for another numpy "
            f"than {np.__version__}; pip install 'numpy<2' into the environment of its Python "
            "backend"
        )


def _stack(images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
    """[N, H, W, 3]."""
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in images])


def _subject_of(data: bytes, pipeline: Pipeline) -> Subject:
    if len(data) > MAX_SUBJECT_BYTES:
        raise InputError(f"SUBJECT has {len(data)} bytes, expected at most {MAX_SUBJECT_BYTES}")
    with tempfile.TemporaryDirectory(prefix="bootpig-triton-") as folder:
        path = Path(folder) / "request.subject"
        path.write_bytes(data)
        return pipeline.load_subject(path)


def _logging_errors(send: Callable[..., None]) -> Callable[..., None]:
    """A thread pool keeps what its work raises to itself; nobody would hear of it."""

    def run(*args: Any) -> None:
        try:
            send(*args)
        except Exception:  # the client is gone, or Triton ends
            logger.exception("an answer could not be sent")

    return run
