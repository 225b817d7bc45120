"""Samples of the 3-D world: what captions say is what is seen, and equal seeds give equal bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError, InputError, StorageError
from bootpig_rt.training.recipe import make_samples, read_recipe
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.shards import StoredSample, read_manifest, read_samples, read_tar
from bootpig_rt.training.world3d.config import SceneWeights, SizeWeights, World3dConfig
from bootpig_rt.training.world3d.identities import Identities, load_identities
from bootpig_rt.training.world3d.scenes import HELD_OUT_SCENES, held_out_combination
from bootpig_rt.training.world3d.synthesize import Synthesis3dConfig, synthesize_3d

pytestmark = pytest.mark.usefixtures("egl")

SIZE_PX = 32
WORLD = World3dConfig(size_px=SIZE_PX, keeps_depth=True)
CONFIG = Synthesis3dConfig(40, seed=3, shard_size=16, world=WORLD)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, people: Identities) -> Path:
    folder = tmp_path_factory.mktemp("made")
    synthesize_3d(folder, people, CONFIG)
    return folder


@pytest.fixture(scope="module")
def samples(made: Path) -> list[StoredSample]:
    return list(read_samples(made))


def view_gap(sample: StoredSample) -> float:
    target, first = sample.record["view_deg"], sample.record["reference_views_deg"][0]
    return float(abs((first[0] - target[0] + 180) % 360 - 180))


def box(sample: StoredSample) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the subject, as shares of the picture's side."""
    rows, columns = np.nonzero(sample.mask > 127)
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return tuple(float(end) / SIZE_PX for end in ends)  # type: ignore[return-value]


def test_the_subject_is_where_and_as_large_as_the_caption_says(samples: list[StoredSample]) -> None:
    ranges = {"small": (0.2, 0.42), "normal": (0.4, 0.66), "large": (0.6, 0.82), "close": (0.74, 1)}
    for sample in samples:
        left, top, right, bottom = box(sample)
        middle, length = (left + right) / 2, max(right - left, bottom - top)
        low, high = ranges[sample.record["size"]]
        assert low <= length <= high, sample.caption
        ends = {"left": (0, 0.42), "centre": (0.42, 0.58), "right": (0.58, 1)}
        low, high = ends[sample.record["position"]]
        assert low <= middle <= high, sample.caption
        words = sample.caption.partition(", ")[2]
        where = {"left": "on the left of", "centre": "in the middle of", "right": "on the right of"}
        assert where[sample.record["position"]] in words
        how = {"small": "small ", "normal": "", "large": "large ", "close": "up close "}
        assert words.startswith(how[sample.record["size"]] + where[sample.record["position"]])
        if sample.record["scene"] != "space":
            assert bottom > 0.68, sample.caption


def test_all_kinds_of_scenes_sizes_and_subjects_are_met(samples: list[StoredSample]) -> None:
    records = [sample.record for sample in samples]
    assert {record["size"] for record in records} == {"small", "normal", "large", "close"}
    assert {record["concept"] for record in records} == {"crate", "bin", "anvil", "kite", "sledge"}
    assert {len(sample.references) for sample in samples} == {1, 2, 3, 4}
    # A grey model has a look that is told, a coloured one its own colours or turned ones.
    for record in records:
        assert bool(record["look"]) == (record["concept"] == "anvil")
    assert any(record["hue_deg"] for record in records)


def test_half_of_the_models_are_shown_from_at_least_thirty_degrees_away(
    samples: list[StoredSample],
) -> None:
    models = [s for s in samples if s.record["concept"] in ("crate", "bin", "anvil")]
    gaps = np.array([view_gap(sample) for sample in models])
    assert 0.3 < (gaps >= 29.9).mean() < 0.7
    for sample in models:
        target = sample.record["view_deg"][0]
        for azimuth, _ in sample.record["reference_views_deg"][1:]:
            assert abs((azimuth - target + 180) % 360 - 180) >= 29.9


def test_a_near_view_is_near_in_height_too_when_it_is_to_be_alike(
    people: Identities, tmp_path: Path
) -> None:
    world = World3dConfig(
        size_px=SIZE_PX, near_view_deg=5, far_view_share=0, reference_counts=(0.5, 0.5, 0, 0)
    )
    synthesize_3d(tmp_path, people, Synthesis3dConfig(20, seed=4, shard_size=20, world=world))
    several = 0
    for sample in read_samples(tmp_path):
        (azimuth, elevation), (first, *others) = (
            sample.record["view_deg"],
            sample.record["reference_views_deg"],
        )
        assert abs((first[0] - azimuth + 180) % 360 - 180) <= 5
        assert abs(first[1] - elevation) <= 5
        several += any(abs((one[0] - azimuth + 180) % 360 - 180) >= 29.9 for one in others)
    assert several


def test_references_are_on_white_and_show_the_subjects_colours(
    samples: list[StoredSample],
) -> None:
    for sample in samples:
        for reference in sample.references:
            assert (reference[0] == 255).all()
            assert (reference[-1] == 255).all()
            assert (reference < 250).any(axis=-1).mean() > 0.08


def test_what_is_held_out_is_never_seen(samples: list[StoredSample]) -> None:
    for sample in samples:
        assert sample.record["scene"] not in HELD_OUT_SCENES
        assert sample.record["scene"] != held_out_combination(sample.record["concept"])
        assert "held.glb" not in sample.record["style"]


def test_the_training_reads_the_shards_and_depth_is_beside_them(
    made: Path, samples: list[StoredSample], tmp_path: Path
) -> None:
    opened = Samples(made, tmp_path)
    assert len(opened) == 40
    assert np.array_equal(opened.read(31).target, samples[31].target)
    assert opened.texts(31) == (samples[31].caption, samples[31].reference_prompt)
    (_, parts), *_ = read_tar(made / "shard-00000.tar")
    depth = np.asarray(Image.open(io.BytesIO(parts["depth.png"])), np.int64)
    inside = depth[samples[0].mask == 255]
    assert 300 < np.median(inside) < 10_000
    assert np.median(inside) < np.median(depth[0])


def test_two_processes_make_the_same_bytes_as_one(people: Identities, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_samples=8, shard_size=3)
    one, two = tmp_path / "one", tmp_path / "two"
    synthesize_3d(one, people, config)
    synthesize_3d(two, people, config, num_workers=2)
    assert len(digests(one)) == 3
    assert digests(two) == digests(one)
    assert read_manifest(two) == read_manifest(one)


def test_what_is_there_is_kept_and_other_settings_are_refused(
    made: Path, people: Identities
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in made.glob("*.tar")}
    synthesize_3d(made, people, CONFIG)
    assert {p.name: p.stat().st_mtime_ns for p in made.glob("*.tar")} == before
    with pytest.raises(ConfigError, match="samples of other settings"):
        synthesize_3d(made, people, dataclasses.replace(CONFIG, seed=4))


def test_scenes_and_sizes_follow_their_weights(people: Identities, tmp_path: Path) -> None:
    world = World3dConfig(
        size_px=SIZE_PX,
        drawing_share=0,
        scenes=SceneWeights(0, 1, 0),
        sizes=SizeWeights(0, 0, 1, 0),
        reference_counts=(0, 0, 0, 1),
        without_scenes=("lava", "lawn"),
    )
    synthesize_3d(tmp_path, people, Synthesis3dConfig(12, world=world))
    for sample in read_samples(tmp_path):
        assert sample.record["size"] == "large"
        assert sample.record["concept"] in ("crate", "bin", "anvil")
        assert sample.record["scene"].split("_")[-1] in ("floor", "carpet", "studio", "asphalt")
        assert len(sample.references) == 4


def test_a_missing_model_or_panorama_says_how_to_fetch_it(
    world_folder: Path, few_models: None, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="fetch-data --set models-3d -o"):
        load_identities(tmp_path, "train", with_drawings=False)
    models = tmp_path / "models"
    models.mkdir()
    (models / "boxes").symlink_to(world_folder / "models" / "boxes")
    world = World3dConfig(size_px=SIZE_PX, drawing_share=0, scenes=SceneWeights(0, 0, 1))
    people = load_identities(tmp_path, "train", with_drawings=False)
    plain = Identities(people.folder, "train", people.models[:2], ())
    with pytest.raises(StorageError, match=r"\.hdr.*fetch-data --set models-3d"):
        synthesize_3d(tmp_path / "out", plain, Synthesis3dConfig(4, world=world))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_the_command_makes_samples_and_a_sheet_and_tells_the_rate(
    world_folder: Path, few_models: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "synthesize",
        "--world",
        "3d",
        "--data",
        str(world_folder),
        "--set",
        "side_share=0.1",
    ]
    command += ["--samples", "6", "--size-px", "32", "--seed", "1"]
    made = ["-o", str(tmp_path / "a"), "--sheet", str(tmp_path / "sheet.png"), "--json"]
    assert main([*command, *made]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["samples"] == 6
    assert summary["samples_per_s"] > 0
    assert (tmp_path / "sheet.png").is_file()
    held = ["-o", str(tmp_path / "b"), "--split", "held_out_identity"]
    assert main([*command, *held, "--set", "drawing_share=0"]) == 0
    assert "6 samples" in capsys.readouterr().out
    for sample in read_samples(tmp_path / "b"):
        assert sample.record["style"] == "boxes/held.glb"
    assert main(["synthesize", "--set", "size_px=32", "-o", str(tmp_path / "c")]) == 2
    assert "--world 3d" in capsys.readouterr().err


def test_a_recipe_makes_the_samples_of_its_settings(
    tmp_path: Path, world_folder: Path, few_models: None
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'output = "{tmp_path / "made"}"\ndrawings = "{world_folder}"\n'
        '[[samples]]\nname = "train"\nworld = "3d"\ncount = 4\nseed = 5\nsize_px = 32\n'
        'changes = ["drawing_share=0.25"]\n'
        '[[stages]]\nname = "vae"\nconfig = "vae.toml"\nvalidation = ""\n'
    )
    make_samples(read_recipe(path), path)
    made = read_manifest(tmp_path / "made" / "samples" / "train")
    assert made["samples"] == 4
    world = made["settings"]["world"]
    assert (world["size_px"], world["drawing_share"]) == (32, 0.25)
