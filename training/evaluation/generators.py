"""Who draws the pictures of a suite, and a folder that keeps them between runs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.training.evaluation.kept import read_arrays, write_arrays
from bootpig_rt.training.evaluation.suite import (
    EvalSubject,
    Shot,
    SuiteConfig,
    caption_of,
    reference_pictures,
    stream,
)

CHUNK = 96


class Generator(Protocol):
    """Draws shots."""

    @property
    def fingerprint(self) -> str:
        """What the pictures depend on, besides the shots."""

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        """Pictures of the shots, uint8 [N, S, S, 3]."""


class Words(Protocol):
    """What a shot asks for, in either world."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def reference_prompt(self) -> str:
        """What the Reference U-Net is told."""


class PairGenerator(ABC):
    """Draws shots with a pair, in large batches; those who follow say of what subjects.

    All shots have steps, solver, merge, schedule and scales of the request `settings`.
    """

    def __init__(self, pipeline: Pipeline, settings: Request, *, seed: int) -> None:
        self.pipeline, self.settings, self._seed = pipeline, settings, seed
        self.plan = pipeline.engine.planner.plan(settings)
        self._encoded: dict[tuple[int, str, int], Subject] = {}

    @abstractmethod
    def key(self, subject: int) -> str:
        """What a subject's noise is drawn by."""

    @abstractmethod
    def caption(self, shot: Shot) -> Words:
        """What a shot asks for."""

    @abstractmethod
    def references(self, shot: Shot) -> list[Image.Image]:
        """Pictures of whom a shot is given: its own subject, or the wrong one."""

    @property
    def fingerprint(self) -> str:
        """The pair and the settings."""
        made = self.plan.parameters
        manner = (made.num_inference_steps, made.solver, made.merge, made.reference_schedule)
        scales = (made.image_guidance_scale, made.text_guidance_scale)
        return f"{self.pipeline.spec.fingerprint} {manner} {scales}"

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        """Pictures of the shots, uint8 [N, S, S, 3]."""
        result = self.pipeline.generate([self._request(shot) for shot in shots])
        return np.stack([np.asarray(image, dtype=np.uint8) for image in result.images])

    def _request(self, shot: Shot) -> Request:
        caption = self.caption(shot)
        # The start noise does not depend on the arm: controls differ by the reference alone.
        rng = stream(self._seed, "noise", self.key(shot.subject), shot.prompt, shot.seed)
        return replace(
            self.settings,
            prompt=caption.text,
            subject=self._encode(shot, caption.reference_prompt),
            seed=int(rng.integers(2**32)),
        )

    def _encode(self, shot: Shot, reference_prompt: str) -> Subject | None:
        if shot.arm == "none":
            return None
        key = (shot.subject, shot.arm, shot.num_references)
        if key not in self._encoded:
            pictures = self.references(shot)
            self._encoded[key] = self.pipeline.encode_subject(pictures, reference_prompt)
        return self._encoded[key]


class PipelineGenerator(PairGenerator):
    """Draws shots of drawings; with the pair's own settings if `settings` is None."""

    def __init__(
        self,
        pipeline: Pipeline,
        subjects: Sequence[EvalSubject],
        config: SuiteConfig,
        *,
        settings: Request | None = None,
    ) -> None:
        settings = Request(prompt="any") if settings is None else settings
        super().__init__(pipeline, settings, seed=config.seed)
        self.subjects, self.config = subjects, config

    def key(self, subject: int) -> str:
        """Concept and style."""
        return self.subjects[subject].key

    def caption(self, shot: Shot) -> Words:
        """The caption of a prompt of the subject."""
        subject = self.subjects[shot.subject]
        return caption_of(subject, subject.prompts[shot.prompt])

    def references(self, shot: Shot) -> list[Image.Image]:
        """Views of its drawing, or of another artist's."""
        subject = self.subjects[shot.subject]
        which = subject.own if shot.arm == "own" else subject.wrong
        return reference_pictures(subject, which, shot.num_references, self.config.seed)


def draw_shots(
    generator: Generator,
    shots: Sequence[Shot],
    *,
    suite_digest: str,
    folder: Path,
    resume: bool,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Draw shots, at least one, in chunks that are kept in a folder: uint8 [N, S, S, 3].

    Args:
        generator: Who draws.
        shots: What.
        suite_digest: Of subjects and prompts, see `suite_digest`.
        folder: Where chunks are kept.
        resume: Take chunks that are there; otherwise all are drawn anew.
        on_progress: Called with the number of pictures just finished.

    Raises:
        StorageError: A chunk cannot be written.
    """
    found = []
    for start in range(0, len(shots), CHUNK):
        part = shots[start : start + CHUNK]
        digest = hashlib.sha256(f"{generator.fingerprint}\0{suite_digest}".encode())
        digest.update("\0".join(shot.tag for shot in part).encode())
        path = folder / f"{digest.hexdigest()[:24]}.npz"
        kept = read_arrays(path) if resume else None
        if kept is None:
            kept = {"array": generator(part)}
            write_arrays(path, kept)
        found.append(kept["array"])
        if on_progress is not None:
            on_progress(len(part))
    return np.concatenate(found)


def suite_digest(subjects: Sequence[EvalSubject], config: SuiteConfig) -> str:
    """sha256 of all that fixes what the shots of a suite mean."""
    digest = hashlib.sha256(f"{config.seed}".encode())
    for subject in subjects:
        digest.update(f"{subject.key} {subject.styles} {subject.prompts}".encode())
        digest.update(subject.sprites.tobytes())
    return digest.hexdigest()
