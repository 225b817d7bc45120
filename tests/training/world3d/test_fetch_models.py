"""Fetching models: whole and checked or not there, from any copy of the pinned commit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.errors import BackendUnavailable, InputError, StorageError
from bootpig_rt.training.world3d import fetch
from bootpig_rt.training.world3d.fetch import fetch_models
from bootpig_rt.training.world3d.sources import Source, digest_of, load_model_sources

ROOT = Path(__file__).parents[3]
FILES = {"models/box.glb": b"box", "models/deep/ball.glb": b"ball" * 99, "LICENSE": b"CC0"}


def git(folder: Path, *arguments: str) -> str:
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clone of `someone/things`."""
    folder = tmp_path_factory.mktemp("copies")
    clone = folder / "things"
    for name, data in (FILES | {"README.md": b"not taken", "models/big.glb": b"nor this"}).items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(data)
    git(folder, "init", "--quiet", str(clone))
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "one")
    return folder


@pytest.fixture
def source(copies: Path) -> Source:
    return Source(
        key="things",
        repository="someone/things",
        commit=git(copies / "things", "rev-parse", "HEAD"),
        include=("models/*.glb", "LICENSE"),
        exclude=("models/big.glb",),
        num_files=3,
        sha256=digest_of(FILES.items()),
        author="A",
        author_url="",
        licence="CC0-1.0",
        licence_url="",
    )


def read(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_only_the_named_files_of_the_commit_are_there(
    copies: Path, source: Source, tmp_path: Path
) -> None:
    found = fetch_models(tmp_path, from_folder=copies, sources=[source])
    assert (found.sources, found.files, found.fetched) == (1, 3, 1)
    assert read(tmp_path) == {f"things/{name}": data for name, data in FILES.items()}


@pytest.mark.parametrize("place", ["things", "someone/things", "someone+things/repo", "things.git"])
def test_a_copy_is_found_by_either_name_bare_or_not(
    copies: Path, source: Source, tmp_path: Path, place: str
) -> None:
    given = tmp_path / "given" / place
    given.parent.mkdir(parents=True)
    if place == "things":
        shutil.copytree(copies / "things", given)
    else:
        shutil.copytree(copies / "things" / ".git", given)
    fetch_models(tmp_path / "out", from_folder=tmp_path / "given", sources=[source])
    assert read(tmp_path / "out" / "things") == FILES


def test_git_fetches_the_pinned_commit_alone(
    copies: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(copies / "things", "config", "uploadpack.allowAnySHA1InWant", "true")
    run = fetch._git

    def local(source: Source, arguments: list[str], data: bytes | None = None) -> bytes:
        url = (copies / "things").as_uri()
        known = "https://github.com/someone/things.git"
        return run(source, [url if word == known else word for word in arguments], data)

    monkeypatch.setattr(fetch, "_git", local)
    fetch_models(tmp_path, sources=[source])
    assert read(tmp_path) == {f"things/{name}": data for name, data in FILES.items()}


def test_what_is_whole_is_kept_and_what_is_not_is_fetched_again(
    copies: Path, source: Source, tmp_path: Path
) -> None:
    fetch_models(tmp_path, from_folder=copies, sources=[source])
    assert fetch_models(tmp_path, from_folder=tmp_path / "no", sources=[source]).fetched == 0
    (tmp_path / "things" / "models" / "box.glb").write_bytes(b"bax")
    assert fetch_models(tmp_path, from_folder=copies, sources=[source]).fetched == 1
    (tmp_path / "things" / "LICENSE").unlink()
    assert fetch_models(tmp_path, from_folder=copies, sources=[source]).fetched == 1
    assert read(tmp_path / "things") == FILES


def test_other_files_than_the_pinned_ones_are_refused_and_not_kept(
    copies: Path, source: Source, tmp_path: Path
) -> None:
    other = dataclasses.replace(source, sha256="0" * 64)
    with pytest.raises(StorageError, match="is not what was pinned: 3 files"):
        fetch_models(
            tmp_path, from_folder=copies, sources=[source, dataclasses.replace(other, key="b")]
        )
    # What came before is kept, of what failed nothing is left.
    assert {path.name for path in tmp_path.iterdir()} == {"things"}


def test_a_copy_without_the_commit_or_without_a_file_is_told(
    copies: Path, source: Source, tmp_path: Path
) -> None:
    other = dataclasses.replace(source, commit="0" * 40)
    with pytest.raises(StorageError, match="could not read someone/things at 000000000000"):
        fetch_models(tmp_path, from_folder=copies, sources=[other])
    with pytest.raises(InputError, match="has no copy of someone/things"):
        fetch_models(tmp_path, from_folder=tmp_path, sources=[source])
    given = tmp_path / "given" / "things"
    shutil.copytree(copies / "things", given)
    digest = git(given, "rev-parse", "HEAD:models/box.glb")
    blob = given / ".git" / "objects" / digest[:2] / digest[2:]
    blob.unlink()
    with pytest.raises(StorageError, match="lacks models/box.glb"):
        fetch_models(tmp_path / "out", from_folder=tmp_path / "given", sources=[source])


def test_a_missing_git_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendUnavailable, match="apt-get install git"):
        fetch_models(tmp_path, sources=[])


def test_the_command_fetches_and_counts(
    copies: Path,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fetch, "load_model_sources", lambda: (source,))
    command = ["fetch-data", "--set", "models-3d", "-o", str(tmp_path / "models")]
    assert main([*command, "--from-folder", str(copies), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sources"], found["files"], found["fetched"]) == (1, 3, 1)
    assert main([*command, "--sprite-px", "192"]) == 2
    assert "--sprite-px is for --set drawings" in capsys.readouterr().err


def test_every_source_is_pinned_and_named_in_the_attributions() -> None:
    sources = load_model_sources()
    text = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert len({source.key for source in sources}) == len(sources)
    for source in sources:
        assert len(source.commit) == 40
        assert len(source.sha256) == 64
        assert source.licence in ("CC0-1.0", "MIT")
        assert f"[{source.repository}]" in text, source.repository
        assert source.commit[:12] in text, source.repository
