"""A folder of compiled kernels holds what the last run wrote, and what is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootpig_rt.kernels import artifacts
from bootpig_rt.kernels.artifacts import MANIFEST, write_artifacts


@pytest.fixture(autouse=True)
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant is its name here; compiling it takes seconds and is tested elsewhere."""

    def compile_one(name: Any) -> Any:
        if name == "broken":
            raise KeyboardInterrupt
        record = {"name": name, "cubin": f"{name}.cubin", "ptx": f"{name}.ptx"}
        return SimpleNamespace(describe=lambda: record, cubin=b"cubin", ptx="ptx")

    monkeypatch.setattr(artifacts, "compile_one", compile_one)
    monkeypatch.setattr(artifacts, "tool_versions", lambda: {"triton": "3", "ptxas": "12"})


def write(folder: Path, *names: str) -> Any:
    return write_artifacts(names, folder)  # type: ignore[arg-type]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_run_takes_the_place_of_the_old_one_and_leaves_other_files(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.cubin").write_bytes(b"mine")
    write(tmp_path, "b", "c")
    assert files(tmp_path) == {
        "b.cubin",
        "b.ptx",
        "c.cubin",
        "c.ptx",
        MANIFEST,
        "notes.txt",
        "other.cubin",
    }
    named = json.loads((tmp_path / MANIFEST).read_text())["kernels"]
    assert [record["name"] for record in named] == ["b", "c"]


def test_an_interrupted_run_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "a", "b", "broken")
    assert files(tmp_path) == {"old.cubin", "old.ptx", MANIFEST}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"kernels": 3}',
        '{"kernels": [{"cubin": "x.cubin"}]}',
        '{"kernels": [{"cubin": "../mine.cubin", "ptx": "notes.txt"}]}',
    ],
)
def test_a_list_that_was_tampered_with_removes_nothing(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "mine.cubin").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "x.cubin").write_bytes(b"mine")
    (folder / MANIFEST).write_text(text)
    write(folder, "a")
    assert (tmp_path / "mine.cubin").is_file()
    assert files(folder) == {"notes.txt", "x.cubin", "a.cubin", "a.ptx", MANIFEST}
