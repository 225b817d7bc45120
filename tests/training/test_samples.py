"""Samples read one by one from shards: the same as from front to back, of the same files."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training import samples as module
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.shards import read_samples

TEXTS = {"caption": "a photo of a dog, on a beach", "reference_prompt": "a photo of a dog"}


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def sample_of(**changes: bytes | None) -> dict[str, bytes]:
    """Members of a sample; a name's dots are given as `__`, None leaves one out."""
    parts: dict[str, bytes | None] = {
        "target__png": picture(),
        "mask__png": picture(mode="L"),
        "reference0__png": picture(),
        "json": json.dumps(TEXTS).encode(),
        **changes,
    }
    return {name.replace("__", "."): data for name, data in parts.items() if data is not None}


WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """`write_folder(sample, ...)`: a folder whose one shard has these samples."""

    def write(*samples: dict[str, bytes], **more: Any) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        path = folder / "shard-00000.tar"
        with tarfile.open(path, "w") as tar:
            for number, sample in enumerate(samples):
                for part, data in sample.items():
                    info = tarfile.TarInfo(f"{number:08d}.{part}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        size, digest = measure(path)
        record = {"file": path.name, "samples": len(samples), "bytes": size, "sha256": digest}
        manifest = {"format": 1, "samples": len(samples), "shards": [record | more]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write


def test_samples_are_those_that_are_read_from_front_to_back(samples: Path, tmp_path: Path) -> None:
    opened = Samples(samples, tmp_path)
    stored = list(read_samples(samples))
    assert len(opened) == len(stored) == 24
    assert opened.shard_sizes == [10, 10, 4]
    assert [opened.range_of(shard).start for shard in range(3)] == [0, 10, 20]
    for number in reversed(range(24)):
        read, wanted = opened.read(number), stored[number]
        assert np.array_equal(read.target, wanted.target)
        assert np.array_equal(read.mask, wanted.mask)
        assert opened.num_references(number) == len(wanted.references) == len(read.references)
        for k, reference in enumerate(wanted.references):
            assert np.array_equal(read.references[k], reference)
            assert np.array_equal(opened.reference(number, k), reference)
        assert opened.texts(number) == (wanted.caption, wanted.reference_prompt)
    assert opened.sizes_px.tolist() == [[16, 16]] * 24
    assert len(opened.reference_sizes_px) == sum(len(sample.references) for sample in stored)
    assert opened.read(3, references=()).references == []
    references = [reference for sample in stored for reference in sample.references]
    for number, reference in enumerate(references):
        assert np.array_equal(opened.reference_at(number), reference)


def test_only_the_shards_of_the_first_samples_are_opened(samples: Path, tmp_path: Path) -> None:
    some = Samples(samples, tmp_path, max_samples=12)
    assert (len(some), some.shard_sizes) == (12, [10, 2])
    assert len(list((tmp_path / "index").iterdir())) == 2
    references = [len(sample.references) for sample in read_samples(samples)]
    assert len(some.reference_sizes_px) == sum(references[:12])
    assert len(Samples(samples, tmp_path, max_samples=1000)) == 24


def test_shards_are_checked_once(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Samples(samples, tmp_path)

    def never(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(module, "write_index", never)
    assert len(Samples(samples, tmp_path)) == 24


def test_other_pictures_names_and_folders_in_a_shard_are_read(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    many = {f"reference{k}__png": picture(size=(8, 4 + k)) for k in range(12)}
    folder = write_folder(
        sample_of(target__png=None, target__jpg=picture("JPEG")),
        sample_of(reference0__png=None, reference0__WEBP=picture("WEBP"), notes__txt=b"hello"),
        sample_of(**many),
    )
    opened = Samples(folder, tmp_path / "cache")
    assert [opened.read(n).target.shape for n in range(3)] == [(8, 8, 3)] * 3
    heights = [opened.reference(2, k).shape[0] for k in range(12)]
    assert heights == list(range(4, 16))  # reference10 is not the second
    assert opened.reference_sizes_px[2:, 1].tolist() == heights


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (sample_of(target__png=None), "sample 00000000 has no target"),
        (sample_of(mask__png=None), "has no mask"),
        (sample_of(json=None), "has no json"),
        (sample_of(reference0__png=None), "has no reference0"),
        (sample_of(json=b"{"), "the json of sample 00000000"),
        (sample_of(json=b'{"caption": "a"}'), "the json of sample 00000000: no 'reference_prompt'"),
        (sample_of(json=b'{"caption": 3, "reference_prompt": ""}'), "the caption of .* type int"),
        (sample_of(json=b" " * 2**21), "the json of sample 00000000 has 2097152 bytes"),
        (sample_of(target__png=b"GIF89a"), "00000000.target.png: cannot identify"),
        (sample_of(reference0__png=picture("PNG")[:10]), "00000000.reference0.png: "),
    ],
)
def test_what_is_no_sample_is_refused_by_name(
    sample: dict[str, bytes], message: str, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(sample)
    with pytest.raises(InputError, match=f"cannot read the shard .*shard-00000.tar .*{message}"):
        Samples(folder, tmp_path / "cache")


def test_a_damaged_picture_is_named_when_it_is_read(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(sample_of(), sample_of(target__png=picture()[:-60]))
    opened = Samples(folder, tmp_path / "cache")
    opened.read(0)
    with pytest.raises(InputError, match="shard-00000.tar .*its sample 1: "):
        opened.read(1)


def test_a_mask_of_another_size_than_its_picture_is_named(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(sample_of(mask__png=picture(size=(8, 4), mode="L")))
    with pytest.raises(InputError, match="sample 0 is 8 x 8 px, its mask 8 x 4"):
        Samples(folder, tmp_path / "cache").read(0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"samples": 5}, "shard-00000.tar is not as manifest.json .*it has 1 samples"),
        ({"bytes": 10}, r"10240 bytes, expected 10\)"),
        ({"sha256": "0" * 64}, "its sha256 is"),
        ({"sha256": None}, "does not say 'sha256' of every shard"),
        ({"file": "../other.tar"}, "expected a file beside it"),
        ({"file": "none.tar"}, "none.tar .*no such file"),
    ],
)
def test_a_shard_that_its_manifest_does_not_describe_is_refused(
    more: dict[str, Any], message: str, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(sample_of(), **more)
    with pytest.raises(InputError, match=message):
        Samples(folder, tmp_path / "cache")


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Samples(tmp_path, tmp_path / "cache")
    (tmp_path / "manifest.json").write_text('{"format": 1, "samples": 0, "shards": []}')
    with pytest.raises(ConfigError, match="has no samples"):
        Samples(tmp_path, tmp_path / "cache")


# Shards that change -------------------------------------------------------------------------------


def test_a_shard_that_is_cut_amid_a_run_is_named(samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(samples, folder)
    opened = Samples(folder, tmp_path)
    opened.read(12)
    os.truncate(folder / "shard-00001.tar", 20_000)
    opened.read(3)
    with pytest.raises(InputError, match=r"shard-00001.tar is not as .*it has 20000 bytes"):
        opened.read(12)
    (folder / "shard-00001.tar").unlink()
    with pytest.raises(InputError, match=r"shard-00001.tar .*sample 2: no such file"):
        opened.read(12)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))


def test_a_shard_of_the_same_size_that_was_written_to_is_read_no_more(
    samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(samples, folder)
    opened = Samples(folder, tmp_path)
    change_a_byte(folder / "shard-00000.tar")
    with pytest.raises(InputError, match="shard-00000.tar is not as .*written to"):
        opened.reference(0, 0)
    with pytest.raises(InputError, match="shard-00000.tar is not as .*its sha256 is"):
        Samples(folder, tmp_path)


def test_a_shard_that_was_only_touched_is_checked_again_and_read(
    samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(samples, folder)
    Samples(folder, tmp_path)
    os.utime(folder / "shard-00002.tar")
    assert len(Samples(folder, tmp_path)) == 24
    assert len(list((tmp_path / "index").iterdir())) == 4
