"""The suites that judge pictures, and `scale`, run on a small untrained pair with small numbers.

Drawings are made here, and judges are two lines each: what runs is all that lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bootpig_rt.benchmarks import judged
from bootpig_rt.benchmarks.capacity import CostModel
from bootpig_rt.benchmarks.judged import Jury, Quality
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.result import SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import quality, reference, scale
from bootpig_rt.benchmarks.variants import step_variant
from bootpig_rt.errors import ParameterError
from bootpig_rt.pipeline import default_model
from bootpig_rt.training.emoji import Drawing
from bootpig_rt.training.evaluation.evaluate import Judges
from bootpig_rt.training.evaluation.suite import Shot, SuiteConfig
from bootpig_rt.training.sprites import Sprite

# Inside diffusers' schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("default")

CONFIG = SuiteConfig("tiny", 1, 1, 2, 1, 1, (1, 2), 1, 1)


class FirstStyle:
    """Finds every picture nearest to the first style."""

    about = "a stand-in"

    def __init__(self, name: str) -> None:
        self.name = name

    def scores(
        self, shots: Sequence[Shot], pictures: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        return [np.array([1, 0, 0, 0, 0], np.float32) for _ in pictures]


def always_snow(pictures: NDArray[np.uint8]) -> list[str]:
    """Sees snow in every picture."""
    return ["snow"] * len(pictures)


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
    judges = Judges((FirstStyle("pixels"), FirstStyle("network")), always_snow, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged, "SUITES", {"tiny": CONFIG})
        patch.setattr(judged, "load_sprites", lambda _: make_sprites())
        patch.setattr(judged, "build_judges", lambda *_, **__: judges)
        yield Settings(
            pair=tiny_bundle_folder, rounds=1, threads=1, is_smoke=True, data=data,
            work=tmp_path_factory.mktemp("work"), student=tiny_bundle_folder,
        )  # fmt: skip


@pytest.fixture(scope="module")
def read(settings: Settings) -> SuiteResult:
    """The suite `reference`."""
    return reference.run(settings)


@pytest.fixture(scope="module")
def drawn(settings: Settings) -> SuiteResult:
    """The suite `quality`."""
    return quality.run(settings)


def test_tables_hold_the_bytes_of_the_formula_and_known_subjects_are_not_read(
    read: SuiteResult,
) -> None:
    assert {check.name for check in read.checks} >= {
        "table bytes of exact: held, formula",
        "reference passes of exact, known",
        "reference passes of exact streamed, known",
    }
    assert all(check.is_ok for check in read.checks)


def test_every_case_has_three_times_a_table_and_a_verdict(read: SuiteResult) -> None:
    for name in ("exact", "clean", "exact int8", "exact streamed"):
        assert read.row(name).ratio is not None
        assert read.row(f"{name}/cold").ratio is not None
        assert read.row(f"{name}/four").ratio is not None
        assert {"table_bytes", "latents_db", "identity", "identity_network", "scene"} <= set(
            read.row(name).values
        )
    assert read.row("exact").values["latents_db"] == 200
    assert read.row("exact streamed").values["pixels_db"] == 200


def test_a_known_subject_needs_fewer_operations_than_a_new_one(read: SuiteResult) -> None:
    values = read.row("operations").values
    fewer_known, fewer_new = values["fewer_known"], values["fewer_new"]
    assert fewer_known is not None
    assert fewer_new is not None
    assert fewer_known > fewer_new > 1


def test_mixed_subjects_are_own_other_or_neither(read: SuiteResult) -> None:
    values = read.row("mixed/argmax").values
    shares = [values[f"nearest_to_{name}"] or 0.0 for name in ("own", "other", "neither")]
    assert sum(shares) == pytest.approx(1)
    assert "identity" not in values


def test_latents_of_a_window_are_those_that_are_decoded(settings: Settings) -> None:
    ours = OurWay(settings.pair, threads=1)
    whole, _ = reference._drawn(ours, "clean")
    window, picture = reference._drawn(ours, "clean+window:0-0.5")
    assert whole.shape == window.shape
    assert not np.allclose(whole, window)
    pixels = ours.pipe._backend.decode(window)[0].transpose(1, 2, 0).clip(-1, 1)
    assert np.abs((pixels + 1) * 127.5 - picture).max() < 1


def test_weights_and_the_student_are_timed_and_judged_beside_the_base(drawn: SuiteResult) -> None:
    for name in ("dpmpp_2m 4", "int8", "float16", "teacher 8", "student 8", "student 4"):
        row = drawn.row(name)
        assert row.ratio is not None
        assert row.values["identity_change"] == 0  # the judges here say the same of all
        assert {"identity_change_low", "scene_change_high"} <= set(row.values)
    assert "identity_change" not in drawn.row("dpmpp_2m 25").values


def test_options_that_are_exact_draw_the_same_picture(drawn: SuiteResult) -> None:
    for name in ("one thread", "no arena", "no spinning"):
        assert drawn.row(name).values["pixels_db"] == 200
        assert drawn.row(name).ratio_to == "as is"


def test_without_a_student_the_suite_says_how_to_make_one(settings: Settings) -> None:
    cases = quality._cases(replace(settings, student=None))
    assert not any(case.name.startswith("student") for case in cases)


def test_a_row_that_does_not_exist_is_refused(settings: Settings) -> None:
    for suite in (reference, quality):
        with pytest.raises(ParameterError, match="matches no row"):
            suite.run(replace(settings, only=("nothing",)))


def test_a_variant_of_the_step_is_a_bundle_of_its_own(settings: Settings) -> None:
    plain = OurWay(settings.pair, threads=1)
    for weights in ("int8", "float16"):
        folder = step_variant(settings.pair, weights, settings.work)
        other = OurWay(folder, threads=1)
        assert other.pipe.spec.fingerprint != plain.pipe.spec.fingerprint
        images = [np.asarray(each.warm().images[0], np.float32) for each in (plain, other)]
        far = np.abs(images[0] - images[1]).mean()
        assert 0 < far < 8
        assert step_variant(settings.pair, weights, settings.work) == folder


def test_changes_are_taken_picture_by_picture() -> None:
    pictures = np.zeros((4, 1, 1, 3), np.uint8)

    def quality_of(hits: tuple[float, ...]) -> Quality:
        names = ("identity", "identity_network", "other", "scene")
        return Quality(dict.fromkeys(names, hits), (0, 0, 1, 1), pictures)

    base = quality_of((1, 0, 1, 0))
    values = quality_of((1, 0, 1, 1)).change_from(base)
    assert values["identity_change"] == 0.25
    # Subjects are drawn anew: none, one or both of them are better.
    assert (values["identity_change_low"], values["identity_change_high"]) == (0, 0.5)
    same = base.change_from(base)
    assert (same["identity_change_low"], same["identity_change_high"]) == (0, 0)
    with pytest.raises(ParameterError, match="other shots"):
        base.change_from(replace(base, whose=(0, 0, 1, 2)))


def test_the_jury_asks_for_drawings(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no drawings in"):
        Jury(tmp_path, settings.work, size_px=32)


@pytest.mark.slow
def test_the_scale_suite_makes_a_model_that_plans_read(settings: Settings) -> None:
    result = scale.run(replace(settings, pair=default_model(), only=("time",)))
    model = CostModel.of([result])
    assert model.memory is None
    assert result.row("plan 6000").values["machines"]
    assert result.row("subjects 10").values["table_bytes"] == 10 * (
        result.row("subjects 1").values["table_bytes"] or 0
    )
    for name in ("references", "batch", "steps", "size"):
        values = result.row(f"exponent {name}").values
        assert values["exponent_low"] is not None
