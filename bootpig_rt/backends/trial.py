"""How long a step takes, of several backends that hold one pair: what a choice is made by.

All take the same steps of one picture of the pair's own size, with one reference and noise in
place of a subject: times do not depend on what is drawn. They take turns, and the best of many
counts, so what else the machine does costs all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseBatch
from bootpig_rt.backends.host_table import HostTable, pack
from bootpig_rt.diffusion.solver import BatchSolver, solver_table

K = TypeVar("K")

ROUNDS = 7
"""Turns that each takes after one that warms it up."""

_ENOUGH_S = 5.0

_SEED = 0x7E57


def trial_batch(backend: Backend) -> DenoiseBatch:
    """A batch of one picture of the pair's size, with one reference and all three branches."""
    spec = backend.spec
    config = spec.config
    rng = np.random.default_rng(_SEED)
    steps = min(config.default_steps, spec.max_steps or config.default_steps)
    side = config.sample_size_px // spec.vae_scale_factor
    layers = tuple(
        (
            pack(rng.standard_normal((1, 1, *shape), dtype=np.float32), spec.table_dtype),
            pack(rng.standard_normal((1, 1, *shape), dtype=np.float32), spec.table_dtype),
        )
        for shape in spec.reference_shapes
    )
    table = backend.upload_table(HostTable(spec.table_dtype, layers), is_resident=True)
    tokens, width = spec.text_shape or (77, 768)
    return DenoiseBatch(
        state=rng.standard_normal((1, 1, spec.latent_channels, side, side), dtype=np.float32),
        prompt_embeds=rng.standard_normal((2, tokens, width), dtype=np.float32),
        text_of_row=np.array([1, 1, 0]),
        picture_of_row=np.zeros(3, np.int64),
        ref_of_row=np.array([[-1], [0], [0]]),
        rows_of_picture=np.array([[0], [1], [2]]),
        image_guidance_scale=np.array([config.image_guidance_scale], np.float32),
        text_guidance_scale=np.array([config.text_guidance_scale], np.float32),
        tables=(table,),
        num_references=(1,),
        entry_of_step=np.zeros((1, steps), np.int64),
        solver=BatchSolver.of([solver_table(config.default_solver, spec.noise_schedule, steps)]),
        merge=config.merge,
    )


def step_ms(backends: Mapping[K, Backend], rounds: int = ROUNDS) -> dict[K, float]:
    """The best time of one step of each backend, in milliseconds.

    Args:
        backends: Of one pair.
        rounds: Turns that each takes.
    """
    return best_ms({key: _step_of(backend) for key, backend in backends.items()}, rounds)


def best_ms(calls: Mapping[K, Callable[[], object]], rounds: int) -> dict[K, float]:
    """The best time of each call in milliseconds: one to warm up, then in turns.

    Of calls that take seconds each gets two turns alone.
    """
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    begin = time.perf_counter()
    for number in range(rounds):
        if number > 1 and time.perf_counter() - begin > _ENOUGH_S:
            break
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            best[key] = min(best[key], 1e3 * (time.perf_counter() - start))
    return best


def _step_of(backend: Backend) -> Callable[[], object]:
    run = backend.start(trial_batch(backend))

    def step() -> None:
        run.step(0)
        run.estimate()  # a step may return while it runs

    return step
