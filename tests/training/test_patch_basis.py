"""The linear floor of an autoencoder: best of its size, and where ours starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bootpig_rt.models.patch_autoencoder import PatchAutoencoder
from bootpig_rt.training.latent_statistics import pixel_effect, set_statistics
from bootpig_rt.training.patch_basis import (
    PatchBasis,
    fit_basis,
    fit_neighbours,
    start_from_basis,
)
from bootpig_rt.training.reconstruction import Fidelity, edge_difference, scale_difference

FACTOR = 4


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(12, 3, 6, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear")


@pytest.fixture(scope="module")
def basis(pixels: Tensor) -> PatchBasis:
    return fit_basis([pixels[:5], pixels[5:]], FACTOR)


@pytest.fixture
def vae(basis: PatchBasis) -> PatchAutoencoder:
    torch.manual_seed(0)
    made: PatchAutoencoder = PatchAutoencoder(
        latent_channels=5,
        block_out_channels=(3, 8, 8),
        layers_per_block=(1, 1),
        encoder_channels=(8, 8),
    )
    start_from_basis(made, basis)
    return made


def error_of(found: Tensor, pixels: Tensor) -> float:
    return float((found - pixels).pow(2).mean())


def test_components_are_orthonormal_and_the_largest_come_first(basis: PatchBasis) -> None:
    identity = torch.eye(3 * FACTOR**2)
    torch.testing.assert_close(basis.components @ basis.components.T, identity, atol=1e-4, rtol=0)
    assert (basis.spread.diff() <= 1e-6).all()


def test_all_components_together_lose_nothing(basis: PatchBasis, pixels: Tensor) -> None:
    torch.testing.assert_close(basis.floor(pixels, 48), pixels, atol=1e-4, rtol=0)


def test_the_floor_is_the_variance_that_is_left_out(basis: PatchBasis, pixels: Tensor) -> None:
    for channels in (1, 5, 20):
        left_out = float(basis.spread[channels:].pow(2).sum()) / len(basis.mean)
        assert error_of(basis.floor(pixels, channels), pixels) == pytest.approx(
            left_out, rel=1e-2, abs=1e-7
        )


def test_no_other_projection_is_closer(basis: PatchBasis, pixels: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    turned, _ = torch.linalg.qr(basis.components + 0.1 * torch.randn(48, 48, generator=generator))
    other = PatchBasis(basis.mean, turned, basis.spread)
    assert error_of(basis.floor(pixels, 5), pixels) < error_of(other.floor(pixels, 5), pixels)


def test_training_starts_from_the_floor(
    vae: PatchAutoencoder, basis: PatchBasis, pixels: Tensor
) -> None:
    with torch.no_grad():
        latents = vae.encode(pixels).latents
        drawn = vae.decode(latents).sample
    torch.testing.assert_close(drawn, basis.floor(pixels, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(5), atol=1e-2, rtol=0)


def test_neighbours_are_read_where_they_help(
    vae: PatchAutoencoder, basis: PatchBasis, pixels: Tensor
) -> None:
    fit_neighbours(vae, [pixels[:5], pixels[5:]])
    with torch.no_grad():
        drawn = vae.decode(vae.encode(pixels).latents).sample
        least = error_of(drawn, pixels)
        assert least < 0.9 * error_of(basis.floor(pixels, 5), pixels)
        project = vae.decoder.project
        project.weight += 0.01 * torch.randn_like(project.weight)
        assert error_of(vae.decode(vae.encode(pixels).latents).sample, pixels) > least


# What latents are scaled by -----------------------------------------------------------------------


def test_a_channel_changes_pixels_by_its_spread(
    vae: PatchAutoencoder, basis: PatchBasis, pixels: Tensor
) -> None:
    with torch.no_grad():
        latents = vae.encode(pixels).latents
    effect = pixel_effect(vae, latents, torch.full((5,), 0.5))
    expected = 0.5 * basis.spread[:5] / math.sqrt(len(basis.mean))
    torch.testing.assert_close(effect, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
def test_scaled_latents_have_their_spread_to_a_power(
    vae: PatchAutoencoder, basis: PatchBasis, pixels: Tensor, power: float
) -> None:
    with torch.no_grad():
        latents = vae.encode(pixels).latents
    set_statistics(vae, latents, power=power)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    scaled = (latents - mean) / std
    spread = scaled.std(dim=(0, 2, 3))
    assert float(scaled.pow(2).mean()) == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(
        spread / spread[0], (basis.spread[:5] / basis.spread[0]) ** power, rtol=2e-2, atol=1e-4
    )


# Figures ------------------------------------------------------------------------------------------


def test_subject_and_background_are_judged_apart() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[:, :2] = 255
    found = pixels.clone()
    found[:, :, :2], found[:, :, 2:] = 0.2, 0.02
    judged = Fidelity()
    for row in range(2):
        judged.add(pixels[row : row + 1], found[row : row + 1], masks[row : row + 1])
    assert judged.subject_db == pytest.approx(20, abs=1e-3)
    assert judged.background_db == pytest.approx(40, abs=1e-3)


def test_differences_of_edges_and_scales_are_their_formulas() -> None:
    difference = torch.randn(2, 3, 8, 8).double()
    array = difference.numpy()
    edges = np.abs(np.diff(array, axis=-1)).mean() + np.abs(np.diff(array, axis=-2)).mean()
    assert float(edge_difference(difference)) == pytest.approx(edges)
    assert float(edge_difference(torch.ones(1, 3, 8, 8))) == 0
    halves = array.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    quarters = array.reshape(2, 3, 2, 4, 2, 4).mean((3, 5))
    expected = np.abs(halves).mean() + np.abs(quarters).mean()
    assert float(scale_difference(difference)) == pytest.approx(expected)
