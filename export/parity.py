"""The parity gate: a pair in torch and in a new backend, on the same recorded inputs.

All inputs come from fixed seeds, so a gate that runs later on another machine asks the same. The
reference is recorded first and the torch pair can be freed before the new backend is loaded: two
pairs of Stable Diffusion's size would not fit side by side. Knows backends by their protocol alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from bootpig_rt.backends.base import (
    Backend,
    BatchCanvas,
    BatchControl,
    DenoiseBatch,
    FloatArray,
)
from bootpig_rt.bundle.manifest import ParityResult, Profile, finite_or_none
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.diffusion.solver import BatchSolver, SolverTable, solver_table
from bootpig_rt.engine.rows import PictureBranches, plan_guidance
from bootpig_rt.export.parity_limits import Limits
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule

Array: TypeAlias = npt.NDArray[Any]

Recording: TypeAlias = dict[str, tuple[Array, ...]]
"""Name of a graph, or of a part of a run -> everything that it put out."""

Progress: TypeAlias = Callable[[str, float], None]
"""(what is being done, share done 0..1) -> None."""

LATENTS = ".latents"
"""How the names of latents after all steps end."""

PICTURE = ".picture"
"""How the names of decoded pictures end."""

_NUM_GRAPHS = 4

_LARGE_PX = 128

REDUCED_PX = 256
"""Side that pairs of large pictures are run at, where it may be chosen."""

_SEED = 0x9A7E
_PEAK = 2.0  # pixels lie in [-1, 1]

_PROMPT = "a photo of a dog, in the middle of a sandy beach"
_REFERENCE_PROMPT = "a photo of a dog"
_PLAIN_PROMPT = "a city street at night"


@dataclass(frozen=True)
class Case:
    """One run from noise to a picture.

    Attributes:
        name: In the report.
        references: Of the subject.
        merge: How they are combined.
        solver: Of the steps.
        steps: T.
        schedule: Of the reference.
        with_plain_picture: A second picture of the batch has no subject.
        is_decoded: The latents are made into pictures.
        keeps_features: Every second step leaves out the deep blocks of the U-Net.
        has_mask: The last picture is drawn into a part of another.
        has_maps: The first picture follows a map of each kind that the pair has controls for, and
            the last picture one of the first kind.
    """

    name: str
    references: int
    merge: Merge
    solver: SolverName
    steps: int
    schedule: ReferenceSchedule
    with_plain_picture: bool = False
    is_decoded: bool = True
    keeps_features: bool = False
    has_mask: bool = False
    has_maps: bool = False


@dataclass(frozen=True)
class Plan:
    """What a gate runs.

    Attributes:
        side_px: Of all pictures.
        cases: Runs from noise to pictures.
    """

    side_px: int
    cases: tuple[Case, ...]


def make_plan(
    backend: Backend,
    *,
    profile: Profile,
    merges: tuple[Merge, ...],
    steps: int | None = None,
    keeps_features: bool = False,
    takes_masks: bool = False,
    takes_controls: bool = False,
) -> Plan:
    """The runs for a pair: all of what a bundle offers once, the default with all its steps.

    A step of Stable Diffusion takes torch on a CPU half a minute at 512 px. So pairs of large
    pictures are run at 256 px where the profile allows it, for two steps, and one picture is
    decoded. `steps` are those of the longest run. Of the backend only its `spec` is read.
    """
    spec = backend.spec
    config = spec.config
    low, usual, _ = profile.resolution_px
    is_large = usual > _LARGE_PX
    side = usual
    if is_large:
        reduced = min(usual, REDUCED_PX) // spec.size_multiple_px * spec.size_multiple_px
        side = max(low, reduced)
    if steps is None:
        steps = 2 if is_large else config.default_steps
    steps = min(steps, profile.max_steps)
    few = 1 if is_large else min(2, steps)
    default = ReferenceSchedule.default_for(config.reference_timestep)
    has_room = profile.max_batch > 1
    cases = [
        Case("one_reference", 1, config.merge, config.default_solver, steps, default, has_room)
    ]
    if not is_large:
        exact, clean = ReferenceSchedule("exact"), ReferenceSchedule("clean")
        other = clean if default.mode == "exact" else exact
        cases.append(Case(f"{other.mode}_unipc", 1, config.merge, "unipc", few, other))
    if profile.max_references > 1:
        cases += [
            Case(
                name=f"two_references_{merge}",
                references=2,
                merge=merge,
                solver=config.default_solver,
                steps=few,
                schedule=default,
                is_decoded=not is_large,
            )
            for merge in merges
        ]
    if takes_masks:
        masked = dataclasses.replace(cases[0], name="masked", steps=few, has_mask=True)
        cases.append(dataclasses.replace(masked, is_decoded=False))
    if takes_controls and spec.controls:
        followed = [
            dataclasses.replace(
                case, name=f"controlled_{case.name}", steps=few, has_maps=True, is_decoded=False
            )
            for case in cases
            if case.solver == config.default_solver and not case.has_mask
        ]
        cases += followed
    if keeps_features:
        cases += [
            dataclasses.replace(
                case,
                name=f"kept_features_{case.name}",
                steps=max(2, few) if profile.max_steps > 1 else 1,
                is_decoded=False,
                keeps_features=True,
            )
            for case in cases
            if case.solver == config.default_solver and not (case.has_mask or case.has_maps)
        ]
    return Plan(side, tuple(cases))


def at_reduced_size(profile: Profile) -> Profile:
    """A profile whose large pictures may be run at `REDUCED_PX`, for graphs that take any size."""
    low, usual, high = profile.resolution_px
    return replace(profile, resolution_px=(min(low, REDUCED_PX), usual, high))


def record(backend: Backend, plan: Plan, progress: Progress | None = None) -> Recording:
    """Run everything on one backend."""
    recorder = _Recorder(_NUM_GRAPHS + sum(case.steps + 1 for case in plan.cases), progress)
    _run_graphs(backend, plan, recorder)
    for case in plan.cases:
        _run_case(backend, plan, case, recorder)
    return recorder.recording


def compare(reference: Recording, new: Recording, limits: Limits) -> tuple[ParityResult, ...]:
    """Compare two recordings of one plan, of torch and new, worst output first within each part."""
    return tuple(
        _compare(name, arrays, new.get(name, ()), limits) for name, arrays in reference.items()
    )


def _compare(
    name: str, wanted: tuple[Array, ...], got: tuple[Array, ...], limits: Limits
) -> ParityResult:
    """Errors of the worst array; one that is missing or of another size is NaN."""
    relative = largest = 0.0
    for index, array in enumerate(wanted):
        want = array.astype(np.float64).ravel()
        other = got[index].astype(np.float64).ravel() if index < len(got) else want[:0]
        difference = np.abs((other if other.size == want.size else np.nan) - want)
        norm = float(np.linalg.norm(want)) or 1.0
        relative = _worse(relative, float(np.linalg.norm(difference)) / norm)
        largest = _worse(largest, float(difference.max()))
    is_picture, is_run = name.endswith(PICTURE), name.endswith((PICTURE, LATENTS))
    psnr = _psnr(wanted, got) if is_picture else float("inf")
    return ParityResult(
        name=name,
        relative_error=finite_or_none(relative),
        largest_error=finite_or_none(largest),
        psnr_db=finite_or_none(psnr),
        relative_limit=limits.end_to_end if is_run else limits.graph,
        psnr_limit_db=limits.psnr_db if is_picture else None,
    )


def _psnr(wanted: tuple[Array, ...], got: tuple[Array, ...]) -> float:
    """Of the pictures together; infinite for equal ones, and where `got` cannot be compared."""
    if [array.shape for array in wanted] != [array.shape for array in got]:
        return float("inf")
    pairs = zip(wanted, got, strict=True)
    error = float(np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs]))
    return float(10 * np.log10(_PEAK**2 / error)) if error > 0 else float("inf")


def _worse(old: float, new: float) -> float:
    """The larger; NaN, which `max` would lose, is the worst."""
    return float(np.maximum(old, new))


class _Recorder:
    """Collects outputs and counts launches."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.recording: Recording = {}
        self._total, self._done, self._progress = total, 0, progress

    def put(self, name: str, *arrays: Array) -> None:
        self.recording[name] = arrays

    def advance(self, name: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(name, self._done / self._total)


def _run_graphs(backend: Backend, plan: Plan, recorder: _Recorder) -> None:
    """One launch of each graph but the step."""
    spec = backend.spec
    rng = np.random.default_rng(_SEED)
    tokenizer = spec.tokenizer()
    references = max(case.references for case in plan.cases)
    side = plan.side_px // spec.vae_scale_factor
    shape = (spec.latent_channels, side, side)

    states = backend.encode_text(tokenizer([_PROMPT, ""]))
    recorder.put("text_encoder", backend.download_states(states))
    recorder.advance("text_encoder")
    recorder.put("vae_encoder", backend.encode_image(_pictures(references, plan.side_px)))
    recorder.advance("vae_encoder")
    middle = spec.noise_schedule.num_train_timesteps // 2
    made = backend.reference_kv(
        rng.standard_normal((2, references, *shape), dtype=np.float32),
        np.array([0, middle], dtype=np.int64),
        backend.encode_text(tokenizer([_REFERENCE_PROMPT] * references)),
    )
    table = backend.download_table(made.data)
    recorder.put("reference_kv", *(part.values for layer in table.layers for part in layer))
    recorder.advance("reference_kv")
    latents = rng.standard_normal((1, *shape), dtype=np.float32)
    recorder.put("vae_decoder", backend.decode(latents))
    recorder.advance("vae_decoder")
    if "tiny" in spec.decoders:
        recorder.put("tiny_decoder", backend.decode(latents, decoder="tiny"))


def _run_case(backend: Backend, plan: Plan, case: Case, recorder: _Recorder) -> None:
    """From noise to pictures: what the first step puts out, the last latents, the pictures."""
    spec = backend.spec
    tokenizer = spec.tokenizer()
    solver = solver_table(case.solver, spec.noise_schedule, case.steps)
    timesteps = case.schedule.timesteps(solver.timesteps)
    latents = reference_latents(
        backend.encode_image(_pictures(case.references, plan.side_px)),
        case.schedule,
        timesteps,
        noise_seed=0,
        noise_schedule=spec.noise_schedule,
    )
    embeds = backend.encode_text(tokenizer([_REFERENCE_PROMPT] * case.references))
    table = backend.reference_kv(latents, timesteps, embeds)
    prompts = [_PROMPT, "", _PLAIN_PROMPT]
    batch = _batch(backend, plan, case, solver, table.data, backend.encode_text(tokenizer(prompts)))
    run = backend.start(batch)
    for index in range(case.steps):
        run.step(index)
        if index == 0:
            recorder.put(f"{case.name}.first_step", run.state()[0], run.estimate())
        recorder.advance(case.name)
    recorder.put(f"{case.name}{LATENTS}", run.state()[0])
    if case.is_decoded:
        recorder.put(f"{case.name}{PICTURE}", backend.decode(run.state()[0]))
    recorder.advance(case.name)


def _batch(
    backend: Backend, plan: Plan, case: Case, solver: SolverTable, table: Any, embeds: Any
) -> DenoiseBatch:
    """One picture of the subject, and where the case says so one that is drawn from its prompt."""
    spec = backend.spec
    scales = spec.config.image_guidance_scale, spec.config.text_guidance_scale
    references = tuple(range(case.references))
    branches = [PictureBranches(0, 1, references, *scales)]
    if case.with_plain_picture:
        branches.append(PictureBranches(2, 1, (), *scales))
    rows = plan_guidance(branches)
    side = plan.side_px // spec.vae_scale_factor
    shape = (len(branches), spec.latent_channels, side, side)
    return DenoiseBatch(
        state=np.random.default_rng(_SEED + 2).standard_normal((1, *shape), dtype=np.float32),
        prompt_embeds=embeds,
        text_of_row=rows.text_of_row,
        picture_of_row=rows.picture_of_row,
        ref_of_row=rows.ref_of_row,
        rows_of_picture=rows.rows_of_picture,
        image_guidance_scale=np.full(len(branches), scales[0], dtype=np.float32),
        text_guidance_scale=np.full(len(branches), scales[1], dtype=np.float32),
        tables=(table,),
        num_references=(case.references,),
        entry_of_step=case.schedule.entry_of_step(case.steps)[np.newaxis],
        solver=BatchSolver.of([solver] * len(branches)),
        merge=case.merge,
        deep_steps=np.arange(case.steps) % 2 == 0 if case.keeps_features else None,
        canvas=_canvas(case, shape) if case.has_mask else None,
        controls=_controls(backend, plan, len(branches)) if case.has_maps else (),
    )


def _controls(backend: Backend, plan: Plan, count: int) -> tuple[BatchControl, ...]:
    """Coloured blocks as maps: what is compared is arithmetic."""
    kinds = [control.kind for control in backend.spec.controls]
    maps = tuple((_pictures(len(kinds) + 1, plan.side_px) + 1.0) / 2.0)
    made = []
    for number, kind in enumerate(kinds):
        map_of_picture = np.full(count, -1, np.int64)
        map_of_picture[0] = 0
        own: tuple[FloatArray, ...] = (maps[number],)
        if number == 0 and count > 1:
            map_of_picture[-1], own = 1, (maps[0], maps[-1])
        scale = np.linspace(1.0, 0.5, count, dtype=np.float32)
        made.append(BatchControl(kind, own, map_of_picture, scale))
    return tuple(made)


def _canvas(case: Case, shape: tuple[int, int, int, int]) -> BatchCanvas:
    """For the last picture: a quarter of its latents is drawn, at any noise level that serves."""
    rng = np.random.default_rng(_SEED + 3)
    mask = np.ones((shape[0], 1, *shape[2:]), np.float32)
    mask[-1] = 0.0
    mask[-1, :, : shape[2] // 2, : shape[3] // 2] = 1.0
    weights = np.zeros((case.steps, shape[0], 2), np.float32)
    weights[:, -1] = 0.8, 0.6
    return BatchCanvas(rng.standard_normal((3, *shape), dtype=np.float32), weights, mask)


def _pictures(count: int, side: int) -> FloatArray:
    """Coloured blocks of two sizes on white, float32 [N, 3, side, side] in [-1, 1]."""
    rng = np.random.default_rng(_SEED + 1)
    pictures = np.ones((count, 3, side, side), dtype=np.float32)
    for blocks, share in ((4, 0.5), (8, 0.25)):
        size = -(-side // blocks)
        colours = rng.uniform(-1, 1, (count, 3, blocks, blocks)).astype(np.float32)
        grown = np.repeat(np.repeat(colours, size, axis=2), size, axis=3)[..., :side, :side]
        margin = int(side * share / 2)
        inside = slice(margin, side - margin)
        pictures[..., inside, inside] = grown[..., inside, inside]
    return pictures
