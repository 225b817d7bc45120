"""Parts: what stages made is kept, joined, and made again where it is not whole."""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.errors import EngineLost, InputError, StorageError
from bootpig_rt.training.bootstrap.parts import (
    REJECT_PX,
    kept_part,
    read_items,
    read_rejects,
    write_part,
)
from bootpig_rt.training.bootstrap.stage import Item, Reject, View, run_here
from bootpig_rt.training.bootstrap.work import Work

RNG = np.random.default_rng(0)


def picture(size_px: int = 8) -> Any:
    return RNG.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def assert_same(one: Item, other: Item) -> None:
    for name in ("index", "caption", "noun", "position", "scene", "prompt", "is_pair", "scores"):
        assert getattr(one, name) == getattr(other, name), name
    for a, b in zip(one.views, other.views, strict=True):
        assert np.array_equal(a.picture, b.picture)
        masks = [m for m in (a.mask, b.mask) if m is not None]
        assert len(masks) != 1
        assert not masks or np.array_equal(masks[0], masks[1])
    assert len(one.references) == len(other.references)
    assert all(map(np.array_equal, one.references, other.references))


def test_an_item_is_joined_from_the_parts_of_all_stages(tmp_path: Path) -> None:
    drawn = [
        Item(
            k,
            f"a photo of a dog, on beach {k}",
            "dog",
            "on",
            f"beach {k}",
            is_pair=k == 1,
            prompt="drawn",
            views=tuple(View(picture()) for _ in range(1 + (k == 1))),
        )
        for k in range(3)
    ]
    (tmp_path / "a").mkdir()
    write_part(tmp_path / "a", 0, drawn, {})
    cut = [
        replace(item, views=tuple(View(v.picture, v.picture[..., 0]) for v in item.views))
        for item in drawn[:2]
    ]
    before = {item.index: item for item in drawn}
    (tmp_path / "b").mkdir()
    gone = drawn[2].reject("masks", "nothing_found", "no dog")
    record = write_part(tmp_path / "b", 0, [*cut, gone], before)
    assert (record["of"], record["items"], record["rejects"]) == (3, 2, {"nothing_found": 1})
    made = [
        replace(
            item.with_scores(area=0.5),
            references=(picture(),),
            fingerprint=np.array([0.6, 0.8], np.float32),
        )
        for item in cut
    ]
    (tmp_path / "c").mkdir()
    write_part(tmp_path / "c", 0, made, {item.index: item for item in cut})
    chain = [tmp_path / name for name in "abc"]
    for wanted, found in zip(made, read_items(chain, 0), strict=True):
        assert_same(wanted, found)
        assert found.fingerprint is not None
        assert np.allclose(found.fingerprint, [0.6, 0.8])
    # What a stage did not make is not written again.
    with tarfile.open(tmp_path / "c" / "part-000000.tar") as tar:
        parts = {name.partition(".")[2] for name in tar.getnames()}
    assert parts == {"reference0.png", "json"}
    with tarfile.open(tmp_path / "b" / "part-000000.tar") as tar:
        parts = {name.partition(".")[2] for name in tar.getnames()}
    assert parts == {"mask0.png", "mask1.png", "json", "reject.png"}


def test_a_reject_keeps_its_reason_and_a_small_picture(tmp_path: Path) -> None:
    rejects = [
        Reject(4, "masks", "several", "2 of 'dog'", "a photo of a dog", picture(400)),
        Reject(5, "captions", "nonsense", "'hm'"),
    ]
    write_part(tmp_path, 0, rejects, {})
    first, second = read_rejects(tmp_path, 0)
    assert (first.index, first.reason, first.detail) == (4, "several", "2 of 'dog'")
    assert first.picture is not None
    assert first.picture.shape == (REJECT_PX, REJECT_PX, 3)
    assert (second.stage, second.picture) == ("captions", None)
    assert list(read_items([tmp_path], 0)) == []


class Doubles:
    """A stage that counts what it is given and rejects every fifth item."""

    name = "doubles"
    batch_size = 3
    built = 0
    seen: list[int] = []  # noqa: RUF012

    def __init__(self, fail_at: int = -1) -> None:
        Doubles.built += 1
        self.fail_at = fail_at

    def __call__(self, items: Any) -> Any:
        assert len(items) <= 3
        Doubles.seen += [item.index for item in items]
        if any(item.index == self.fail_at for item in items):
            raise KeyboardInterrupt
        return [
            (
                item.reject("doubles", "fifth", "no")
                if item.index % 5 == 4
                else replace(item, caption=f"{item.index} twice"),
            )
            for item in items
        ]


@pytest.fixture(autouse=True)
def _new_counts() -> None:
    Doubles.built, Doubles.seen = 0, []


def items_of(number: int) -> list[Item]:
    return [Item(number * 4 + k) for k in range(4 if number < 3 else 2)]


SIZES = {0: 4, 1: 4, 2: 4, 3: 2}


def make_work(folder: Path, runner: Any = run_here, **arguments: Any) -> Work:
    return Work(folder, partial(Doubles, **arguments), runner, "doubles")


def test_every_item_is_done_once_and_a_second_run_builds_nothing(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    work.run(SIZES, items_of)
    assert sorted(Doubles.seen) == list(range(14))
    assert work.totals() == {"items": 12, "rejects": {"fifth": 2}}
    found = [item.caption for number in SIZES for item in read_items([tmp_path], number)]
    assert found == [f"{k} twice" for k in range(14) if k % 5 != 4]
    again = make_work(tmp_path)
    again.run(SIZES, items_of)
    assert (Doubles.built, again.totals()) == (1, work.totals())


def test_an_interrupted_stage_goes_on_with_the_parts_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_work(tmp_path, fail_at=9).run(SIZES, items_of)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "part-000000.tar",
        "part-000001.tar",
    ]
    Doubles.seen = []
    work = make_work(tmp_path)
    work.run(SIZES, items_of)
    assert sorted(Doubles.seen) == list(range(8, 14))
    assert work.totals()["items"] == 12


def test_a_part_that_is_cut_or_of_another_size_is_made_again(tmp_path: Path) -> None:
    make_work(tmp_path).run(SIZES, items_of)
    path = tmp_path / "part-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    Doubles.seen = []
    more = SIZES | {3: 4}
    make_work(tmp_path).run(more, lambda number: [Item(number * 4 + k) for k in range(4)])
    assert sorted(Doubles.seen) == [8, 9, 10, 11, 12, 13, 14, 15]
    assert kept_part(tmp_path, 3, 4) is not None
    assert kept_part(tmp_path, 3, 2) is None


def test_parts_are_the_same_whatever_the_order_in_which_items_come(tmp_path: Path) -> None:
    def shuffled(make: Any, items: Iterable[Item]) -> Iterator[Any]:
        done = list(run_here(make, items))
        yield from (done[k] for k in np.random.default_rng(1).permutation(len(done)))

    make_work(tmp_path / "one").run(SIZES, items_of)
    make_work(tmp_path / "two", shuffled).run(SIZES, items_of)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_runner_that_gives_up_is_an_error_and_what_is_done_is_kept(tmp_path: Path) -> None:
    def lazy(make: Any, items: Iterable[Item]) -> Iterator[Any]:
        for done, _ in zip(run_here(make, items), range(6), strict=False):
            yield done

    with pytest.raises(EngineLost, match="items of stage 'doubles' were never done; run the same"):
        make_work(tmp_path, lazy).run(SIZES, items_of)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["part-000000.tar"]


def test_a_part_without_items_is_written_and_needs_no_stage_call(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    work.run({0: 0, 1: 1}, lambda number: [Item(7)] if number else [])
    assert Doubles.seen == [7]
    assert kept_part(tmp_path, 0, 0) is not None
    assert list(read_items([tmp_path], 0)) == []


def test_a_full_disk_costs_the_part_that_was_written_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tarfile.TarFile.addfile

    def addfile(tar: Any, info: Any, stream: Any) -> None:
        if info.name.startswith("0000000009"):
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(tar, info, stream)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    with pytest.raises(StorageError, match="no space left on device; free some space"):
        make_work(tmp_path).run(SIZES, items_of)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        "part-000000.json", "part-000000.tar", "part-000001.json", "part-000001.tar"
    ]  # fmt: skip
    monkeypatch.undo()
    Doubles.seen = []
    make_work(tmp_path).run(SIZES, items_of)
    assert sorted(Doubles.seen) == list(range(8, 14))


def test_a_part_that_was_tampered_with_is_named(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [Item(0, "a", views=(View(picture()),))], {})
    path = tmp_path / "part-000000.tar"
    data = path.read_bytes()
    at = data.index(b"\x89PNG")
    path.write_bytes(data[:at] + b"\0" * 8 + data[at + 8 :])
    with pytest.raises(InputError, match="item 0000000000 cannot be read .*delete the file and"):
        list(read_items([tmp_path], 0))
