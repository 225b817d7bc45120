"""Plan: what one picture will be, decided and checked when it is asked for, passed on as it is."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from bootpig_rt import __version__
from bootpig_rt.approximation import Approximation
from bootpig_rt.backends.base import Backend, BoolArray, Decoder, FloatArray, IntArray
from bootpig_rt.checks import wrap_seed
from bootpig_rt.diffusion.solver import SolverName, SolverTable, solver_table
from bootpig_rt.engine.canvas_plan import CanvasPlan, plan_canvas, strength_of
from bootpig_rt.engine.control_plan import ControlPlan, control_parameters, plan_controls
from bootpig_rt.engine.options import NO_LIMITS, Limits
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.reference_pass import TablePlan, plan_table
from bootpig_rt.reference.schedule import ReferenceSchedule, steps_of_share
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import PictureParameters, Request

logger = logging.getLogger(__name__)

# The largest picture, in multiples of the side that the pair was trained on: attention grows with
# the fourth power of the side, and pictures far from the trained size repeat themselves.
MAX_SIZE_FACTOR = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """One picture, ahead of its first step.

    Attributes:
        parameters: All that it is made from, with the pair's defaults filled in.
        solver: Timesteps and coefficients of its T steps.
        schedule: How it reads its subject.
        latents_shape: (C, h, w).
        entries: int64 [T], the entry of the table that a step reads; -1 for none.
        scales: float32 [T, 2], s_image and s_text of each step; 1 where it has no guidance.
        changes: bool [T], the picture has other rows than in the step before.
        deep_steps: bool [T], the step computes the deep blocks of the U-Net; None: all do.
        table: What the table of its subject is, before it is made; None without a subject.
        canvas: The given picture that it is drawn into; None for none.
        controls: Maps that it follows, by kind.
    """

    parameters: PictureParameters
    solver: SolverTable
    schedule: ReferenceSchedule
    latents_shape: tuple[int, int, int]
    entries: IntArray
    scales: FloatArray
    changes: BoolArray
    deep_steps: BoolArray | None
    table: TablePlan | None
    canvas: CanvasPlan | None
    controls: tuple[ControlPlan, ...] = ()

    def of_pictures(self, count: int) -> list[Plan]:
        """Plans of several pictures, which differ by their seeds alone."""
        first = self.parameters
        return [self] + [
            replace(self, parameters=replace(first, seed=wrap_seed(first.seed + number)))
            for number in range(1, count)
        ]


class Planner:
    """Makes plans for one backend. Safe to use from several threads.

    Args:
        backend: Draws the pictures.
        tables: How reference tables are made and kept.
        decoder: What will make pictures of latents.
    """

    def __init__(
        self, backend: Backend, tables: TableOptions, *, decoder: Decoder = "full"
    ) -> None:
        """Keep what plans are made from."""
        self._backend, self._tables, self._decoder = backend, tables, decoder
        self._solvers: dict[tuple[str, int, int], SolverTable] = {}
        self._trained = ReferenceSchedule.default_for(backend.spec.config.reference_timestep)
        self._told: set[ReferenceSchedule] = set()

    def plan(
        self, request: Request, limits: Limits = NO_LIMITS, *, is_asked_for: bool = True
    ) -> Plan:
        """The plan of a request's first picture.

        Args:
            request: What is drawn.
            limits: Of whoever draws it.
            is_asked_for: Somebody wants the picture, so an approximation is told of; otherwise only
                what it would take is asked.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: More than the pair, the backend, the budget for tables or the limits
                take; says what would do.
        """
        spec, subject = self._backend.spec, request.subject
        config = spec.config
        steps = request.num_inference_steps
        if steps is None:
            steps = min(config.default_steps, spec.max_steps or config.default_steps)
        width, height = self._size(request)
        self._check_sizes(request, limits, steps, width, height)
        sizes: tuple[int, ...] = ()
        if spec.tokenizer_2_folder is not None:
            sizes = request.sizes or spec.sizes_of(width, height)
        elif request.sizes is not None:
            raise ParameterError(
                "sizes is given, but this pair is told no sizes: that is for pairs of Stable "
                "Diffusion XL; leave it out"
            )
        given, first = request.canvas, 0
        strength: float | None = None
        canvas: CanvasPlan | None = None
        if given is not None:
            strength, first = strength_of(given, request.strength, steps)
        name = cast("SolverName", request.solver or config.default_solver)
        solver = self._solver(name, steps, first)
        if given is not None:
            edge_px = request.mask_edge_px
            canvas = plan_canvas(given, solver, strength, edge_px=edge_px, spec=spec)
        all_steps, steps = steps, solver.num_steps  # from here on those that really run

        schedule = self._schedule(request, is_told=is_asked_for)
        schedule_text = str(schedule)
        guided = steps_of_share(request.guidance_interval, steps)
        if not guided:
            raise ParameterError(
                f"guidance_interval is {request.guidance_interval}, but none of {steps} steps lies "
                "in it; widen it, or set both guidance scales to 1 to draw without guidance"
            )
        entries, table = np.full(steps, -1, dtype=np.int64), None
        if subject is not None:
            entries, timesteps = schedule.entry_of_step(steps), schedule.timesteps(solver.timesteps)
            subject.check_for(spec)
            table = plan_table(subject, schedule, timesteps, spec=spec, options=self._tables)
            most = limits.table_bytes
            if most is not None and table.size_bytes > most:
                raise ParameterError(
                    f"the reference table takes {table.size_bytes} bytes, expected at most {most}; "
                    "ask for fewer steps or references, or the schedule clean"
                )
        s_image, s_text = request.image_guidance_scale, request.text_guidance_scale
        s_image = config.image_guidance_scale if s_image is None else s_image
        s_text = config.text_guidance_scale if s_text is None else s_text
        scales = np.ones((steps, 2), dtype=np.float32)
        scales[guided.start : guided.stop] = s_image, s_text
        changes = np.ones(steps, dtype=np.bool_)
        changes[1:] = (np.diff(entries >= 0) != 0) | (np.diff(scales, axis=0) != 0).any(axis=1)
        controls: tuple[ControlPlan, ...] = ()
        if request.controls:
            controls = plan_controls(request, steps, (width, height), spec=spec)
            for control in controls:
                changes[1:] |= np.diff(control.acts)
        approximation, deep_steps = str(request.approximation), None
        if approximation != "none":
            deep_steps = self._deep_steps(approximation, changes)
        parameters = PictureParameters(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            reference_prompt=subject.reference_prompt if subject else None,
            num_references=subject.num_references if subject else 0,
            subject_fingerprint=subject.fingerprint if subject else None,
            seed=request.seed or 0,
            num_inference_steps=all_steps,
            solver=solver.name,
            image_guidance_scale=s_image,
            text_guidance_scale=s_text,
            merge=request.merge or config.merge,
            reference_schedule=schedule_text,
            guidance_interval=request.guidance_interval,
            approximation=approximation,
            decoder=self._decoder,
            reference_noise_seed=subject.noise_seed if subject else None,
            table_dtype=table.key.dtype if table else None,
            width=width,
            height=height,
            sizes=sizes,
            strength=strength,
            mask_edge_px=canvas.edge_px if canvas and canvas.canvas.mask is not None else None,
            canvas_fingerprint=canvas.canvas.fingerprint if canvas else None,
            controls=control_parameters(controls, spec) if controls else (),
            model=config.name,
            model_fingerprint=spec.fingerprint,
            backend=self._backend.name,
            runtime=spec.runtime,
            precision=spec.precision,
            device=self._backend.device,
            version=__version__,
        )
        factor = spec.vae_scale_factor
        shape = (spec.latent_channels, height // factor, width // factor)
        return Plan(
            parameters=parameters,
            solver=solver,
            schedule=schedule,
            latents_shape=shape,
            entries=entries,
            scales=scales,
            changes=changes,
            deep_steps=deep_steps,
            table=table,
            canvas=canvas,
            controls=controls,
        )

    def _size(self, request: Request) -> tuple[int, int]:
        """Width and height: those of what is given, or what is asked for, or the pair's own.

        Raises:
            ParameterError: A given picture or map of another size than what is asked for.
        """
        side = self._backend.spec.config.sample_size_px
        given = request.canvas or (request.controls[0] if request.controls else None)
        if given is None:
            return request.width or side, request.height or side
        width, height = given.size
        if (request.width or width, request.height or height) != (width, height):
            what = "image" if given is request.canvas else "control_image"
            raise ParameterError(
                f"{what} is {width}x{height} px, but {request.width or width}x"
                f"{request.height or height} px are asked for; resize the image, or leave out "
                "width and height"
            )
        return width, height

    def _deep_steps(self, name: str, changes: BoolArray) -> BoolArray:
        """The steps that compute the deep blocks, where the pair's graphs can leave them out.

        Raises:
            ParameterError: They cannot, or no step lies in the window.
        """
        if not self._backend.spec.keeps_features:
            raise ParameterError(
                f"approximation is {name}, but {self._backend.name} has no graphs here for steps "
                "without the deep blocks; build the bundle again with bootpig-rt build-engine, or "
                "leave it out"
            )
        return Approximation.parse(name).deep_steps(changes)

    def _check_sizes(
        self, request: Request, limits: Limits, steps: int, width: int, height: int
    ) -> None:
        """Refuse what the pair, the graphs that were built of it, or the limits do not take."""
        spec = self._backend.spec
        side, multiple = spec.config.sample_size_px, spec.size_multiple_px
        for name, size in (("width", width), ("height", height)):
            if size % multiple or not multiple <= size <= MAX_SIZE_FACTOR * side:
                raise ParameterError(
                    f"{name} is {size}, expected a multiple of {multiple} up to "
                    f"{MAX_SIZE_FACTOR * side}; this pair was trained at {side}"
                )
            low, high = spec.sides_px or (size, size)
            if not low <= size <= high:
                raise ParameterError(
                    f"{name} is {size}, expected {low}..{high}, which this bundle was built for; "
                    f"choose another, or build again with --resolution "
                    f"{min(low, size)}:{max(high, size)}"
                )
        references = request.subject.num_references if request.subject else 0
        for name, count, built_for, option in (
            ("number of references", references, spec.max_references, "--max-references"),
            ("number of steps", steps, spec.max_steps, "--steps"),
        ):
            if built_for is not None and count > built_for:
                raise ParameterError(
                    f"{name} is {count}, expected {'1' if built_for == 1 else f'1..{built_for}'}, "
                    f"which this bundle was built for; ask for fewer, or build again with {option} "
                    f"{count}"
                )
        for name, count, most in (
            ("num_inference_steps", steps, limits.num_inference_steps),
            ("width", width, limits.side_px),
            ("height", height, limits.side_px),
            ("num_images_per_prompt", request.num_images_per_prompt, limits.num_images),
            ("number of references", references, limits.num_references),
        ):
            if most is not None and count > most:
                raise ParameterError(f"{name} is {count}, expected at most {most} here")

    def _solver(self, name: SolverName, steps: int, first: int) -> SolverTable:
        """Made once: it takes a few milliseconds."""
        found = self._solvers.get((name, steps, first))
        if found is None:
            found = solver_table(name, self._backend.spec.noise_schedule, steps, first=first)
            self._solvers[name, steps, first] = found
        return found

    def _schedule(self, request: Request, *, is_told: bool) -> ReferenceSchedule:
        """The pair's own unless another is asked for; it is told of once if it is less exact."""
        if request.reference_schedule is None:
            return self._trained
        spec, given = self._backend.spec, str(request.reference_schedule)
        schedule = ReferenceSchedule.parse(given, self._trained.mode)
        last = spec.noise_schedule.num_train_timesteps - 1
        if schedule.timestep > last:
            raise ParameterError(f"reference schedule is {schedule}, expected a timestep 0..{last}")
        trained = spec.config.reference_timestep
        if is_told and schedule not in self._told and not schedule.is_exact_for(trained):
            self._told.add(schedule)
            logger.info(
                "reference schedule %s is an approximation: this pair was trained with reference "
                "timestep %s",
                schedule,
                trained,
            )
        return schedule
