"""Who draws the pictures of a suite, and a folder that keeps them between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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


class PipelineGenerator:
    """Draws shots with a pair, in large batches.

    All shots have steps, solver, merge, schedule and scales of the request `settings`; the pair's
    own if None.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        subjects: Sequence[EvalSubject],
        config: SuiteConfig,
        *,
        settings: Request | None = None,
    ) -> None:
        self.pipeline, self.subjects, self.config = pipeline, subjects, config
        self.settings = Request(prompt="any") if settings is None else settings
        self.plan = pipeline.engine.planner.plan(self.settings)
        self._encoded: dict[tuple[int, int, int], Subject] = {}

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
        subject = self.subjects[shot.subject]
        caption = caption_of(subject, subject.prompts[shot.prompt])
        # The start noise does not depend on the arm: controls differ by the reference alone.
        rng = stream(self.config.seed, "noise", subject.key, shot.prompt, shot.seed)
        return replace(
            self.settings,
            prompt=caption.text,
            subject=self._encode(shot, caption.reference_prompt),
            seed=int(rng.integers(2**32)),
        )

    def _encode(self, shot: Shot, reference_prompt: str) -> Subject | None:
        if shot.arm == "none":
            return None
        subject = self.subjects[shot.subject]
        which = subject.own if shot.arm == "own" else subject.wrong
        key = (shot.subject, which, shot.num_references)
        if key not in self._encoded:
            pictures = reference_pictures(subject, which, shot.num_references, self.config.seed)
            self._encoded[key] = self.pipeline.encode_subject(pictures, reference_prompt)
        return self._encoded[key]


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
