"""Planner: from requests to pictures on their way, with the tables that they read.

Fills in what a request leaves to its call and the call to the pair, refuses what the pair cannot
do, and looks tables up in the store. It computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bootpig_rt import __version__
from bootpig_rt.backends.base import Backend, PairSpec, PassProgress
from bootpig_rt.diffusion.solver import SolverName, SolverTable, solver_table
from bootpig_rt.engine.flight import Flight, FlightPlan
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.reference_pass import TableOptions, TablePlan, make_table, plan_table
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceKV, ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import PictureParameters, Request, SamplingParams
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

# The largest picture, in multiples of the side that the pair was trained on: attention grows with
# the fourth power of the side, and pictures far from the trained size repeat themselves.
_MAX_SIZE_FACTOR = 4

Tables: TypeAlias = dict[tuple[str, ReferenceKey], ReferenceKV]
"""Tables of one call by tenant and key."""


def params_for_pair(spec: PairSpec, **given: Any) -> SamplingParams:
    """Settings of a batch, with the pair's defaults for what is None.

    Args:
        spec: Of the pair.
        given: Fields of `SamplingParams`; the schedule as text.

    Raises:
        ParameterError: A value is unknown, out of range or not for this pair.
    """
    config = spec.config
    trained = ReferenceSchedule.default_for(config.reference_timestep)
    text = given.pop("reference_schedule")
    schedule = trained if text is None else ReferenceSchedule.parse(text, trained.mode)
    defaults = {
        "num_inference_steps": min(config.default_steps, spec.max_steps or config.default_steps),
        "solver": config.default_solver,
        "merge": config.merge,
        "width_px": config.sample_size_px,
        "height_px": config.sample_size_px,
    }
    values: dict[str, Any] = {
        name: default if given[name] is None else given[name] for name, default in defaults.items()
    }
    params = SamplingParams(reference_schedule=schedule, **values)
    check_params(spec, params)
    return params


def check_params(spec: PairSpec, params: SamplingParams) -> None:
    """Refuse what the pair, or the bundle that it was built into, cannot do.

    Raises:
        ParameterError: A size, the steps or a timestep.
    """
    multiple, side = spec.size_multiple_px, spec.config.sample_size_px
    for name, size in (("width", params.width_px), ("height", params.height_px)):
        if size % multiple or not multiple <= size <= _MAX_SIZE_FACTOR * side:
            raise ParameterError(
                f"{name} is {size}, expected a multiple of {multiple} up to "
                f"{_MAX_SIZE_FACTOR * side}; this pair was trained at {side}"
            )
    spec.check_sizes(
        width_px=params.width_px, height_px=params.height_px, steps=params.num_inference_steps
    )
    last = spec.noise_schedule.num_train_timesteps - 1
    if params.reference_schedule.timestep > last:
        raise ParameterError(
            f"reference schedule is {params.reference_schedule}, expected a timestep 0..{last}"
        )


class Planner:
    """Plans pictures for one backend and one store. Safe to use from several threads.

    Args:
        backend: Draws them.
        tokenizer: Of the pair.
        store: Holds tables.
        options: How tables are made and kept.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        tokenizer: Tokenizer,
        store: SubjectStore,
        options: TableOptions,
    ) -> None:
        """Keep what plans are made from."""
        self.backend, self.tokenizer = backend, tokenizer
        self.store, self.options = store, options
        self._solvers: dict[tuple[SolverName, int], SolverTable] = {}

    def flights(
        self,
        pictures: Sequence[Request],
        params: SamplingParams,
        tables: Tables | None = None,
        progress: PassProgress | None = None,
    ) -> tuple[list[Flight], int]:
        """Pictures ahead of their first step.

        Args:
            pictures: Requests of one picture each.
            params: What they share, and what they leave out.
            tables: Of this call: looked at first, and given those that were made.
            progress: Called with (rows done, rows in all) in each pass; what it raises ends it.

        Returns:
            One for each picture, and how many passes of the Reference U-Net their tables took.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: A value that the pair or the budget cannot do.
        """
        spec = self.backend.spec
        factor = spec.vae_scale_factor
        shape = (spec.latent_channels, params.height_px // factor, params.width_px // factor)
        flights, passes = [], 0
        for picture in pictures:
            solver, schedule = self.manner(picture, params)
            table = None
            if picture.subject is not None:
                table, new = self.table(
                    picture.subject, schedule, solver, picture.tenant, tables, progress
                )
                passes += new
            image_scale, text_scale = scales_of(picture, spec)
            plan = FlightPlan(
                request=picture,
                solver=solver,
                schedule=schedule,
                table=table,
                image_guidance_scale=image_scale,
                text_guidance_scale=text_scale,
                merge=params.merge,
                shape=shape,
            )
            flights.append(Flight(plan))
        return flights, passes

    def manner(
        self, picture: Request, params: SamplingParams
    ) -> tuple[SolverTable, ReferenceSchedule]:
        """The steps of a picture and how it reads its subject.

        Raises:
            ParameterError: More steps than the backend or the pair's noise schedule takes.
        """
        spec = self.backend.spec
        solver = self.solver(
            picture.solver or params.solver,
            picture.num_inference_steps or params.num_inference_steps,
        )
        if picture.reference_schedule is None:
            return solver, params.reference_schedule
        trained = ReferenceSchedule.default_for(spec.config.reference_timestep).mode
        return solver, ReferenceSchedule.parse(str(picture.reference_schedule), trained)

    def solver(self, name: SolverName, num_steps: int) -> SolverTable:
        """The table of a solver; made once, it takes a few milliseconds.

        Raises:
            ParameterError: More steps than the backend or the pair's noise schedule takes.
        """
        self.backend.spec.check_sizes(steps=num_steps)
        found = self._solvers.get((name, num_steps))
        if found is None:
            found = solver_table(name, self.backend.spec.noise_schedule, num_steps)
            self._solvers[name, num_steps] = found
        return found

    def table(
        self,
        subject: Subject,
        schedule: ReferenceSchedule,
        solver: SolverTable,
        tenant: str = "",
        tables: Tables | None = None,
        progress: PassProgress | None = None,
    ) -> tuple[ReferenceKV, int]:
        """A subject's table, from the store or from the Reference U-Net; see `SubjectStore.table`.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: Too many references, or too large for the budget.
            NumericalError: NaN or Inf in the table.
        """
        subject.check_for(self.backend.spec)
        plan = plan_table(
            subject, schedule, solver.timesteps, backend=self.backend, options=self.options
        )
        if tables is not None and (tenant, plan.key) in tables:
            return tables[tenant, plan.key], 0
        table, passes = self.store.table(
            subject,
            plan.key,
            lambda: make_table(
                subject,
                schedule,
                solver.timesteps,
                backend=self.backend,
                tokenizer=self.tokenizer,
                options=self.options,
                progress=progress,
            ),
            backend=self.backend,
            tenant=tenant,
            is_resident=plan.is_resident,
        )
        if tables is not None:
            tables[tenant, plan.key] = table
        return table, passes

    def needs(self, picture: Request, params: SamplingParams) -> TablePlan | None:
        """The table that a picture reads, before it is made; None without a subject.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: More steps or references than the backend takes, or too large for the
                budget; says what would fit.
        """
        solver, schedule = self.manner(picture, params)
        if picture.subject is None:
            return None
        picture.subject.check_for(self.backend.spec)
        return plan_table(
            picture.subject, schedule, solver.timesteps, backend=self.backend, options=self.options
        )

    def most_at_once(self, max_batch: int) -> int:
        """Pictures of a launch: what is asked for, and no more than the backend takes."""
        return min(max_batch, self.backend.spec.max_batch or max_batch)

    def batches(
        self, pictures: Sequence[Request], params: SamplingParams, max_batch: int
    ) -> list[range]:
        """Neighbouring pictures to draw at once: by number, and by memory for their tables.

        Raises:
            SubjectMismatch: A subject of another pair or size.
            ParameterError: One picture alone is too large for the backend or the budget.
        """
        batches: list[range] = []
        start, held = 0, list[TableUse]()
        most, budget = self.most_at_once(max_batch), self.options.budget_bytes
        for index, picture in enumerate(pictures):
            need = self.needs(picture, params)
            # Pictures of a batch begin together, so those of one table read the same entries.
            use = [] if need is None else [TableUse(picture.tenant, need)]
            is_over = budget is not None and bytes_held([*held, *use], self.backend.spec) > budget
            if index > start and (is_over or index - start == most):
                batches.append(range(start, index))
                start, held = index, []
            held += use
        return [*batches, range(start, len(pictures))]

    def parameters(self, flight: Flight, params: SamplingParams) -> PictureParameters:
        """All that a picture was made from."""
        plan, spec = flight.plan, self.backend.spec
        picture, subject = plan.request, plan.request.subject
        return PictureParameters(
            prompt=picture.prompt,
            negative_prompt=picture.negative_prompt,
            reference_prompt=subject.reference_prompt if subject else None,
            num_references=subject.num_references if subject else 0,
            subject_fingerprint=subject.fingerprint if subject else None,
            seed=picture.seed or 0,
            num_inference_steps=plan.solver.num_steps,
            solver=plan.solver.name,
            image_guidance_scale=plan.image_guidance_scale,
            text_guidance_scale=plan.text_guidance_scale,
            merge=plan.merge,
            reference_schedule=str(plan.schedule),
            guidance_interval=picture.guidance_interval,
            reference_noise_seed=subject.noise_seed if subject else None,
            table_dtype=plan.table.key.dtype if plan.table else None,
            width=params.width_px,
            height=params.height_px,
            model=spec.config.name,
            model_fingerprint=spec.fingerprint,
            backend=self.backend.name,
            device=self.backend.device,
            version=__version__,
        )


@dataclass(frozen=True)
class TableUse:
    """A picture that reads a table.

    Attributes:
        tenant: Whose the table is.
        plan: What the table is.
        launch: Equal for pictures of one launch.
        pace: Equal for pictures of one launch that are at the same step.
    """

    tenant: str
    plan: TablePlan
    launch: Hashable = None
    pace: Hashable = None


def bytes_held(uses: Sequence[TableUse], spec: PairSpec) -> int:
    """Device memory of tables: a resident one once, a streamed one once for each pace.

    Where the backend reads several tables from a copy, resident ones of one launch count once more.
    """
    held = {
        (use.tenant, use.plan.key, None if use.plan.is_resident else use.pace): use.plan
        for use in uses
    }
    total = sum(plan.device_bytes for plan in held.values())
    if not spec.joins_tables:
        return total
    launches: dict[Hashable, dict[Hashable, TablePlan]] = {}
    for use in uses:
        launch = launches.setdefault(use.launch, {})
        launch[use.tenant, use.plan.key] = use.plan
    for plans in launches.values():
        # Of a launch that streams a table, all are read entry by entry.
        if len(plans) > 1 and all(plan.is_resident for plan in plans.values()):
            total += sum(plan.device_bytes for plan in plans.values())
    return total


def scales_of(picture: Request, spec: PairSpec) -> tuple[float, float]:
    """s_image and s_text of a picture, from the pair where the request leaves them out."""
    image_scale, text_scale = picture.image_guidance_scale, picture.text_guidance_scale
    return (
        spec.config.image_guidance_scale if image_scale is None else image_scale,
        spec.config.text_guidance_scale if text_scale is None else text_scale,
    )
