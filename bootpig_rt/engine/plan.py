"""Plan: what one picture will be, decided and checked when it is asked for, passed on as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from bootpig_rt import __version__
from bootpig_rt.backends.base import Backend, IntArray, PairSpec
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.solver import SolverName, SolverTable, solver_table
from bootpig_rt.engine.options import NO_LIMITS, Limits
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.reference_pass import TablePlan, plan_table
from bootpig_rt.reference.schedule import ReferenceSchedule, steps_of_share
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import PictureParameters, Request

# The largest picture, in multiples of the side that the pair was trained on: attention grows with
# the fourth power of the side, and pictures far from the trained size repeat themselves.
MAX_SIZE_FACTOR = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """One picture, ahead of its first step. The pair's defaults are filled in.

    Attributes:
        request: Of one picture.
        solver: Timesteps and coefficients of its T steps.
        schedule: How it reads its subject.
        merge: How several references are combined.
        image_guidance_scale: s_image, where guidance is on.
        text_guidance_scale: s_text, where guidance is on.
        width_px: Of the picture.
        height_px: Of the picture.
        latents_shape: (C, h, w).
        entries: int64 [T], the entry of the table that a step reads; -1 for none.
        is_guided: bool [T], whether a step has guidance.
        table: What the table of its subject is, before it is made; None without a subject.
    """

    request: Request
    solver: SolverTable
    schedule: ReferenceSchedule
    merge: Merge
    image_guidance_scale: float
    text_guidance_scale: float
    width_px: int
    height_px: int
    latents_shape: tuple[int, int, int]
    entries: IntArray
    is_guided: npt.NDArray[np.bool_]
    table: TablePlan | None


class Planner:
    """Makes plans for one backend. Safe to use from several threads.

    Args:
        backend: Draws the pictures.
        tables: How reference tables are made and kept.
    """

    def __init__(self, backend: Backend, tables: TableOptions) -> None:
        """Keep what plans are made from."""
        self._backend = backend
        self._tables = tables
        self._solvers: dict[tuple[str, int], SolverTable] = {}

    def plan(self, request: Request, limits: Limits = NO_LIMITS) -> Plan:
        """The plan of a request; those of its single pictures differ by their seeds alone.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: More than the pair, the backend, the budget for tables or the limits
                take; says what would do.
        """
        spec = self._backend.spec
        config = spec.config
        steps = request.num_inference_steps or min(
            config.default_steps, spec.max_steps or config.default_steps
        )
        width, height = self._size_px(request, spec)
        subject = request.subject
        spec.check_sizes(
            width_px=width,
            height_px=height,
            references=subject.num_references if subject else None,
            steps=steps,
        )
        _check_limits(limits, request, steps=steps, sides_px=(width, height))
        solver = self._solver(cast("SolverName", request.solver or config.default_solver), steps)
        schedule = self._schedule(request, spec)
        is_guided = _guided(request.guidance_interval, steps)
        entries, table = np.full(steps, -1, dtype=np.int64), None
        if subject is not None:
            entries = schedule.entry_of_step(steps)
            subject.check_for(spec)
            table = plan_table(
                subject,
                schedule,
                solver.timesteps,
                backend=self._backend,
                options=self._tables,
            )
            if limits.table_bytes is not None and table.size_bytes > limits.table_bytes:
                raise ParameterError(
                    f"the reference table takes {table.size_bytes} bytes, expected at most "
                    f"{limits.table_bytes}; ask for fewer steps or references, or the schedule "
                    "clean"
                )
        s_image, s_text = request.image_guidance_scale, request.text_guidance_scale
        factor = spec.vae_scale_factor
        return Plan(
            request=request,
            solver=solver,
            schedule=schedule,
            merge=cast("Merge", request.merge or config.merge),
            image_guidance_scale=config.image_guidance_scale if s_image is None else s_image,
            text_guidance_scale=config.text_guidance_scale if s_text is None else s_text,
            width_px=width,
            height_px=height,
            latents_shape=(spec.latent_channels, height // factor, width // factor),
            entries=entries,
            is_guided=is_guided,
            table=table,
        )

    def parameters(self, plan: Plan) -> PictureParameters:
        """All that a picture is made from."""
        backend, request, subject = self._backend, plan.request, plan.request.subject
        spec = backend.spec
        return PictureParameters(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            reference_prompt=subject.reference_prompt if subject else None,
            num_references=subject.num_references if subject else 0,
            subject_fingerprint=subject.fingerprint if subject else None,
            seed=request.seed or 0,
            num_inference_steps=plan.solver.num_steps,
            solver=plan.solver.name,
            image_guidance_scale=plan.image_guidance_scale,
            text_guidance_scale=plan.text_guidance_scale,
            merge=plan.merge,
            reference_schedule=str(plan.schedule),
            guidance_interval=request.guidance_interval,
            reference_noise_seed=subject.noise_seed if subject else None,
            table_dtype=plan.table.key.dtype if plan.table else None,
            width=plan.width_px,
            height=plan.height_px,
            model=spec.config.name,
            model_fingerprint=spec.fingerprint,
            backend=backend.name,
            runtime=spec.runtime,
            precision=spec.precision,
            device=backend.device,
            version=__version__,
        )

    def _size_px(self, request: Request, spec: PairSpec) -> tuple[int, int]:
        side, multiple = spec.config.sample_size_px, spec.size_multiple_px
        width, height = request.width or side, request.height or side
        for name, size in (("width", width), ("height", height)):
            if size % multiple or not multiple <= size <= MAX_SIZE_FACTOR * side:
                raise ParameterError(
                    f"{name} is {size}, expected a multiple of {multiple} up to "
                    f"{MAX_SIZE_FACTOR * side}; this pair was trained at {side}"
                )
        return width, height

    def _solver(self, name: SolverName, steps: int) -> SolverTable:
        """Made once: it takes a few milliseconds."""
        spec = self._backend.spec
        found = self._solvers.get((name, steps))
        if found is None:
            found = self._solvers[name, steps] = solver_table(name, spec.noise_schedule, steps)
        return found

    def _schedule(self, request: Request, spec: PairSpec) -> ReferenceSchedule:
        trained = ReferenceSchedule.default_for(spec.config.reference_timestep)
        if request.reference_schedule is None:
            return trained
        schedule = ReferenceSchedule.parse(str(request.reference_schedule), trained.mode)
        last = spec.noise_schedule.num_train_timesteps - 1
        if schedule.timestep > last:
            raise ParameterError(f"reference schedule is {schedule}, expected a timestep 0..{last}")
        return schedule


def _check_limits(
    limits: Limits, request: Request, *, steps: int, sides_px: tuple[int, int]
) -> None:
    subject = request.subject
    for name, asked, most in (
        ("num_inference_steps", steps, limits.num_inference_steps),
        ("width", sides_px[0], limits.side_px),
        ("height", sides_px[1], limits.side_px),
        ("num_images_per_prompt", request.num_images_per_prompt, limits.num_images),
        ("number of references", subject.num_references if subject else 0, limits.num_references),
    ):
        if most is not None and asked > most:
            raise ParameterError(f"{name} is {asked}, expected at most {most} here")


def _guided(interval: tuple[float, float], num_steps: int) -> npt.NDArray[np.bool_]:
    """Which steps have guidance, bool [T].

    Raises:
        ParameterError: None has, which nobody asks for in this way.
    """
    steps = steps_of_share(interval, num_steps)
    if not steps:
        raise ParameterError(
            f"guidance_interval is {interval}, but none of {num_steps} steps lies in it; widen it, "
            "or set both guidance scales to 1 to draw without guidance"
        )
    is_guided = np.zeros(num_steps, dtype=np.bool_)
    is_guided[steps.start : steps.stop] = True
    return is_guided
