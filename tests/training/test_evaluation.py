"""The evaluation: what it draws, how its judges separate, how it counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bootpig_rt.errors import CheckpointError, ConfigError
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.evaluation.alignment import AlignmentJudge
from bootpig_rt.training.evaluation.copying import paste_score
from bootpig_rt.training.evaluation.evaluate import Evaluation, Judges, evaluate
from bootpig_rt.training.evaluation.generators import draw_shots, suite_digest
from bootpig_rt.training.evaluation.identity import Candidates, FeatureJudge, colour_histogram
from bootpig_rt.training.evaluation.render import RendererGenerator, crop, subject_box
from bootpig_rt.training.evaluation.statistics import rate
from bootpig_rt.training.evaluation.suite import (
    SUITES,
    EvalSubject,
    Shot,
    SuiteConfig,
    choose_subjects,
    control_shots,
    main_shots,
    reference_pictures,
)
from bootpig_rt.training.evaluation.table import save_sheets, text_table
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.splits import Splits
from bootpig_rt.training.sprites import Sprite

CONFIG = SuiteConfig(
    name="test",
    identities=2,
    concepts=2,
    prompts=2,
    seeds=2,
    control_prompts=2,
    counts=(1, 2),
    count_subjects=1,
    count_prompts=1,
)
SPLITS = Splits(
    concepts=frozenset({"thing-3", "thing-4"}),
    identities=frozenset({("thing-0", "style-1"), ("thing-1", "style-2")}),
    combinations=frozenset({("thing-0", "snow"), ("thing-2", "city")}),
)
SHAPES = ("ellipse", "rectangle", "triangle", "bar", "ring")
COLOURS = ((220, 40, 40), (40, 170, 60), (50, 80, 220), (240, 200, 40), (150, 60, 170))


def draw_shape(shape: str, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(image)
    ink = (*colour, 255)
    if shape == "triangle":
        draw.polygon([(48, 4), (4, 92), (92, 92)], fill=ink)
    elif shape == "bar":
        draw.rectangle((4, 32, 92, 64), fill=ink)
    elif shape == "ring":
        draw.ellipse((4, 4, 92, 92), outline=ink, width=16)
    elif shape == "rectangle":
        draw.rectangle((4, 4, 92, 92), fill=ink)
    else:
        draw.ellipse((4, 20, 92, 76), fill=ink)
    return np.asarray(image, dtype=np.uint8)


def make_sprites() -> list[Sprite]:
    return [
        Sprite(
            Drawing(f"thing-{c}", f"style-{s}", f"icon-{c}", f"thing {c}", "Objects"),
            SPLITS.split_of(f"thing-{c}", f"style-{s}"),
            draw_shape(SHAPES[s], COLOURS[(s + c) % 5]),
        )
        for c in range(5)
        for s in range(5)
    ]


@pytest.fixture(scope="module")
def subjects() -> list[EvalSubject]:
    return choose_subjects(make_sprites(), SPLITS, CONFIG)


@pytest.fixture(scope="module")
def judge(subjects: list[EvalSubject]) -> AlignmentJudge:
    """In pixels; it keeps the layers that it drew."""
    return AlignmentJudge(subjects, CONFIG)


def one_colour(subjects: Sequence[EvalSubject]) -> list[EvalSubject]:
    """The same subjects with all styles in one colour: only shape tells them apart."""
    grey = np.stack([draw_shape(shape, (230, 120, 30)) for shape in SHAPES])
    return [replace(subject, sprites=grey) for subject in subjects]


def hit_share(chosen: Sequence[NDArray[np.float32]], answers: Sequence[int]) -> float:
    return float(np.mean([row.argmax() == k for row, k in zip(chosen, answers, strict=True)]))


def test_subjects_are_held_out_and_chosen_the_same_each_time(subjects: list[EvalSubject]) -> None:
    again = choose_subjects(make_sprites(), SPLITS, CONFIG)
    assert [s.key for s in subjects] == [s.key for s in again]
    assert [s.prompts for s in subjects] == [s.prompts for s in again]
    for subject in subjects:
        concept, style = subject.key.split("/")
        assert subject.wrong != subject.own
        assert subject.styles[subject.own] == style
        assert SPLITS.split_of(concept, style) == (
            "held_out_identity" if subject.group == "identities" else "held_out_concept"
        )


def test_a_held_out_combination_is_among_the_prompts_of_its_subject(
    subjects: list[EvalSubject],
) -> None:
    found = {
        (subject.key.split("/")[0], prompt.scene)
        for subject in subjects
        for prompt in subject.prompts
        if prompt.is_held_out
    }
    assert found == {("thing-0", "snow")}


def test_scenes_and_positions_come_up_about_equally_often() -> None:
    sprites = [
        replace(sprite, drawing=replace(sprite.drawing, concept=f"c{n}"), split="held_out_concept")
        for n in range(16)
        for sprite in make_sprites()[:5]
    ]
    config = replace(CONFIG, identities=0, concepts=16, prompts=4)
    chosen = choose_subjects(sprites, SPLITS, config)
    scenes = Counter(prompt.scene for subject in chosen for prompt in subject.prompts)
    assert set(scenes) == set(SCENES)
    assert set(scenes.values()) == {4}
    assert all(len({p.position for p in subject.prompts}) == 3 for subject in chosen)


def test_too_few_held_out_subjects_are_an_error_with_the_fix() -> None:
    with pytest.raises(ConfigError, match="fetch-data"):
        choose_subjects(make_sprites(), SPLITS, replace(CONFIG, identities=3))


def test_a_suite_to_tune_by_shares_no_subject_with_the_one_that_it_excludes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported = replace(CONFIG, identities=1, concepts=0)
    monkeypatch.setitem(SUITES, "reported", reported)
    tuning = replace(reported, excludes="reported")
    first = choose_subjects(make_sprites(), SPLITS, reported)
    other = choose_subjects(make_sprites(), SPLITS, tuning)
    assert {s.key for s in first} | {s.key for s in other} == {"thing-0/style-1", "thing-1/style-2"}
    with pytest.raises(ConfigError, match="held-out identities"):
        choose_subjects(make_sprites(), SPLITS, replace(tuning, identities=2))


def test_references_are_views_of_the_drawing_and_the_first_ones_stay(
    subjects: list[EvalSubject],
) -> None:
    subject = subjects[0]
    two, four = (
        np.stack([np.asarray(p) for p in reference_pictures(subject, subject.own, n, 0)])
        for n in (2, 4)
    )
    assert np.array_equal(two, four[:2])
    assert not np.array_equal(four[0], four[1])
    colour = four[0][64, 64] if subject.own != 4 else None
    if colour is not None:
        expected = subject.sprites[subject.own][48, 48, :3]
        assert np.abs(colour[:3].astype(int) - expected).max() <= 26  # light is 0.9 to 1


def test_the_box_lies_in_the_picture_and_covers_the_subject(subjects: list[EvalSubject]) -> None:
    for position in ("left", "centre", "right"):
        left, top, right, bottom = subject_box(position, 64)
        assert right - left == bottom - top
        assert min(left, top) >= 0
        assert max(right, bottom) <= 64
    assert crop(np.zeros((3, 64, 64, 3), np.uint8), "left").shape == (3, 46, 46, 3)


@pytest.mark.parametrize("blur_px", [0.0, 1.5])
def test_the_pixel_judge_names_the_drawing_of_a_render(
    subjects: list[EvalSubject], judge: AlignmentJudge, blur_px: float
) -> None:
    shots = main_shots(subjects, CONFIG)
    pictures = RendererGenerator(subjects, CONFIG, blur_px=blur_px)(shots)
    assert hit_share(judge.scores(shots, pictures), [subjects[s.subject].own for s in shots]) == 1.0


def test_the_pixel_judges_tell_shapes_of_one_colour_apart(subjects: list[EvalSubject]) -> None:
    same = one_colour(subjects[::2])  # of each group one
    shots = control_shots(same, CONFIG, "own")
    answers = [same[s.subject].own for s in shots]
    pictures = RendererGenerator(same, CONFIG)(shots)
    for is_grey in (False, True):
        of_shapes = AlignmentJudge(same, CONFIG, is_grey=is_grey)
        assert hit_share(of_shapes.scores(shots, pictures), answers) >= 0.9


def test_a_judge_follows_the_wrong_reference_that_was_given(
    subjects: list[EvalSubject], judge: AlignmentJudge
) -> None:
    shots = control_shots(subjects, CONFIG, "wrong")
    pictures = RendererGenerator(subjects, CONFIG)(shots)
    scores = judge.scores(shots, pictures)
    assert hit_share(scores, [subjects[s.subject].own for s in shots]) == 0.0
    assert hit_share(scores, [subjects[s.subject].wrong for s in shots]) == 1.0


def histogram_judge(subjects: list[EvalSubject], cache: Path | None = None) -> FeatureJudge:
    return FeatureJudge(
        "colours",
        "histogram",
        colour_histogram,
        parts=1,
        candidates=Candidates(subjects, CONFIG),
        cache=cache,
    )


def test_a_judge_from_its_file_gives_the_same_scores(
    subjects: list[EvalSubject], tmp_path: Path
) -> None:
    shots = main_shots(subjects, CONFIG)[:4]
    pictures = RendererGenerator(subjects, CONFIG)(shots)
    cache = tmp_path / "bank.npz"
    first = histogram_judge(subjects, cache).scores(shots, pictures)
    again = histogram_judge(subjects, cache).scores(shots, pictures)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    cache.write_bytes(cache.read_bytes()[:100])  # damaged: made anew
    anew = histogram_judge(subjects, cache).scores(shots, pictures)
    assert all(np.array_equal(a, b) for a, b in zip(first, anew, strict=True))


def test_a_paste_scores_near_one_and_another_view_less() -> None:
    image = Image.fromarray(draw_shape("triangle", (220, 40, 40)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 60, 50, 80), fill=(20, 20, 120, 255))
    picture = Image.new("RGB", (64, 64), (90, 160, 90))
    small = image.resize((42, 42), Image.Resampling.BOX)
    picture.paste(small, (12, 14), small)
    turned = Image.new("RGB", (64, 64), (90, 160, 90))
    flipped = small.transpose(Image.Transpose.ROTATE_90)
    turned.paste(flipped, (12, 14), flipped)
    assert paste_score(np.asarray(picture), image) > 0.95
    assert paste_score(np.asarray(turned), image) < 0.9


def test_a_rate_weighs_subjects_equally_and_has_an_interval() -> None:
    found = rate([1, 1, 1, 1, 0], ["a", "a", "a", "a", "b"])
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0, "subjects": 2, "pictures": 5}
    assert rate([], []) is None
    sure = rate([1, 1], ["a", "b"])
    assert sure is not None
    assert sure["low"] == 1.0


class CountingGenerator:
    """The renderer, counting what it was asked for."""

    def __init__(self, subjects: Sequence[EvalSubject]) -> None:
        self.inner, self.drawn = RendererGenerator(subjects, CONFIG), 0

    @property
    def fingerprint(self) -> str:
        return "counting"

    def __call__(self, shots: Sequence[Shot]) -> NDArray[np.uint8]:
        self.drawn += len(shots)
        return self.inner(shots)


def test_a_resumed_run_draws_nothing_twice(subjects: list[EvalSubject], tmp_path: Path) -> None:
    shots, digest = main_shots(subjects, CONFIG), suite_digest(subjects, CONFIG)
    generator = CountingGenerator(subjects)
    first = draw_shots(generator, shots, suite_digest=digest, folder=tmp_path, resume=True)
    again = draw_shots(generator, shots, suite_digest=digest, folder=tmp_path, resume=True)
    assert generator.drawn == len(shots)
    assert np.array_equal(first, again)
    draw_shots(generator, shots, suite_digest=digest, folder=tmp_path, resume=False)
    assert generator.drawn == 2 * len(shots)


def run_with_renderer(
    subjects: list[EvalSubject], judge: AlignmentJudge, folder: Path
) -> Evaluation:
    judges = Judges(
        identity=(judge, histogram_judge(subjects)),
        scene=lambda pictures: ["snow"] * len(pictures),
        scene_accuracy=1.0,
        fidelity=lambda shots, _: {"psnr_db": [30.0 + s.prompt for s in shots]},
    )
    generator = RendererGenerator(subjects, CONFIG, noise=4.0)
    return evaluate(generator, judges, subjects, CONFIG, size_px=64, output=folder)


def test_an_evaluation_of_the_renderer_is_at_the_ceiling_and_its_controls_at_the_floor(
    subjects: list[EvalSubject], judge: AlignmentJudge, tmp_path: Path
) -> None:
    evaluation = run_with_renderer(subjects, judge, tmp_path)
    report = evaluation.report
    for group in report["groups"].values():
        assert group["identity"]["pixels"]["value"] == 1.0
        assert group["chance"] == 0.2
        assert group["times_chance"]["pixels"] == 5.0
    controls = report["controls"]
    assert controls["wrong_reference"]["identity"]["pixels"]["value"] == 0.0
    given = controls["wrong_reference"]["identity_of_the_given_reference"]
    assert given["pixels"]["value"] == 1.0
    assert controls["copy_paste"]["paste"]["gap"]["value"] > 0.0
    assert report["held_out_combinations"]["held_out"]["scene"]["value"] == 1.0
    asked = [p.scene == "snow" for s in subjects if s.group == "concepts" for p in s.prompts]
    assert report["groups"]["concepts"]["scene"]["value"] == np.mean(asked)
    assert json.loads(json.dumps(report))["references"]["2"]["identity"]["pixels"]["value"] == 1.0

    assert report["groups"]["identities"]["fidelity"]["psnr_db"]["value"] == 30.5
    assert report["fidelity"]["references_2"]["psnr_db"]["value"] == 30.0
    assert report["fidelity"]["wrong_reference"]["psnr_db"]["low"] <= 30.5

    table = text_table(report)
    assert "30.500" in table
    assert "wrong reference: own identity" in table
    assert "times chance: identities" in table
    assert "5.00" in table
    sheets = save_sheets(evaluation, subjects, CONFIG, tmp_path / "sheets")
    assert {path.name for path in sheets} >= {"identities-1.png", "control-no_reference.png"}
    with Image.open(sheets[0]) as image:
        assert image.width > 3 * 128


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from bootpig_rt.training.evaluation.efficientnet import load_efficientnet

    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="sha256"):
        load_efficientnet(path)
