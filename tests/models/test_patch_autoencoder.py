"""An autoencoder of patches: what it computes, and pairs that have one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from bootpig_rt.bundle.pair_config import trained_size_px
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.load import load_pair, load_vae
from bootpig_rt.models.patch_autoencoder import PatchAutoencoder


def tiny(**changes: Any) -> PatchAutoencoder:
    settings: dict[str, Any] = {
        "latent_channels": 5,
        "block_out_channels": (3, 8, 12),
        "layers_per_block": (1, 2),
        "encoder_channels": (8, 8),
        **changes,
    }
    made: PatchAutoencoder = PatchAutoencoder(**settings)
    return made


def test_an_untrained_one_is_linear() -> None:
    torch.manual_seed(0)
    vae = tiny()
    one, other = torch.randn(2, 1, 3, 16, 8)
    with torch.no_grad():
        drawn = [vae.decode(vae.encode(x).latents).sample for x in (one, other, (one + other) / 2)]
    torch.testing.assert_close((drawn[0] + drawn[1]) / 2, drawn[2])


def test_a_latent_stands_for_a_patch_and_no_side_is_fixed() -> None:
    vae = tiny()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(2, 3, 24, 12)).latents
        assert latents.shape == (2, 5, 6, 3)
        assert vae.decode(latents).sample.shape == (2, 3, 24, 12)
        (pixels,) = vae.decode(latents, return_dict=False, generator=None)  # as diffusers asks
        assert torch.equal(pixels, vae.decode(latents).sample)


def test_what_is_far_away_changes_nothing() -> None:
    """Crops train what pictures need: there is nothing that sees the whole picture."""
    torch.manual_seed(0)
    vae = tiny(layers_per_block=(1, 1))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        pixels = torch.randn(1, 3, 128, 8)
        changed = pixels.clone()
        changed[:, :, :8] = 0
        drawn = [vae.decode(vae.encode(x).latents).sample for x in (pixels, changed)]
    assert not torch.allclose(drawn[0][:, :, :8], drawn[1][:, :, :8])
    torch.testing.assert_close(drawn[0][:, :, 96:], drawn[1][:, :, 96:])


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": (3,), "layers_per_block": ()},
        {"block_out_channels": (4, 8, 12)},
        {"layers_per_block": (1,)},
    ],
)
def test_channels_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="block_out_channels is"):
        tiny(**changes)


def test_a_saved_one_loads_with_equal_outputs(patch_pair_folder: Path, tmp_path: Path) -> None:
    vae = load_pair(patch_pair_folder).vae
    assert isinstance(vae, PatchAutoencoder)
    vae.save_pretrained(tmp_path / "again")
    again = load_vae(tmp_path / "again")
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(vae.encode(pixels).latents, again.encode(pixels).latents)
    assert again.config.latents_std == vae.config.latents_std
    kept = json.loads((patch_pair_folder / "vae" / "config.json").read_text())
    assert kept["_class_name"] == "PatchAutoencoder"


def test_the_size_of_pictures_is_read_as_for_other_kinds(patch_pair_folder: Path) -> None:
    assert trained_size_px(patch_pair_folder / "base_unet", patch_pair_folder / "vae") == 32


def test_an_unknown_class_is_refused(patch_pair_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(patch_pair_folder, tmp_path / "pair"))
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "VQModel"}))
    with pytest.raises(CheckpointError, match=r"class 'VQModel', expected AutoencoderKL, "):
        load_pair(folder)


def test_a_configuration_of_another_shape_is_refused(
    patch_pair_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(patch_pair_folder, tmp_path / "pair"))
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers_per_block": [1]}))
    with pytest.raises(CheckpointError, match="does not describe a usable model"):
        load_pair(folder)


# Latents as U-Nets read them ----------------------------------------------------------------------


def test_latents_are_scaled_by_channel_and_back(patch_pair_folder: Path) -> None:
    vae: Any = load_pair(patch_pair_folder).vae
    scale = LatentScale(vae)
    latents = torch.randn(2, 6, 3, 3)
    scaled = scale.scaled(latents)
    for channel in range(6):
        mean, std = vae.config.latents_mean[channel], vae.config.latents_std[channel]
        torch.testing.assert_close(
            scaled[:, channel], (latents[:, channel] - mean) / std * vae.config.scaling_factor
        )
    torch.testing.assert_close(scale.unscaled(scaled), latents)


def test_one_factor_and_shift_serve_all_channels() -> None:
    build: Any = AutoencoderKL
    vae = build(
        block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25
    ).eval()
    scale, latents = LatentScale(vae), torch.randn(1, 4, 2, 2)
    assert torch.equal(scale.scaled(latents), (latents - 0.25) * 0.5)
    assert torch.equal(scale.unscaled(latents), latents / 0.5 + 0.25)
    pixels = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(mean_latents(vae, pixels), vae.encode(pixels).latent_dist.mean)


def test_diffusers_statistics_of_channels_are_used() -> None:
    build: Any = AutoencoderKL
    stats = {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0, 2.0, 4.0, 8.0]}
    scale = LatentScale(build(block_out_channels=(8,), norm_num_groups=4, **stats))
    scaled = scale.scaled(torch.full((1, 4, 1, 1), 3.0)).flatten()
    factor = build(block_out_channels=(8,), norm_num_groups=4).config.scaling_factor
    assert np.allclose(scaled, np.array([3.0, 1.0, 0.25, 0.0]) * factor)


def test_a_pair_may_have_a_tiny_autoencoder(tiny_pair_folder: Path, tmp_path: Path) -> None:
    """The layout of distilled autoencoders, which decode Stable Diffusion's latents quickly."""
    folder = Path(shutil.copytree(tiny_pair_folder, tmp_path / "pair"))
    shutil.rmtree(folder / "vae")
    build: Any = AutoencoderTiny
    widths = {f"{half}_block_out_channels": (8, 8, 8) for half in ("encoder", "decoder")}
    vae = build(**widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    vae.save_pretrained(folder / "vae")
    pair: Any = load_pair(folder)
    assert isinstance(pair.vae, AutoencoderTiny)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = mean_latents(pair.vae, pixels)
    assert latents.shape == (1, 4, 4, 4)
    assert torch.equal(LatentScale(pair.vae).scaled(latents), latents)
    assert trained_size_px(folder / "base_unet", folder / "vae") == 32
