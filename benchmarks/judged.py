"""How good a way's pictures are, by judges that can tell ways apart, on subjects held out.

- `psnr_db`: the subject's pixels against the renderer's drawing of it, at the view that fits best.
- `perceptual`: distance of network features to the renderer's picture there; lower is better.
- `network`: share of the pictures whose subject is nearest to its own reference among all drawings
  of its concept, by features of an ImageNet network.
- `scene`: share of the pictures that show the scene of their prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.errors import ParameterError
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.reference.subject import Subject
from bootpig_rt.training.evaluation.counting import Verdicts, identity_hits, scene_hits
from bootpig_rt.training.evaluation.evaluate import build_judges
from bootpig_rt.training.evaluation.generators import draw_shots, suite_digest
from bootpig_rt.training.evaluation.statistics import rate
from bootpig_rt.training.evaluation.suite import (
    SUITES,
    EvalSubject,
    Shot,
    SuiteConfig,
    caption_of,
    choose_subjects,
    count_shots,
    main_shots,
    reference_pictures,
    stream,
)
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites

MEASURES = ("psnr_db", "perceptual", "network", "scene")
_NETWORK = "network"


@dataclass(frozen=True)
class Quality:
    """What the judges say of some pictures.

    Attributes:
        said: By name of `MEASURES`, a number for each of N pictures.
        whose: The subject of each picture.
        pixels: uint8 [N, S, S, 3], the pictures.
    """

    said: Mapping[str, tuple[float, ...]]
    whose: tuple[int, ...]
    pixels: NDArray[np.uint8]

    def values(self, base: Quality | None = None) -> dict[str, float | None]:
        """For a row: means with 95 % intervals, and what they are above those of `base`.

        Pictures are compared with those of `base` one by one, so that subjects that are hard for
        both cancel out.

        Raises:
            ParameterError: The pictures of `base` are of other shots.
        """
        found: dict[str, float | None] = {}
        for name in MEASURES:
            found |= ends_of(name, self.said[name], self.whose)
        if base is None:
            return found
        if self.whose != base.whose:
            raise ParameterError("pictures of other shots cannot be compared one by one")
        for name in MEASURES:
            change = np.subtract(self.said[name], base.said[name]).tolist()
            found |= ends_of(f"{name}_change", change, self.whose)
        return found


def ends_of(name: str, said: Sequence[float], whose: Sequence[int]) -> dict[str, float | None]:
    """A mean by subject and its 95 % interval, from a bootstrap over subjects."""
    found = rate(said, whose)
    if found is None:
        raise ParameterError("no pictures to judge")
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


class Jury:
    """The subjects of a suite, and judges that are made once.

    Args:
        settings: Where drawings, judges and pictures lie; a smoke run judges a few pictures.
        size_px: Side of the pictures.

    Raises:
        ParameterError: There are no drawings in `settings.data`.
    """

    def __init__(self, settings: Settings, size_px: int) -> None:
        """Load the drawings, make the judges."""
        data = settings.data
        if not (data / "sprites.npz").is_file():
            raise ParameterError(
                f"no drawings in {data}; fetch them with `bootpig-rt fetch-data -o {data}`, or "
                "name the folder with --data"
            )
        self._settings = settings
        self.config = replace(SUITES["tiny" if settings.is_smoke else "small"], seeds=1)
        if not settings.is_smoke:
            known = settings.subjects * 3 // 5
            self.config = replace(self.config, identities=known, concepts=settings.subjects - known)
        prompts = 1 if settings.is_smoke else settings.prompts
        sprites = load_sprites(data)
        self.subjects = choose_subjects(sprites, load_splits(), self.config)
        training = np.stack([sprite.rgba for sprite in sprites if sprite.split == "train"])
        self._judges = build_judges(
            self.subjects, self.config, training, size_px=size_px, cache=settings.work / "judges"
        )
        self.shots = [
            shot for shot in main_shots(self.subjects, self.config) if shot.prompt < prompts
        ]

    @property
    def shots_without(self) -> list[Shot]:
        """The same shots drawn without the subject: what a picture gets that never saw it."""
        return [replace(shot, arm="none") for shot in self.shots]

    def shots_with(self, references: int) -> list[Shot]:
        """Shots of the drawings of known concepts, with several references each."""
        return count_shots(self.subjects, self.config, references)

    def judge(
        self,
        ours: OurWay,
        name: str,
        *,
        shots: Sequence[Shot] | None = None,
        **options: Any,
    ) -> Quality:
        """Draw shots and judge them.

        Args:
            ours: Who draws.
            name: For the progress bar.
            shots: Which; by default the first prompts of every subject.
            options: Of a picture: steps, solver, merge, schedule, guidance.
        """
        chosen = list(self.shots if shots is None else shots)
        if not chosen:
            raise ParameterError("no pictures to judge")
        digest = suite_digest(self.subjects, self.config)
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            self._settings.progress(f"judging {name}", done, len(chosen))

        pictures = draw_shots(
            _Drawer(ours, self.subjects, self.config, options),
            chosen,
            suite_digest=digest,
            folder=self._settings.work / "pictures",
            resume=True,
            on_progress=on_progress,
        )
        return self.judge_pictures(chosen, pictures)

    def judge_pictures(self, shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> Quality:
        """Judge pictures of shots, uint8 [N, S, S, 3], whoever drew them."""
        said = self._said(list(shots), pictures)
        return Quality(
            {key: tuple(each) for key, each in said.items()},
            tuple(s.subject for s in shots),
            pictures,
        )

    def _said(self, shots: list[Shot], pictures: NDArray[np.uint8]) -> dict[str, list[float]]:
        """What the judges say; of pictures that they have seen before, what they said then."""
        digest = suite_digest(self.subjects, self.config)
        key = hashlib.sha256(f"{digest} {MEASURES}".encode())
        key.update("".join(shot.tag for shot in shots).encode())
        key.update(pictures.tobytes())
        path = self._settings.work / "verdicts" / f"{key.hexdigest()[:32]}.json"
        if not path.is_file():
            network = next(judge for judge in self._judges.identity if judge.name == _NETWORK)
            nearest = [int(row.argmax()) for row in network.scores(shots, pictures)]
            scenes = list(self._judges.scene(pictures))
            verdicts = Verdicts(shots, pictures, {_NETWORK: nearest}, scenes)
            said = {
                **self._judges.fidelity(shots, pictures),
                "network": list(map(float, identity_hits(verdicts, self.subjects, _NETWORK))),
                "scene": list(map(float, scene_hits(verdicts, self.subjects))),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, json.dumps(said).encode())
        found: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        return found


@dataclass
class _Drawer:
    """Draws shots with a way of ours."""

    ours: OurWay
    subjects: Sequence[EvalSubject]
    config: SuiteConfig
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self._encoded: dict[tuple[int, int], Subject] = {}

    @property
    def fingerprint(self) -> str:
        return f"{self.ours.fingerprint} {sorted(self.options.items())}"

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        prompts, subjects, seeds = [], [], []
        for shot in shots:
            whose = self.subjects[shot.subject]
            caption = caption_of(whose, whose.prompts[shot.prompt])
            noise = stream(self.config.seed, "noise", whose.key, shot.prompt, shot.seed)
            prompts.append(caption.text)
            subjects.append(self._encode(shot, caption.reference_prompt))
            seeds.append(int(noise.integers(2**32)))
        images = self.ours.draw_many(prompts, subjects, seeds, **self.options)
        return np.stack([np.asarray(image, dtype=np.uint8) for image in images])

    def _encode(self, shot: Shot, reference_prompt: str) -> Subject | None:
        if shot.arm == "none":
            return None
        key = shot.subject, shot.num_references
        if key not in self._encoded:
            whose, seed = self.subjects[shot.subject], self.config.seed
            shown = reference_pictures(whose, whose.own, shot.num_references, seed)
            self._encoded[key] = self.ours.pipe.encode_subject(shown, reference_prompt)
        return self._encoded[key]
