"""From a subject to its reference table: one pass of the Reference U-Net, bounded in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bootpig_rt.backends.base import Backend, FloatArray, IntArray, PassProgress
from bootpig_rt.backends.host_table import (
    HostArray,
    HostTable,
    table_bytes,
)
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.reference_table import (
    ReferenceKey,
    ReferenceSchedule,
    ReferenceTable,
    reference_latents,
)
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TablePlan:
    """What a table will be, before it is made.

    Attributes:
        subject: Whose table.
        schedule: At which noise levels the subject is read.
        key: What it is computed from.
        size_bytes: As it is kept, `host_table.table_bytes`.
        is_resident: It lies on the device as a whole, once for all pictures that read it.
            Otherwise pictures at different steps each hold the entries that they read.
        device_bytes: The whole on the device, or the entry that a step of one picture reads and
            the next one. Unpacking an entry is the working memory of a step and not counted.
    """

    subject: Subject
    schedule: ReferenceSchedule
    key: ReferenceKey
    size_bytes: int
    is_resident: bool
    device_bytes: int


def plan_table(
    subject: Subject,
    schedule: ReferenceSchedule,
    solver_timesteps: IntArray,
    *,
    backend: Backend,
    options: TableOptions,
) -> TablePlan:
    """What a table will be, and whether it fits the device's budget.

    Raises:
        ParameterError: Not even what one step holds fits the budget; says how many references
            would.
    """
    spec = backend.spec
    dtype = options.dtype or spec.table_dtype
    key = subject.table_key(
        schedule,
        solver_timesteps,
        ref_scale=spec.config.ref_scale,
        precision=spec.precision,
        dtype=dtype,
    )
    entries, references, budget = len(key.timesteps), subject.num_references, options.budget_bytes

    shapes = spec.reference_shapes
    kept = lying = table_bytes(shapes, num_entries=1, num_references=references, dtype=dtype)
    if spec.resident_dtype is not None:
        lying = table_bytes(
            shapes, num_entries=1, num_references=references, dtype=spec.resident_dtype
        )
    if budget is None or entries * lying <= budget:
        return TablePlan(subject, schedule, key, entries * kept, True, entries * lying)
    held = min(2, entries) * lying
    if held > budget:
        raise ParameterError(
            f"{references} references need {held} bytes of device memory a step, the budget for "
            f"tables is {budget}: {budget * references // held} would fit; encode the subject with "
            "fewer, keep tables in a smaller type or raise the budget"
        )
    return TablePlan(subject, schedule, key, entries * kept, False, held)


def make_table(
    plan: TablePlan,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
    rows_per_launch: int = 16,
    progress: PassProgress | None = None,
) -> tuple[ReferenceTable, int]:
    """Run the Reference U-Net over all entries and references of a subject.

    A table that is over the device's budget is put together on the host, launch by launch: others
    may hold the budget meanwhile.

    Args:
        plan: Of `plan_table`, for the same backend.
        backend: Computes the table.
        tokenizer: Of the pair.
        rows_per_launch: (entry, reference) pairs that go through the Reference U-Net at once.
        progress: Called with (passes done, passes in all); what it raises ends the pass.

    Returns:
        The table, and how many (entry, reference) pairs the Reference U-Net was run on for it.

    Raises:
        NumericalError: NaN or Inf in the table.
    """
    subject, schedule, key = plan.subject, plan.schedule, plan.key
    trained = backend.spec.config.reference_timestep
    if not schedule.is_exact_for(trained):
        logger.info(
            "reference schedule %s is an approximation: this pair was trained with reference "
            "timestep %s",
            schedule,
            trained,
        )
    timesteps = np.array(key.timesteps, dtype=np.int64)
    latents = reference_latents(
        subject.latents,
        schedule,
        timesteps,
        noise_seed=subject.noise_seed,
        noise_schedule=backend.spec.noise_schedule,
    )
    count = subject.num_references
    if subject.prompt_states is not None:
        states = np.repeat(subject.prompt_states[None], count, axis=0)
    else:
        states = backend.encode_text(tokenizer([subject.reference_prompt] * count))

    def run(entries: slice, told: PassProgress | None) -> tuple[object, int, int]:
        made = backend.reference_kv(
            latents[entries],
            timesteps[entries],
            states,
            dtype=key.dtype,
            rows_per_launch=rows_per_launch,
            progress=told,
        )
        return made.data, made.size_bytes, made.num_passes

    total = len(timesteps) * count
    if plan.is_resident:
        data, size, passes = run(slice(None), progress)
        return ReferenceTable(key, data, size), passes
    at_once = max(1, rows_per_launch // count)
    pieces: list[HostTable] = []
    passes = 0
    for start in range(0, len(timesteps), at_once):
        told = None if progress is None else _counted(progress, start * count, total)
        data, _, done = run(slice(start, start + at_once), told)
        pieces.append(backend.download_table(data))
        passes += done
    data = backend.upload_table(_join(pieces), is_resident=False)
    return ReferenceTable(key, data, plan.size_bytes, is_resident=False), passes


def _counted(progress: PassProgress, before: int, total: int) -> Callable[[int, int], object]:
    return lambda done, _: progress(before + done, total)


def _join(pieces: list[HostTable]) -> HostTable:
    def join(parts: list[HostArray]) -> HostArray:
        scales: list[FloatArray] = [part.scale for part in parts if part.scale is not None]
        return HostArray(
            np.concatenate([part.values for part in parts]),
            np.concatenate(scales) if scales else None,
        )

    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return HostTable(
        pieces[0].dtype,
        tuple((join([k for k, _ in layer]), join([v for _, v in layer])) for layer in layers),
    )
