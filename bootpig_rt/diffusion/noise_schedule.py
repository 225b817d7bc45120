"""The noise schedule: how much signal and noise a latent holds at each training timestep.

Knows the training schedule, which timesteps a run visits, and how to add noise. Knows nothing
about solvers' formulas (`solver.py`) or models. All tables are float64; numpy only.

Notation, as in the papers: alpha_bar_t is the cumulative product of 1 - beta, and a noised latent
is x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (DDPM eq. 4).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ConfigError, ParameterError, shown

SolverName: TypeAlias = Literal["ddim", "dpmpp_2m", "unipc"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing: TypeAlias = Literal["trailing", "leading", "linspace"]
FinalSigmasType: TypeAlias = Literal["zero", "sigma_min"]
BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Float64Array: TypeAlias = npt.NDArray[np.float64]

# Scheduler options that change the numbers and that no table here can express. Each is refused
# unless it is absent or falsy, which is what the common configs hold.
_UNSUPPORTED = (
    "trained_betas",
    "thresholding",
    "variance_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A variance-preserving noise schedule and how a run picks its timesteps.

    Attributes:
        alphas_cumprod: alpha_bar, float64 [num_train_timesteps], falling, in (0, 1); only the last
            may be 0 (zero terminal signal-to-noise ratio).
        prediction_type: What the model outputs: the noise, the velocity
            sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0, or x_0 itself ("sample").
        spacing: How the visited timesteps are spread (table 2 of arXiv 2305.08891). None takes what
            the solver's scheduler in diffusers does: leading for DDIM, linspace for the others.
        steps_offset: Added to each timestep of leading spacing.
        set_alpha_to_one: Where DDIM ends: at alpha_bar = 1 (clean), or at the schedule's first.
        final_sigmas_type: Where the multistep solvers end: "zero" is clean, "sigma_min" the
            schedule's first noise level.
        clip_sample_range: DDIM only: clamp each predicted x_0 to plus or minus this; None does not.
    """

    alphas_cumprod: Float64Array
    prediction_type: PredictionType = "epsilon"
    spacing: TimestepSpacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    final_sigmas_type: FinalSigmasType = "zero"
    clip_sample_range: float | None = None

    def __post_init__(self) -> None:
        """Refuse a schedule that no solver could run.

        Raises:
            ConfigError: A field is out of range or of the wrong kind.
        """
        bars = np.array(self.alphas_cumprod, dtype=np.float64)  # a copy: it is made read-only
        bars.flags.writeable = False
        object.__setattr__(self, "alphas_cumprod", bars)
        if bars.ndim != 1 or bars.size == 0:
            raise ConfigError(f"alphas_cumprod has shape {bars.shape}; expected [timesteps]")
        if not (bars[0] < 1 and bars[-1] >= 0 and np.all(np.diff(bars) < 0)):
            raise ConfigError(
                "alphas_cumprod must fall from below 1 to 0 or above; check beta_start, beta_end "
                "and beta_schedule"
            )
        _check_choice("prediction_type", self.prediction_type, PredictionType)
        if self.spacing is not None:
            _check_choice("timestep_spacing", self.spacing, TimestepSpacing)
        _check_choice("final_sigmas_type", self.final_sigmas_type, FinalSigmasType)
        if _as_int(self.steps_offset) is None or self.steps_offset < 0:
            raise ConfigError(
                f"steps_offset is {self.steps_offset!r}; expected a whole number from 0"
            )
        if self.clip_sample_range is not None and not self.clip_sample_range > 0:
            raise ConfigError(
                f"clip_sample_range is {self.clip_sample_range!r}; expected a number above 0"
            )

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps the model was trained on."""
        return int(self.alphas_cumprod.size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Build the schedule that a diffusers `scheduler_config.json` describes.

        Absent keys take diffusers' defaults, with one exception: `clip_sample` is off unless it is
        there and true. (DDIM there clips by default, which is right for pixels and wrong for
        latents.) Keys that belong to a scheduler's class and not to the schedule are ignored: so
        that of an Euler scheduler, whose steps are those of DDIM, ends at alpha_bar = 1.

        Args:
            config: The parsed json.

        Raises:
            ConfigError: A value is out of range, or an option such as `trained_betas` or
                `thresholding` is set that this package does not have.
        """
        for key in _UNSUPPORTED:
            value = config.get(key)
            if value is not None and value is not False:
                raise ConfigError(
                    f"scheduler option {key} is not supported, got {shown(value)}; remove it from "
                    "the scheduler config or set it to null"
                )
        num_timesteps = _as_int(config.get("num_train_timesteps", 1000))
        if num_timesteps is None or num_timesteps < 1:
            raise ConfigError(
                f"num_train_timesteps is {shown(config['num_train_timesteps'])}; expected a whole "
                "number from 1"
            )
        bars = _alphas_cumprod(
            config.get("beta_schedule", "linear"),
            num_timesteps,
            beta_start=_number(config, "beta_start", 0.0001),
            beta_end=_number(config, "beta_end", 0.02),
        )
        if _flag(config, "rescale_betas_zero_snr", False):
            bars = _rescale_zero_terminal_snr(bars)
        clips = _flag(config, "clip_sample", False)
        is_euler = str(config.get("_class_name")).startswith("Euler")
        return cls(
            alphas_cumprod=bars,
            prediction_type=config.get("prediction_type", "epsilon"),
            spacing=config.get("timestep_spacing"),
            steps_offset=config.get("steps_offset", 0),
            set_alpha_to_one=is_euler or _flag(config, "set_alpha_to_one", True),
            final_sigmas_type=config.get("final_sigmas_type", "zero"),
            clip_sample_range=_number(config, "clip_sample_range", 1.0) if clips else None,
        )

    def timesteps(self, num_steps: int, solver: SolverName = "ddim") -> npt.NDArray[np.int64]:
        """Timesteps of a run in the order visited (falling), as diffusers' schedulers pick them.

        The multistep solvers spread `num_steps + 1` points where DDIM spreads `num_steps`, and
        leave out the last; with trailing spacing all solvers agree.

        Args:
            num_steps: Steps of the run, 1 to `num_train_timesteps`.
            solver: The solver that will take the steps.

        Returns:
            int64 [num_steps], strictly falling, each in [0, num_train_timesteps).

        Raises:
            ParameterError: `num_steps` is no whole number in range, or the spacing would repeat a
                timestep or leave the range at that many steps.
        """
        _check_choice("solver", solver, SolverName, ParameterError)
        count = self._checked_num_steps(num_steps)
        total = self.num_train_timesteps
        is_ddim = solver == "ddim"
        spacing = self.spacing or ("leading" if is_ddim else "linspace")
        points = count if is_ddim else count + 1
        if spacing == "trailing":
            # arange may add a point by rounding, hence the cut.
            spread = np.arange(total, 0, -total / count)[:count].round() - 1
        elif spacing == "leading":
            rising = np.arange(points) * (total // points) + self.steps_offset
            spread = rising[::-1][:count]
        else:
            spread = np.linspace(0, total - 1, points).round()[::-1][:count]
        steps = spread.astype(np.int64)
        if steps[0] >= total or np.any(np.diff(steps) >= 0):
            raise ParameterError(
                f"{spacing} timestep spacing with steps_offset {self.steps_offset} cannot place "
                f"{count} different steps of {solver} on {total} timesteps; use fewer steps or "
                "trailing spacing"
            )
        return steps

    def add_noise(
        self,
        latents: npt.NDArray[np.float32],
        noise: npt.NDArray[np.float32],
        t: int | npt.NDArray[np.integer[Any]],
    ) -> npt.NDArray[np.float32]:
        """Noise latents to timestep t: sqrt(alpha_bar) latents + sqrt(1 - alpha_bar) noise.

        Args:
            latents: Clean latents, float [N, ...].
            noise: Standard normal noise of the same shape.
            t: One timestep for all rows, or an integer array [N].

        Returns:
            float32, the shape of `latents`.

        Raises:
            ParameterError: Shapes differ, or a timestep is no integer in range.
        """
        if latents.shape != noise.shape:
            raise ParameterError(
                f"noise has shape {noise.shape}; expected that of the latents, {latents.shape}"
            )
        steps = np.asarray(t)
        if steps.dtype.kind not in "iu":
            raise ParameterError(f"timesteps must be integers, got {steps.dtype}")
        if np.any(steps < 0) or np.any(steps >= self.num_train_timesteps):
            raise ParameterError(
                f"a timestep is outside 0 to {self.num_train_timesteps - 1}, got {shown(t)}"
            )
        if steps.ndim > 1 or (steps.ndim == 1 and latents.shape[:1] != steps.shape):
            raise ParameterError(
                f"timesteps have shape {steps.shape}; expected one for all rows or one for each "
                f"of the rows of latents {latents.shape}"
            )
        bars = self.alphas_cumprod[steps].reshape(steps.shape + (1,) * (latents.ndim - steps.ndim))
        signal = np.sqrt(bars).astype(np.float32)
        spread = np.sqrt(1.0 - bars).astype(np.float32)
        return np.asarray(signal * latents + spread * noise, dtype=np.float32)

    def _checked_num_steps(self, num_steps: int) -> int:
        """`num_steps` as an int in 1 .. num_train_timesteps, or ParameterError."""
        count = _as_int(num_steps)
        if count is None or not 1 <= count <= self.num_train_timesteps:
            raise ParameterError(
                f"the number of steps must be a whole number from 1 to {self.num_train_timesteps}, "
                f"got {shown(num_steps)}; 25 is a usual choice"
            )
        return count


def _alphas_cumprod(
    beta_schedule: object, num_timesteps: int, *, beta_start: float, beta_end: float
) -> Float64Array:
    """alpha_bar of one of the named beta schedules, float64 [num_timesteps]."""
    _check_choice("beta_schedule", beta_schedule, BetaSchedule)
    if beta_schedule == "squaredcos_cap_v2":
        # Improved DDPM eq. 17, beta capped at 0.999 so that alpha_bar never reaches 0.
        edges = np.arange(num_timesteps + 1) / num_timesteps
        curve = np.cos((edges + 0.008) / 1.008 * (np.pi / 2)) ** 2
        betas = np.minimum(1.0 - curve[1:] / curve[:-1], 0.999)
        return np.cumprod(1.0 - betas)
    if not 0 < beta_start <= beta_end < 1:
        raise ConfigError(
            f"beta_start {beta_start} and beta_end {beta_end} must satisfy "
            "0 < beta_start <= beta_end < 1"
        )
    if beta_schedule == "scaled_linear":  # linear in sqrt(beta): latent diffusion's schedule
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
    else:
        betas = np.linspace(beta_start, beta_end, num_timesteps)
    return np.cumprod(1.0 - betas)


def _rescale_zero_terminal_snr(alphas_cumprod: Float64Array) -> Float64Array:
    """Shift and scale sqrt(alpha_bar) so that the last is exactly 0 (arXiv 2305.08891, alg. 1)."""
    if alphas_cumprod.size < 2:
        raise ConfigError("rescale_betas_zero_snr needs at least 2 training timesteps, got 1")
    signal = np.sqrt(alphas_cumprod)
    first, last = signal[0], signal[-1]
    rescaled = ((signal - last) * (first / (first - last))) ** 2
    return cast(Float64Array, rescaled)


def _check_choice(
    name: str,
    value: object,
    choices: object,
    error: type[ConfigError] | type[ParameterError] = ConfigError,
) -> None:
    """Raise `error` unless `value` is one of the strings of a Literal."""
    allowed = get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} is {shown(value)}; expected one of {', '.join(allowed)}")


def _as_int(value: object) -> int | None:
    """`value` as an int if it is a whole number by type (no bool, no float), else None."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several integers has __index__ and refuses it
        return None


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"scheduler option {key} is {shown(value)}; expected a number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"scheduler option {key} is {shown(value)}; expected true or false")
    return value
