"""The formulas of DPM-Solver++ (2M) and UniPC, as rows of coefficients.

Both integrate the probability flow over lambda = log(alpha / sigma), reading the model's x_0 as
slowly changing between steps. A latent at noise level i is x_i = alpha_i x_0 + sigma_i noise with
alpha^2 + sigma^2 = 1. Level i is that of the run's timestep i; level T, after the last step, is the
clean end (sigma = 0, lambda = inf) or the schedule's first noise level.

A row holds the weights of (sample, model output, *history), so formulas on rows read as in the
papers: DPM-Solver++ arXiv 2211.01095, UniPC arXiv 2302.04867. What a table is, is in `solver.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bootpig_rt.diffusion.noise_schedule import Float64Array, NoiseSchedule

# These solvers cannot start at alpha = 0 (lambda = -inf), so they start at this alpha_bar:
# diffusers' choice, the smallest positive float16.
_ALPHA_BAR_FLOOR = 2.0**-24

SHORT_RUN_STEPS = 15
"""DPM-Solver++ ends with a first-order step in runs shorter than this."""


@dataclass(frozen=True)
class NoiseLevels:
    """alpha, sigma and lambda of the T visited noise levels and of the end, each [T + 1]."""

    alpha: Float64Array
    sigma: Float64Array
    lam: Float64Array

    @property
    def num_steps(self) -> int:
        """T."""
        return int(self.alpha.size) - 1

    @property
    def ends_clean(self) -> bool:
        """Whether the run ends without noise."""
        return bool(self.sigma[-1] == 0)


def noise_levels(schedule: NoiseSchedule, timesteps: npt.NDArray[np.int64]) -> NoiseLevels:
    """Levels of the timesteps, then of the end that `schedule.final_sigmas_type` names."""
    bars = schedule.alphas_cumprod
    end = 1.0 if schedule.final_sigmas_type == "zero" else bars[0]
    visited = np.append(bars[timesteps], end)
    visited[visited == 0] = _ALPHA_BAR_FLOOR
    alpha, sigma = np.sqrt(visited), np.sqrt(1.0 - visited)
    with np.errstate(divide="ignore"):  # lambda is +inf at a clean end
        return NoiseLevels(alpha, sigma, np.log(alpha) - np.log(sigma))


def dpmpp_2m(levels: NoiseLevels, x0_rows: Float64Array, *, is_short: bool) -> Float64Array:
    """DPM-Solver++ algorithm 2 (multistep, midpoint); history: the x_0 of the step before.

    With h_i = lambda_i - lambda_{i-1} and r = h_i / h_{i+1}, the step i -> i + 1 is

        D = x0_i + (x0_i - x0_{i-1}) / (2 r)
        x_{i+1} = (sigma_{i+1} / sigma_i) x_i - alpha_{i+1} (exp(-h_{i+1}) - 1) D

    The first step, the last one into a clean end and the last one of a short run take D = x0_i.

    Args:
        levels: The T + 1 noise levels.
        x0_rows: [T, 2], x_0 at each level as a combination of (sample, model output).
        is_short: The run that these are the last steps of is.

    Returns:
        Step matrices, float64 [T, 2, 3], as in `SolverTable.matrices`.
    """
    alpha, sigma = levels.alpha, levels.sigma
    h = np.diff(levels.lam)  # h[i] belongs to the step i -> i + 1
    last = levels.num_steps - 1
    sample, _, previous_x0 = np.eye(3)
    matrices = np.empty((levels.num_steps, 2, 3))
    for i in range(levels.num_steps):
        x0 = np.append(x0_rows[i], 0.0)
        drift = x0
        is_first_order_end = levels.ends_clean or is_short
        if i > 0 and not (i == last and is_first_order_end):
            drift = x0 + (x0 - previous_x0) * (h[i] / (2.0 * h[i - 1]))
        matrices[i, 0] = sigma[i + 1] / sigma[i] * sample - alpha[i + 1] * np.expm1(-h[i]) * drift
        matrices[i, 1] = x0
    return matrices


def unipc(levels: NoiseLevels, x0_rows: Float64Array) -> Float64Array:
    """UniPC of order 2 on x_0 with B2(h) = exp(h) - 1.

    A model call serves twice: UniC (theorem 3.1) corrects the sample it was made on, then UniP
    (corollary 3.2) steps on from the corrected sample, both in their multistep form. Both are here
    one matrix: the model saw the uncorrected x_i, so that is what x0_i is made from, and the
    corrected x^c_i replaces it everywhere else. History: x0_{i-1}, x0_{i-2}, x^c_{i-1}.

    The first step has no earlier x_0 and the last is meant to be safe, so both are of order 1.
    A correction has the order of the prediction that it corrects.

    Args:
        levels: The T + 1 noise levels.
        x0_rows: [T, 2], x_0 at each level as a combination of (sample, model output).

    Returns:
        Step matrices, float64 [T, 4, 5], as in `SolverTable.matrices`.
    """
    count = levels.num_steps
    orders = [2 if 0 < i < count - 1 else 1 for i in range(count)]
    sample, _, previous_x0, second_x0, previous_corrected = np.eye(5)
    matrices = np.empty((count, 4, 5))
    for i, order in enumerate(orders):
        x0 = np.append(x0_rows[i], np.zeros(3))
        corrected = sample
        if i > 0:
            corrected = _unipc_update(
                levels,
                i - 1,
                start=previous_corrected,
                x0=previous_x0,
                earlier_x0=second_x0 if orders[i - 1] == 2 else None,
                reached_x0=x0,
            )
        matrices[i, 0] = _unipc_update(
            levels,
            i,
            start=corrected,
            x0=x0,
            earlier_x0=previous_x0 if order == 2 else None,
            reached_x0=None,
        )
        matrices[i, 1:] = x0, previous_x0, corrected
    return matrices


def _unipc_update(
    levels: NoiseLevels,
    i: int,
    *,
    start: Float64Array,
    x0: Float64Array,
    earlier_x0: Float64Array | None,
    reached_x0: Float64Array | None,
) -> Float64Array:
    """Coefficients of x_{i+1}, from `start` at level i: UniP, or UniC if `reached_x0` is there.

    With h = lambda_{i+1} - lambda_i and B = exp(-h) - 1 (the paper's forms for x_0 have -h for h),

        x_{i+1} = (sigma_{i+1} / sigma_i) start - alpha_{i+1} B (x0 + sum_k rho_k D_k / r_k)

    where D_k is x0 at another level minus `x0`, and r_k is how far that level is from i in units of
    h: negative for the level before, 1 for the level reached. The rho solve the order conditions
    of theorem 3.1,

        sum_k rho_k r_k^(n-1) = n! phi_{n+1}(-h) (-h) / B    for n = 1 .. number of k,

    with phi_1(z) = (exp(z) - 1) / z and phi_{n+1}(z) = (phi_n(z) - 1 / n!) / z. Where there is only
    one rho it is 1/2 instead, which keeps the order.
    """
    h = levels.lam[i + 1] - levels.lam[i]
    b = np.expm1(-h)  # the paper's B(h)
    differences: list[tuple[float, Float64Array]] = []  # (r_k, D_k)
    if earlier_x0 is not None:
        r = float((levels.lam[i - 1] - levels.lam[i]) / h)
        differences.append((r, earlier_x0 - x0))
    if reached_x0 is not None:
        differences.append((1.0, reached_x0 - x0))
    rhos = [0.5]
    if len(differences) == 2:
        conditions = np.vander([r for r, _ in differences], 2, increasing=True).T
        phi_1 = b / -h
        phi_2 = (phi_1 - 1.0) / -h
        phi_3 = (phi_2 - 0.5) / -h
        rhos = np.linalg.solve(conditions, [phi_2 / phi_1, 2.0 * phi_3 / phi_1]).tolist()
    slope = x0
    for rho, (r, difference) in zip(rhos, differences, strict=False):
        slope = slope + rho / r * difference
    ratio = levels.sigma[i + 1] / levels.sigma[i]
    return np.asarray(ratio * start - levels.alpha[i + 1] * b * slope)
