"""Identity and scene accuracy of a way to draw, on subjects held out from training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.benchmarks.settings import Progress, no_progress
from bootpig_rt.errors import ParameterError
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.pipeline import Pipeline, Request
from bootpig_rt.reference.subject import Subject
from bootpig_rt.training.evaluation.counting import (
    MAIN_JUDGE,
    Verdicts,
    identity_hits,
    scene_hits,
)
from bootpig_rt.training.evaluation.evaluate import build_judges
from bootpig_rt.training.evaluation.generators import (
    PipelineGenerator,
    draw_shots,
    suite_digest,
)
from bootpig_rt.training.evaluation.statistics import rate
from bootpig_rt.training.evaluation.suite import (
    SUITES,
    Shot,
    choose_subjects,
    count_shots,
    main_shots,
    reference_pictures,
)
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites

_JUDGES = {"identity": MAIN_JUDGE, "identity_network": "network"}
"""Name of a value, and the judge behind it: shape and colour, and the stricter network."""


@dataclass(frozen=True)
class Quality:
    """What judges who never saw the pair say of its pictures.

    Attributes:
        said: For each of N pictures, 1 or 0: `identity`, nearest to its own reference among all
            drawings of its concept; `identity_network`, the same by features of an ImageNet
            network; `other`, nearest to the drawing that was mixed in; `scene`, shows the scene of
            its prompt.
        whose: The subject of each picture.
        pictures: uint8 [N, S, S, 3], in the order of the shots.
    """

    said: Mapping[str, tuple[float, ...]]
    whose: tuple[int, ...]
    pictures: NDArray[np.uint8]

    def values(self) -> dict[str, float | None]:
        """For a row."""
        found: dict[str, float | None] = {}
        for name in (*_JUDGES, "scene"):
            found |= _ends(name, self.said[name], self.whose)
        return found | {"judged_pictures": float(len(self.whose))}

    def change_from(self, other: Quality) -> dict[str, float | None]:
        """How much higher each rate is than that of other pictures of the same shots, for a row.

        Pictures are compared one by one, so that subjects that are hard for both cancel out.

        Raises:
            ParameterError: The pictures are of other shots.
        """
        if self.whose != other.whose:
            raise ParameterError("pictures of other shots cannot be compared one by one")
        found: dict[str, float | None] = {}
        for name in (*_JUDGES, "scene"):
            change = np.subtract(self.said[name], other.said[name]).tolist()
            found |= _ends(f"{name}_change", change, self.whose)
        return found

    def mixture(self) -> dict[str, float | None]:
        """Which of two mixed drawings the pictures show, for a row."""
        neither = [1 - own - other for own, other in zip(*self._two, strict=True)]
        found = _ends("nearest_to_own", self._two[0], self.whose)
        found |= _ends("nearest_to_other", self._two[1], self.whose)
        found |= _ends("nearest_to_neither", neither, self.whose)
        return found | _ends("scene", self.said["scene"], self.whose)

    @property
    def _two(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.said["identity"], self.said["other"]


def _ends(name: str, said: Sequence[float], whose: Sequence[int]) -> dict[str, float | None]:
    """A mean by subject and its 95 % interval, from a bootstrap over subjects."""
    found = rate(said, whose)
    if found is None:
        raise ParameterError("no pictures to judge")
    ends = {"": found.value, "_low": found.low, "_high": found.high}
    return {f"{name}{end}": round(value, 4) for end, value in ends.items()}


class Jury:
    """The subjects of a suite, and judges that are made once.

    Args:
        data: Folder that `fetch-data` made.
        work: Folder for judges and pictures, kept between runs.
        size_px: Side of the pictures.
        suite: Of `evaluate`.
        prompts: Prompts of each subject, one seed each.

    Raises:
        ParameterError: There are no drawings in `data`.
    """

    def __init__(
        self, data: Path, work: Path, *, size_px: int, suite: str = "small", prompts: int = 4
    ) -> None:
        """Load the drawings, make the judges."""
        if not (data / "sprites.npz").is_file():
            raise ParameterError(
                f"no drawings in {data}; fetch them with `bootpig-rt fetch-data -o {data}`, or "
                "name the folder with --data"
            )
        self._work = work
        self.config = replace(SUITES[suite], seeds=1)
        sprites = load_sprites(data)
        self.subjects = choose_subjects(sprites, load_splits(), self.config)
        training = np.stack([sprite.rgba for sprite in sprites if sprite.split == "train"])
        self._judges = build_judges(
            self.subjects, self.config, training, size_px=size_px, cache=work / "judges"
        )
        self.shots = [
            shot for shot in main_shots(self.subjects, self.config) if shot.prompt < prompts
        ]

    def shots_with(self, references: int) -> list[Shot]:
        """Shots of the drawings of known concepts, with several references each."""
        return count_shots(self.subjects, self.config, references)

    def judge(
        self,
        pipe: Pipeline,
        *,
        shots: Sequence[Shot] | None = None,
        distractors: int = 0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_scales: tuple[float, float] | None = None,
        progress: Progress = no_progress,
        **options: Any,
    ) -> Quality:
        """Draw shots and judge them.

        Args:
            pipe: Who draws.
            shots: Which; by default the first prompts of every subject.
            distractors: Pictures of another drawing of the concept that are mixed into the
                references of each subject.
            guidance_interval: Share of the steps with guidance.
            guidance_scales: s_image and s_text; the pair's own if None.
            progress: Told after each chunk.
            options: Of `Pipeline.sampling_params`: steps, solver, merge, schedule.
        """
        chosen = list(self.shots if shots is None else shots)
        if not chosen:
            raise ParameterError("no pictures to judge")
        image_scale, text_scale = guidance_scales or (None, None)
        generator = _Distracted(
            pipe,
            self.subjects,
            self.config,
            params=pipe.sampling_params(**options),
            image_guidance_scale=image_scale,
            text_guidance_scale=text_scale,
        )
        generator.distractors = distractors
        generator.guidance_interval = guidance_interval
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            progress("pictures", done, len(chosen))

        pictures = draw_shots(
            generator,
            chosen,
            suite_digest=suite_digest(self.subjects, self.config),
            folder=self._work / "pictures",
            resume=True,
            on_progress=on_progress,
        )
        verdicts = self._verdicts(chosen, pictures)
        said = {
            name: identity_hits(verdicts, self.subjects, judge) for name, judge in _JUDGES.items()
        }
        others = [self.subjects[shot.subject].wrong for shot in chosen]
        pairs = zip(verdicts.chosen[MAIN_JUDGE], others, strict=True)
        said["other"] = [nearest == other for nearest, other in pairs]
        said["scene"] = scene_hits(verdicts, self.subjects)
        return Quality(
            {name: tuple(map(float, hits)) for name, hits in said.items()},
            tuple(shot.subject for shot in chosen),
            pictures,
        )

    def _verdicts(self, shots: list[Shot], pictures: NDArray[np.uint8]) -> Verdicts:
        """What the judges say; of pictures that they have seen before, what they said then."""
        digest = hashlib.sha256(suite_digest(self.subjects, self.config).encode())
        digest.update("".join([*_JUDGES.values(), *(shot.tag for shot in shots)]).encode())
        digest.update(pictures.tobytes())
        path = self._work / "verdicts" / f"{digest.hexdigest()[:32]}.json"
        if not path.is_file():
            nearest = {
                judge.name: [int(row.argmax()) for row in judge.scores(shots, pictures)]
                for judge in self._judges.identity
                if judge.name in _JUDGES.values()
            }
            said = {"nearest": nearest, "scenes": list(self._judges.scene(pictures))}
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, json.dumps(said).encode())
        said = json.loads(path.read_text())
        return Verdicts(shots, pictures, said["nearest"], said["scenes"])


class _Distracted(PipelineGenerator):
    """Draws shots; references of another subject may be mixed into those of each."""

    distractors = 0
    guidance_interval = (0.0, 1.0)

    @property
    def fingerprint(self) -> str:
        options = self.pipeline._planner.options
        name = f"{super().fingerprint} {options} {self.pipeline._backend.name} {self.distractors}"
        return name if self.guidance_interval == (0, 1) else f"{name} {self.guidance_interval}"

    def _request(self, shot: Shot) -> Request:
        return replace(super()._request(shot), guidance_interval=self.guidance_interval)

    def _encode(self, shot: Shot, reference_prompt: str) -> Subject | None:
        if not self.distractors:
            return super()._encode(shot, reference_prompt)
        key = (shot.subject, -1, shot.num_references)
        if key not in self._encoded:
            subject, seed = self.subjects[shot.subject], self.config.seed
            own = reference_pictures(subject, subject.own, shot.num_references, seed)
            others = reference_pictures(subject, subject.wrong, self.distractors, seed)
            self._encoded[key] = self.pipeline.encode_subject([*own, *others], reference_prompt)
        return self._encoded[key]


def psnr_db(a: NDArray[Any], b: NDArray[Any], *, largest: float) -> float:
    """Peak signal-to-noise ratio; 200 for equal arrays."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 200.0 if error == 0 else min(200.0, 10 * float(np.log10(largest**2 / error)))
