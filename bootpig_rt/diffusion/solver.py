"""DDIM, DPM-Solver++ (2M) and UniPC as tables of coefficients, float64, numpy only.

Each of these solvers steps to a linear combination of the current sample, the model output and a
few tensors kept from earlier steps. So a whole run is a table of small matrices,

    [next sample, *next history] = matrices[i] @ [sample, model output, *history],

that a backend can fold into its step without knowing any solver. The conversion from the model's
prediction type to x_0 is inside the matrices. The history starts as zeros.

One option is not linear: DDIM's clamp of x_0 (`NoiseSchedule.clip_sample_range`), meant for pixels.
It adds `clip_weight[i] * (clamped x_0 - x_0)` to the next sample. `SolverTable.step` is the
reference of both.

Every table equals the scheduler of that name in diffusers, with its defaults, on the same
timesteps. DDIM's last step is the one exception: see `_ddim`.

The formulas of the two multistep solvers are in `multistep.py`; DDIM (arXiv 2010.02502) is here.
Notation: a latent at timestep t is x_t = alpha_t x_0 + sigma_t noise with alpha^2 + sigma^2 = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from bootpig_rt.diffusion.multistep import SHORT_RUN_STEPS, dpmpp_2m, noise_levels, unipc
from bootpig_rt.diffusion.noise_schedule import (
    Float64Array,
    NoiseSchedule,
    PredictionType,
    SolverName,
)
from bootpig_rt.errors import ParameterError

__all__ = ["BatchSolver", "NoiseSchedule", "SolverName", "SolverTable", "solver_table"]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


class _Array(Protocol):
    """What `SolverTable.step` needs of an array: a numpy array or a torch tensor has it."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def clip(self, low: Any, high: Any, /) -> Any: ...


ArrayT = TypeVar("ArrayT", bound=_Array)


@dataclass(frozen=True, eq=False)
class SolverTable:
    """The coefficients of a whole run: T steps with K history tensors.

    Attributes:
        name: The solver.
        timesteps: int64 [T], falling: what the model is told at each step.
        matrices: [T, 1 + K, 2 + K]. Rows: next sample, next history. Columns: sample, model
            output, history.
        x0: [T, 2]: the predicted clean latents are `x0[i, 0] sample + x0[i, 1] model output`.
        clip_sample_range: Clamp x_0 to plus or minus this (DDIM only); None: steps are linear.
        clip_weight: [T]: how much of the change by that clamp goes into the next sample.
    """

    name: SolverName
    timesteps: npt.NDArray[np.int64]
    matrices: FloatArray
    x0: FloatArray
    clip_sample_range: float | None
    clip_weight: FloatArray

    @cached_property
    def num_steps(self) -> int:
        """T."""
        return int(self.timesteps.size)

    @cached_property
    def history_size(self) -> int:
        """K: tensors that a step hands to the next beside the sample."""
        return int(self.matrices.shape[1]) - 1

    def initial_history(self, sample: ArrayT) -> tuple[ArrayT, ...]:
        """K zero arrays like `sample`: the history before the first step."""
        return tuple(sample * 0.0 for _ in range(self.history_size))

    def step(
        self, i: int, sample: ArrayT, *, output: ArrayT, history: Sequence[ArrayT]
    ) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """Take step i: the reference for what a backend's fused step computes.

        Args:
            i: Step, 0 to T - 1.
            sample: x_i [B, C, h, w], a numpy array or a torch tensor.
            output: The model's (guided) output for `sample` at `timesteps[i]`, same shape.
            history: What the step before returned, or `initial_history(sample)`.

        Returns:
            The next sample and the next history, in the dtype of the arguments.

        Raises:
            ParameterError: `i` or the length of `history` is not the table's.
        """
        if not 0 <= i < self.num_steps:
            raise ParameterError(f"step {i} is outside the table's 0 to {self.num_steps - 1}")
        if len(history) != self.history_size:
            raise ParameterError(
                f"{self.name} keeps {self.history_size} history tensors, got {len(history)}; "
                "start from initial_history(sample)"
            )
        state = [sample, output, *history]
        next_sample, *next_history = (_combine(row, state) for row in self.matrices[i])
        if self.clip_sample_range is not None:
            x0 = _combine(self.x0[i], [sample, output])
            clipped = x0.clip(-self.clip_sample_range, self.clip_sample_range)
            next_sample = next_sample + (clipped - x0) * float(self.clip_weight[i])
        return next_sample, tuple(next_history)

    def preview(self, i: int, sample: ArrayT, *, output: ArrayT) -> ArrayT:
        """Clean latents x_0 that the model predicts at step i, clamped where the step clamps."""
        x0 = _combine(self.x0[i], [sample, output])
        if self.clip_sample_range is None:
            return x0
        clipped: ArrayT = x0.clip(-self.clip_sample_range, self.clip_sample_range)
        return clipped

    def astype32(self) -> SolverTable:
        """The same table with float32 coefficients, for an engine's inputs."""
        return replace(
            self,
            matrices=self.matrices.astype(np.float32),
            x0=self.x0.astype(np.float32),
            clip_weight=self.clip_weight.astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class BatchSolver:
    """Some steps of B pictures, each with a solver of its own, in float32: an engine's inputs.

    Attributes:
        timesteps: int64 [T, B].
        matrices: [T, B, 1 + K, 2 + K]; K is the largest of the pictures'. A picture that keeps
            fewer history tensors has zero rows and columns for the others.
        x0: [T, B, 2].
        clip_weight: [T, B]; 0 where a picture's solver does not clamp.
        clip_sample_range: Clamp x_0 to plus or minus this where the weight is not 0; None: never.
    """

    timesteps: npt.NDArray[np.int64]
    matrices: npt.NDArray[np.float32]
    x0: npt.NDArray[np.float32]
    clip_weight: npt.NDArray[np.float32]
    clip_sample_range: float | None

    @cached_property
    def num_steps(self) -> int:
        """T."""
        return int(self.timesteps.shape[0])

    @cached_property
    def history_size(self) -> int:
        """K."""
        return int(self.matrices.shape[2]) - 1

    @classmethod
    def of(
        cls,
        solvers: Sequence[SolverTable],
        *,
        starts: Sequence[int] | None = None,
        num_steps: int | None = None,
    ) -> BatchSolver:
        """Steps of several pictures side by side.

        Args:
            solvers: One a picture.
            starts: The step that each picture is at; 0 by default.
            num_steps: T; by default the fewest steps that a picture has left.

        Raises:
            ParameterError: A picture has fewer steps left.
        """
        starts = [0] * len(solvers) if starts is None else starts
        left = min(s.num_steps - at for s, at in zip(solvers, starts, strict=True))
        steps = left if num_steps is None else num_steps
        if not 1 <= steps <= left:
            raise ParameterError(f"{steps} steps of a batch, expected 1..{left}: all that are left")
        history = max(solver.history_size for solver in solvers)
        matrices = np.zeros((steps, len(solvers), 1 + history, 2 + history), np.float32)
        for b, (solver, at) in enumerate(zip(solvers, starts, strict=True)):
            size = solver.history_size
            matrices[:, b, : 1 + size, : 2 + size] = solver.matrices[at : at + steps]

        def side_by_side(name: str, dtype: Any) -> npt.NDArray[Any]:
            rows = [
                getattr(solver, name)[at : at + steps]
                for solver, at in zip(solvers, starts, strict=True)
            ]
            return np.stack(rows, axis=1).astype(dtype)

        ranges = {s.clip_sample_range for s in solvers if s.clip_sample_range is not None}
        if len(ranges) > 1:
            raise ParameterError(f"pictures clamp to {sorted(ranges)}, expected one range a batch")
        return cls(
            timesteps=side_by_side("timesteps", np.int64),
            matrices=matrices,
            x0=side_by_side("x0", np.float32),
            clip_weight=side_by_side("clip_weight", np.float32),
            clip_sample_range=ranges.pop() if ranges else None,
        )


def solver_table(
    name: SolverName, schedule: NoiseSchedule, num_steps: int, *, first: int = 0
) -> SolverTable:
    """Coefficients of a run of `num_steps` steps, or of the last ones of it.

    Args:
        name: "ddim" (eta 0), "dpmpp_2m" (second order, midpoint, first order at the end) or "unipc"
            (second order, B2(h), with the corrector, first order at the end).
        schedule: The noise schedule that the model was trained with.
        num_steps: 1 to `schedule.num_train_timesteps`.
        first: The step that the run begins with, without any history.

    Raises:
        ParameterError: An unknown solver, a number of steps that is out of range or does not fit
            the timestep spacing, or DDIM on noise prediction from a timestep with no signal.
    """
    if name not in get_args(SolverName):
        raise ParameterError(
            f"solver is {name!r}; expected one of {', '.join(get_args(SolverName))}"
        )
    all_timesteps = schedule.timesteps(num_steps, name)
    timesteps = all_timesteps[first:]
    if name == "ddim":
        return _ddim(schedule, timesteps, schedule.num_train_timesteps // all_timesteps.size)
    levels = noise_levels(schedule, timesteps)
    x0 = x0_rows(schedule.prediction_type, levels.alpha[:-1], levels.sigma[:-1])
    return SolverTable(
        name=name,
        timesteps=timesteps,
        matrices=dpmpp_2m(levels, x0, is_short=all_timesteps.size < SHORT_RUN_STEPS)
        if name == "dpmpp_2m"
        else unipc(levels, x0),
        x0=x0,
        clip_sample_range=None,
        clip_weight=np.zeros(timesteps.size),
    )


def _combine(row: FloatArray, state: Sequence[ArrayT]) -> ArrayT:
    """Sum of `row[j] * state[j]`; a zero coefficient never touches its tensor."""
    terms: Iterable[Any] = (
        tensor * float(weight) for weight, tensor in zip(row, state, strict=True) if weight != 0
    )
    first = next(iter(terms), None)
    total: ArrayT = state[0] * 0.0 if first is None else first
    for term in terms:
        total = total + term
    return total


def x0_rows(
    prediction_type: PredictionType, alpha: Float64Array, sigma: Float64Array
) -> Float64Array:
    """x_0 as a combination of (sample, model output), [T, 2].

    Solved from x = alpha x_0 + sigma noise and v = alpha noise - sigma x_0 (arXiv 2202.00512).
    """
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if prediction_type == "epsilon":
        return np.stack([one / alpha, -sigma / alpha], axis=-1)
    if prediction_type == "v_prediction":
        return np.stack([alpha, -sigma], axis=-1)
    return np.stack([zero, one], axis=-1)


def _noise_rows(
    prediction_type: PredictionType, alpha: Float64Array, sigma: Float64Array
) -> Float64Array:
    """The noise as a combination of (sample, model output), [T, 2]; see `x0_rows`."""
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    if prediction_type == "epsilon":
        return np.stack([zero, one], axis=-1)
    if prediction_type == "v_prediction":
        return np.stack([sigma, alpha], axis=-1)
    return np.stack([one / sigma, -alpha / sigma], axis=-1)


def _ddim(schedule: NoiseSchedule, timesteps: npt.NDArray[np.int64], stride: int) -> SolverTable:
    """DDIM eq. 12 with sigma_t = 0: alpha_next x_0 + sigma_next noise, no history.

    As in diffusers, the next level is a fixed `stride` of N // T timesteps below, which with
    linspace spacing, or with trailing spacing when T does not divide N, is not quite the next
    timestep visited. The last step always goes to the end that `set_alpha_to_one` names; diffusers
    stops one training timestep short of it when rounding leaves N // T no greater than the last
    timestep.
    """
    bars = schedule.alphas_cumprod
    if bars[timesteps[0]] == 0 and schedule.prediction_type == "epsilon":
        raise ParameterError(
            f"ddim cannot start at timestep {timesteps[0]} of a schedule with zero terminal "
            "signal-to-noise ratio when the model predicts noise (epsilon): x_0 is undefined "
            "there; use leading timestep spacing or a v_prediction or sample model"
        )
    alpha, sigma = np.sqrt(bars[timesteps]), np.sqrt(1.0 - bars[timesteps])
    next_bars = bars[timesteps - stride]
    next_bars[-1] = 1.0 if schedule.set_alpha_to_one else bars[0]
    next_alpha, next_sigma = np.sqrt(next_bars), np.sqrt(1.0 - next_bars)

    x0 = x0_rows(schedule.prediction_type, alpha, sigma)
    noise = _noise_rows(schedule.prediction_type, alpha, sigma)
    next_sample = next_alpha[:, None] * x0 + next_sigma[:, None] * noise
    return SolverTable(
        name="ddim",
        timesteps=timesteps,
        matrices=next_sample[:, None, :],
        x0=x0,
        clip_sample_range=schedule.clip_sample_range,
        # The clamp moves x_0 in eq. 12 and leaves the noise as the model gave it.
        clip_weight=next_alpha if schedule.clip_sample_range is not None else 0.0 * next_alpha,
    )
