"""An engine over a backend that computes nothing, at once, and notes what it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.base import DenoiseBatch, PairSpec, ReferencePass
from bootpig_rt.backends.host_table import HostTable, pack_table
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.job import Job
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from bootpig_rt.storage.store import SubjectStore


class PaperRun:
    """A run whose step sets the latents of each picture to the number of its steps."""

    def __init__(self, backend: PaperBackend, batch: DenoiseBatch) -> None:
        self.backend, self.batch, self.array = backend, batch, batch.state.copy()

    def step(self, index: int) -> None:
        self.backend.note("step")
        is_noise = (np.abs(self.array[0]) % 1 != 0).any(axis=(1, 2, 3))  # noise is no whole number
        self.array[0] = np.where(is_noise[:, None, None, None], 1.0, self.array[0] + 1)

    def state(self) -> np.ndarray:
        return self.array

    def estimate(self) -> np.ndarray:
        estimate: np.ndarray = self.array[0] / 10
        return estimate

    def features(self) -> tuple[object, ...]:
        return tuple(object() for _ in range(self.array.shape[1]))


class PaperBackend:
    """Computes nothing, and notes what it is asked for. `hook` is told ahead of it.

    Two launches at once are an error: an engine does one thing at a time.
    """

    name, device, runtime = "paper", "cpu", "paper 1"

    def __init__(self, spec: PairSpec) -> None:
        self.spec = spec
        self.log: list[str] = []
        self.batches: list[DenoiseBatch] = []
        self.num_texts: list[int] = []
        self.hook: Callable[[str], object] = lambda what: None

    @property
    def sizes(self) -> list[int]:
        """Pictures of each run."""
        return [batch.state.shape[1] for batch in self.batches]

    def note(self, what: str) -> None:
        self.log.append(what)
        self.hook(what)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        self.num_texts.append(len(ids))
        return np.zeros((len(ids), 2, 2), np.float32)

    def download_states(self, states: np.ndarray) -> np.ndarray:
        return states

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        means = pixels.reshape(len(pixels), 3, 8, 4, 8, 4).mean(axis=(3, 5))
        return np.concatenate([means, means[:, :1]], axis=1)

    def reference_kv(
        self,
        latents: np.ndarray,
        timesteps: np.ndarray,
        states: np.ndarray,
        *,
        dtype: str,
        rows_per_launch: int,
        progress: Callable[[int, int], object] | None,
    ) -> ReferencePass:
        total = latents.shape[0] * latents.shape[1]
        for start in range(0, total, rows_per_launch):
            self.note("pass")
            if progress is not None:
                progress(min(start + rows_per_launch, total), total)
        return ReferencePass(object(), 0, total)

    def download_table(self, data: object) -> HostTable:
        return pack_table([(np.zeros((1, 1, 1, 1, 1), np.float32),) * 2], "float32")

    def upload_table(self, table: HostTable, *, is_resident: bool) -> HostTable:
        return table

    def start(self, batch: DenoiseBatch) -> PaperRun:
        self.note("start")
        self.batches.append(batch)
        return PaperRun(self, batch)

    def decode(self, latents: np.ndarray, *, decoder: str) -> np.ndarray:
        assert decoder in self.spec.decoders
        self.note("decode")
        grey = np.clip(latents.mean(axis=(1, 2, 3)) / 100, -1, 1)
        return np.broadcast_to(grey[:, None, None, None], (len(latents), 3, 8, 8)).astype("f4")


class Paper:
    """An engine over a `PaperBackend`.

    Args:
        pipeline: Whose tokenizer and limits it has.
        tables: How tables are made and kept.
        options: Of the engine.
        asked_batch: `max_batch`.
        spec: Fields that differ from the pair's.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        tables: TableOptions | SubjectStore | None = None,
        *,
        options: EngineOptions | None = None,
        asked_batch: int = 8,
        **spec: Any,
    ) -> None:
        self.backend = PaperBackend(replace(pipeline.spec, **spec))
        self.store = tables if isinstance(tables, SubjectStore) else SubjectStore(tables)
        backend: Any = self.backend
        self.engine = Engine(
            backend, pipeline._tokenizer, self.store, max_batch=asked_batch, options=options
        )

    def subject(self, number: int = 0, references: int = 1) -> Subject:
        latents = np.full((references, 4, 8, 8), number, np.float32)
        return Subject(None, latents, "a dog", 0, self.backend.spec.fingerprint)

    def request(self, subject: Subject | None = None, steps: int = 4, **fields: Any) -> Request:
        return Request(
            **{"prompt": "a", "seed": 1, "num_inference_steps": steps, "subject": subject, **fields}
        )

    def submit(
        self,
        subject: Subject | None = None,
        steps: int = 4,
        *,
        job: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Job:
        """Submit a request; `job` holds arguments of `Engine.submit`."""
        return self.engine.submit(self.request(subject, steps, **fields), **(job or {}))

    def run(self) -> None:
        """Step until nothing can be done."""
        while self.engine.step():
            pass


@pytest.fixture
def paper(pipeline: Pipeline) -> Paper:
    """An engine that computes nothing."""
    return Paper(pipeline)


@pytest.fixture
def make_paper(pipeline: Pipeline) -> Callable[..., Paper]:
    """Engines that compute nothing, with settings."""

    def make(*args: Any, **options: Any) -> Paper:
        return Paper(pipeline, *args, **options)

    return make
