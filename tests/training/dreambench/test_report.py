"""What a report says beside its numbers: comparable or not, the oracle, copies, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.images.image_input import load_image
from bootpig_rt.training.evaluation.dreambench.copies import PasteJudge
from bootpig_rt.training.evaluation.dreambench.data import DreamBench, load_dreambench
from bootpig_rt.training.evaluation.dreambench.encoders import DinoEncoder
from bootpig_rt.training.evaluation.dreambench.oracle import check_oracle
from bootpig_rt.training.evaluation.dreambench.published import load_published
from bootpig_rt.training.evaluation.dreambench.scores import Floats, controls


def with_cosine(cosine: float, count: int = 4) -> Floats:
    """Directions of which any two have one cosine."""
    gram = np.full((count, count), cosine) + (1 - cosine) * np.eye(count)
    return np.linalg.cholesky(gram).astype(np.float32)


@pytest.fixture
def whole(bench_folder: Path) -> DreamBench:
    """As many subjects as the benchmark has."""
    bench = load_dreambench(bench_folder)
    return replace(bench, subjects=bench.subjects * 10)


@pytest.fixture
def dino(dino_folder: Path) -> DinoEncoder:
    """A random one that passes for the protocol's."""
    encoder = DinoEncoder(dino_folder)
    encoder.about = replace(encoder.about, is_of_protocol=True)
    return encoder


def test_the_published_oracle_passes_within_its_tolerance(
    whole: DreamBench, dino: DinoEncoder
) -> None:
    for cosine, is_right in ((0.774, True), (0.778, True), (0.770, True), (0.780, False)):
        [check] = check_oracle(whole, dino, [("", [with_cosine(cosine)] * 30)])
        assert check.is_right == is_right
        assert check.found == pytest.approx(cosine, abs=1e-5)
    assert "not comparable with the published table; check weights" in check.text


def test_an_oracle_that_is_off_says_what_would_agree(whole: DreamBench, dino: DinoEncoder) -> None:
    off, right = [with_cosine(0.60)] * 30, [with_cosine(0.775)] * 30
    [check] = check_oracle(whole, dino, [("", off), ("with --dino-view whole", right)])
    assert check.text.endswith("it agrees with --dino-view whole")
    with_self = [with_cosine((4 * 0.774 - 1) / 3)] * 30
    [check] = check_oracle(whole, dino, [("", with_self)])
    assert "agrees when photographs are scored against themselves too" in check.text


def test_no_oracle_is_checked_where_none_is_known(
    bench_folder: Path, whole: DreamBench, dino: DinoEncoder, dino_folder: Path
) -> None:
    right = [("", [with_cosine(0.774)] * 30)]
    assert not check_oracle(load_dreambench(bench_folder), dino, right)
    assert not check_oracle(whole, DinoEncoder(dino_folder), right)


def test_a_wrong_oracle_ends_the_command_with_one(
    bench_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bootpig_rt.training.evaluation.dreambench import encoders, oracle

    monkeypatch.setattr(encoders, "_DINO_S16", {"hidden_size": 16})
    monkeypatch.setattr(oracle, "NUM_SUBJECTS", 3)
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "--oracle-only"]
    assert main([*words, "--dino", str(dino_folder), "-o", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "DINO is not comparable with the published table" in captured.out
    assert "DINO is not comparable with the published table" in captured.err


def test_a_copy_scores_above_the_oracle_and_strangers_below() -> None:
    rng = np.random.default_rng(0)

    def near(centre: Floats, count: int) -> Floats:
        found = centre + 0.3 * rng.normal(size=(count, 8))
        unit: Floats = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        return unit

    dog, vase = np.eye(8, dtype=np.float32)[:2]
    found = controls(
        [near(dog, 4), near(dog + 0.5 * vase, 5), near(vase, 6)], ["dog", "dog", "vase"]
    )
    assert found.same_class is not None
    assert found.other is not None
    assert found.copy > found.real > found.same_class > found.other
    alone = controls([near(dog, 4)], ["dog"])
    assert (alone.same_class, alone.other) == (None, None)


def test_a_pasted_reference_is_told_from_another_view() -> None:
    reference = Image.new("RGBA", (60, 60))
    reference.paste((220, 40, 30, 255), (10, 5, 40, 55))
    reference.paste((250, 240, 90, 255), (15, 10, 30, 25))
    judge = PasteJudge((reference,))
    scene = Image.effect_noise((128, 128), 60).convert("RGB")
    pasted = scene.copy()
    large = reference.resize((90, 90))
    pasted.paste(large, (20, 24), large)
    turned = scene.copy()
    other = large.rotate(90)
    turned.paste(other, (20, 24), other)
    scores = judge.scores([pasted, turned, scene])
    assert scores[0] > 0.9
    assert scores[0] > scores[1] > scores[2]


def test_the_only_reference_is_never_compared_with_itself() -> None:
    views = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    for view, place in zip(views, (4, 10, 16), strict=True):
        view.paste("white", (place, place, place + 12, place + 20))
    first = PasteJudge((views[0].convert("RGBA"),))
    assert len(first.of_photographs(views)) == 2
    every = PasteJudge(tuple(view.convert("RGBA") for view in views))
    scores = every.of_photographs(views)
    assert len(scores) == 3
    assert max(scores) < 0.999


def test_a_run_writes_everything_and_says_what_it_is_not(
    bench_folder: Path,
    clip_folder: Path,
    dino_folder: Path,
    tiny_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in bench_folder.rglob("*.png"):  # on blue, so that there is something to cut off
        pixels = np.asarray(load_image(path)).copy()
        pixels[(pixels == 255).all(axis=-1)] = (30, 90, 250)
        Image.fromarray(pixels).save(path)
    out = tmp_path / "out"
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "-o", str(out)]
    words += ["--clip", str(clip_folder), "--dino", str(dino_folder), "--steps", "2"]
    words += ["--model", str(tiny_bundle_folder), "--prompts", "2", "--seeds", "1"]
    words += ["--remove-background", "grabcut", "--masked"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "is not of the protocol: its scores are on another scale" in captured.err
    assert "MDINO" in captured.out
    assert "photographs of another subject, same noun" in captured.out
    report = json.loads((out / "report.json").read_text())
    assert not report["is_comparable"]
    assert any(remark.startswith("another scale: DINO") for remark in report["remarks"])
    assert any(remark.startswith("a part of the benchmark: 3 su") for remark in report["remarks"])
    assert set(report["scores"]) == {
        "dino",
        "clip_i",
        "clip_t",
        "masked_dino",
        "masked_clip_i",
        "paste",
    }
    assert report["scores"]["dino"]["pictures"] == 6
    photographs = report["photographs"]
    assert abs(photographs["masked_dino"]["real"] - photographs["dino"]["real"]) > 1e-3
    assert report["pictures_without_subject"] < 3 * 2 + 7
    assert report["subsets"]["live"]["dino"]["subjects"] == 2
    assert report["subsets"]["property"]["dino"] is None
    assert report["settings"]["background"] == "grabcut"
    page = (out / "report.md").read_text()
    assert "| BootPIG | SD 2.1 | all | .674 | .797 | .311 | BootPIG table 1 |  |" in page
    assert "subjects cropped by SAM" in page
    assert "not comparable, see above" in page
    sheets = sorted(path.name for path in (out / "sheets").iterdir())
    assert sheets == ["dog.jpg", "dog2.jpg", "overview.jpg", "vase.jpg"]
    assert load_image(out / "sheets" / "dog.jpg").width > 400
    assert all(f"](sheets/{name})" in page for name in sheets)


def test_scoring_again_measures_nothing_again(
    bench_folder: Path,
    dino_folder: Path,
    tiny_bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["evaluate", "--suite", "dreambench", "--data", str(bench_folder), "-o", str(tmp_path)]
    words += ["--dino", str(dino_folder)]
    draw = ["--steps", "2", "--model", str(tiny_bundle_folder), "--prompts", "1", "--seeds", "1"]
    assert main([*words, *draw]) == 0
    before = json.loads((tmp_path / "report.json").read_text())

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(DinoEncoder, "images", refuse)
    monkeypatch.setattr(PasteJudge, "scores", refuse)
    assert main([*words, "--score-only"]) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == before


def test_published_rows_are_whole() -> None:
    rows = load_published()
    by_method = {row.method: row for row in rows}
    own = by_method["BootPIG"]
    assert (own.dino, own.clip_i, own.clip_t) == (0.674, 0.797, 0.311)
    oracle = by_method["real photographs"]
    assert (oracle.dino, oracle.clip_i, oracle.clip_t) == (0.774, 0.885, None)
    for row in rows:
        assert row.source, row.method
        for value in (row.dino, row.clip_i, row.clip_t):
            assert value is None or 0.2 < value < 1
    assert all(by_method[name].remark for name in ("DisCo", "MOSAIC", "Kosmos-G", "Emu2-Gen"))
