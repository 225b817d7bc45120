"""The suites that judge pictures, on a small untrained pair with small numbers.

Drawings are made here, and judges are two lines each: what runs is all that lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.benchmarks import curve, judged
from bootpig_rt.benchmarks.depth_estimator import DepthJudge
from bootpig_rt.benchmarks.judged import MEASURES, Jury, Quality
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import control, inpaint, quality, reference
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.curve import load_curve, save_curve, settings_of
from bootpig_rt.errors import ParameterError
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.evaluation.evaluate import Judges
from bootpig_rt.training.evaluation.suite import Shot, SuiteConfig
from bootpig_rt.training.sprites import Sprite

# Inside diffusers' schedulers, with numpy 2.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PIXELS = np.zeros((2, 1, 1, 3), np.uint8)
CONFIG = SuiteConfig("tiny", 1, 1, 2, 1, 1, (1, 2), 1, 1)


class FirstStyle:
    """Finds every picture nearest to the first style."""

    about = "a stand-in"
    name = "network"

    def scores(
        self, shots: Sequence[Shot], pictures: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        return [np.array([1, 0, 0, 0, 0], np.float32) for _ in pictures]


def always_snow(pictures: NDArray[np.uint8]) -> list[str]:
    """Sees snow in every picture."""
    return ["snow"] * len(pictures)


def brightness(shots: Sequence[Shot], pictures: NDArray[np.uint8]) -> dict[str, list[float]]:
    """Measures what differs between any two ways."""
    means = [float(picture.mean()) for picture in pictures]
    return {"psnr_db": means, "perceptual": [mean / 255 for mean in means]}


def make_sprites() -> list[Sprite]:
    """Two things in five colours each."""
    found = []
    for split in ("held_out_identity", "held_out_concept"):
        for style in range(5):
            rgba = np.zeros((96, 96, 4), np.uint8)
            rgba[8:88, 8:88] = (50 * style, 200 - 40 * style, 90, 255)
            drawing = Drawing(split, f"style-{style}", "icon", "thing", "Objects")
            found.append(Sprite(drawing, split, rgba))
    return [*found, replace(found[0], drawing=replace(drawing, concept="c"), split="train")]


@pytest.fixture(scope="module")
def settings(
    tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """One round, one thread, drawings and judges that are made at once."""
    data = tmp_path_factory.mktemp("data")
    (data / "sprites.npz").touch()
    judges = Judges((FirstStyle(),), always_snow, 1.0, brightness)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "SUITES", {"tiny": CONFIG})
        patch.setattr(judged, "load_sprites", lambda _: make_sprites())
        patch.setattr(control, "load_sprites", lambda _: make_sprites())
        patch.setattr(judged, "build_judges", lambda *_, **__: judges)
        yield Settings(
            pair=tiny_bundle_folder, rounds=1, threads=1, is_smoke=True, data=data,
            work=tmp_path_factory.mktemp("work"), student=tiny_bundle_folder,
        )  # fmt: skip


@pytest.fixture(scope="module")
def read(settings: Settings) -> SuiteResult:
    """The suite `reference`."""
    return reference.run(settings, Journal())


@pytest.fixture(scope="module")
def drawn(settings: Settings) -> SuiteResult:
    """The suite `quality`."""
    return quality.run(settings, Journal())


def test_tables_hold_the_bytes_of_the_formula_and_known_subjects_are_not_read(
    read: SuiteResult,
) -> None:
    names = {check.name for check in read.checks}
    assert {"exact: bytes held beside the formula", "exact: reference passes of a known subject",
            "exact streamed: reference passes of a known subject"} <= names  # fmt: skip
    assert all(check.is_ok for check in read.checks)


def test_every_case_has_times_of_a_known_and_a_new_subject_a_table_and_measures(
    read: SuiteResult,
) -> None:
    for name in ("exact", "clean", "exact float16", "exact streamed"):
        for subject in ("known", "new"):
            ratio = read.row(f"{name} {subject}").ratio
            assert ratio is not None
            assert ratio.to == "exact known"
        values = read.row(name).values
        assert {"table_bytes", "from_exact_db", *MEASURES} <= set(values)
        assert {f"{measure}_low" for measure in MEASURES} <= set(values)
    assert read.row("exact").values["from_exact_db"] == 200
    assert read.row("exact streamed").values["from_exact_db"] == 200
    assert "psnr_db_change" not in read.row("exact").values
    assert read.row("exact streamed").values["psnr_db_change"] == 0


def test_a_smaller_table_has_fewer_bytes(read: SuiteResult) -> None:
    exact, half = (read.row(n).values["table_bytes"] or 0 for n in ("exact", "exact float16"))
    assert half == exact / 2


def test_merges_of_several_references_are_compared_with_one(read: SuiteResult) -> None:
    assert "psnr_db_change" not in read.row("merge/1").values
    assert read.row("merge/argmax_2").values["psnr_db_change"] != 0


def test_every_change_has_a_time_beside_25_steps_and_measures(drawn: SuiteResult) -> None:
    for name in ("dpmpp_2m 4", "teacher 8", "student 4"):
        row = drawn.row(name)
        assert row.ratio is not None
        assert row.ratio.to == quality.BASE
        assert row.values["psnr_db_change"] is not None
    assert "psnr_db_change" not in drawn.row(quality.BASE).values


def test_a_curve_is_made_of_the_rows_and_compares_with_the_control(
    drawn: SuiteResult, settings: Settings, tmp_path: Path
) -> None:
    found = curve.curve_of(drawn, settings)
    save_curve(found, tmp_path / "pair.curve.json")
    assert load_curve(tmp_path / "pair.curve.json") == found
    full, cached = found.point(quality.BASE), found.point("cache:2")
    assert (full.fidelity, full.work, full.difference_db) == (1, 1, 200)
    assert dict(settings_of(cached)) == {"approximation": "cache:2"}
    assert 0 < cached.work < 1
    assert found.point("dpmpp_2m 4").work == pytest.approx(4 / 25)
    assert set(cached.changes) == set(MEASURES)
    names = {point.name for point in found.points}
    assert quality.NO_SUBJECT not in names
    assert "student 4" in names


def test_a_curve_needs_the_rows_of_its_suite(read: SuiteResult, settings: Settings) -> None:
    with pytest.raises(ParameterError, match="suite is 'reference', expected 'quality'"):
        curve.curve_of(read, settings)


def test_fidelity_is_one_for_the_full_setting_and_nothing_for_the_control() -> None:
    def row(name: str, psnr_db: float, perceptual: float, scene: float) -> Row:
        values: dict[str, float | None] = {
            "psnr_db": psnr_db,
            "perceptual": perceptual,
            "scene": scene,
        }
        return Row(name, name, values=values)

    base, control = row("base", 20.0, 0.2, 1.0), row("none", 10.0, 0.4, 1.0)
    assert curve.fidelity(base, base, control) == 1
    assert curve.fidelity(control, base, control) == 0
    assert curve.fidelity(row("a", 19.0, 0.21, 1.0), base, control) == pytest.approx(0.9)
    assert curve.fidelity(row("b", 21.0, 0.25, 1.0), base, control) == pytest.approx(0.75)
    assert curve.fidelity(row("c", 21.0, 0.1, 0.5), base, control) == pytest.approx(0.5)


def test_changes_that_are_exact_draw_nearly_the_same_pixels(drawn: SuiteResult) -> None:
    for name in ("one thread", "no arena", "no spinning", "portable"):
        row = drawn.row(name)
        assert row.ratio is not None
        assert row.ratio.to == "as is"
        assert (row.values["pixels_db"] or 0) > 60


@pytest.mark.slow
def test_no_suite_takes_fewer_rounds_than_it_was_asked_for(settings: Settings) -> None:
    # Rounds were once halved where ways are many, and tables did not say so.
    three = replace(settings, rounds=3, only=("clean", "dpmpp_2m 4"))
    rows = reference.run(three, Journal()).rows + quality.run(three, Journal()).rows
    assert {len(row.samples_ms) for row in rows if row.samples_ms} == {3}


def test_pictures_are_judged_once_and_then_read(
    settings: Settings, drawn: SuiteResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    jury = Jury(settings, 32)
    ours = OurWay(settings.pair, threads=1)
    found = jury.judge(ours, "again", num_inference_steps=4, solver="dpmpp_2m")
    assert found.values()["psnr_db"] == pytest.approx(drawn.row("dpmpp_2m 4").values["psnr_db"])

    def never(*_: object) -> list[str]:
        raise AssertionError("these pictures were judged before")

    monkeypatch.setattr(ours, "draw_many", never)
    monkeypatch.setattr(jury, "_judges", Judges((), never, 1.0))
    jury.judge(ours, "again", num_inference_steps=4, solver="dpmpp_2m")


def test_pictures_of_other_shots_cannot_be_compared() -> None:
    said = {name: (1.0, 0.0) for name in MEASURES}
    with pytest.raises(ParameterError, match="other shots"):
        Quality(said, (0, 1), PIXELS).values(Quality(said, (0, 2), PIXELS))


def test_a_change_cancels_what_is_hard_for_both() -> None:
    hard = {name: (10.0, 30.0) for name in MEASURES}
    harder = {name: (9.0, 29.0) for name in MEASURES}
    values = Quality(harder, (0, 1), PIXELS).values(Quality(hard, (0, 1), PIXELS))
    assert values["psnr_db_change"] == values["psnr_db_change_low"] == -1
    assert values["psnr_db_low"] == 9


def test_without_drawings_the_suites_say_how_to_get_them(settings: Settings) -> None:
    with pytest.raises(ParameterError, match="fetch-data"):
        Jury(replace(settings, data=Path("nowhere")), 32)


def test_subjects_are_drawn_into_scenes_that_stay_as_they_were(settings: Settings) -> None:
    found = inpaint.run(settings, Journal())
    assert [row.name for row in found.rows] == list(inpaint.CASES)
    (check,) = found.checks
    assert (check.value, check.limit) == (0, 0)
    own = found.row(inpaint.OWN).values
    assert {"seam_levels", "seam_levels_low", "network", "scene", "pictures"} <= set(own)
    assert "seam_levels_change" not in own
    for name in ("wrong reference", "no reference", "hard edge", "pasted"):
        values = found.row(name).values
        assert values["changed_outside"] == 0
        assert {"seam_levels_change", "network_change_low"} <= set(values)
    # A softer edge shows more of the scene at the border, which is what the renderer drew there.
    assert (found.row("hard edge").values["seam_levels"] or 0) > (own["seam_levels"] or 0)


def test_the_truth_of_a_scene_differs_from_it_inside_the_mask_alone(settings: Settings) -> None:
    jury = Jury(settings, 32)
    given = [inpaint.given_of(jury.subjects[s.subject], s, jury, 32) for s in jury.shots]
    for one in given:
        mask = one.canvas.mask
        assert mask is not None
        differs = (one.truth != one.canvas.pixels).any(axis=-1)
        assert differs.any()
        assert differs[mask].mean() > 5 * differs[~mask].mean()


@pytest.fixture(scope="module")
def followed(settings: Settings, controlled_bundle_folder: Path) -> SuiteResult:
    """The suite `control`, of a pair with a random control."""
    return control.run(replace(settings, pair=controlled_bundle_folder), Journal())


def test_pictures_that_follow_maps_are_compared_with_those_that_follow_none(
    followed: SuiteResult,
) -> None:
    assert [row.name for row in followed.rows] == ["renderer", *control.CASES]
    bound, none, other = (followed.row(name).values for name in ("renderer", "no map", "other map"))
    assert {"depth", "depth_low", "chance", "pictures"} <= set(bound)
    assert "network" not in bound
    assert "network_change" not in none
    # The map that is followed is the picture's own, but for the control.
    assert none["followed"] == none["depth"]
    assert other["followed"] == other["chance"]
    for name in ("own map", "own map, scale 0.5", "other map"):
        values = followed.row(name).values
        assert {"depth", "chance", "followed", *MEASURES, "network_change_low"} <= set(values)
        assert values["pictures"] == none["pictures"]
        assert values["psnr_db_change"] != 0  # maps change what is drawn
    assert followed.settings["compared_with"] == control.NONE


def test_the_estimator_of_depth_is_trained_once(
    followed: SuiteResult,
    settings: Settings,
    controlled_bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (kept,) = settings.work.glob("depth-32-*.npz")

    def never(*_: object) -> None:
        raise AssertionError(f"{kept} holds it")

    monkeypatch.setattr(DepthJudge, "_train", never)
    few = replace(settings, pair=controlled_bundle_folder, only=("other",))
    again = control.run(few, Journal())
    others = ["other map", "other map, scale 2"]
    assert [row.name for row in again.rows] == ["renderer", control.NONE, *others]
    for row in again.rows:
        assert row.values == followed.row(row.name).values


def test_a_pair_without_a_control_of_depth_is_refused(settings: Settings) -> None:
    with pytest.raises(ParameterError, match="has no control of kind depth; name a pair that has"):
        control.run(settings, Journal())


def test_the_depth_of_a_shot_is_of_its_subject(settings: Settings) -> None:
    """Cards stand nearer than the ground: there the picture shows the drawing, of one colour."""
    jury = Jury(settings, 32)
    for shot in jury.shots:
        one = control.given_of(shot, jury, 32)
        card = one.depth > 160  # the ground ends at 153
        assert card.any()
        spread = [one.truth[where].std(axis=0).max() for where in (card, ~card)]
        assert spread[0] < spread[1]
