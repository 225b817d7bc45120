"""ReferenceKV: the keys and values that the Base U-Net reads of a subject, and when they are valid.

Attention is one-way: the reference never sees the picture that is drawn. The table therefore
depends on the subject, the timesteps and the subject's noise seed, never on prompt, seed or
latents, and one table serves all pictures of a subject. What a table holds is the backend's own;
this file knows what it was made from and how steps find their entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ParameterError
from bootpig_rt.solver import NoiseSchedule

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Keeps the draws of reference noise apart from those of picture noise with the same seed.
_REFERENCE_STREAM = 0x5EF


@dataclass(frozen=True)
class ReferenceSchedule:
    """Which noise level the Reference U-Net reads the subject at, step by step.

    - `exact`: each step has its own entry, the reference noised to that step's timestep, as the
      published pipeline computes it (paper, section 3.2).
    - `clean`: one entry for all steps, from latents without noise at t = 0. Exact for pairs trained
      with `reference_timestep` `clean` or `mixed`, an approximation for `same`.
    - `anchor`: one entry for all steps, the reference noised to `timestep`. An approximation.

    Attributes:
        mode: One of the above.
        timestep: Of `anchor` only, 1 or more.
    """

    mode: Literal["exact", "clean", "anchor"]
    timestep: int = 0

    @classmethod
    def parse(cls, text: object) -> ReferenceSchedule:
        """Read `exact`, `clean` or `anchor:T`; `anchor:0` is `clean`.

        Raises:
            ParameterError: Anything else.
        """
        name, colon, argument = text.partition(":") if isinstance(text, str) else ("", "", "")
        if name == "exact" and not colon:
            return cls("exact")
        if name == "clean" and not colon:
            return cls("clean")
        if name == "anchor" and argument.isascii() and argument.isdigit():
            timestep = int(argument)
            return cls("anchor", timestep) if timestep else cls("clean")
        raise ParameterError(
            f"reference schedule is {text!r}, expected exact, clean or anchor:T with a timestep T "
            "such as anchor:200"
        )

    @classmethod
    def default_for(cls, reference_timestep: str) -> ReferenceSchedule:
        """The schedule that is exact for a pair at the least cost.

        Args:
            reference_timestep: How the pair was trained: `same`, `clean` or `mixed`.
        """
        return cls("exact" if reference_timestep == "same" else "clean")

    def is_exact_for(self, reference_timestep: str) -> bool:
        """Whether a pair trained that way has seen references at these noise levels."""
        trained = {"same": ("exact",), "clean": ("clean",), "mixed": ("exact", "clean")}
        return self.mode in trained[reference_timestep]

    def timesteps(self, solver_timesteps: IntArray) -> IntArray:
        """Timesteps of the table's entries, int64 [E]; E is T for `exact` and 1 otherwise."""
        if self.mode == "exact":
            return solver_timesteps
        return np.array([self.timestep], dtype=np.int64)

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"anchor:{self.timestep}" if self.mode == "anchor" else self.mode


@dataclass(frozen=True)
class ReferenceKey:
    """What a table was computed from: two tables with equal keys are equal.

    Attributes:
        subject: Fingerprint of pixels, reference prompt, noise seed and latents.
        pair: Fingerprint of weights and configuration.
        schedule: `ReferenceSchedule` as text.
        timesteps: Timesteps of the entries.
        ref_scale: Factor on the reference keys.
    """

    subject: str
    pair: str
    schedule: str
    timesteps: tuple[int, ...]
    ref_scale: float


@dataclass(frozen=True)
class ReferenceKV:
    """The table of one subject, on the backend's device.

    Attributes:
        key: What it was computed from.
        data: The backend's own layout: E entries x L layers of keys and values [R, H, M, D].
        num_entries: E, 1 or the number of steps.
        num_references: R.
        size_bytes: Device memory that `data` holds.
    """

    key: ReferenceKey
    data: Any
    num_entries: int
    num_references: int
    size_bytes: int


def reference_latents(
    latents: FloatArray,
    schedule: ReferenceSchedule,
    timesteps: IntArray,
    *,
    noise_seed: int,
    noise_schedule: NoiseSchedule,
) -> FloatArray:
    """Latents that the Reference U-Net reads, one set an entry.

    Each reference and timestep has its own noise, drawn from the subject's seed: adding a reference
    or a step never changes the others.

    Args:
        latents: [R, C, h, w], clean, scaled by the VAE factor.
        schedule: Decides whether noise is added.
        timesteps: [E], from `schedule.timesteps`.
        noise_seed: The subject's own.
        noise_schedule: Of the pair.

    Returns:
        float32 [E, R, C, h, w].
    """
    if schedule.mode == "clean":
        return latents[np.newaxis]
    entries = []
    for t in timesteps.tolist():
        noise = [_reference_noise(noise_seed, r, t, latents.shape[1:]) for r in range(len(latents))]
        entries.append(noise_schedule.add_noise(latents, np.stack(noise), t))
    return np.stack(entries)


def _reference_noise(seed: int, reference: int, t: int, shape: tuple[int, ...]) -> FloatArray:
    rng = np.random.default_rng([_REFERENCE_STREAM, seed, reference, t])
    return rng.standard_normal(shape, dtype=np.float32)
