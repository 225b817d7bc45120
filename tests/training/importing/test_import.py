"""Imports as a whole: the same shards however they were made, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError, InputError, StorageError
from bootpig_rt.training.folder_claim import LOCK, only_writer
from bootpig_rt.training.importing.fit import Fit
from bootpig_rt.training.importing.folder import FolderSource
from bootpig_rt.training.importing.run import ImportConfig, import_samples
from bootpig_rt.training.importing.stream import Progress
from bootpig_rt.training.importing.tars import TarSource
from bootpig_rt.training.shards import read_manifest, read_samples

CONFIG = ImportConfig(Fit(32), "CC0", "drawn for a test", shard_size=2)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def made(triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples in three shards; one candidate is refused between them."""
    folder = tmp_path_factory.mktemp("made")
    import_samples(folder, FolderSource(triplets), CONFIG)
    return folder


def test_samples_are_read_back_with_all_that_is_known(made: Path, discs: SimpleNamespace) -> None:
    stored = list(read_samples(made))
    assert [sample.index for sample in stored] == list(range(6))
    numbers = [0, 1, 2, 4, 5, 6]
    assert [sample.caption for sample in stored] == [discs.caption(n) for n in numbers]
    assert stored[1].reference_prompt == "a photo of a blue ball"
    assert stored[3].record["origin"] == "ball-4"
    assert stored[3].record["mask"] == "given"
    assert all(len(sample.references) == 1 for sample in stored)
    expected = discs.picture(1).resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0)
    assert np.array_equal(stored[1].target, np.asarray(expected))


def test_the_manifest_tells_the_source_its_licence_and_what_was_refused(made: Path) -> None:
    manifest = read_manifest(made)
    assert manifest["samples"] == 6
    assert manifest["rejects"] == {"no_caption": 1}
    assert [shard["samples"] for shard in manifest["shards"]] == [2, 2, 2]
    assert manifest["source"] == {
        "kind": "folder",
        "files": 7,
        "bytes": 0,
        "licence": "CC0",
        "attribution": "drawn for a test",
        "counts": {"mask_given": 6, "references": 6, "references_with_background": 0},
    }


def test_two_processes_write_the_same_bytes_as_one(
    made: Path, triplets: Path, tmp_path: Path
) -> None:
    import_samples(tmp_path, FolderSource(triplets), CONFIG, num_workers=2)
    assert digests(tmp_path) == digests(made)
    assert read_manifest(tmp_path) == read_manifest(made)


def test_an_import_that_was_interrupted_goes_on(made: Path, triplets: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.samples == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_samples(tmp_path, FolderSource(triplets), CONFIG, on_progress=stop)
    assert list(digests(tmp_path)) == ["shard-00000.tar"]
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    seen: list[Progress] = []
    import_samples(tmp_path, FolderSource(triplets), CONFIG, on_progress=seen.append)
    assert seen[0] == Progress(2, 0)
    assert seen[-1] == Progress(6, 1)
    assert digests(tmp_path) == digests(made)
    assert read_manifest(tmp_path) == read_manifest(made)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_shard_that_was_lost_or_cut_is_made_again_alone(
    number: int, made: Path, triplets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    path = folder / f"shard-{number:05d}.tar"
    path.write_bytes(path.read_bytes()[:900])
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.tar") if p != path}
    import_samples(folder, FolderSource(triplets), CONFIG)
    assert digests(folder) == digests(made)
    assert read_manifest(folder) == read_manifest(made)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_a_second_run_reads_no_picture(
    made: Path, triplets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made / "manifest.json").read_bytes()
    monkeypatch.setattr(Fit, "__call__", lambda *_: pytest.fail("a picture was read"))
    import_samples(made, FolderSource(triplets), CONFIG)
    assert (made / "manifest.json").read_bytes() == before


def test_refusals_after_the_last_sample_are_counted_once(triplets: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(triplets, source)
    for name in ("ball-0", "ball-6"):
        (source / name / "caption.txt").unlink()
    for folder, size in ((tmp_path / "a", 2), (tmp_path / "b", 3), (tmp_path / "c", 100)):
        config = dataclasses.replace(CONFIG, shard_size=size)
        assert import_samples(folder, FolderSource(source), config)["samples"] == 4
        assert import_samples(folder, FolderSource(source), config)["rejects"] == {"no_caption": 3}


def test_no_more_samples_are_taken_than_asked_for(triplets: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_samples=3)
    manifest = import_samples(tmp_path, FolderSource(triplets), config)
    assert [shard["samples"] for shard in manifest["shards"]] == [2, 1]
    assert import_samples(tmp_path, FolderSource(triplets), config) == manifest


def test_other_settings_in_the_folder_are_refused(
    made: Path, triplets: Path, foreign_tars: Path
) -> None:
    before = digests(made)
    for source, config in (
        (FolderSource(triplets), dataclasses.replace(CONFIG, fit=Fit(16))),
        (TarSource(foreign_tars), CONFIG),
    ):
        with pytest.raises(ConfigError, match="other settings; choose another folder"):
            import_samples(made, source, config)
    assert digests(made) == before


def test_a_corrected_licence_changes_the_manifest_alone(made: Path, triplets: Path) -> None:
    before = digests(made)
    config = dataclasses.replace(CONFIG, licence="CC BY 4.0")
    manifest = import_samples(made, FolderSource(triplets), config)
    assert manifest["source"]["licence"] == "CC BY 4.0"
    assert digests(made) == before
    import_samples(made, FolderSource(triplets), CONFIG)


def test_two_runs_in_one_output_do_not_meet(triplets: Path, tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(StorageError, match="another run is writing .* wait for it"),
    ):
        import_samples(tmp_path, FolderSource(triplets), CONFIG)
    assert not any(tmp_path.iterdir())
    import_samples(tmp_path, FolderSource(triplets), CONFIG)
    assert not (tmp_path / LOCK).exists()


def test_a_source_whose_tar_was_cut_is_mended_and_goes_on(
    foreign_tars: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, shard_size=3)
    expected, folder, source = tmp_path / "expected", tmp_path / "made", tmp_path / "source"
    import_samples(expected, TarSource(foreign_tars), config)
    shutil.copytree(foreign_tars, source)
    second = source / "00001.tar"
    second.write_bytes(second.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"00001\.tar .*copy it again"):
        import_samples(folder, TarSource(source), config)
    shutil.copy(foreign_tars / "00001.tar", second)
    import_samples(folder, TarSource(source), config)
    assert digests(folder) == digests(expected)
    assert read_manifest(folder) == read_manifest(expected)


def test_a_source_that_was_exchanged_after_it_was_read_is_refused(
    foreign_tars: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "source", tmp_path / "made"
    shutil.copytree(foreign_tars, source)
    import_samples(folder, TarSource(source), CONFIG)
    with (source / "00000.tar").open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(ConfigError, match="file 0 of the source has .* when .* was begun"):
        import_samples(folder, TarSource(source), CONFIG)


def test_a_note_of_places_that_is_damaged_is_named(
    made: Path, triplets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (folder / "places.json").write_text('{"sizes": []')
    with pytest.raises(InputError, match=r"places\.json is damaged .* delete it"):
        import_samples(folder, FolderSource(triplets), CONFIG)
    (folder / "places.json").unlink()
    import_samples(folder, FolderSource(triplets), CONFIG)
    assert digests(folder) == digests(made)


def test_a_source_of_which_nothing_can_be_used_says_why(triplets: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, fit=Fit(1024))
    with pytest.raises(InputError, match="too_small 6, no_caption 1 .such as ball-0: 40x40 px"):
        import_samples(tmp_path, FolderSource(triplets), config)
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "must be at least 1"),
        ({"max_samples": -1}, "max_samples 0 or more"),
        ({"fit": Fit(4)}, "size_px is 4, expected 8 to 2048"),
        ({"fit": Fit(32, subject_share=0.0)}, "subject_share is 0.0, expected"),
        ({"licence": " "}, "the licence is empty"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    change: dict[str, Any], message: str, triplets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_samples(tmp_path, FolderSource(triplets), dataclasses.replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())


@pytest.fixture
def sources(
    triplets: Path, foreign_tars: Path, make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> dict[str, Path]:
    rows = discs.pair_rows(4)
    rows[2]["quality_assessment"]["imageQuality"] = 3
    parquet = make_parquet(tmp_path / "set" / "train-0.parquet", rows)
    return {"folder": triplets, "webdataset": foreign_tars, "parquet": parquet.parent}


@pytest.mark.parametrize(
    ("kind", "samples", "rejects"),
    [
        ("folder", 6, {"no_caption": 1}),
        ("webdataset", 5, {}),
        ("parquet", 6, {"low_quality": 2}),
    ],
)
def test_the_command_imports_every_layout_and_draws_a_sheet(
    kind: str,
    samples: int,
    rejects: dict[str, int],
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"
    words = ["import-data", "--from", kind, str(sources[kind]), "-o", str(folder)]
    words += ["--licence", "CC0", "--size-px", "32"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["rejects"]) == (samples, rejects)
    assert told["source"]["licence"] == "CC0"
    with Image.open(told["sheet"]) as sheet:
        assert sheet.height > samples * 192
    assert len(list(read_samples(folder))) == samples
    assert main(words) == 0
    lines = capsys.readouterr().out
    assert f"{samples} samples in {folder}" in lines
    assert ("references show their background" in lines) == (kind == "parquet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "folder", "--map", "target=jpg"], "--map is for webdataset and parquet"),
        (["--from", "folder", "--cut-out", "knife"], "expected 'grabcut' or the path"),
        (["--from", "pickle"], "invalid choice: 'pickle'"),
    ],
)
def test_the_command_refuses_what_does_not_fit(
    words: list[str],
    message: str,
    triplets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"
    command = ["import-data", str(triplets), "-o", str(folder), "--licence", "CC0"]
    assert main(command + words) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


_ON_A_SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
from bootpig_rt.errors import StorageError
from bootpig_rt.training.importing.fit import Fit
from bootpig_rt.training.importing.folder import FolderSource
from bootpig_rt.training.importing.run import ImportConfig, import_samples
source, disk = FolderSource(Path(sys.argv[1])), Path(sys.argv[2])
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "tmpfs", str(disk)], check=True)
config = ImportConfig(Fit(32), "CC0", "drawn for a test", shard_size=2)
mount("size=36k")
try:
    import_samples(disk, source, config)
    told = "no error"
except StorageError as error:
    told = str(error)
left = sorted(path.name for path in disk.iterdir())
mount("remount,size=10m")
import_samples(disk, source, config)
print(json.dumps([told, left, {p.name: p.stat().st_size for p in disk.glob("*.tar")}]))
"""


def test_a_disk_that_fills_keeps_whole_shards_and_the_next_run_goes_on(
    made: Path, triplets: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets no test mount a small disk")
    run = subprocess.run(
        [*unshare, sys.executable, "-c", _ON_A_SMALL_DISK, str(triplets), str(disk)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told, left, sizes = json.loads(run.stdout)
    assert "no space left on device; free some space" in told
    assert not [name for name in left if name.endswith((".tmp", ".lock"))]
    assert sizes == {p.name: p.stat().st_size for p in made.glob("*.tar")}
