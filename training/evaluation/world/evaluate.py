"""The evaluation in the 3-D world: draw, judge, count. See `suite.py` and `judges.py`.

Every rate is a mean over subjects with a bootstrap interval over subjects. The renderer's own
pictures of the same subjects and prompts are the ceiling of every judge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.images.png import save_png
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.evaluation.generators import Generator, PairGenerator, draw_shots
from bootpig_rt.training.evaluation.sheets import Tile, sheet
from bootpig_rt.training.evaluation.statistics import Rate, rate, rounded
from bootpig_rt.training.evaluation.suite import Shot, stream
from bootpig_rt.training.evaluation.world.judges import (
    Found,
    Pictures,
    WorldJudges,
    render_in_scene,
    views,
)
from bootpig_rt.training.evaluation.world.pastes import world_pastes
from bootpig_rt.training.evaluation.world.suite import (
    GROUPS,
    WorldSubject,
    WorldSuiteConfig,
    reference_views,
    world_digest,
    world_shots,
)
from bootpig_rt.training.world3d.captions import WorldCaption
from bootpig_rt.training.world3d.studio import Studio

ROWS_PER_SHEET = 10
_PASTERS = {"pair": "main", "renderer": "renderer"}
"""Whose pictures are searched for pasted references, and their arms."""

OnProgress = Callable[[str, int], None]
"""Told the arm and the number of its pictures just finished."""


class WorldGenerator(PairGenerator):
    """Draws shots of the 3-D world; `closeup` draws references."""

    def __init__(
        self,
        pipeline: Pipeline,
        subjects: Sequence[WorldSubject],
        config: WorldSuiteConfig,
        closeup: Studio,
        *,
        settings: Request,
    ) -> None:
        super().__init__(pipeline, settings, seed=config.seed)
        self.subjects, self._closeup = subjects, closeup

    def key(self, subject: int) -> str:
        """The identity's name."""
        return self.subjects[subject].key

    def caption(self, shot: Shot) -> WorldCaption:
        """The caption of a prompt of the subject."""
        return self.subjects[shot.subject].captions[shot.prompt]

    def references(self, shot: Shot) -> list[Image.Image]:
        """Views of the subject, or of the wrong one of its look-alikes."""
        subject = self.subjects[shot.subject]
        which = 0 if shot.arm == "own" else subject.wrong
        return reference_views(subject, which, shot.num_references, self._closeup)


class WorldRenderer:
    """Draws shots with the renderer: the ceiling, and a stand-in for a pair."""

    def __init__(
        self, subjects: Sequence[WorldSubject], config: WorldSuiteConfig, studio: Studio
    ) -> None:
        self.subjects, self.config, self.studio = subjects, config, studio

    @property
    def fingerprint(self) -> str:
        """What the pictures depend on, besides the shots."""
        return f"renderer {self.studio.renderer.size_px}"

    def __call__(self, shots: Sequence[Shot]) -> Pictures:
        """Pictures of the shots, uint8 [N, S, S, 3]."""
        return np.stack([self._draw(shot) for shot in shots])

    def _draw(self, shot: Shot) -> Pictures:
        subject = self.subjects[shot.subject]
        rng = stream(self.config.seed, "renderer", subject.key, shot.tag)
        count = len(subject.candidates)
        which = {"own": 0, "wrong": subject.wrong}.get(shot.arm, int(rng.integers(count)))
        one = subject.candidates[which]
        turned = views(one, 3, rng)
        view = turned[int(rng.integers(len(turned)))]
        return render_in_scene(rng, one, subject.captions[shot.prompt], view, self.studio)[0]


@dataclass(frozen=True)
class Arm:
    """Pictures of one arm and what the judges say of them."""

    shots: list[Shot]
    pictures: Pictures
    found: Found


def evaluate_world(
    generator: Generator,
    judges: WorldJudges,
    subjects: Sequence[WorldSubject],
    config: WorldSuiteConfig,
    studio: Studio,
    closeup: Studio,
    *,
    output: Path,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, Any], dict[str, Arm]]:
    """Draw a suite and judge it.

    Args:
        generator: Who draws.
        judges: Of the same suite.
        subjects: See `choose_world_subjects`.
        config: The suite.
        studio: Of the size of the pictures.
        closeup: Of references.
        output: Folder; pictures are kept in its `pictures`.
        resume: Go on with the pictures that are there.
        on_progress: Told about each finished chunk.

    Returns:
        A report for JSON, and the arms for sheets.

    Raises:
        StorageError: `output` cannot be written.
        InputError: The pair cannot draw the suite.
    """
    digest = world_digest(subjects, config, studio.renderer.size_px)
    renderer = WorldRenderer(subjects, config, studio)
    arms = {}
    for arm, shots in world_shots(subjects, config).items():
        drawn = draw_shots(
            renderer if arm == "renderer" else generator,
            shots,
            suite_digest=digest,
            folder=output / "pictures",
            resume=resume,
            on_progress=None if on_progress is None else partial(on_progress, arm),
        )
        arms[arm] = Arm(shots, drawn, judges(shots, drawn))
    main = arms["main"]
    report = {
        "format": 1,
        "suite": asdict(config),
        "generator": generator.fingerprint,
        "judge": "cosine of EfficientNet-Lite0 features, ImageNet weights, at the nearest view",
        "chance": round(float(np.mean([1 / len(one.candidates) for one in subjects])), 4),
        "chance_in_grey": _chance_in_grey(subjects),
        "groups": {
            group: summary(
                main, subjects, [n for n, one in enumerate(subjects) if one.group == group]
            )
            for group in GROUPS
        },
        "all": summary(main, subjects),
        "arms": {name: summary(arm, subjects) for name, arm in arms.items() if name != "main"},
        "more_references": _more_references(arms, subjects, config),
        "copy_paste": world_pastes(
            {name: (arms[arm].shots, arms[arm].pictures) for name, arm in _PASTERS.items()},
            subjects,
            config,
            studio,
            closeup,
        ),
        "diversity": rounded(_diversity(main)),
        "by_subject": {
            one.key: summary(main, subjects, [n])["identity"]["value"]
            for n, one in enumerate(subjects)
        },
    }
    return report, arms


def summary(
    arm: Arm,
    subjects: Sequence[WorldSubject],
    whom: Collection[int] | None = None,
) -> dict[str, Any]:
    """Rates of identity, identity of what was given, scene and position, and mean measures.

    `whom` are the numbers of the subjects that count; None for all.
    """
    rows = [n for n, shot in enumerate(arm.shots) if whom is None or shot.subject in whom]
    whose = [arm.shots[n].subject for n in rows]
    captions = [subjects[arm.shots[n].subject].captions[arm.shots[n].prompt] for n in rows]
    hits: dict[str, list[bool]] = {
        "identity": [arm.found.chosen[n] == 0 for n in rows],
        "identity_of_the_given_reference": [
            arm.found.chosen[n] == _given(arm.shots[n], subjects) for n in rows
        ],
        "scene": [arm.found.scenes[n] == c.scene for n, c in zip(rows, captions, strict=True)],
        "position": [
            arm.found.positions[n] == c.position for n, c in zip(rows, captions, strict=True)
        ],
    }
    values = {name: [found[n] for n in rows] for name, found in arm.found.measures.items()}
    rates = {name: rounded(rate(found, whose)) for name, found in hits.items()}
    told = [n for n in rows if _is_told_in_grey(subjects[arm.shots[n].subject])]
    own = [arm.found.chosen_in_grey[n] in subjects[arm.shots[n].subject].own_in_grey for n in told]
    rates["identity_in_grey"] = rounded(rate(own, [arm.shots[n].subject for n in told]))
    return rates | {name: rounded(rate(found, whose)) for name, found in values.items()}


def _is_told_in_grey(subject: WorldSubject) -> bool:
    """Whether a look-alike differs in more than its hue."""
    return len(subject.own_in_grey) < len(subject.candidates)


def _chance_in_grey(subjects: Sequence[WorldSubject]) -> float | None:
    shares = [
        len(one.own_in_grey) / len(one.candidates) for one in subjects if _is_told_in_grey(one)
    ]
    return round(float(np.mean(shares)), 4) if shares else None


def _given(shot: Shot, subjects: Sequence[WorldSubject]) -> int:
    """The candidate whose references a shot has; -1 for none."""
    return {"own": 0, "wrong": subjects[shot.subject].wrong, "none": -1}[shot.arm]


def _more_references(
    arms: dict[str, Arm], subjects: Sequence[WorldSubject], config: WorldSuiteConfig
) -> dict[str, Any]:
    """What more references change, picture by picture, from the same noise."""
    main = arms["main"]
    places = {(s.subject, s.prompt, s.seed): n for n, s in enumerate(main.shots)}
    report: dict[str, Any] = {}
    for count in config.counts:
        arm = arms.get(f"references_{count}")
        if arm is None:
            continue
        rows = [places[s.subject, s.prompt, s.seed] for s in arm.shots]
        whose = [shot.subject for shot in arm.shots]
        changes = {
            name: [b - main.found.measures[name][n] for n, b in zip(rows, values, strict=True)]
            for name, values in arm.found.measures.items()
        }
        changes["identity"] = [
            float(b == 0) - float(main.found.chosen[n] == 0)
            for n, b in zip(rows, arm.found.chosen, strict=True)
        ]
        report[str(count)] = {name: rounded(rate(v, whose)) for name, v in changes.items()}
    return report


def _diversity(arm: Arm) -> Rate | None:
    """Root mean square difference of pictures of one prompt that differ in the seed alone."""
    first: dict[tuple[int, int], NDArray[np.float64]] = {}
    found, whose = [], []
    for shot, picture in zip(arm.shots, arm.pictures.astype(np.float64), strict=True):
        other = first.setdefault((shot.subject, shot.prompt), picture)
        if other is not picture:
            found.append(float(np.sqrt(((picture - other) ** 2).mean())))
            whose.append(shot.subject)
    return rate(found, whose)


COLUMNS = {
    "identity": "identity",
    "identity_in_grey": "in grey",
    "identity_of_the_given_reference": "given one",
    "scene": "scene",
    "position": "position",
    "psnr_db": "PSNR (dB)",
    "perceptual": "perceptual",
    "detail": "detail",
}


def text_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""

    def line(name: str, *cells: str) -> str:
        return "  ".join([name.ljust(28), *(cell.ljust(22) for cell in cells)]).rstrip()

    def row(name: str, part: dict[str, Any]) -> str:
        return line(name, *[_cell(part.get(key)) for key in COLUMNS])

    lines = [
        f"suite {report['suite']['name']}: identity among {report['suite']['candidates']} "
        f"look-alikes, chance {report['chance']:.2f}{_told_in_grey(report)}; 95 % intervals over "
        "subjects",
        "",
        line("", *COLUMNS.values()),
        *(row(f"held-out {name}", part) for name, part in report["groups"].items()),
        row("all", report["all"]),
        *(row(name.replace("_", " "), part) for name, part in report["arms"].items()),
        "",
        *(
            row(f"{count} references less 1", part)
            for count, part in report["more_references"].items()
        ),
        "",
        "copy-paste: score of the given view; gap to a view that was not given",
        *(
            line(about, _cell(part["score"]), _cell(part["gap"]))
            for about, part in report["copy_paste"].items()
        ),
    ]
    return "\n".join(lines)


def _told_in_grey(report: dict[str, Any]) -> str:
    chance = report["chance_in_grey"]
    return "" if chance is None else f", in grey {chance:.2f}"


def _cell(part: dict[str, float] | None) -> str:
    return "-" if part is None else f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def world_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows for a model card."""
    chances = {"identity": "chance", "identity_in_grey": "chance_in_grey"}
    rows = []
    for name, part in (*report["groups"].items(), ("all", report["all"])):
        for key in ("identity", "identity_in_grey", "scene", "position", "psnr_db", "perceptual"):
            if (found := part[key]) is not None:
                told = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
                known = report[chances[key]] if key in chances else None
                chance = "" if known is None else f"; chance {known:.2f}"
                rows.append((f"held-out {name}: {COLUMNS[key]}{chance}", told))
    return rows


def save_sheets(
    arms: dict[str, Arm],
    subjects: Sequence[WorldSubject],
    closeup: Studio,
    folder: Path,
) -> list[Path]:
    """Write sheets of all subjects and of the controls, with the scene and the verdict below.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, arm in arms.items():
        shown = subjects if name == "main" else subjects[:ROWS_PER_SHEET]
        for start in range(0, len(shown), ROWS_PER_SHEET):
            numbers = range(start, min(start + ROWS_PER_SHEET, len(shown)))
            rows = [_row(arm, subjects, n, closeup) for n in numbers]
            path = folder / f"{name}-{start // ROWS_PER_SHEET + 1}.png"
            save_png(sheet(rows), path, {})
            paths.append(path)
    return paths


def _row(arm: Arm, subjects: Sequence[WorldSubject], number: int, closeup: Studio) -> list[Tile]:
    subject = subjects[number]
    mine = [n for n, shot in enumerate(arm.shots) if shot.subject == number and shot.seed == 0]
    first = arm.shots[mine[0]]
    which = subject.wrong if first.arm == "wrong" else 0
    count = max(1, first.num_references)
    tiles = [
        Tile(picture, subject.noun) for picture in reference_views(subject, which, count, closeup)
    ]
    for n in mine:
        caption = subject.captions[arm.shots[n].prompt]
        is_hit = arm.found.chosen[n] == 0 and arm.found.scenes[n] == caption.scene
        tiles.append(Tile(arm.pictures[n], f"{caption.position}, {caption.scene}", is_hit))
    return tiles
