"""From references to the arrays that the graph `reference_kv` reads, launch by launch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bootpig_rt.backends.base import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class PassLaunch:
    """Some of the E * R rows of a pass, entry by entry, reference by reference.

    Attributes:
        rows: Which ones.
        references: int64 [N], the reference of each row, whose text it reads.
        inputs: All that the graph reads but for the texts.
    """

    rows: slice
    references: IntArray
    inputs: dict[str, FloatArray | IntArray]


def pass_launches(
    latents: FloatArray, timesteps: IntArray, rows_per_launch: int
) -> list[PassLaunch]:
    """Cut a pass into launches; see `Backend.reference_kv`."""
    entries, references = latents.shape[:2]
    total = entries * references
    flat = np.ascontiguousarray(latents.reshape(total, *latents.shape[2:]), np.float32)
    of_rows = np.repeat(timesteps, references).astype(np.int64)
    launches = []
    for start in range(0, total, rows_per_launch):
        rows = slice(start, min(start + rows_per_launch, total))
        count = rows.stop - rows.start
        inputs: dict[str, FloatArray | IntArray] = {
            "latents": flat[rows],
            "noise": np.zeros_like(flat[rows]),  # the latents are noised already
            "alpha": np.ones(count, np.float32),
            "sigma": np.zeros(count, np.float32),
            "timesteps": of_rows[rows],
        }
        launches.append(PassLaunch(rows, np.arange(rows.start, rows.stop) % references, inputs))
    return launches
