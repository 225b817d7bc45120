"""Cached latents: what they hold, when they are made anew, and that half a cache never stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from bootpig_rt.errors import ConfigError, InputError, StorageError
from bootpig_rt.training import latents as module
from bootpig_rt.training.latents import Latents, encode, load_latents
from bootpig_rt.training.pictures import load_pictures, save_sheet, to_tensor, to_uint8
from bootpig_rt.training.start import load_start_vae

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(vae_result: Path) -> Any:
    return load_start_vae(vae_result, CPU)


def load(data: Path, vae: Any, cache: Path, **changes: Any) -> Latents:
    return load_latents(data, vae, cache, device=CPU, **changes)


def test_latents_are_the_vaes_means_in_unit_scale(samples: Path, vae: Any, tmp_path: Path) -> None:
    loaded = load(samples, vae, tmp_path)
    pictures = load_pictures(samples)
    assert loaded.targets.shape == (24, 4, 8, 8)
    assert loaded.targets.dtype == torch.float16
    with torch.no_grad():
        means = vae.encode(to_tensor(pictures.targets)).latent_dist.mode()
    expected = (means * vae.config.scaling_factor).half()
    torch.testing.assert_close(loaded.targets, expected, atol=2e-3, rtol=2e-3)
    assert loaded.targets.float().std() == pytest.approx(1.0, abs=0.02)


def test_each_sample_finds_its_own_references(samples: Path, vae: Any, tmp_path: Path) -> None:
    loaded = load(samples, vae, tmp_path)
    pictures = load_pictures(samples)
    assert loaded.first_reference.tolist() == pictures.first_reference.tolist()
    assert len(loaded.references) == len(pictures.references) == int(loaded.first_reference[-1])
    counts = loaded.first_reference.diff()
    assert set(counts.tolist()) == {1, 2, 3}
    row = int(loaded.first_reference[7])
    alone = encode(vae, pictures.references[row : row + 1], CPU)
    torch.testing.assert_close(loaded.references[row], alone[0], atol=2e-3, rtol=2e-3)
    assert loaded.captions == pictures.captions
    assert loaded.reference_prompts == pictures.reference_prompts


def test_masks_are_the_share_of_the_subject_in_each_latent(
    samples: Path, vae: Any, tmp_path: Path
) -> None:
    loaded = load(samples, vae, tmp_path)
    masks = load_pictures(samples).masks.astype(np.float64)
    means = masks.reshape(24, 8, 2, 8, 2).mean(axis=(2, 4))
    assert loaded.masks.dtype == torch.uint8
    assert np.abs(loaded.masks.numpy() - means).max() <= 0.5


def test_a_second_call_reads_the_cache(
    samples: Path, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(samples, vae, tmp_path)

    def never(*_: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr(module, "encode", never)
    again = load(samples, vae, tmp_path)
    assert torch.equal(first.targets, again.targets)
    assert torch.equal(first.references, again.references)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_weights_number_or_contents_have_a_cache_of_their_own(
    samples: Path, vae: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    plain = load(samples, vae, cache)
    fewer = load(samples, vae, cache, max_samples=5)
    without = load(samples, vae, cache, with_references=False)
    assert len(list(cache.iterdir())) == 3
    same = copy.deepcopy(vae)
    load(samples, same, cache)
    assert len(list(cache.iterdir())) == 3
    with torch.no_grad():
        next(same.parameters()).mul_(2)
    load(samples, same, cache)
    assert len(list(cache.iterdir())) == 4
    assert len(fewer.targets) == len(fewer.captions) == 5
    assert len(fewer.references) == int(fewer.first_reference[-1])
    assert torch.equal(without.targets, plain.targets)
    assert len(without.references) == 0
    assert torch.equal(without.first_reference, plain.first_reference)
    assert plain.size_px == without.size_px == 16


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_is_one_error_and_leaves_no_file(
    error: Exception,
    samples: Path,
    vae_result: Path,
    vae: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StorageError, match="cannot write the latents .*(?i:no space left)"):
        load(samples, vae, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_without_samples_is_refused(vae_result: Path, vae: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        load(tmp_path, vae, tmp_path / "cache")
    (tmp_path / "manifest.json").write_text('{"format": 1, "samples": 0, "shards": []}')
    with pytest.raises(ConfigError, match="has no samples"):
        load(tmp_path, vae, tmp_path / "cache")


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
