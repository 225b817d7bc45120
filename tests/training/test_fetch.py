"""Fetching, checking and reading packages, and the whole of `fetch-data`."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import BackendUnavailable, InputError, ParameterError, StorageError
from bootpig_rt.training import fetch, sprites
from bootpig_rt.training.art_packages import fetch_archive
from bootpig_rt.training.emoji import ArtSource, Drawing, read_svgs
from bootpig_rt.training.fetch import fetch_data
from bootpig_rt.training.raster import SPRITE_PX

ROOT = Path(__file__).parents[2]


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def source_of(archive: Path, style: str = "noto") -> ArtSource:
    return ArtSource(
        style=style,
        package=f"@sets/{style}",
        version="1.0.0",
        archive=archive.name,
        sha256=measure(archive)[1],
        author="A",
        author_url="",
        licence="MIT",
        licence_url="",
    )


WHOLE = {"package/icons.json": b"{}", "package/metadata.json": b"{}", "package/index.js": b"evil()"}


def test_an_archive_with_another_checksum_is_refused_and_not_kept(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    tar_of(given / "a.tgz", WHOLE)
    source = source_of(given / "a.tgz")
    (given / "a.tgz").write_bytes((given / "a.tgz").read_bytes() + b"x")
    with pytest.raises(StorageError, match=f"expected {source.sha256}"):
        fetch_archive(source, tmp_path / "kept", from_folder=given)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_checked_archive_is_not_fetched_again(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tgz", WHOLE)
    nowhere = tmp_path / "nowhere"
    path = fetch_archive(source_of(tmp_path / "a.tgz"), tmp_path, from_folder=nowhere)
    assert path == tmp_path / "a.tgz"


def test_a_folder_without_the_archive_names_it(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tgz", WHOLE)
    source = source_of(tmp_path / "a.tgz")
    with pytest.raises(InputError, match=r"has no file a\.tgz"):
        fetch_archive(source, tmp_path / "kept", from_folder=tmp_path / "empty")


def test_a_missing_npm_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_of(tmp_path / "a.tgz", WHOLE)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendUnavailable, match="apt-get install npm"):
        fetch_archive(source_of(tmp_path / "a.tgz"), tmp_path / "kept")


def test_npm_is_asked_for_the_pinned_version_and_its_archive_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar_of(tmp_path / "a.tgz", WHOLE)
    asked: list[list[str]] = []

    def pack(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        Path(command[-1], "whatever.tgz").write_bytes((tmp_path / "a.tgz").read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("shutil.which", lambda name: "npm")
    monkeypatch.setattr("subprocess.run", pack)
    path = fetch_archive(source_of(tmp_path / "a.tgz"), tmp_path / "kept")
    assert path.read_bytes() == (tmp_path / "a.tgz").read_bytes()
    assert "@sets/noto@1.0.0" in asked[0]
    assert "--ignore-scripts" in asked[0]
    assert [p.name for p in path.parent.iterdir()] == ["a.tgz"]


def test_a_failed_fetch_says_what_npm_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_of(tmp_path / "a.tgz", WHOLE)

    def fail(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "\nnpm error network down\n")

    monkeypatch.setattr("shutil.which", lambda name: "npm")
    monkeypatch.setattr("subprocess.run", fail)
    with pytest.raises(StorageError, match="network down"):
        fetch_archive(source_of(tmp_path / "a.tgz"), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("fault", ["cut", "no archive", "lacks a file"])
def test_a_bad_archive_says_to_fetch_it_again(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "a.tgz"
    tar_of(path, {"package/icons.json": json.dumps({"icons": {}, "more": [0.1] * 9000}).encode()})
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif fault == "no archive":
        path.write_bytes(b"no archive at all")
    with pytest.raises(StorageError, match=r"a\.tgz is damaged or .*delete it and run"):
        read_svgs(path, ["pie"])


SHAPES = {
    "a": '<circle cx="16" cy="16" r="14" fill="red"/>',
    "b": '<rect x="2" y="8" width="28" height="14" fill="blue"/>',
    "c": '<path d="M16 2 30 30H2z" fill="green"/>',
    "d": '<ellipse cx="16" cy="16" rx="8" ry="15" fill="black"/>',
}


@pytest.fixture
def packages(tmp_path: Path) -> tuple[Path, list[ArtSource], list[Drawing]]:
    folder = tmp_path / "given"
    folder.mkdir()
    sources, drawings = [], list[Drawing]()
    for style, shape in zip(("noto", "x", "y", "z"), SHAPES.values(), strict=True):
        bodies = {"frog-pie": shape, "plain-pie": shape, "line-pie": '<path d="M1 1"/>'}
        icons = {"icons": {k: {"body": v} for k, v in bodies.items()}, "width": 32, "height": 32}
        archive = folder / f"{style}.tgz"
        tar_of(archive, {"package/icons.json": json.dumps(icons).encode()})
        sources.append(source_of(archive, style))
        drawings += [
            Drawing(concept, style, concept, concept.replace("-", " "), "Food & Drink")
            for concept in bodies
        ]
    drawings.sort(key=lambda drawing: drawing.concept)
    return folder, sources, drawings


def test_fetched_data_is_rendered_counted_and_not_made_twice(
    tmp_path: Path, packages: tuple[Path, list[ArtSource], list[Drawing]]
) -> None:
    pytest.importorskip("resvg_py", reason="rendering needs the train extra")
    given, sources, drawings = packages
    stages: list[str] = []

    def fetch_it() -> dict[str, Any]:
        return fetch_data(
            tmp_path / "data",
            from_folder=given,
            sources=sources,
            drawings=drawings,
            on_progress=lambda stage, done, total: stages.append(stage),
        )

    summary = fetch_it()
    assert summary["identities"] == 8
    assert summary["concepts"] == 2
    assert summary["splits"] == {"train": 8}
    assert summary["rejects"] == {"empty": 4}
    assert {"packages", "drawings"} == set(stages)
    made = sprites.load_sprites(tmp_path / "data")
    assert {(s.drawing.concept, s.drawing.style) for s in made} == {
        (concept, style)
        for concept in ("frog-pie", "plain-pie")
        for style in ("noto", "x", "y", "z")
    }
    red = made[0].rgba[SPRITE_PX // 2, SPRITE_PX // 2]
    assert red.tolist() == [255, 0, 0, 255]

    stages.clear()
    assert fetch_it() == summary
    assert stages == []
    (tmp_path / "data" / "sprites.npz").write_bytes(b"damaged")
    assert fetch_it() == summary
    assert len(sprites.load_sprites(tmp_path / "data")) == 8


def test_the_command_prints_its_counts_as_json(
    tmp_path: Path,
    packages: tuple[Path, list[ArtSource], list[Drawing]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("resvg_py", reason="rendering needs the train extra")
    from bootpig_rt.cli.main import main

    given, sources, drawings = packages
    monkeypatch.setattr(fetch, "load_sources", lambda: tuple(sources))
    monkeypatch.setattr(fetch, "load_drawings", lambda styles: drawings)
    data = tmp_path / "data"
    arguments = ["fetch-data", "-o", str(data), "--from-folder", str(given), "--workers", "1"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identities"] == 8
    assert main(arguments) == 0
    assert "8 drawings of 2 things" in capsys.readouterr().out


def test_no_worker_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="workers is 0"):
        fetch_data(tmp_path / "data", workers=0)
    assert not (tmp_path / "data").exists()
