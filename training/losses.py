"""Noise, targets and weights of the diffusion loss, for epsilon, v and x0 prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bootpig_rt.diffusion.noise_schedule import PredictionType
from bootpig_rt.models.unet import ReferenceKVLayers
from bootpig_rt.training.config import TimestepSampling
from bootpig_rt.training.draws import Draws

# Where shapes and palettes are decided; coarser and finer noise levels teach little per sample.
MIDDLE = (0.25, 0.9)
MIDDLE_SHARE = 0.6

# Of a normal number whose logistic is the share of the schedule (Esser et al. 2024, section 3.1): a
# quarter of the draws is below a quarter of the schedule, where the finest detail is decided.
LOGIT_MEAN, LOGIT_STD = -0.3, 1.2


def draw_timesteps(draws: Draws, num_train_timesteps: int, sampling: TimestepSampling) -> Tensor:
    """Draw timesteps, int64 [B]; see `timestep_share`."""
    share = timestep_share(sampling, draws.uniform, draws.normal)
    return (share * num_train_timesteps).long().clamp_(max=num_train_timesteps - 1)


def timestep_share(
    sampling: TimestepSampling, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]
) -> Tensor:
    """Where in the schedule samples are noised, [B] from 0 to 1.

    `middle` takes most from a range, `logit_normal` has a soft middle. The others draw numbers from
    0 to 1, or of unit variance.
    """
    if sampling == "logit_normal":
        return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal())
    share = uniform()
    if sampling == "middle":
        low, high = MIDDLE
        is_middle = uniform() < MIDDLE_SHARE
        share = torch.where(is_middle, low + (high - low) * share, share)
    return share


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noise latents [N, C, h, w] to the levels `alphas_cumprod` [N]."""
    alpha = alphas_cumprod.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def nothing_of(table: ReferenceKVLayers) -> Tensor:
    """Zero, with gradients for all that a reference table was made by.

    For batches that read no reference: several processes that each hold a part of every weight have
    to walk the same way.
    """
    parts = [part.float().sum() for layer in table for part in layer]
    return 0.0 * torch.stack(parts).sum()


def target_of(
    prediction_type: PredictionType, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """What the U-Net should say; v as in Salimans and Ho (2022), section 4."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    alpha = alphas_cumprod.view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def loss_weight(
    prediction_type: PredictionType, alphas_cumprod: Tensor, gamma: float, floor: float
) -> Tensor:
    """Min-SNR weight of each sample, [N] (Hang et al. 2023, section 3.4), kept above a floor.

    In terms of x0 the weight is clamp(SNR, floor, gamma); the other predictions divide by what
    turns their error into an error of x0. `gamma` 0 gives the plain mean squared error.
    """
    if gamma == 0:
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod).clamp(min=1e-8)
    weight = snr.clamp(min=floor, max=gamma)
    if prediction_type == "epsilon":
        return weight / snr.clamp(min=1e-4)
    if prediction_type == "v_prediction":
        return weight / (snr + 1)
    return weight
