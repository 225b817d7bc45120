"""Triplets in a folder: what is found, and what is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.importing.candidate import Candidate, Place, Refused
from bootpig_rt.training.importing.folder import FolderSource


def all_of(folder: Path) -> list[Any]:
    return [found.what for found in FolderSource(folder).read(Place(0, 0))]


def test_a_folder_for_each_sample_is_read_in_order_of_names(triplets: Path) -> None:
    found = all_of(triplets)
    assert [each.name for each in found] == [f"ball-{number}" for number in range(7)]
    first = found[0]
    assert isinstance(first, Candidate)
    assert first.target == triplets / "ball-0" / "target.png"
    assert first.mask == triplets / "ball-0" / "mask.png"
    assert first.references == (triplets / "ball-0" / "reference.png",)
    assert first.subject == "red ball"
    assert found[3].reason == "no_caption"


def test_reading_goes_on_at_any_place(triplets: Path) -> None:
    whole = list(FolderSource(triplets).read(Place(0, 0)))
    for number, found in enumerate(whole):
        assert list(FolderSource(triplets).read(found.next)) == whole[number + 1 :]


def test_the_subject_may_stand_in_a_file(triplets: Path, tmp_path: Path) -> None:
    sample = tmp_path / "one"
    sample.mkdir()
    for name in ("target.png", "mask.png"):
        (sample / name).write_bytes((triplets / "ball-0" / name).read_bytes())
    (sample / "caption.txt").write_text("It lies there while the evening comes slowly over us.")
    (sample / "subject.txt").write_text("beach ball\n")
    assert all_of(tmp_path)[0].subject == "beach ball"


def test_lines_of_metadata_are_read(discs: SimpleNamespace, tmp_path: Path) -> None:
    discs.picture(0).save(tmp_path / "a.png")
    discs.mask().save(tmp_path / "m.png")
    lines = [
        {"target": "a.png", "caption": discs.caption(0), "mask": "m.png", "references": ["a.png"]},
        {"file_name": "a.png", "text": "a thing", "subject": "toy ball"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = all_of(tmp_path)
    assert (first.mask, first.references) == (tmp_path / "m.png", (tmp_path / "a.png",))
    assert (second.target, second.caption, second.subject) == (
        tmp_path / "a.png",
        "a thing",
        "toy ball",
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not_json"),
        ("[1]", "not_json"),
        ('{"target": "a.png"}', "no_caption"),
        ('{"target": "gone.png", "caption": "a dog"}', "no_target"),
        ('{"target": "../a.png", "caption": "a dog"}', "no_target"),
        ('{"target": "/etc/passwd", "caption": "a dog"}', "no_target"),
        ('{"target": ["a.png"], "caption": "a dog"}', "no_target"),
        ('{"target": "a.png", "caption": "a dog", "mask": "gone.png"}', "no_mask"),
        ('{"target": "a.png", "caption": "a dog", "references": "a.png"}', "no_reference"),
        ('{"target": "a.png", "caption": "a dog", "references": [1]}', "no_reference"),
    ],
)
def test_a_bad_line_is_refused_and_the_next_is_read(
    line: str, reason: str, discs: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    discs.picture(0).save(folder / "a.png")
    discs.picture(0).save(tmp_path / "a.png")
    good = '{"target": "a.png", "caption": "a photo of a ball, here"}'
    (folder / "metadata.jsonl").write_text(f"{line}\n{good}\n")
    bad, fine = all_of(folder)
    assert isinstance(bad, Refused)
    assert (bad.name, bad.reason) == ("metadata.jsonl:1", reason)
    assert fine.subject == "ball"


def test_lines_of_ten_megabytes_are_refused_without_being_held(
    discs: SimpleNamespace, tmp_path: Path
) -> None:
    discs.picture(0).save(tmp_path / "a.png")
    good = '{"target": "a.png", "caption": "a photo of a ball, here"}'
    with (tmp_path / "metadata.jsonl").open("w") as stream:
        stream.write(good + "\n" + "x" * 10_000_000 + "\n" + good)
    first, long, last = all_of(tmp_path)
    assert (long.reason, long.name) == ("long_line", "metadata.jsonl:2")
    assert isinstance(first, Candidate)
    assert isinstance(last, Candidate)


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, "is no folder, expected one with triplets"), ([], "neither metadata.jsonl nor")],
)
def test_a_folder_without_samples_is_refused(
    files: list[str] | None, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    if files is not None:
        folder.mkdir()
        (folder / "readme.txt").write_text("nothing here")
    with pytest.raises(ConfigError, match=message):
        FolderSource(folder)


def test_a_sample_with_two_targets_is_refused(discs: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for kind in ("png", "jpg"):
        discs.picture(0).save(tmp_path / "a" / f"target.{kind}")
    (tmp_path / "a" / "caption.txt").write_text("a dog")
    assert all_of(tmp_path)[0].reason == "no_target"
