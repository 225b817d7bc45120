"""This package's ways to a picture, and its step alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from bootpig_rt.backends.base import Backend, DenoiseBatch, DenoiseRun, FloatArray
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT, SEED
from bootpig_rt.pipeline import GenerationResult, Pipeline, Request
from bootpig_rt.reference.subject import Subject
from bootpig_rt.storage.store import SubjectStore


class OurWay:
    """A pipeline with a subject that it knows, and one that keeps nothing.

    Args:
        folder: Of the pair.
        backend: Name of a backend.
        device: What it computes on.
        threads: Of ONNX Runtime; torch's are pinned by the caller.
        references: Pictures of the subject.
        options: Further options of the pipeline.
    """

    def __init__(
        self,
        folder: Path,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
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
        self.load = partial(Pipeline, folder, backend=backend, device=device, **options)
        self._forgetful: Pipeline | None = None
        self.pipe = self.load()
        self.images = [drawing(index) for index in range(references)]
        self.subject = self.pipe.encode_subject(self.images, REFERENCE_PROMPT)

    def warm(self, num_images: int = 1, **options: Any) -> GenerationResult:
        """Pictures of the known subject; picture i has the seed SEED + i."""
        options = {"seed": SEED, **options}
        return self.pipe(PROMPT, subject=self.subject, num_images=num_images, **options)

    @property
    def forgetful(self) -> Pipeline:
        """The same pair in a pipeline that keeps no table: every subject is new to it."""
        if self._forgetful is None:
            self._forgetful = self.load(store=_NoStore(device_bytes=0))
        return self._forgetful

    def cold(self, **options: Any) -> GenerationResult:
        """A picture of a subject that was never seen: encoded, read, drawn."""
        return self.forgetful(
            PROMPT,
            reference_images=self.images,
            reference_prompt=REFERENCE_PROMPT,
            seed=SEED,
            **options,
        )

    def encode(self) -> Subject:
        """A subject that was never seen: its latents, and its table where one serves all steps."""
        return self.forgetful.encode_subject(self.images, REFERENCE_PROMPT)

    def reference_table(self, schedule: str | None = None) -> object:
        """The reference pass of the known subject alone; None: the pair's own schedule."""
        pipe = self.forgetful
        params = pipe.sampling_params(reference_schedule=schedule)
        planner = pipe._planner
        solver = planner.solver(params.solver, params.num_inference_steps)
        return planner.table(self.subject, params.reference_schedule, solver)

    def one_by_one(self, num_images: int, **options: Any) -> list[Image.Image]:
        """The pictures of `warm(num_images)`, each drawn alone."""
        return [self.warm(seed=SEED + index, **options).images[0] for index in range(num_images)]

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


class StepBlock:
    """A few steps of one batch at a time, over and over.

    A block is short, so that runs of two ways lie close together in time. `prepare` begins the
    picture anew where a block would go beyond its last step; it belongs ahead of the clock.

    Args:
        ours: Whose step.
        count: Steps of a block, at most those of a picture.
        options: Of the picture, such as its reference schedule.
    """

    def __init__(self, ours: OurWay, count: int, **options: Any) -> None:
        """Record the batch of a picture."""
        self._backend, self.batch = ours.recorded_batch(**options)
        self.count = min(count, self.batch.solver.num_steps)
        self._run: DenoiseRun | None = None
        self._next = 0

    @property
    def num_references(self) -> int:
        """Of all subjects of the batch together."""
        return sum(self.batch.num_references)

    def prepare(self) -> None:
        """Have `count` steps left."""
        if self._run is None or self._next + self.count > self.batch.solver.num_steps:
            self._run, self._next = self._backend.start(self.batch), 0

    def run(self) -> None:
        """The next steps. Reading the latents at the end waits for a GPU, and is quick on a CPU."""
        self.prepare()
        assert self._run is not None
        for index in range(self._next, self._next + self.count):
            self._run.step(index)
        self._next += self.count
        self._run.latents()


class _NoStore(SubjectStore):
    """Keeps nothing, and does not speak of it."""

    def _keep(self, *_: Any) -> list[Any]:
        return []


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
    """Mean absolute difference in steps of 255 between our first picture and pixels in [-1, 1]."""
    expected = np.clip(np.rint((theirs[0].transpose(1, 2, 0) + 1) * 127.5), 0, 255)
    return float(np.abs(np.asarray(ours.images[0], dtype=np.float32) - expected).mean())


def picture_difference(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """The largest mean absolute difference, in steps of 255, of pictures at the same place."""
    return max(
        float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())
        for a, b in zip(one, other, strict=True)
    )
