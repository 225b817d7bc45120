"""Parquet files: rows of two pictures, rows of columns, and files that are neither."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.importing.candidate import Place
from bootpig_rt.training.importing.parquet_rows import PairRules, ParquetSource


def all_of(path: Path, roles: Any = None, **rules: Any) -> list[Any]:
    source = ParquetSource(path, roles, PairRules(**rules))
    return [found.what for found in source.read(Place(0, 0))]


@pytest.fixture
def pairs(make_parquet: Any, discs: SimpleNamespace, tmp_path: Path) -> Path:
    path: Path = make_parquet(tmp_path / "data" / "train-00000.parquet", discs.pair_rows(5))
    return path


def test_a_row_of_two_pictures_is_two_candidates(pairs: Path) -> None:
    found = all_of(pairs)
    assert [each.name for each in found[:3]] == [
        "train-00000.parquet:0:left",
        "train-00000.parquet:0:right",
        "train-00000.parquet:1:left",
    ]
    assert len(found) == 10
    left, right = found[:2]
    assert left.target == right.target
    assert (left.half, left.caption) == ("left", "It lies on a striped carpet, row 0.")
    assert (right.half, right.caption) == ("right", "It lies on white paper, row 0.")
    assert right.other_caption == left.caption
    assert left.subject == "Red Ball"


def test_one_way_gives_the_left_picture_alone(pairs: Path) -> None:
    assert [each.half for each in all_of(pairs, both_ways=False)] == ["left"] * 5


def test_the_rows_of_one_collection_are_taken(pairs: Path) -> None:
    found = all_of(pairs, collection="collection_2")
    assert [getattr(each, "reason", "taken") for each in found[::2]] == [
        "other_collection",
        "taken",
    ] * 2 + ["other_collection"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quality_assessment": {"objectConsistency": 4}}, "low_quality"),
        ({"quality_assessment": {"imageQuality": None}}, "no_quality"),
        ({"quality_assessment": None}, "no_quality"),
        ({"description": {"description_valid": False}}, "invalid_description"),
        ({"description": None}, "invalid_description"),
        ({"description": {"description_0": ""}}, "no_caption"),
        ({"image": {"bytes": None}}, "no_target"),
        ({"image": None}, "no_target"),
    ],
)
def test_a_row_that_is_not_good_enough_is_refused_with_its_reason(
    change: dict[str, Any], reason: str, make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    rows = discs.pair_rows(2)
    for column, value in change.items():
        rows[1][column] = None if value is None else rows[1][column] | value
    found = all_of(make_parquet(tmp_path / "a.parquet", rows), both_ways=False)
    assert [getattr(each, "reason", "taken") for each in found] == ["taken", reason]


def test_with_no_least_quality_rows_without_marks_are_taken(
    make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    rows = discs.pair_rows(2)
    rows[0]["quality_assessment"] = None
    found = all_of(make_parquet(tmp_path / "a.parquet", rows), min_quality=0, both_ways=False)
    assert [each.half for each in found] == ["left", "left"]


def test_reading_goes_on_at_any_place_over_files(
    make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    for number in (0, 1):
        make_parquet(tmp_path / f"{number}.parquet", discs.pair_rows(3))
    source = ParquetSource(tmp_path)
    whole = list(source.read(Place(0, 0)))
    assert len(whole) == 12
    for number, found in enumerate(whole):
        assert list(source.read(found.next)) == whole[number + 1 :]


def test_row_groups_that_are_done_are_not_read_again(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = ParquetSource(pairs), []
    parquet = source._parquet.ParquetFile
    read = parquet.iter_batches

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["row_groups"])
        return read(self, *args, **kwargs)

    monkeypatch.setattr(parquet, "iter_batches", watched)
    assert len(list(source.read(Place(0, 8)))) == 2
    assert asked == [[2]]


def test_columns_are_found_or_named(
    make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    one, mask = discs.to_bytes(discs.picture(0)), discs.to_bytes(discs.mask())
    rows = [
        {
            "image": {"bytes": one, "path": None},
            "text": discs.caption(0),
            "seg": mask,
            "references": [{"bytes": one}, {"bytes": one}],
            "about": {"noun": "ball"},
        }
    ]
    path = make_parquet(tmp_path / "a.parquet", rows)
    plain = all_of(path)[0]
    assert (plain.target, plain.mask, len(plain.references)) == (one, None, 2)
    assert plain.subject == "red ball"
    named = all_of(path, {"mask": "seg", "subject": "about.noun"})[0]
    assert (named.mask, named.subject) == (mask, "ball")


@pytest.mark.parametrize(
    ("rows", "roles", "message"),
    [
        (
            [{"url": "x"}],
            None,
            "no column 'target or target_image or image' for the target; it has",
        ),
        (
            [{"image": b"x", "a": 1}],
            None,
            "for the caption; it has: image, a. Say which with --map",
        ),
        ([{"image": b"x", "text": "t"}], {"mask": "seg"}, "no column 'seg' for the mask"),
    ],
)
def test_a_file_without_the_columns_says_what_it_has(
    rows: Any, roles: Any, message: str, make_parquet: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        ParquetSource(make_parquet(tmp_path / "a.parquet", rows), roles)


def test_a_second_file_of_other_columns_is_refused(
    make_parquet: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    make_parquet(tmp_path / "a.parquet", discs.pair_rows(1))
    make_parquet(tmp_path / "b.parquet", [{"image": b"x", "text": "t"}])
    source = ParquetSource(tmp_path)
    with pytest.raises(ConfigError, match="other columns than .*; import them one by one"):
        list(source.read(Place(0, 0)))


def test_a_damaged_file_is_named(pairs: Path) -> None:
    whole = pairs.read_bytes()
    for content in (whole[: len(whole) // 2], b"no parquet" * 20, b""):
        pairs.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*train-00000\.parquet .*copy it again"):
            ParquetSource(pairs)


def test_a_page_that_is_damaged_is_told_when_it_is_read(pairs: Path) -> None:
    content = bytearray(pairs.read_bytes())
    content[4:2000] = bytes(1996)  # the footer is whole
    pairs.write_bytes(content)
    source = ParquetSource(pairs)
    with pytest.raises(InputError, match="cannot read .*copy it again"):
        list(source.read(Place(0, 0)))


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match="is no parquet file and holds none"):
        ParquetSource(tmp_path)
