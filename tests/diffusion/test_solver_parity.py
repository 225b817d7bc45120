"""Every solver table against diffusers' scheduler of the same name, driven by the same model.

Two runs start from the same noise. Each calls the model on its own sample, so a wrong coefficient
at any step shows in all later ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bootpig_rt.diffusion.solver import NoiseSchedule, SolverName, solver_table

diffusers = pytest.importorskip("diffusers", reason="the reference schedulers are diffusers'")
torch = pytest.importorskip("torch", reason="diffusers' schedulers need torch")

# diffusers makes numpy arrays of torch tensors in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmpp_2m", "unipc")
STEPS = (4, 12, 25, 50)
# Steps, steps_offset, and whether the end is clean: long runs have no case that short ones lack.
RUNS = [*itertools.product(STEPS[:3], (0, 1), (True, False)), (50, 0, False), (50, 1, True)]
LATENT_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOLERANCE = 1e-4

START = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
MIX = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) / 4

FloatArray = npt.NDArray[np.float32]


@functools.cache
def noise_of(timestep: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(1000 + timestep).standard_normal(START.shape)


def model(sample: FloatArray, timestep: int) -> FloatArray:
    """A nonlinear function of the sample plus noise that depends on the timestep alone."""
    mixed = np.tanh(np.einsum("dc,ncyx->ndyx", MIX, sample))
    return np.asarray(mixed + 0.5 * noise_of(timestep), dtype=np.float32)


def relative_error(actual: FloatArray, expected: FloatArray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def reference_run(
    solver: SolverName, config: dict[str, Any], num_steps: int, first: int
) -> Iterator[tuple[int, FloatArray]]:
    """The timestep and the sample after each step of diffusers' scheduler, from one on."""
    accepted = SCHEDULERS[solver]().config
    defaults = {"clip_sample": False} if solver == "ddim" else {}
    known = {key: value for key, value in config.items() if key in accepted}
    scheduler = SCHEDULERS[solver](**(defaults | known))
    scheduler.set_timesteps(num_steps)
    if first and hasattr(scheduler, "set_begin_index"):  # as image-to-image does
        scheduler.set_begin_index(first)
    sample = START
    for timestep in scheduler.timesteps[first:]:
        output = torch.from_numpy(model(sample, int(timestep)))
        sample = scheduler.step(output, timestep, torch.from_numpy(sample)).prev_sample.numpy()
        yield int(timestep), sample


def assert_same_run(
    solver: SolverName, config: dict[str, Any], num_steps: int, first: int = 0
) -> None:
    table = solver_table(solver, NoiseSchedule.from_config(config), num_steps, first=first)
    sample, history = START, table.initial_history(START)
    reference = list(reference_run(solver, config, num_steps, first))
    assert [timestep for timestep, _ in reference] == table.timesteps.tolist()
    for i, (timestep, expected) in enumerate(reference):
        output = model(sample, timestep)
        sample, history = table.step(i, sample, output=output, history=history)
        assert sample.dtype == np.float32
        error = relative_error(sample, expected)
        assert error < TOLERANCE, f"step {i} of {num_steps} at t={timestep}: {error:.2e}"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_equal_diffusers(solver: SolverName, spacing: str, prediction_type: str) -> None:
    for num_steps, offset, clean_end in RUNS:
        config = LATENT_DIFFUSION | {
            "timestep_spacing": spacing,
            "prediction_type": prediction_type,
            "steps_offset": offset,
            "set_alpha_to_one": clean_end,
            "final_sigmas_type": "zero" if clean_end else "sigma_min",
        }
        assert_same_run(solver, config, num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 14, 15])
@pytest.mark.parametrize("solver", SOLVERS)
def test_short_runs_equal_diffusers_where_the_order_drops(
    solver: SolverName, num_steps: int
) -> None:
    for end in ("zero", "sigma_min"):
        config = LATENT_DIFFUSION | {"timestep_spacing": "leading", "final_sigmas_type": end}
        assert_same_run(solver, config, num_steps)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_that_begin_on_the_way_equal_diffusers(solver: SolverName, spacing: str) -> None:
    for num_steps, first, end in itertools.product((12, 25), (1, 6, 11), ("zero", "sigma_min")):
        config = LATENT_DIFFUSION | {"timestep_spacing": spacing, "final_sigmas_type": end}
        assert_same_run(solver, config, num_steps, first)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_from_zero_terminal_snr_equal_diffusers(
    solver: SolverName, num_steps: int, prediction_type: str
) -> None:
    config = LATENT_DIFFUSION | {
        "timestep_spacing": "trailing",
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": True,
    }
    assert_same_run(solver, config, num_steps)


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=["linear", "cosine"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_runs_on_other_beta_schedules_equal_diffusers(
    solver: SolverName, betas: dict[str, Any]
) -> None:
    for prediction_type in ("v_prediction", "sample"):
        config = betas | {"timestep_spacing": "trailing", "prediction_type": prediction_type}
        assert_same_run(solver, config, 12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_config_without_a_spacing_runs_as_diffusers_default(solver: SolverName) -> None:
    assert_same_run(solver, LATENT_DIFFUSION, 12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddim_with_clipped_samples_equals_diffusers(prediction_type: str) -> None:
    for clip_range in (1.0, 0.3):
        config = LATENT_DIFFUSION | {
            "prediction_type": prediction_type,
            "clip_sample": True,
            "clip_sample_range": clip_range,
        }
        assert_same_run("ddim", config, 12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 400},
    ],
    ids=["scaled_linear", "linear", "cosine", "zero_snr", "400"],
)
def test_noise_is_added_as_diffusers_adds_it(options: dict[str, Any]) -> None:
    config = LATENT_DIFFUSION | options
    schedule = NoiseSchedule.from_config(config)
    timesteps = np.linspace(0, schedule.num_train_timesteps - 1, 8).astype(np.int64)
    latents = np.repeat(START[:1], 8, axis=0)
    noise = np.random.default_rng(2).standard_normal(latents.shape).astype(np.float32)
    expected = diffusers.DDIMScheduler(**config).add_noise(
        torch.from_numpy(latents), torch.from_numpy(noise), torch.from_numpy(timesteps)
    )
    actual = schedule.add_noise(latents, noise, timesteps)
    assert relative_error(actual, expected.numpy()) < 1e-5


def test_stepping_torch_tensors_equals_stepping_numpy_arrays() -> None:
    schedule = NoiseSchedule.from_config(LATENT_DIFFUSION | {"clip_sample": True})
    for solver in SOLVERS:
        table = solver_table(solver, schedule, 4)
        arrays: Any = (START, table.initial_history(START))
        tensors: Any = (torch.from_numpy(START), table.initial_history(torch.from_numpy(START)))
        for i, timestep in enumerate(table.timesteps):
            output = model(arrays[0], int(timestep))
            arrays = table.step(i, arrays[0], output=output, history=arrays[1])
            tensors = table.step(i, tensors[0], output=torch.from_numpy(output), history=tensors[1])
        assert relative_error(tensors[0].numpy(), arrays[0]) < 1e-6
