"""WebDataset tars of others: members are found or named, damage is told with its file."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.importing.candidate import Place
from bootpig_rt.training.importing.tars import TarSource


def all_of(path: Path, **roles: Any) -> list[Any]:
    given: Any = roles
    return [found.what for found in TarSource(path, given).read(Place(0, 0))]


def test_usual_members_are_found(foreign_tars: Path, discs: SimpleNamespace) -> None:
    found = all_of(foreign_tars)
    assert [each.name for each in found] == [f"{n // 3:05d}.tar:data/{n:04d}" for n in range(5)]
    assert found[1].target == discs.to_bytes(discs.picture(1), "JPEG")
    assert found[1].mask == discs.to_bytes(discs.mask())
    assert found[1].references == ()
    assert found[1].caption == discs.caption(1)
    assert found[1].subject == "blue ball"


def test_roles_name_members_and_values_in_json(foreign_tars: Path) -> None:
    found = all_of(
        foreign_tars, target="seg.png", caption="json:prompt", subject="json:about.thing"
    )
    assert found[0].target.startswith(b"\x89PNG")
    assert found[0].subject == "ball"
    refused = all_of(foreign_tars, target="png")
    assert {each.reason for each in refused} == {"no_target"}
    assert "only jpg, json, seg.png, txt; say which with --map" in refused[0].detail


def test_several_references_are_taken_in_order(
    make_tar: Any, discs: SimpleNamespace, tmp_path: Path
) -> None:
    one = discs.to_bytes(discs.picture(0))
    names = ["target.png", "reference10.png", "reference2.png", "reference.png", "caption"]
    members = [(f"a.{name}", one if "png" in name else b"a dog") for name in names]
    path = make_tar(tmp_path / "a.tar", members)
    assert len(all_of(path)[0].references) == 3
    assert TarSource(path)._members("reference", dict.fromkeys(names, b"")) == [
        "reference.png",
        "reference2.png",
        "reference10.png",
    ]


def test_reading_goes_on_at_any_place(foreign_tars: Path) -> None:
    source = TarSource(foreign_tars)
    whole = list(source.read(Place(0, 0)))
    for number, found in enumerate(whole):
        assert list(source.read(found.next)) == whole[number + 1 :]


def test_a_tar_of_our_own_shards_is_read(discs: SimpleNamespace, tmp_path: Path) -> None:
    import numpy as np

    from bootpig_rt.training.shards import StoredSample, write_shard

    target, mask = np.asarray(discs.picture(0)), np.asarray(discs.mask())
    sample = StoredSample(
        0, target, mask, [target], "a photo of a cat, here", "a photo of a cat", {}
    )
    write_shard(tmp_path, 0, [sample], first=0)
    found = all_of(tmp_path)[0]
    assert (found.subject, len(found.references), found.mask is None) == ("cat", 1, False)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture
def copied(foreign_tars: Path, tmp_path: Path) -> Path:
    path = tmp_path / "00000.tar"
    path.write_bytes((foreign_tars / "00000.tar").read_bytes())
    return path


def test_a_tar_that_was_cut_within_a_member_is_named(copied: Path) -> None:
    cut(copied, 1000)
    with pytest.raises(InputError, match=r"cannot read .*00000\.tar .*copy it again"):
        all_of(copied)


def test_a_tar_that_was_cut_between_two_samples_is_no_shorter_tar(copied: Path) -> None:
    with tarfile.open(copied) as tar:
        second = next(m.offset for m in tar if m.name == "data/0001.jpg")
    cut(copied, second)
    source = TarSource(copied).read(Place(0, 0))
    with pytest.raises(InputError, match="no end mark, so it was cut short"):
        list(source)


@pytest.mark.parametrize("content", [b"no tar at all" * 100, b""])
def test_what_is_no_tar_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar .*expected an uncompressed tar"):
        all_of(path)


def test_a_compressed_tar_is_refused_with_the_reason(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(gzip.compress(copied.read_bytes()))
    with pytest.raises(InputError, match="expected an uncompressed tar"):
        all_of(path)


def test_an_empty_tar_is_named(make_tar: Any, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [])
    with pytest.raises(InputError, match="holds no members"):
        all_of(path)


def test_links_and_devices_in_a_tar_are_passed_over(copied: Path) -> None:
    with tarfile.open(copied, "a") as tar:
        link = tarfile.TarInfo("data/9999.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("data/9999.txt"), io.BytesIO())
    found = all_of(copied)
    assert len(found) == 4
    assert found[3].reason == "no_target"


def test_a_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no tar file and holds none"):
        TarSource(tmp_path)


def test_a_picture_is_not_looked_for_in_json(foreign_tars: Path) -> None:
    with pytest.raises(ConfigError, match="a picture is a member of its own"):
        TarSource(foreign_tars, {"target": "json:image"})
