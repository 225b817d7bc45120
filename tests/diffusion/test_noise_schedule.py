"""The noise schedule: configs that are read or refused, timesteps, adding noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bootpig_rt.diffusion.noise_schedule import NoiseSchedule, SolverName
from bootpig_rt.errors import ConfigError, ParameterError

SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmpp_2m", "unipc")


def test_an_empty_config_gives_the_documented_defaults() -> None:
    schedule = NoiseSchedule.from_config({})
    assert schedule.num_train_timesteps == 1000
    assert schedule.prediction_type == "epsilon"
    assert schedule.spacing is None
    assert schedule.clip_sample_range is None
    assert schedule.set_alpha_to_one
    assert schedule.alphas_cumprod.dtype == np.float64


def test_the_scheduler_config_of_stable_diffusion_is_read() -> None:
    schedule = NoiseSchedule.from_config(
        {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.8.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
        }
    )
    assert schedule.steps_offset == 1
    assert not schedule.set_alpha_to_one
    assert schedule.alphas_cumprod[-1] == pytest.approx(0.0047, rel=0.01)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is not supported, got"),
        ({"thresholding": True}, "thresholding is not supported"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is not supported"),
        ({"beta_schedule": "sigmoid"}, "expected one of linear, scaled_linear, squaredcos_cap_v2"),
        ({"prediction_type": "flow"}, "expected one of epsilon, v_prediction, sample"),
        ({"timestep_spacing": "even"}, "expected one of trailing, leading, linspace"),
        ({"final_sigmas_type": "one"}, "expected one of zero, sigma_min"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5"),
        ({"beta_start": 0.0}, "0 < beta_start"),
        ({"beta_end": 1.0}, "beta_end < 1"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
        ({"beta_start": "0.1"}, "beta_start is '0.1'"),
        ({"beta_end": float("nan")}, "beta_end is nan"),
        ({"steps_offset": -1}, "steps_offset is -1"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one is 1; expected true or false"),
        ({"clip_sample": True, "clip_sample_range": 0.0}, "clip_sample_range is 0.0"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "at least 2"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        NoiseSchedule.from_config(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bars", [[], [[0.9, 0.5]], [0.5, 0.9], [1.0, 0.5], [0.9, -0.1], [0.9, np.nan]]
)
def test_a_table_that_is_no_schedule_is_refused(bars: list[Any]) -> None:
    with pytest.raises(ConfigError, match="alphas_cumprod"):
        NoiseSchedule(np.array(bars))


def test_a_schedule_cannot_be_changed_through_its_table() -> None:
    bars = np.array([0.9, 0.5])
    schedule = NoiseSchedule(bars)
    bars[0] = 0.1
    assert schedule.alphas_cumprod[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.1


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_timesteps_fall_strictly_and_stay_in_range_for_all_numbers_of_steps(
    solver: SolverName, spacing: str
) -> None:
    schedule = NoiseSchedule.from_config({"timestep_spacing": spacing, "num_train_timesteps": 200})
    refused = []
    for num_steps in range(1, 201):
        try:
            timesteps = schedule.timesteps(num_steps, solver)
        except ParameterError:
            refused.append(num_steps)
            continue
        assert timesteps.shape == (num_steps,)
        assert timesteps.dtype == np.int64
        assert (np.diff(timesteps) < 0).all()
        assert timesteps[0] < 200
        assert timesteps[-1] >= 0
    # Without the last of 201 points on 200 timesteps, one would be visited twice.
    assert refused == ([200] if solver != "ddim" and spacing != "trailing" else [])


def test_trailing_spacing_starts_at_the_noisiest_timestep() -> None:
    schedule = NoiseSchedule.from_config({"timestep_spacing": "trailing"})
    for solver in SOLVERS:
        assert schedule.timesteps(4, solver).tolist() == [999, 749, 499, 249]


def test_timesteps_that_an_offset_pushes_out_of_range_are_refused() -> None:
    schedule = NoiseSchedule.from_config({"timestep_spacing": "leading", "steps_offset": 1})
    with pytest.raises(ParameterError, match="use fewer steps or trailing spacing"):
        schedule.timesteps(1000, "ddim")


def test_noise_is_added_by_the_variance_preserving_formula() -> None:
    schedule = NoiseSchedule(np.array([0.81, 0.36]))
    latents = np.full((2, 1, 2, 2), 2.0, dtype=np.float32)
    noise = np.full((2, 1, 2, 2), 1.0, dtype=np.float32)
    for_one = schedule.add_noise(latents, noise, 1)
    np.testing.assert_allclose(for_one, 0.6 * 2.0 + 0.8, rtol=1e-6)
    for_each = schedule.add_noise(latents, noise, np.array([0, 1]))
    np.testing.assert_allclose(for_each[0], 0.9 * 2.0 + 0.19**0.5, rtol=1e-6)
    np.testing.assert_allclose(for_each[1], for_one[1])
    assert for_one.dtype == for_each.dtype == np.float32
    wide = schedule.add_noise(latents.astype(np.float64), noise.astype(np.float64), 1)
    assert wide.dtype == np.float32


def test_zero_terminal_snr_leaves_pure_noise_and_keeps_the_first_timestep() -> None:
    plain = NoiseSchedule.from_config({})
    rescaled = NoiseSchedule.from_config({"rescale_betas_zero_snr": True})
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    latents, noise = np.ones((1, 1, 2, 2), np.float32), np.full((1, 1, 2, 2), 3.0, np.float32)
    np.testing.assert_array_equal(rescaled.add_noise(latents, noise, 999), noise)
    least = NoiseSchedule.from_config({"rescale_betas_zero_snr": True, "num_train_timesteps": 2})
    assert least.alphas_cumprod[-1] == 0 < least.alphas_cumprod[0]


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (1000, "outside 0 to 999"),
        (-1, "outside 0 to 999"),
        (0.5, "must be integers"),
        (np.array([1, 2, 3]), "one for each of the rows"),
        (np.array([[1, 2]]), "one for each of the rows"),
    ],
)
def test_noise_at_a_timestep_that_does_not_exist_is_refused(t: Any, message: str) -> None:
    latents = np.zeros((2, 4, 2, 2), np.float32)
    with pytest.raises(ParameterError, match=message):
        NoiseSchedule.from_config({}).add_noise(latents, latents, t)


def test_noise_of_another_shape_is_refused() -> None:
    latents = np.zeros((2, 4, 2, 2), np.float32)
    with pytest.raises(ParameterError, match="noise has shape"):
        NoiseSchedule.from_config({}).add_noise(latents, latents[:1], 3)
