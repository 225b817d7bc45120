"""This package's ways to a picture, and its step alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseBatch, DenoiseRun, FloatArray
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT, SEED
from bootpig_rt.pipeline import GenerationResult, Pipeline, Request
from bootpig_rt.subject_store import SubjectStore


class OurWay:
    """A pipeline with a subject that it knows, and one that keeps nothing.

    Args:
        folder: Of the pair.
        backend: `onnxruntime` or `torch`.
        threads: Of ONNX Runtime; torch's are pinned by the caller.
        references: Pictures of the subject.
        options: Further options of the pipeline.
    """

    def __init__(
        self,
        folder: Path,
        *,
        backend: str = "onnxruntime",
        threads: int = 2,
        references: int = 1,
        **options: Any,
    ) -> None:
        """Load, and encode the subject."""
        if backend == "onnxruntime":
            options["backend_options"] = {
                "intra_op_threads": threads,
                **options.get("backend_options", {}),
            }
        self._load = partial(Pipeline, folder, backend=backend, device="cpu", **options)
        self._forgetful: Pipeline | None = None
        self.pipe = self._load()
        self.images = [drawing(index) for index in range(references)]
        self.subject = self.pipe.encode_subject(self.images, REFERENCE_PROMPT)

    def warm(self, num_images: int = 1, **options: Any) -> GenerationResult:
        """Pictures of the known subject."""
        return self.pipe(PROMPT, subject=self.subject, num_images=num_images, seed=SEED, **options)

    def cold(self, **options: Any) -> GenerationResult:
        """A picture of a subject that was never seen: encoded, read, drawn."""
        if self._forgetful is None:
            self._forgetful = self._load(store=_NoStore(device_bytes=0))
        return self._forgetful(
            PROMPT,
            reference_images=self.images,
            reference_prompt=REFERENCE_PROMPT,
            seed=SEED,
            **options,
        )

    def no_reference(self) -> GenerationResult:
        """A picture from its prompt alone, as plain text to image draws it: two rows a step."""
        return self.pipe.generate([Request(prompt=PROMPT, subject=None, seed=SEED)])

    def recorded_batch(self, **options: Any) -> tuple[Backend, DenoiseBatch]:
        """The backend, and the batch that it is given for a picture of the known subject."""
        backend = self.pipe._backend
        recorder = _Recorder(backend)
        self.pipe._backend = cast("Backend", recorder)
        try:
            self.warm(**options)
        finally:
            self.pipe._backend = backend
        assert recorder.batch is not None
        return backend, recorder.batch


class _NoStore(SubjectStore):
    """Keeps nothing, and does not speak of it."""

    def _keep(self, *_: Any) -> None:
        pass


class _Recorder:
    """Looks like a backend, and keeps the batch that it is started with."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.batch: DenoiseBatch | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def start(self, batch: DenoiseBatch, state: FloatArray | None = None) -> DenoiseRun:
        self.batch = batch
        return self._backend.start(batch, state)


def pixel_difference(ours: GenerationResult, theirs: np.ndarray[Any, Any]) -> float:
    """Mean absolute difference in steps of 255 between our picture and pixels in [-1, 1]."""
    expected = np.clip(np.rint((theirs[0].transpose(1, 2, 0) + 1) * 127.5), 0, 255)
    return float(np.abs(np.asarray(ours.images[0], dtype=np.float32) - expected).mean())
