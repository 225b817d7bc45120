"""Noise, targets and min-SNR weights against their formulas."""

from __future__ import annotations

import diffusers
import pytest
import torch

from bootpig_rt.diffusion.solver import NoiseSchedule
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.losses import add_noise, draw_timesteps, loss_weight, target_of
from bootpig_rt.training.stages.base import scheduler_config

LEVELS = torch.tensor([0.999, 0.9, 0.6, 0.3, 0.1, 0.004], dtype=torch.float64)


def pair_of_latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LEVELS), 4, 3, 3)
    x, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, noise


def test_noise_and_v_are_those_of_diffusers() -> None:
    config = {k: v for k, v in scheduler_config("v_prediction").items() if k[0] != "_"}
    scheduler = diffusers.DDIMScheduler(**config)
    schedule = NoiseSchedule.from_config(scheduler_config("v_prediction"))
    alphas = torch.tensor(schedule.alphas_cumprod, dtype=torch.float32)
    t = torch.tensor([0, 10, 500, 998, 999])
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(5, 4, 3, 3, generator=generator) for _ in range(2))
    expected = scheduler.add_noise(x, noise, t)
    torch.testing.assert_close(add_noise(x, noise, alphas[t]), expected, atol=2e-4, rtol=1e-4)
    velocity = scheduler.get_velocity(x, noise, t)
    got = target_of("v_prediction", x, noise, alphas[t])
    torch.testing.assert_close(got, velocity, atol=2e-4, rtol=1e-4)


def test_x0_and_noise_come_back_from_v() -> None:
    x, noise = pair_of_latents()
    noisy = add_noise(x, noise, LEVELS)
    v = target_of("v_prediction", x, noise, LEVELS)
    alpha, sigma = LEVELS.sqrt().view(-1, 1, 1, 1), (1 - LEVELS).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha * noisy - sigma * v, x)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise)


def test_the_other_targets_are_the_noise_and_the_picture() -> None:
    x, noise = pair_of_latents()
    assert target_of("epsilon", x, noise, LEVELS) is noise
    assert target_of("sample", x, noise, LEVELS) is x


@pytest.mark.parametrize(("gamma", "floor"), [(5.0, 0.3), (5.0, 0.0), (1.0, 0.8)])
def test_min_snr_weights_have_their_closed_forms(gamma: float, floor: float) -> None:
    snr = LEVELS / (1 - LEVELS)
    expected = torch.tensor([min(max(s, floor), gamma) for s in snr.tolist()], dtype=torch.float64)
    torch.testing.assert_close(loss_weight("sample", LEVELS, gamma, floor), expected)
    torch.testing.assert_close(loss_weight("epsilon", LEVELS, gamma, floor), expected / snr)
    torch.testing.assert_close(
        loss_weight("v_prediction", LEVELS, gamma, floor), expected / (snr + 1)
    )


def test_without_a_floor_epsilon_has_the_weight_of_the_paper() -> None:
    snr = LEVELS / (1 - LEVELS)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr
    torch.testing.assert_close(loss_weight("epsilon", LEVELS, 5.0, 0.0), expected)


def test_the_three_predictions_have_the_same_loss_for_the_same_picture() -> None:
    x, noise = pair_of_latents()
    guess = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    noisy = add_noise(x, noise, LEVELS)
    alpha, sigma = LEVELS.sqrt().view(-1, 1, 1, 1), (1 - LEVELS).sqrt().view(-1, 1, 1, 1)
    guess_noise = (noisy - alpha * guess) / sigma
    outputs = {
        "sample": guess,
        "epsilon": guess_noise,
        "v_prediction": alpha * guess_noise - sigma * guess,
    }
    losses = []
    for prediction_type, output in outputs.items():
        target = target_of(prediction_type, x, noise, LEVELS)  # type: ignore[arg-type]
        error = (output - target).pow(2).mean(dim=(1, 2, 3))
        weight = loss_weight(prediction_type, LEVELS, 5.0, 0.3)  # type: ignore[arg-type]
        losses.append(weight * error)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_weights_are_finite_at_pure_noise_and_at_none(prediction_type: str) -> None:
    ends = torch.tensor([0.0, 1.0])
    weight = loss_weight(prediction_type, ends, 5.0, 0.3)  # type: ignore[arg-type]
    assert torch.isfinite(weight).all()
    assert (weight >= 0).all()


def test_gamma_zero_is_the_plain_mean_squared_error() -> None:
    assert torch.equal(loss_weight("epsilon", LEVELS, 0.0, 0.3), torch.ones_like(LEVELS))


def test_uniform_timesteps_fill_the_schedule() -> None:
    t = draw_timesteps(Draws(0, 0, range(8_000)), 1000, "uniform")
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert torch.histc(t.float(), 10, 0, 1000).min() > 720


def test_most_middle_timesteps_lie_in_the_middle_and_some_everywhere() -> None:
    t = draw_timesteps(Draws(0, 0, range(8_000)), 1000, "middle")
    assert (int(t.min()), int(t.max())) == (0, 999)
    inside = ((t >= 250) & (t < 900)).float().mean()
    assert inside == pytest.approx(0.6 + 0.4 * 0.65, abs=0.015)


def test_timesteps_are_a_function_of_the_generator() -> None:
    drawn = [draw_timesteps(Draws(s, 0, range(9)), 1000, "middle") for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
