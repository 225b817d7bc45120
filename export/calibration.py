"""Real launches of a pair's step graphs: ranges of 8 bit numbers and judgements come from them.

Pictures of some subjects are drawn in float32, each with its own prompt and noise; what the steps
were given is kept. The first calibrate, the last ones judge, so that no choice is judged by what
it was made from. All follows from the seed. Graphs are launched through one function, so this file
knows no runtime.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, PairSpec
from bootpig_rt.backends.step_inputs import OF_PAIRS, StepInputs, graph_name, step_inputs
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.engine.rows import PictureBranches, plan_guidance
from bootpig_rt.errors import ImageError, ParameterError
from bootpig_rt.images.image_input import load_image
from bootpig_rt.reference.encode import prepare
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]
Launch: TypeAlias = Callable[[str, Mapping[str, np.ndarray[Any, Any]]], Arrays]
"""(graph, inputs by name) -> outputs by name, in float32."""

_SUBJECTS = Path(__file__).parents[1] / "assets" / "subjects"

_SCENES = (
    "in the middle of a sandy beach", "in a snowy field at night", "in front of a brick wall",
    "on a wooden table", "in a green forest", "on a city street in the rain", "in a desert",
    "on a blue carpet", "under water", "on a lawn with flowers",
)  # fmt: skip

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

MIN_PICTURES, MAX_PICTURES = 2, 64
"""Of a folder with subjects to calibrate on; what is beyond the most is left out, by name."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What is drawn to calibrate.

    Attributes:
        folder: With pictures of subjects, whose names say what they show, `red_car.png`; None: the
            drawings inside the package.
        pictures: Drawn in all; subjects take turns.
        steps_kept: Launches of the step graph that are kept of each picture.
        judges: How many of the last pictures judge.
        seed: Of noise and of which steps are kept.
    """

    folder: Path | None = None
    pictures: int = 8
    steps_kept: int = 4
    judges: int = 2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """One picture and what the step graph was given for it.

    Attributes:
        graph: `denoise_step`, or that of a merge.
        inputs: All but `step` and `state`, which are the same in every step.
        states: float32 [T + 1, 1 + K, 1, C, h, w], ahead of each step and at the end.
        kept: Steps that calibrate or judge.
    """

    graph: str
    inputs: Arrays
    states: FloatArray
    kept: tuple[int, ...]

    def sample(self, step: int) -> Arrays:
        """Inputs of a step."""
        return {**self.inputs, "step": np.array([step], np.int64), "state": self.states[step]}

    def samples(self) -> Iterator[Arrays]:
        """Inputs of the steps that were kept."""
        return (self.sample(step) for step in self.kept)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Everything that was recorded.

    Attributes:
        drawn: Pictures; the last `judges` of each graph judge.
        judges: How many.
    """

    drawn: tuple[DrawnPicture, ...]
    judges: int

    def to_calibrate(self, graph: str) -> list[Arrays]:
        """What ranges are taken from."""
        return [sample for one in self._of(graph)[: -self.judges] for sample in one.samples()]

    def to_judge(self, graph: str) -> list[Arrays]:
        """What errors are measured on."""
        return [sample for one in self.judging(graph) for sample in one.samples()]

    def judging(self, graph: str) -> list[DrawnPicture]:
        """Whole pictures to judge by."""
        return self._of(graph)[-self.judges :]

    def _of(self, graph: str) -> list[DrawnPicture]:
        return [one for one in self.drawn if one.graph == graph]


@dataclass(frozen=True, eq=False)
class _Table:
    """Stands for a table in a `DenoiseBatch`: the layout asks how many entries it has."""

    entries: int


def record_calibration(
    launch: Launch,
    spec: PairSpec,
    options: CalibrationOptions,
    *,
    merges: Sequence[str] = (),
    steps: int | None = None,
    side_px: int | None = None,
    told: Callable[[float], object] | None = None,
) -> Calibration:
    """Draw pictures and keep what the graphs were given.

    Args:
        launch: Runs the pair's float32 graphs.
        spec: Of the pair.
        options: What is drawn.
        merges: Of the graphs for several references: half as many pictures are drawn by each, with
            a subject's picture and its mirror image as references.
        steps: T; the pair's default if left out.
        side_px: Of the pictures; the pair's own if left out.
        told: Share of the pictures drawn, 0..1; what it raises ends the work.

    Raises:
        ParameterError: The folder has too few pictures.
        ImageError: One of them cannot be used.
    """
    subjects = calibration_subjects(options.folder)
    plans: list[tuple[str, int]] = [(spec.config.merge, 1)] * options.pictures
    for merge in merges:
        plans += [(merge, 2)] * max(options.judges + 1, options.pictures // 2)
    drawer = _Drawer(launch, spec, options, steps or spec.config.default_steps, side_px)
    drawn = []
    for number, (merge, references) in enumerate(plans):
        path, prompt = subjects[number % len(subjects)]
        drawn.append(drawer.draw(number, path, prompt, merge, references))
        if told is not None:
            told((number + 1) / len(plans))
    return Calibration(tuple(drawn), options.judges)


def calibration_subjects(folder: Path | None) -> list[tuple[Path, str]]:
    """Pictures of subjects, sorted by name, with the reference prompt of each.

    Raises:
        ParameterError: No folder, or too few pictures in it.
    """
    where = _SUBJECTS if folder is None else folder
    if not where.is_dir():
        raise ParameterError(f"--calibration {where} is no folder; give one with pictures")
    paths = sorted(path for path in where.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(paths) < MIN_PICTURES:
        raise ParameterError(
            f"--calibration {where} has {len(paths)} pictures, expected at least {MIN_PICTURES}: "
            "PNG, JPEG or WebP files that each show a subject and are named for it, red_car.png"
        )
    return [(path, f"a photo of {_named(path.stem)}") for path in paths[:MAX_PICTURES]]


def _named(stem: str) -> str:
    """`red_car_2` -> "a red car"."""
    words = stem.replace("_", " ").replace("-", " ").rstrip("0123456789 ") or "thing"
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


class _Drawer:
    """Draws pictures one at a time, up to their latents."""

    def __init__(
        self,
        launch: Launch,
        spec: PairSpec,
        options: CalibrationOptions,
        steps: int,
        side_px: int | None,
    ) -> None:
        self._launch, self._spec, self._options = launch, spec, options
        config = spec.config
        self._solver = solver_table(config.default_solver, spec.noise_schedule, steps)
        self._schedule = ReferenceSchedule.default_for(config.reference_timestep)
        self._tokenizer = spec.tokenizer()
        self._side = (side_px or config.sample_size_px) // spec.vae_scale_factor

    def draw(
        self, number: int, path: Path, reference_prompt: str, merge: str, references: int
    ) -> DrawnPicture:
        rng = np.random.default_rng([self._options.seed, number])
        prompt = f"{reference_prompt}, {_SCENES[number % len(_SCENES)]}"
        states = self._launch(
            "text_encoder", {"ids": self._tokenizer([prompt, "", reference_prompt])}
        )
        batch = self._batch(rng, merge, references)
        table = self._table(path, states["prompt_embeds"][2:], references)
        laid_out = step_inputs(batch)
        inputs = self._inputs(laid_out, states["prompt_embeds"][:2], table)
        graph = graph_name(merge, laid_out.slots)
        state = inputs.pop("state")
        all_states = [state]
        for step in range(laid_out.num_steps):
            made = self._launch(graph, {**inputs, "step": np.array([step]), "state": state})
            state = made["next_state"]
            all_states.append(state)
        # One of each stretch of the run: noise, middle and end are all there.
        edges = np.linspace(0, laid_out.num_steps, self._options.steps_kept + 1).astype(int)
        kept = sorted({int(rng.integers(a, max(b, a + 1))) for a, b in itertools.pairwise(edges)})
        return DrawnPicture(graph, inputs, np.stack(all_states), tuple(kept))

    def _batch(self, rng: np.random.Generator, merge: str, references: int) -> DenoiseBatch:
        config, spec = self._spec.config, self._spec
        scales = config.image_guidance_scale, config.text_guidance_scale
        rows = plan_guidance([PictureBranches(0, 1, tuple(range(references)), *scales)])
        shape = (1, 1, spec.latent_channels, self._side, self._side)
        entries = len(self._schedule.timesteps(self._solver.timesteps))
        return DenoiseBatch(
            state=rng.standard_normal(shape, dtype=np.float32),
            prompt_embeds=None,
            text_of_row=rows.text_of_row,
            picture_of_row=rows.picture_of_row,
            ref_of_row=rows.ref_of_row,
            rows_of_picture=rows.rows_of_picture,
            image_guidance_scale=np.array(scales[:1], np.float32),
            text_guidance_scale=np.array(scales[1:], np.float32),
            tables=(_Table(entries),),
            num_references=(references,),
            entry_of_step=self._schedule.entry_of_step(len(self._solver.timesteps))[np.newaxis],
            solver=BatchSolver.of([self._solver]),
            merge=merge,  # type: ignore[arg-type]
        )

    def _table(self, path: Path, states: FloatArray, references: int) -> Arrays:
        """`k_0`, `v_0`, ... of a subject, [E * R, H, M, D]."""
        try:
            pixels = prepare(load_image(str(path)), self._spec, None, warn=_ignore)
        except ImageError as error:
            raise ImageError(f"calibration picture {path.name}: {error}") from error
        if references > 1:
            pixels = np.concatenate([pixels, pixels[..., ::-1]])
        latents = self._launch("vae_encoder", {"pixels": np.ascontiguousarray(pixels)})["latents"]
        timesteps = self._schedule.timesteps(self._solver.timesteps)
        noised = reference_latents(
            latents, self._schedule, timesteps, noise_seed=0,
            noise_schedule=self._spec.noise_schedule,
        )  # fmt: skip
        flat = np.ascontiguousarray(noised.reshape(-1, *noised.shape[2:]), np.float32)
        count = len(flat)
        inputs: Arrays = {
            "latents": flat,
            "noise": np.zeros_like(flat),
            "alpha": np.ones(count, np.float32),
            "sigma": np.zeros(count, np.float32),
            "timesteps": np.repeat(timesteps, references).astype(np.int64),
            "prompt_embeds": np.repeat(states, count, axis=0),
        }
        return self._launch("reference_kv", inputs)

    def _inputs(self, laid_out: StepInputs, states: FloatArray, table: Arrays) -> Arrays:
        text = self._launch(
            "text_kv", {"prompt_embeds": states, "text_of_row": laid_out.text_of_row}
        )
        arrays = {
            name: array
            for name, array in laid_out.arrays.items()
            if "added" not in text or name not in OF_PAIRS
        }
        return {**arrays, **text, **table}


def _ignore(_: str) -> None:
    """Remarks on single pictures are of no use here."""
