"""Compare a backend with tensors recorded from the published pipeline.

A golden folder holds the two U-Nets of one pair (`base_unet`, `ref_unet`) and files of recorded
tensors, of two kinds:

- a run: what the published pipeline computed at each denoising step, and what came out;
- a forward: one training-style call of both U-Nets.

Each quantity is compared by its relative error, max |got - recorded| / max |recorded|. Steps start
from the recorded latents, so that an error does not add up; `end to end` follows our own latents
from the first step to the last. Two things make the end depend on the order in which a CPU sums:

- Several references are merged by a choice: for each token, the reference whose change has the
  largest norm. Where two norms nearly tie, rounding decides, and the run goes another way. That is
  a *flip*, and no error of arithmetic. So `end to end` keeps the choices that were made from the
  recorded latents, whose outputs are those of the recording, and counts the tokens that would have
  chosen otherwise; each must be a near tie. Within a step the recording's choice is looked for
  among near ties where the output differs.
- The recorded pairs are random and guided hard, which magnifies rounding from step to step. So the
  run is taken once more with outputs changed by as much as rounding changes them; how far that
  moves the end is shown, and what it explains is no error.

This file knows the recordings and the limits. What computes the U-Nets is behind `GoldenPair`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bootpig_rt.diffusion.solver import solver_table
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export.golden_recording import (
    Recording,
    read_recording,
    schedule_of,
)
from bootpig_rt.export.golden_step import (
    STEP_LIMIT,
    TIE_LIMIT,
    Choices,
    FloatArray,
    GoldenPair,
    References,
    Step,
    flips,
    relative_error,
)

END_TO_END_LIMIT = 1e-3
"""Largest relative error of the latents after the last step, float32."""


ROUNDING = 4e-6
"""Relative error of a U-Net's output that another order of float32 sums makes; CPUs differ by 3e-6
to 8e-6."""

END_TO_END = "end to end"


# Backend -> module with `load(folder) -> GoldenPair`. Imported when asked for.
BACKENDS = {
    "torch": "bootpig_rt.export.golden_pair",
    "onnxruntime": "bootpig_rt.export.golden_onnx",
    "openvino": "bootpig_rt.export.golden_openvino",
}


@dataclass(frozen=True)
class GoldenReport:
    """How far one file's quantities are from the recording.

    Attributes:
        name: File name without its suffix.
        errors: Quantity -> largest relative error over steps; NaN where the output was not finite.
        flips: Tokens that choose another reference than the recording does.
        flip_distance: The largest distance of the two norms of a flip, relative; 0 without any.
        choices: Choices between references in all steps.
        rounding: How far `ROUNDING` of each output moves the end, relative.
    """

    name: str
    errors: Mapping[str, float]
    flips: int = 0
    flip_distance: float = 0.0
    choices: int = 0
    rounding: float = 0.0

    @property
    def step_error(self) -> float:
        """Largest relative error within one step; NaN if any is NaN."""
        values = [error for key, error in self.errors.items() if key != END_TO_END]
        return float(np.max(values))

    @property
    def end_to_end_error(self) -> float | None:
        """Relative error after the last step; None for a file of one forward."""
        return self.errors.get(END_TO_END)

    @property
    def passed(self) -> bool:
        """Both errors are finite and within their limits, and flips are near ties."""
        end = self.end_to_end_error
        return (
            self.step_error <= STEP_LIMIT
            and self.flip_distance <= TIE_LIMIT
            and (end is None or end <= max(END_TO_END_LIMIT, self.rounding))
        )


def verify_golden(folder: Path, *, backend: str = "torch") -> Iterator[GoldenReport]:
    """Compare every recorded file of a folder, one report at a time.

    Args:
        folder: Holds `base_unet`, `ref_unet` and the recordings (`*.safetensors`).
        backend: A key of `BACKENDS`.

    Yields:
        A report per file, by name.

    Raises:
        ParameterError: An unknown backend.
        CheckpointError: The folder is no golden folder, or a file in it is damaged.
    """
    if backend not in BACKENDS:
        raise ParameterError(f"backend is {backend!r}, expected one of: {', '.join(BACKENDS)}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder, expected one with golden tensors", folder)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no .safetensors file; check the path", folder)
    # Every file is read and checked before the first is computed.
    recordings = [read_recording(path) for path in paths]
    pair: GoldenPair = importlib.import_module(BACKENDS[backend]).load(folder)
    for recording in recordings:
        yield _compare(pair, recording)


def _compare(pair: GoldenPair, recording: Recording) -> GoldenReport:
    compare = _compare_run if recording.is_run else _compare_forward
    return compare(pair, recording)


def _compare_forward(pair: GoldenPair, recording: Recording) -> GoldenReport:
    data = recording.tensors
    rows = len(data["x"])
    references = References(
        latents=data["rx"],
        t=data["t"],
        prompt_embeds=data["re"],
        ref_of_row=np.arange(rows, dtype=np.int64)[:, None],
        ref_scale=recording.number("ref_scale"),
    )
    inputs = (data["x"], data["t"], data["e"])
    errors = {
        "pred": relative_error(pair.predict(*inputs, references).output, data["pred"]),
        "pred_without_reference": relative_error(
            pair.predict(*inputs).output, data["pred_without_reference"]
        ),
    }
    features = pair.features(data["rx"], data["t"], data["re"])
    if features is not None:
        recorded = [data[f"feat{i}"] for i in range(len(data)) if f"feat{i}" in data]
        if len(recorded) != len(features):
            raise CheckpointError(
                f"{recording.path} holds features of {len(recorded)} self-attentions, expected "
                f"{len(features)}; the U-Nets beside it are of another pair",
                recording.path,
            )
        errors["features"] = _largest(map(relative_error, features, recorded))
    return GoldenReport(recording.path.stem, errors)


def _compare_run(pair: GoldenPair, recording: Recording) -> GoldenReport:
    data = recording.tensors
    num_steps = len(data["t"])
    schedule, solver = schedule_of(recording)
    table = solver_table(solver, schedule, num_steps)
    if not np.array_equal(table.timesteps, data["t"]):
        raise CheckpointError(
            f"{recording.path}: timesteps are {data['t'].tolist()}, expected those of {solver} "
            f"with {num_steps} steps, {table.timesteps.tolist()}; copy the file again",
            recording.path,
        )
    steps = [Step(pair, recording, schedule, index) for index in range(num_steps)]
    following = [*data["latents_in"][1:], data["final_latents"]]
    found: dict[str, list[float]] = {"noise_pred": [], "guided": [], "solver": []}
    flipped: dict[tuple[int, ...], float] = {}
    kept: list[Choices] = []
    history = table.initial_history(following[0])
    for index, step in enumerate(steps):
        prediction, choices = step.as_recorded()
        kept.append(choices)
        flipped |= flips(index, prediction, choices)
        found["noise_pred"].append(step.error(prediction))
        guided = step.guided(prediction.output)
        found["guided"].append(relative_error(guided, data["guided"][index]))
        # The history is our own: a multistep solver cannot start in the middle.
        after, history = table.step(
            index, data["latents_in"][index], output=data["guided"][index], history=history
        )
        found["solver"].append(relative_error(after, following[index]))

    def follow(shake: float) -> FloatArray:
        """Our own latents from the first step to the last."""
        noise = np.random.default_rng(0)
        latents: FloatArray = data["latents_in"][0]
        history = table.initial_history(latents)
        for index, step in enumerate(steps):
            prediction = step.predict(latents, kept[index])
            output = prediction.output
            if shake:
                size = np.float32(shake) * np.abs(output).max()
                output = output + size * noise.uniform(-1, 1, output.shape).astype(np.float32)
            else:
                flipped.update(flips(index, prediction, kept[index]))
            guided = step.guided(output)
            latents, history = table.step(index, latents, output=guided, history=history)
        return latents

    ours = follow(0)
    errors = {name: _largest(values) for name, values in found.items()}
    errors[END_TO_END] = relative_error(ours, data["final_latents"])
    return GoldenReport(
        recording.path.stem,
        errors,
        flips=len(flipped),
        flip_distance=max(flipped.values(), default=0.0),
        choices=sum(choice.size for of_step in kept for choice in of_step),
        rounding=relative_error(follow(ROUNDING), ours),
    )


def _largest(errors: Iterable[float]) -> float:
    """The largest; NaN if any is NaN, which `max` would lose."""
    return float(np.max(list(errors)))
