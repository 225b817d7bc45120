"""What holds for every solver table, and recorded runs of the published pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootpig_rt.diffusion.solver import (
    BatchSolver,
    NoiseSchedule,
    SolverName,
    SolverTable,
    solver_table,
)
from bootpig_rt.errors import ParameterError

SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmpp_2m", "unipc")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LATENT_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RECORDED_STEPS = Path(__file__).parent / "data" / "recorded_steps.npz"

Float64Array = npt.NDArray[np.float64]

repeatable = settings(deadline=None, max_examples=25, derandomize=True)


def latents(seed: int) -> Float64Array:
    return np.random.default_rng(seed).standard_normal((1, 4, 3, 3))


def schedule(**options: Any) -> NoiseSchedule:
    return NoiseSchedule.from_config(LATENT_DIFFUSION | options)


def levels(table: SolverTable, of: NoiseSchedule, i: int) -> tuple[float, float]:
    """alpha and sigma that the table takes step i to be at; 0 signal is lifted as documented."""
    bar = float(of.alphas_cumprod[table.timesteps[i]])
    if bar == 0 and table.name != "ddim":
        bar = 2.0**-24
    return bar**0.5, (1 - bar) ** 0.5


def output_of(
    x0: Float64Array, sample: Float64Array, alpha: float, sigma: float, *, prediction_type: str
) -> Float64Array:
    """What a model of that prediction type outputs when it takes the clean latents to be x0."""
    if prediction_type == "sample":
        return x0
    noise = (sample - alpha * x0) / sigma
    return noise if prediction_type == "epsilon" else alpha * noise - sigma * x0


def run_towards(
    x0: Float64Array, of: NoiseSchedule, table: SolverTable, start: Float64Array
) -> Float64Array:
    """A run of a model that always predicts x0."""
    sample, history = start, table.initial_history(start)
    for i in range(table.num_steps):
        alpha, sigma = levels(table, of, i)
        output = output_of(x0, sample, alpha, sigma, prediction_type=of.prediction_type)
        sample, history = table.step(i, sample, output=output, history=history)
    return sample


def distance_to_exact_solution(of: NoiseSchedule, solver: SolverName, num_steps: int) -> float:
    """Relative error of a run on data ~ N(0, 1/4), where the right x0 is linear in the sample.

    There the probability flow keeps x / sqrt(alpha^2 / 4 + sigma^2) constant.
    """
    table = solver_table(solver, of, num_steps)
    start = latents(0)
    sample, history = start, table.initial_history(start)
    for i in range(num_steps):
        alpha, sigma = levels(table, of, i)
        x0 = alpha / 4 / (alpha**2 / 4 + sigma**2) * sample
        output = output_of(x0, sample, alpha, sigma, prediction_type=of.prediction_type)
        sample, history = table.step(i, sample, output=output, history=history)
    first, last = of.alphas_cumprod[table.timesteps[0]], of.alphas_cumprod[0]
    exact = np.sqrt((1 - 0.75 * last) / (1 - 0.75 * first)) * start
    return float(np.linalg.norm(sample - exact) / np.linalg.norm(exact))


@repeatable
@given(
    solver=st.sampled_from(SOLVERS),
    spacing=st.sampled_from(["trailing", "leading", "linspace"]),
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    num_steps=st.integers(1, 60),
    offset=st.integers(0, 1),
)
def test_a_model_with_constant_x0_ends_exactly_there(
    solver: SolverName, spacing: str, prediction_type: str, num_steps: int, offset: int
) -> None:
    of = schedule(timestep_spacing=spacing, prediction_type=prediction_type, steps_offset=offset)
    table = solver_table(solver, of, num_steps)
    end = run_towards(latents(1), of, table, latents(2))
    np.testing.assert_allclose(end, latents(1), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_model_with_constant_x0_is_noised_to_the_next_level_by_each_step(
    solver: SolverName,
) -> None:
    of = schedule(timestep_spacing="leading", steps_offset=1)
    table = solver_table(solver, of, 10)
    x0, noise = latents(1), latents(2)
    alpha, sigma = levels(table, of, 0)
    sample, history = alpha * x0 + sigma * noise, table.initial_history(x0)
    for i in range(9):
        sample, history = table.step(i, sample, output=noise, history=history)
        alpha, sigma = levels(table, of, i + 1)
        np.testing.assert_allclose(sample, alpha * x0 + sigma * noise, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_terminal_snr_starts_from_pure_noise_and_ends_at_x0(
    solver: SolverName, prediction_type: str
) -> None:
    of = schedule(
        timestep_spacing="trailing", prediction_type=prediction_type, rescale_betas_zero_snr=True
    )
    assert of.alphas_cumprod[-1] == 0
    table = solver_table(solver, of, 8)
    assert table.timesteps[0] == 999
    assert np.isfinite(table.matrices).all()
    assert np.abs(table.matrices).max() < 10
    np.testing.assert_allclose(
        run_towards(latents(1), of, table, latents(2)), latents(1), atol=1e-9
    )


def test_ddim_on_noise_prediction_from_zero_terminal_snr_is_refused() -> None:
    of = schedule(timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(ParameterError, match=r"ddim cannot start at timestep 999 .*leading"):
        solver_table("ddim", of, 8)
    leading = schedule(timestep_spacing="leading", rescale_betas_zero_snr=True)
    assert np.isfinite(solver_table("ddim", leading, 8).matrices).all()


@repeatable
@given(num_steps=st.integers(1, 1000))
def test_ddim_always_ends_at_the_last_x0_with_set_alpha_to_one(num_steps: int) -> None:
    of = schedule(timestep_spacing="trailing", set_alpha_to_one=True)
    table = solver_table("ddim", of, num_steps)
    np.testing.assert_allclose(table.matrices[-1, 0], table.x0[-1], rtol=1e-12, atol=1e-12)


def test_without_set_alpha_to_one_ddim_ends_at_the_first_noise_level() -> None:
    of = schedule(set_alpha_to_one=False)
    table = solver_table("ddim", of, 10)
    x0, noise = latents(1), latents(2)
    alpha, sigma = levels(table, of, 9)
    end, _ = table.step(9, alpha * x0 + sigma * noise, output=noise, history=())
    first = of.alphas_cumprod[0]
    np.testing.assert_allclose(end, first**0.5 * x0 + (1 - first) ** 0.5 * noise, atol=1e-12)


@repeatable
@given(solver=st.sampled_from(SOLVERS), num_steps=st.integers(1, 40), scale=st.floats(-3.0, 3.0))
def test_a_step_is_linear(solver: SolverName, num_steps: int, scale: float) -> None:
    table = solver_table(solver, schedule(), num_steps)
    i = num_steps // 2
    first = [latents(seed) for seed in range(2 + table.history_size)]
    second = [latents(100 + seed) for seed in range(2 + table.history_size)]
    both = [a + scale * b for a, b in zip(first, second, strict=True)]

    def step(state: list[Float64Array]) -> list[Float64Array]:
        sample, history = table.step(i, state[0], output=state[1], history=state[2:])
        return [sample, *history]

    for together, a, b in zip(step(both), step(first), step(second), strict=True):
        np.testing.assert_allclose(together, a + scale * b, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_is_the_matrix_product_that_backends_compute(solver: SolverName) -> None:
    table = solver_table(solver, schedule(), 6)
    size = table.history_size
    assert table.matrices.shape == (6, 1 + size, 2 + size)
    state = np.stack([latents(seed) for seed in range(2 + size)])
    for i in range(6):
        expected = np.einsum("rc,c...->r...", table.matrices[i], state)
        sample, history = table.step(i, state[0], output=state[1], history=list(state[2:]))
        np.testing.assert_allclose(np.stack([sample, *history]), expected, atol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_preview_is_the_x0_that_the_model_means(
    solver: SolverName, prediction_type: str
) -> None:
    of = schedule(prediction_type=prediction_type)
    table = solver_table(solver, of, 7)
    x0, noise = latents(1), latents(2)
    for i in range(7):
        alpha, sigma = levels(table, of, i)
        sample = alpha * x0 + sigma * noise
        output = output_of(x0, sample, alpha, sigma, prediction_type=prediction_type)
        np.testing.assert_allclose(table.preview(i, sample, output=output), x0, atol=1e-9)


def test_higher_order_solvers_come_closer_to_the_exact_solution() -> None:
    # Up to the first noise level: the jump from there to a clean end is of first order for all.
    of = schedule(timestep_spacing="leading", final_sigmas_type="sigma_min", set_alpha_to_one=False)
    coarse, fine = (
        {name: distance_to_exact_solution(of, name, num_steps) for name in SOLVERS}
        for num_steps in (50, 100)
    )
    # Twice the steps halve the error of first order, and do better than that for second order.
    assert coarse["ddim"] / fine["ddim"] == pytest.approx(2, abs=0.2)
    assert coarse["dpmpp_2m"] / fine["dpmpp_2m"] > 2.4
    assert coarse["unipc"] / fine["unipc"] > 2.4
    assert fine["unipc"] < fine["dpmpp_2m"] < fine["ddim"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_first_step_reads_no_history(solver: SolverName) -> None:
    table = solver_table(solver, schedule(), 5)
    assert table.name == solver
    assert not table.matrices[0, 0, 2:].any()


def test_clipping_is_for_ddim_alone_and_bounds_the_preview() -> None:
    of = schedule(clip_sample=True, clip_sample_range=0.5)
    table = solver_table("ddim", of, 5)
    free = solver_table("ddim", schedule(), 5).preview(0, latents(1), output=latents(2))
    preview = table.preview(0, latents(1), output=latents(2))
    assert free.min() < -0.5 < 0.5 < free.max()
    np.testing.assert_allclose(preview, free.clip(-0.5, 0.5))
    end, _ = table.step(4, latents(1), output=latents(2), history=())
    assert np.abs(end).max() == pytest.approx(0.5)
    for name in ("dpmpp_2m", "unipc"):
        assert solver_table(name, of, 5).clip_sample_range is None


def test_float32_tables_hold_the_same_numbers() -> None:
    table = solver_table("unipc", schedule(prediction_type="v_prediction"), 12)
    small = table.astype32()
    assert small.matrices.dtype == small.x0.dtype == small.clip_weight.dtype == np.float32
    np.testing.assert_allclose(small.matrices, table.matrices, rtol=1e-6)
    assert small.timesteps is table.timesteps


def test_a_step_keeps_the_dtype_of_its_arrays() -> None:
    table = solver_table("unipc", schedule(), 4)
    sample = latents(0).astype(np.float32)
    following, history = table.step(1, sample, output=sample, history=table.initial_history(sample))
    assert {array.dtype for array in (following, *history)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("recording", "solver"), [("ddim_1ref", "ddim"), ("ddim_3ref", "ddim"), ("unipc_1ref", "unipc")]
)
def test_recorded_runs_of_the_published_pipeline_are_reproduced(
    recording: str, solver: SolverName
) -> None:
    # Every 4th latent of every 4th row: a solver treats each latent alone. The recordings were made
    # with diffusers 0.26, whose DDIM clips unless told not to and whose UniPC ended at sigma_min.
    with np.load(RECORDED_STEPS) as data:
        timesteps = data[f"{recording}.timesteps"]
        samples = data[f"{recording}.latents"]
        outputs = data[f"{recording}.outputs"]
    of = schedule(clip_sample=True, final_sigmas_type="sigma_min")
    table = solver_table(solver, of, len(timesteps))
    assert table.timesteps.tolist() == timesteps.tolist()
    history = table.initial_history(samples[0])
    for i, output in enumerate(outputs):
        following, history = table.step(i, samples[i], output=output, history=history)
        scale = np.abs(samples[i + 1]).max()
        np.testing.assert_allclose(following, samples[i + 1], atol=1e-5 * scale)


@pytest.mark.parametrize("num_steps", [0, -1, 5000, 1001, 2.0, 25.5, "25", None, True, np.nan])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_number_of_steps_out_of_range_is_refused(solver: SolverName, num_steps: Any) -> None:
    with pytest.raises(ParameterError, match="whole number from 1 to 1000, got"):
        solver_table(solver, schedule(), num_steps)


def test_numpy_integers_are_whole_numbers() -> None:
    assert solver_table("ddim", schedule(), np.int64(3)).num_steps == 3  # type: ignore[arg-type]


def test_an_unknown_solver_is_refused_with_the_known_ones() -> None:
    unknown: Any = "euler"
    with pytest.raises(ParameterError, match="'euler'; expected one of ddim, dpmpp_2m, unipc"):
        solver_table(unknown, schedule(), 4)


def test_a_wrong_step_or_history_is_refused() -> None:
    table = solver_table("dpmpp_2m", schedule(), 4)
    with pytest.raises(ParameterError, match="keeps 1 history tensors, got 0"):
        table.step(0, latents(0), output=latents(1), history=())
    with pytest.raises(ParameterError, match="step 4 is outside"):
        table.step(4, latents(0), output=latents(1), history=table.initial_history(latents(0)))


def test_a_batch_holds_the_steps_that_each_picture_takes_next() -> None:
    ddim, unipc = (solver_table(name, schedule(), 6) for name in ("ddim", "unipc"))
    batch = BatchSolver.of([ddim, unipc], starts=[1, 3], num_steps=2)
    assert (batch.num_steps, batch.history_size) == (2, unipc.history_size)
    for b, (solver, at) in enumerate([(ddim, 1), (unipc, 3)]):
        np.testing.assert_array_equal(batch.timesteps[:, b], solver.timesteps[at : at + 2])
        np.testing.assert_allclose(batch.x0[:, b], solver.x0[at : at + 2], rtol=1e-6)
        size = solver.history_size
        own = batch.matrices[:, b, : 1 + size, : 2 + size]
        np.testing.assert_allclose(own, solver.matrices[at : at + 2], rtol=1e-6)
        assert not batch.matrices[:, b, 1 + size :].any()
        assert not batch.matrices[:, b, :, 2 + size :].any()
    for table in (batch.matrices, batch.x0, batch.clip_weight):
        assert table.dtype == np.float32
    assert batch.timesteps.dtype == np.int64


def test_a_batch_takes_as_many_steps_as_every_picture_has_left() -> None:
    solvers = [solver_table("dpmpp_2m", schedule(), steps) for steps in (6, 4)]
    assert BatchSolver.of(solvers).num_steps == 4
    assert BatchSolver.of(solvers, starts=[5, 0]).num_steps == 1
    assert BatchSolver.of(solvers, num_steps=4).num_steps == 4
    assert BatchSolver.of(solvers, num_steps=1).num_steps == 1
    for steps in (0, 5):
        with pytest.raises(ParameterError, match=f"{steps} steps of a batch, expected 1..4"):
            BatchSolver.of(solvers, num_steps=steps)


def test_pictures_of_a_batch_clamp_to_one_range_or_not_at_all() -> None:
    narrow, wide = (
        solver_table("ddim", schedule(clip_sample=True, clip_sample_range=limit), 3)
        for limit in (0.5, 1.0)
    )
    free = solver_table("unipc", schedule(), 3)
    mixed = BatchSolver.of([narrow, free])
    assert mixed.clip_sample_range == 0.5
    np.testing.assert_allclose(mixed.clip_weight[:, 0], narrow.clip_weight, rtol=1e-6)
    assert not mixed.clip_weight[:, 1].any()
    assert BatchSolver.of([free]).clip_sample_range is None
    with pytest.raises(ParameterError, match=r"clamp to \[0.5, 1.0\], expected one range"):
        BatchSolver.of([narrow, wide])
