"""Suite `control`: pictures that follow the renderer's depth, beside those that follow none.

The renderer draws a held-out subject into a scene, which gives a depth map; the pair draws the
prompt with that map, without any, and with the map of another picture. A small estimator, trained
on the renderer's own pictures, tells the depth of what was drawn: its distance to the map, beside
its error on the renderer's picture, is how closely the map was followed. In `chance` the distance
is that to the map of another picture: a control that does nothing is as near to one as to the
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.benchmarks.depth_estimator import DepthJudge
from bootpig_rt.benchmarks.judged import Jury, Quality, ends_of
from bootpig_rt.benchmarks.ours import OurWay, backends_here, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.bundle.shipped import default_model, packaged_model
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.control import Control
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.training.card_depth import card_depth
from bootpig_rt.training.compose import place, target_view
from bootpig_rt.training.evaluation.suite import Shot, caption_of, reference_pictures, stream
from bootpig_rt.training.scenes import draw_scene
from bootpig_rt.training.sprites import load_sprites

HELP = "pictures that follow depth maps: how closely, and what it costs of identity"

Pixels = NDArray[np.uint8]
Map = Literal["none", "own", "other"]

KIND = "depth"
NONE = "no map"
CASES: dict[str, tuple[str, Map, float]] = {
    NONE: ("the prompt and the reference alone", "none", 0.0),
    "own map": ("the depth of the renderer's picture", "own", 1.0),
    "own map, scale 0.5": ("the same, half as strong", "own", 0.5),
    "own map, scale 2": ("the same, twice as strong", "own", 2.0),
    "other map": ("control: the depth of another picture", "other", 1.0),
    "other map, scale 2": ("control: the same, twice as strong", "other", 2.0),
}
"""Label of a row, whose map is followed, and how closely."""

_STEPS, _SMOKE_STEPS = 700, 5


@dataclass(frozen=True)
class Given:
    """What the renderer says of one picture.

    Attributes:
        truth: uint8 [S, S, 3].
        depth: uint8 [S, S], its map.
    """

    truth: Pixels
    depth: Pixels


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Draw all shots in all cases, and judge them.

    Raises:
        ParameterError: The pair has no control of kind `depth`, the drawings that the judges need
            are not there, or no row is wanted.
    """
    settings.check_only(CASES)
    with torch_threads(settings.threads):
        pair = settings.pair
        if pair == default_model():
            pair = packaged_model("full", (KIND,))
        backend = backends_here(pair, settings.device)[0]  # training leaves no graphs
        ours = OurWay(pair, backend=backend, threads=settings.threads)
        if KIND not in [control.kind for control in ours.pipe.spec.controls]:
            raise ParameterError(
                f"{pair} has no control of kind {KIND}; name a pair that has one with "
                "--model, such as the result of training/configs/control.toml"
            )
        size = ours.config.sample_size_px
        jury = Jury(settings, size)
        given = [given_of(shot, jury, size) for shot in jury.shots]
        judge = _judge(settings, size)
        maps = np.stack([one.depth for one in given]).astype(np.float32) / 255.0
        others = maps[_others(len(maps))]
        truths = np.stack([one.truth for one in given])
        whose = tuple(shot.subject for shot in jury.shots)
        rows = [
            Row(
                "renderer", "the renderer's own pictures: the estimator's error", "bound",
                values={"pictures": len(given), **_distances(judge, truths, maps, others, whose)},
            )
        ]  # fmt: skip
        base: Quality | None = None
        for name, (label, which, scale) in CASES.items():
            if not (settings.is_wanted(name) or name == NONE):
                continue
            pictures = _draw(ours, jury, given, which, scale, settings, name)
            quality = jury.judge_pictures(jury.shots, pictures)
            followed = others if which == "other" else maps
            values = _distances(judge, pictures, maps, others, whose)
            values |= ends_of("followed", _far(judge, pictures, followed), whose)
            values |= quality.values(base)
            base = quality if base is None else base
            kind = "control" if "control" in label or which == "none" else "drawn with a map"
            rows.append(Row(name, label, kind, values={"pictures": len(pictures), **values}))
    return SuiteResult(
        "control",
        tuple(rows),
        settings={
            "pair": ours.config.name, "steps": ours.config.default_steps, "size_px": size,
            "references": 1, "compared_with": NONE, "kind": KIND,
        },
    )  # fmt: skip


def given_of(shot: Shot, jury: Jury, size_px: int) -> Given:
    """The renderer's picture of a shot, at a place and a turn of its own, and its depth."""
    subject = jury.subjects[shot.subject]
    prompt = subject.prompts[shot.prompt]
    rng = stream(jury.config.seed, "control", subject.key, shot.prompt, shot.seed)
    scene = draw_scene(prompt.scene, rng, size_px)
    view = target_view(rng, prompt.position)
    truth, mask = place(subject.sprites[subject.own], view, scene)
    return Given(truth, card_depth(mask))


def _judge(settings: Settings, size_px: int) -> DepthJudge:
    sprites = [one for one in load_sprites(settings.data) if one.split == "train"]
    steps = _SMOKE_STEPS if settings.is_smoke else _STEPS
    return DepthJudge(
        np.stack([one.rgba for one in sprites]),
        [one.drawing.noun for one in sprites],
        size_px=size_px,
        steps=steps,
        cache=settings.work / f"depth-{size_px}-{steps}.npz",
        progress=settings.progress,
    )


def _others(count: int) -> NDArray[np.int64]:
    """For each picture another one: that of another subject, as shots come subject by subject."""
    return (np.arange(count) + max(1, count // 2)) % count


def _distances(
    judge: DepthJudge,
    pictures: Pixels,
    maps: NDArray[np.float32],
    others: NDArray[np.float32],
    whose: tuple[int, ...],
) -> dict[str, float | None]:
    """Mean distance of the told depth to the own map, and to that of another picture, 0 to 1."""
    own = ends_of("depth", _far(judge, pictures, maps), whose)
    return own | ends_of("chance", _far(judge, pictures, others), whose)


def _far(judge: DepthJudge, pictures: Pixels, maps: NDArray[np.float32]) -> list[float]:
    told = judge.depth(pictures)
    return [float(one) for one in np.abs(told - maps).mean(axis=(1, 2))]


def _draw(
    ours: OurWay,
    jury: Jury,
    given: list[Given],
    which: Map,
    scale: float,
    settings: Settings,
    name: str,
) -> Pixels:
    """One picture for each shot, uint8 [N, S, S, 3], all with the same noise."""
    encoded: dict[int, Subject] = {}
    requests = []
    others = _others(len(given))
    for number, shot in enumerate(jury.shots):
        whose = jury.subjects[shot.subject]
        caption = caption_of(whose, whose.prompts[shot.prompt])
        if shot.subject not in encoded:
            shown = reference_pictures(whose, whose.own, 1, jury.config.seed)
            encoded[shot.subject] = ours.pipe.encode_subject(shown, caption.reference_prompt)
        noise = stream(jury.config.seed, "noise", whose.key, shot.prompt, shot.seed)
        controls: tuple[Control, ...] = ()
        if which != "none":
            one = given[number if which == "own" else int(others[number])]
            controls = (Control.load(KIND, one.depth, scale=scale),)
        seed = int(noise.integers(2**32))
        subject = encoded[shot.subject]
        requests.append(Request(prompt=caption.text, subject=subject, seed=seed, controls=controls))
    drawn: list[Image.Image] = []
    for image in ours.pipe.map(requests):
        drawn += image.images
        settings.progress(f"drawing {name}", len(drawn), len(requests))
    return np.stack([np.asarray(image, np.uint8) for image in drawn])
