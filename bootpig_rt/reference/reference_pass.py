"""From a subject to its reference table: one pass of the Reference U-Net, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bootpig_rt.backends.base import Backend, FloatArray, IntArray, PairSpec, PassProgress
from bootpig_rt.backends.host_table import HostArray, HostTable, table_bytes
from bootpig_rt.diffusion.solver import NoiseSchedule
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.text.tokenizer import Tokenizer

# Keeps the draws of reference noise apart from those of picture noise with the same seed.
_REFERENCE_STREAM = 0x5EF


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
    timesteps: IntArray,
    *,
    spec: PairSpec,
    options: TableOptions,
) -> TablePlan:
    """What a table will be, and whether it fits the device's budget.

    Its key is that of a table that the subject brings along, if it has the one that is needed.

    Args:
        subject: Whose table.
        schedule: At which noise levels the subject is read.
        timesteps: [E], from `schedule.timesteps`.
        spec: Of the pair.
        options: How tables are made and kept.

    Raises:
        ParameterError: Not even what one step holds fits the budget; says how many references
            would.
    """
    references = subject.num_references
    dtype = options.dtype or spec.table_dtype
    height, width = subject.latents.shape[-2:]
    key = ReferenceKey(
        subject=subject.fingerprint,
        pixels=subject.pixels_sha256,
        reference_prompt=subject.reference_prompt,
        noise_seed=subject.noise_seed,
        pair=subject.pair_fingerprint,
        is_noised=schedule.mode != "clean",
        timesteps=tuple(timesteps.tolist()),
        ref_scale=spec.config.ref_scale,
        precision=spec.precision,
        dtype=dtype,
        size=(height, width),
        num_references=references,
    )
    for brought in subject.tables:
        if replace(brought.key, origin="") == key:
            key = brought.key

    entry = partial(table_bytes, spec.reference_shapes, num_entries=1, num_references=references)
    kept, lying = entry(dtype=dtype), entry(dtype=spec.resident_dtype or dtype)
    entries, budget = len(timesteps), options.budget_bytes
    is_resident = budget is None or entries * lying <= budget
    held = lying * (entries if is_resident else min(2, entries))
    if budget is not None and held > budget:
        raise ParameterError(
            f"{references} references need {held} bytes of device memory a step, the budget for "
            f"tables is {budget}: {budget * references // held} would fit; encode the subject with "
            "fewer, keep tables in a smaller type or raise the budget"
        )
    return TablePlan(subject, schedule, key, entries * kept, is_resident, held)


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
    subject, key = plan.subject, plan.key
    timesteps = np.array(key.timesteps, dtype=np.int64)
    latents = reference_latents(
        subject.latents,
        plan.schedule,
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


def _reference_noise(seed: int, reference: int, t: int, shape: tuple[int, ...]) -> FloatArray:
    rng = np.random.default_rng([_REFERENCE_STREAM, seed, reference, t])
    return rng.standard_normal(shape, dtype=np.float32)
