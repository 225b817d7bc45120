"""Draws the benchmark's pictures with a pair: each a PNG with its parameters, whole or not there.

What is there already is not drawn again, so a stopped run goes on, and several machines may fill
one folder, each with its own part.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from PIL import Image

from bootpig_rt.errors import ConfigError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.images.png import save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.training.evaluation.dreambench.cutting import Cutter
from bootpig_rt.training.evaluation.dreambench.data import BenchSubject, DreamBench
from bootpig_rt.training.evaluation.dreambench.settings import DrawSettings, References
from bootpig_rt.training.evaluation.dreambench.shots import (
    BenchShot,
    Part,
    picture_path,
    seed_of,
)

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int], None]
"""Told what is being done, and how many more of it are done."""

REFERENCE_FOLDER = "references"
RUNS_FOLDER = "runs"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command: how much it drew, and where."""

    part: str
    pictures: int
    seconds: float
    backend: str
    runtime: str
    precision: str
    device: str
    version: str


@dataclass(frozen=True)
class Drawer:
    """A pair that is ready to draw.

    Attributes:
        pipeline: The pair; its background remover is the cutter of the settings, if there is one.
        request: Steps, solver, merge, schedule and scales of all pictures.
        settings: All that the pictures depend on.
        subjects: Of each subject of the benchmark, encoded.
        prepared: What the pair is shown of each.
    """

    pipeline: Pipeline
    request: Request
    settings: DrawSettings
    subjects: tuple[Subject, ...]
    prepared: tuple[tuple[Image.Image, ...], ...]


def reference_photographs(
    subject: BenchSubject, references: References, max_references: int
) -> tuple[Path, ...]:
    """The photographs that a pair is given."""
    return subject.photographs[: 1 if references == "first" else max_references]


def make_drawer(
    pipeline: Pipeline,
    bench: DreamBench,
    request: Request,
    *,
    per_prompt: int,
    seed: int,
    references: References,
    cutter: Cutter | None,
    on_progress: OnProgress | None = None,
) -> Drawer:
    """Prepare and encode all references.

    Raises:
        InputError: A photograph cannot be used, or the pair cannot do the request.
    """
    spec = pipeline.spec
    most = min(spec.config.max_references, spec.max_references or spec.config.max_references)
    prepared, subjects, whole = [], [], []
    for subject in bench.subjects:
        shown = []
        for path in reference_photographs(subject, references, most):
            warned: list[str] = []
            before = 0 if cutter is None else cutter.num_whole
            shown += pipeline.prepare_references([path], warn=warned.append)
            if warned or (cutter is not None and cutter.num_whole > before):
                whole.append(f"{subject.name}/{path.name}")
        prepared.append(tuple(shown))
        subjects.append(pipeline.encode_prepared(shown, subject.reference_prompt))
        if on_progress is not None:
            on_progress("references", 1)
    if whole:
        total = sum(map(len, prepared))
        fix = "give --remove-background" if cutter is None else "try another remover"
        logger.warning(
            "%d of %d reference photographs are taken whole, no subject was found in them; %s",
            len(whole),
            total,
            fix,
        )
    made = pipeline.engine.planner.plan(replace(request, subject=subjects[0])).parameters
    settings = DrawSettings(
        data_digest=bench.digest,
        subjects=bench.names,
        num_prompts=bench.num_prompts,
        per_prompt=per_prompt,
        seed=seed,
        references=references,
        max_references=most,
        background=None if cutter is None else cutter.name,
        background_fingerprint=None if cutter is None else cutter.fingerprint,
        taken_whole=tuple(whole),
        reference_prompt=replace(bench.subjects[0], noun="{noun}").reference_prompt,
        model=made.model,
        model_fingerprint=made.model_fingerprint,
        steps=made.num_inference_steps,
        solver=made.solver,
        merge=made.merge,
        reference_schedule=made.reference_schedule,
        image_guidance_scale=made.image_guidance_scale,
        text_guidance_scale=made.text_guidance_scale,
        width=made.width,
        height=made.height,
    )
    return Drawer(pipeline, request, settings, tuple(subjects), tuple(prepared))


def draw(
    drawer: Drawer,
    bench: DreamBench,
    shots: Sequence[BenchShot],
    folder: Path,
    *,
    part: Part,
    on_progress: OnProgress | None = None,
) -> int:
    """Draw those of the pictures that are not there yet.

    Returns:
        How many were drawn.

    Raises:
        StorageError: The folder cannot be written.
        BootPIGError: The pair failed; what was drawn before is kept.
    """
    _save_references(drawer, bench, folder)
    missing = missing_shots(bench, shots, folder)
    if on_progress is not None:
        on_progress("pictures", len(shots) - len(missing))
    drawn, start = 0, time.perf_counter()
    stream = drawer.pipeline.map(_requests(drawer, bench, missing))
    try:
        for shot, result in zip(missing, stream, strict=True):
            [image], [made] = result.images, result.parameters
            save_png(image, picture_path(folder, bench, shot), made.to_dict())
            drawn += 1
            if on_progress is not None:
                on_progress("pictures", 1)
    finally:
        stream.close()  # type: ignore[attr-defined]
        if drawn:
            _save_run(drawer, folder, part, drawn, time.perf_counter() - start)
    return drawn


def missing_shots(bench: DreamBench, shots: Sequence[BenchShot], folder: Path) -> list[BenchShot]:
    """The pictures that are not in a folder yet."""
    return [shot for shot in shots if not picture_path(folder, bench, shot).is_file()]


def read_runs(folder: Path) -> list[Run]:
    """All runs that filled a folder.

    Raises:
        ConfigError: A file is damaged.
    """
    runs = []
    for path in sorted((folder / RUNS_FOLDER).glob("*.json")):
        try:
            runs.append(msgspec.json.decode(path.read_bytes(), type=Run))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path} is damaged ({error}); delete it") from error
    return runs


def _requests(drawer: Drawer, bench: DreamBench, shots: Sequence[BenchShot]) -> Iterator[Request]:
    for shot in shots:
        yield replace(
            drawer.request,
            prompt=bench.subjects[shot.subject].prompts[shot.prompt].text,
            subject=drawer.subjects[shot.subject],
            seed=seed_of(bench, shot, drawer.settings.seed),
        )


def _save_references(drawer: Drawer, bench: DreamBench, folder: Path) -> None:
    try:
        for subject, shown in zip(bench.subjects, drawer.prepared, strict=True):
            (folder / "pictures" / subject.name).mkdir(parents=True, exist_ok=True)
            own = folder / REFERENCE_FOLDER / subject.name
            own.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(shown):
                if not (own / f"{number}.png").is_file():
                    save_png(image, own / f"{number}.png", is_generated=False)
        (folder / RUNS_FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {folder}: {describe_os_error(error)}") from error


def _save_run(drawer: Drawer, folder: Path, part: Part, drawn: int, seconds: float) -> None:
    made = drawer.pipeline.engine.planner.plan(drawer.request).parameters
    run = Run(
        part=str(part),
        pictures=drawn,
        seconds=round(seconds, 1),
        backend=made.backend,
        runtime=made.runtime,
        precision=made.precision,
        device=made.device,
        version=made.version,
    )
    # The name is new on any machine: several may write into one folder.
    name = f"{time.time_ns()}-{part.number}-of-{part.count}-{secrets.token_hex(3)}.json"
    atomic_write_bytes(folder / RUNS_FOLDER / name, msgspec.json.encode(run) + b"\n")
