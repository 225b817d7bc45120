"""Stored latents: what they hold, when they are made anew, and that they are not loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bootpig_rt.errors import StorageError
from bootpig_rt.training import latents as module
from bootpig_rt.training.buckets import Sizing, fit
from bootpig_rt.training.latents import (
    StoredLatents,
    encode,
    read_latents,
    store_latents,
    vae_factor,
)
from bootpig_rt.training.pictures import save_sheet, to_tensor, to_uint8
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.shards import StoredSample, read_samples
from bootpig_rt.training.start import load_start_vae

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SQUARE = Sizing(((16, 16),), 16)
BUCKETS = Sizing(((16, 16), (24, 16)), 16)


@pytest.fixture(scope="module")
def vae(vae_result: Path) -> Any:
    return load_start_vae(vae_result, CPU)


@pytest.fixture(scope="module")
def pictures(samples: Path) -> list[StoredSample]:
    return list(read_samples(samples))


def store(
    data: Path, vae: Any, cache: Path, *, sizing: Sizing = SQUARE, max_samples: int = 0, **more: Any
) -> StoredLatents:
    samples = Samples(data, cache, max_samples=max_samples)
    return store_latents(samples, sizing, vae, cache, device=CPU, **more)


def files_of(cache: Path) -> list[Path]:
    return sorted(cache.glob("latents-*/*"))


def test_latents_are_the_vaes_means_in_unit_scale(
    samples: Path, vae: Any, pictures: list[StoredSample], tmp_path: Path
) -> None:
    stored = store(samples, vae, tmp_path)
    assert stored.shape == (4, 8, 8)
    targets = stored.targets(range(24))
    assert targets.shape == (24, 4, 8, 8)
    assert targets.dtype == torch.float16
    with torch.no_grad():
        pixels = to_tensor(np.stack([sample.target for sample in pictures]))
        means = vae.encode(pixels).latent_dist.mode()
    expected = (means * vae.config.scaling_factor).half()
    torch.testing.assert_close(targets, expected, atol=2e-3, rtol=2e-3)
    assert targets.float().std() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(stored.targets([23, 4, 4]), targets[[23, 4, 4]])


def test_each_sample_finds_its_own_references(
    samples: Path, vae: Any, pictures: list[StoredSample], tmp_path: Path
) -> None:
    stored = store(samples, vae, tmp_path)
    chosen = [(n, k) for n, sample in enumerate(pictures) for k in range(len(sample.references))]
    assert {k for _, k in chosen} == {0, 1, 2}
    wanted = encode(vae, np.stack([pictures[n].references[k] for n, k in chosen]), CPU)
    torch.testing.assert_close(stored.references(chosen), wanted, atol=2e-3, rtol=2e-3)
    assert torch.equal(stored.references(chosen[::-1]), stored.references(chosen).flip(0))
    assert stored.references([]).shape == (0, 4, 8, 8)


def test_masks_are_the_share_of_the_subject_in_each_latent(
    samples: Path, vae: Any, pictures: list[StoredSample], tmp_path: Path
) -> None:
    found = store(samples, vae, tmp_path).masks(range(24))
    masks = np.stack([sample.mask for sample in pictures]).astype(np.float64)
    means = masks.reshape(24, 8, 2, 8, 2).mean(axis=(2, 4))
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy() - means).max() <= 0.5


def test_a_second_call_encodes_nothing_and_an_interrupted_one_goes_on(
    samples: Path, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(vae: Any, pixels: Any, device: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(vae, pixels, device)

    monkeypatch.setattr(module, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        store(samples, vae, tmp_path)
    assert 0 < len(files_of(tmp_path)) < 3
    kept = {file: file.stat().st_mtime_ns for file in files_of(tmp_path)}
    first = store(samples, vae, tmp_path)
    assert len(files_of(tmp_path)) == 3
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    before = len(calls)
    again = store(samples, vae, tmp_path)
    assert len(calls) == before
    assert torch.equal(first.targets(range(24)), again.targets(range(24)))
    assert torch.equal(first.references([(5, 0)]), again.references([(5, 0)]))


def test_other_weights_sizes_or_contents_have_files_of_their_own(
    samples: Path, vae: Any, tmp_path: Path
) -> None:
    plain = store(samples, vae, tmp_path)
    assert len(files_of(tmp_path)) == 3
    fewer = store(samples, vae, tmp_path, max_samples=12)  # one whole shard and a part of one
    assert len(files_of(tmp_path)) == 4
    assert torch.equal(fewer.targets(range(12)), plain.targets(range(12)))
    without = store(samples, vae, tmp_path, with_references=False)
    assert torch.equal(without.targets(range(24)), plain.targets(range(24)))
    assert without.shape == plain.shape
    assert len(files_of(tmp_path)) == 7
    store(samples, vae, tmp_path, sizing=BUCKETS)
    assert len(files_of(tmp_path)) == 10
    same = copy.deepcopy(vae)
    store(samples, same, tmp_path)
    assert len(files_of(tmp_path)) == 10
    with torch.no_grad():
        next(same.parameters()).mul_(2)
    store(samples, same, tmp_path)
    assert len(files_of(tmp_path)) == 13


def test_samples_of_two_sizes_are_encoded_at_theirs(
    samples: Path, vae: Any, pictures: list[StoredSample], tmp_path: Path
) -> None:
    data = Samples(samples, tmp_path)
    data.sizes_px = data.sizes_px.copy()
    data.sizes_px[3:9] = (30, 20)  # as if they were: they are fitted to 24 x 16
    stored = store_latents(data, BUCKETS, vae, tmp_path, device=CPU)
    assert stored.targets([2, 10]).shape == (2, 4, 8, 8)
    assert stored.targets([3, 8]).shape == (2, 4, 8, 12)
    assert stored.masks([3, 8]).shape == (2, 8, 12)
    target, mask = fit(pictures[8].target, pictures[8].mask, (24, 16))
    alone = encode(vae, np.stack([target]), CPU)[0]
    torch.testing.assert_close(stored.targets([8])[0], alone, atol=2e-3, rtol=2e-3)
    means = mask.astype(np.float64).reshape(8, 2, 12, 2).mean(axis=(1, 3))
    assert np.abs(stored.masks([8])[0].numpy() - means).max() <= 0.5
    assert stored.references([(8, 0)]).shape == (1, 4, 8, 8)


def test_a_few_samples_are_encoded_into_memory(
    samples: Path, vae: Any, pictures: list[StoredSample], tmp_path: Path
) -> None:
    few = read_latents(Samples(samples, tmp_path, max_samples=5), BUCKETS, vae, device=CPU)
    stored = store(samples, vae, tmp_path)
    torch.testing.assert_close(few.targets, stored.targets(range(5)), atol=2e-3, rtol=2e-3)
    assert torch.equal(few.masks, stored.masks(range(5)))
    counts = [len(sample.references) for sample in pictures[:5]]
    assert few.first_reference.diff().tolist() == counts
    assert len(few.references) == sum(counts)
    assert few.captions == [sample.caption for sample in pictures[:5]]
    assert few.reference_prompts == [sample.reference_prompt for sample in pictures[:5]]


def test_a_damaged_file_is_named(samples: Path, vae: Any, tmp_path: Path) -> None:
    store(samples, vae, tmp_path)
    file = files_of(tmp_path)[1]
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-10])
    with pytest.raises(StorageError, match=f"{file.name} is damaged .*delete it"):
        store(samples, vae, tmp_path)


def test_how_many_pixels_a_latent_stands_for_is_read_from_the_vae(vae: Any) -> None:
    assert vae_factor(vae) == 2


def test_pictures_survive_the_way_to_tensors_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3)).astype(np.uint8)
    tensor = to_tensor(pixels)
    assert tensor.shape == (3, 3, 5, 5)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert np.array_equal(to_uint8(tensor), pixels)


def test_a_sheet_has_its_rows_below_one_another(tmp_path: Path) -> None:
    from PIL import Image

    rows = [np.full((3, 4, 4, 3), shade, np.uint8) for shade in (10, 200)]
    save_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (24, 16)
        assert sheet.getpixel((5, 2)) == (10, 10, 10)
        assert sheet.getpixel((5, 12)) == (200, 200, 200)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
