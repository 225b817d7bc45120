"""Suite `inpaint`: held-out subjects drawn into scenes of the small world, beside controls.

The renderer draws a scene, and the same scene with the subject in it: the first is given with a
mask around the subject's place, the second is what a perfect pair would make of it. What lies
outside the mask must come out as it went in; what judges say is compared with the same pictures of
another reference and of none, and the seam with a plain picture that is pasted into the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.benchmarks.judged import Jury, Quality, ends_of
from bootpig_rt.benchmarks.ours import OurWay, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult, make_check
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.images.canvas import Canvas, soft_edge
from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import SheetRow, label_sheet
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.training.compose import place, target_view
from bootpig_rt.training.evaluation.render import subject_box
from bootpig_rt.training.evaluation.suite import (
    Arm,
    EvalSubject,
    Shot,
    caption_of,
    reference_pictures,
    stream,
)
from bootpig_rt.training.scenes import draw_scene

HELP = "subjects drawn into given scenes: identity, what stays, and the seam, beside controls"

Pictures = NDArray[np.uint8]
How = Literal["into", "hard", "pasted"]

SEAM_PX = 3
"""Width of the ring inside the mask's border in which the seam is measured."""

OWN = "own reference"

CASES: dict[str, tuple[str, Arm, How]] = {
    OWN: ("the subject's own reference", "own", "into"),
    "wrong reference": ("control: a reference of another drawing", "wrong", "into"),
    "no reference": ("control: the prompt alone", "none", "into"),
    "hard edge": ("own reference, mask_edge_px=0", "own", "hard"),
    "pasted": ("control: a plain picture cut out and pasted", "own", "pasted"),
}
"""Label of a row, whose reference is read, and how the picture comes into the scene."""


SHEET, SHEET_ROWS = "inpaint.png", 4
"""In the work folder: a few shots in all cases, to look at."""


@dataclass(frozen=True)
class Given:
    """What one picture is drawn into.

    Attributes:
        canvas: The scene, and the mask around the subject's place.
        truth: uint8 [S, S, 3], the same scene with the subject in it, by the renderer.
    """

    canvas: Canvas
    truth: Pictures


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Draw all shots in all cases, and judge them.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
    """
    settings.check_only(CASES)
    with torch_threads(settings.threads):
        ours = OurWay(settings.pair, threads=settings.threads)
        size = ours.config.sample_size_px
        jury = Jury(settings, size)
        given = [given_of(jury.subjects[shot.subject], shot, jury, size) for shot in jury.shots]
        rows: list[Row] = []
        base: tuple[Quality, list[float]] | None = None
        seen: list[tuple[str, Pictures]] = []
        changed = 0
        for name, (label, arm, how) in CASES.items():
            if not (settings.is_wanted(name) or name == OWN):
                continue
            pictures = _draw(ours, jury, given, arm, how, settings, name)
            quality = jury.judge_pictures(jury.shots, pictures)
            seams = [_seam(one, p) for one, p in zip(given, pictures, strict=True)]
            kept = [_changed(one, p) for one, p in zip(given, pictures, strict=True)]
            changed += sum(kept)
            seen.append((name, pictures))
            values = quality.values(None if base is None else base[0])
            values |= ends_of("seam_levels", seams, quality.whose)
            if base is None:
                base = quality, seams
            else:
                change = np.subtract(seams, base[1]).tolist()
                values |= ends_of("seam_levels_change", change, quality.whose)
            rows.append(
                Row(name, label, "control" if "control" in label else "drawn into a scene",
                    values={"pictures": len(pictures), "changed_outside": sum(kept), **values})
            )  # fmt: skip
        save_png(_sheet(given, seen), settings.work / SHEET)
    return SuiteResult(
        "inpaint",
        tuple(rows),
        settings={
            "pair": ours.config.name, "steps": ours.config.default_steps, "size_px": size,
            "references": 1, "compared_with": OWN, "seam_px": SEAM_PX,
        },
        checks=(make_check("pixels outside the mask that changed", float(changed), 0.0),),
    )  # fmt: skip


def given_of(subject: EvalSubject, shot: Shot, jury: Jury, size_px: int) -> Given:
    """The scene of a shot and what the renderer makes of it."""
    prompt = subject.prompts[shot.prompt]
    rng = stream(jury.config.seed, "canvas", subject.key, shot.prompt, shot.seed)
    scene = draw_scene(prompt.scene, rng, size_px)
    view = target_view(rng, prompt.position)
    truth, _ = place(subject.sprites[subject.own], view, scene)
    mask = np.zeros((size_px, size_px), np.bool_)
    left, top, right, bottom = subject_box(prompt.position, size_px)
    mask[top:bottom, left:right] = True
    return Given(Canvas(scene, mask), truth)


def _draw(
    ours: OurWay,
    jury: Jury,
    given: Sequence[Given],
    arm: Arm,
    how: How,
    settings: Settings,
    name: str,
) -> Pictures:
    """One picture for each shot, uint8 [N, S, S, 3]."""
    encoded: dict[int, Subject | None] = {}
    requests = []
    for shot, one in zip(jury.shots, given, strict=True):
        whose = jury.subjects[shot.subject]
        caption = caption_of(whose, whose.prompts[shot.prompt])
        if shot.subject not in encoded:
            encoded[shot.subject] = _subject(ours, whose, arm, jury, caption.reference_prompt)
        noise = stream(jury.config.seed, "noise", whose.key, shot.prompt, shot.seed)
        fields: dict[str, Any] = {} if how == "pasted" else {"canvas": one.canvas}
        if how == "hard":
            fields["mask_edge_px"] = 0
        seed = int(noise.integers(2**32))
        requests.append(
            Request(prompt=caption.text, subject=encoded[shot.subject], seed=seed, **fields)
        )
    drawn: list[Image.Image] = []
    for image in ours.pipe.map(requests):
        drawn += image.images
        settings.progress(f"drawing {name}", len(drawn), len(requests))
    if how == "pasted":
        drawn = [one.canvas.paste(image, 0) for one, image in zip(given, drawn, strict=True)]
    return np.stack([np.asarray(image, np.uint8) for image in drawn])


def _subject(
    ours: OurWay, whose: EvalSubject, arm: Arm, jury: Jury, reference_prompt: str
) -> Subject | None:
    if arm == "none":
        return None
    which = whose.own if arm == "own" else whose.wrong
    shown: list[Image.Image] = reference_pictures(whose, which, 1, jury.config.seed)
    return ours.pipe.encode_subject(shown, reference_prompt)


def _sheet(given: Sequence[Given], seen: Sequence[tuple[str, Pictures]]) -> Image.Image:
    """A row for each of a few shots: the scene with the mask in grey, all cases, the renderer's."""
    rows = []
    for shot in np.linspace(0, len(given) - 1, min(len(given), SHEET_ROWS)).round().astype(int):
        canvas = given[shot].canvas
        assert canvas.mask is not None
        hidden = np.where(canvas.mask[..., None], np.uint8(127), canvas.pixels)
        columns = [*(pictures[shot] for _, pictures in seen), given[shot].truth]
        rows.append(SheetRow([Image.fromarray(hidden)], [Image.fromarray(c) for c in columns]))
    return label_sheet(
        rows,
        [*(name for name, _ in seen), "the renderer"],
        reference_header="scene and mask",
        resample="nearest",
    )


def _seam(given: Given, picture: Pictures) -> float:
    """Mean distance to the renderer's picture just inside the mask, in levels of 255."""
    mask = given.canvas.mask
    assert mask is not None
    ring = mask & (soft_edge(mask, SEAM_PX) < 1.0)
    return float(np.abs(picture[ring].astype(int) - given.truth[ring].astype(int)).mean())


def _changed(given: Given, picture: Pictures) -> int:
    """Pixels outside the mask that are not the scene's."""
    mask = given.canvas.mask
    assert mask is not None
    return int((picture != given.canvas.pixels).any(axis=-1)[~mask].sum())
