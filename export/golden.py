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
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bootpig_rt.diffusion.noise_schedule import NoiseSchedule, SolverName
from bootpig_rt.diffusion.solver import solver_table
from bootpig_rt.errors import CheckpointError, ConfigError, ParameterError, describe_os_error

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

STEP_LIMIT = 1e-4
"""Largest relative error of any quantity within one step, float32."""

END_TO_END_LIMIT = 1e-3
"""Largest relative error of the latents after the last step, float32."""

TIE_LIMIT = 1e-2
"""Largest distance of the two norms of a flip, relative to the larger."""

ROUNDING = 4e-6
"""Relative error of a U-Net's output that another order of float32 sums makes; CPUs differ by 3e-6
to 8e-6."""

END_TO_END = "end to end"

_MOST_TRIES = 16
"""Near ties of one step whose other choice is tried."""

# Backend -> module with `load(folder) -> GoldenPair`. Imported when asked for.
BACKENDS = {
    "torch": "bootpig_rt.export.golden_pair",
    "onnxruntime": "bootpig_rt.export.golden_onnx",
    "openvino": "bootpig_rt.export.golden_openvino",
}

_SOLVER_OF_SCHEDULER: dict[str, SolverName] = {
    "DDIMScheduler": "ddim",
    "UniPCMultistepScheduler": "unipc",
}

# Tensors of each kind of file; letters are sizes that must agree within the file.
_RUN_SHAPES = {
    "t": "T",
    "ref_latents": "RChw",
    "ref_noise": "TRChw",
    "ref_prompt_embeds": "RSE",
    "prompt_embeds": "3SE",
    "latents_in": "T1Chw",
    "noise_pred": "T3Chw",
    "guided": "T1Chw",
    "final_latents": "1Chw",
}
_FORWARD_SHAPES = {
    "x": "BChw",
    "rx": "BChw",
    "t": "B",
    "e": "BSE",
    "re": "BSE",
    "pred": "BChw",
    "pred_without_reference": "BChw",
}


@dataclass(frozen=True, eq=False)
class References:
    """What the rows of one call read.

    Attributes:
        latents: float32 [N, C, h, w], already noised.
        t: int64 [N].
        prompt_embeds: float32 [N, S, E].
        ref_of_row: int64 [B, R], indices into N, -1 for none.
        ref_scale: Multiplies the features for keys only.
    """

    latents: FloatArray
    t: IntArray
    prompt_embeds: FloatArray
    ref_of_row: IntArray
    ref_scale: float


Norms = tuple[FloatArray, ...]
"""Of each merge, in order: how much each reference changes, float32 [rows, R, tokens]."""

Choices = tuple[IntArray, ...]
"""Of each merge: the reference that each token takes, int64 [rows, tokens]."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Output of the Base U-Net.

    Attributes:
        output: float32 [B, C, h, w].
        norms: Of the merges; none where no row reads several references.
    """

    output: FloatArray
    norms: Norms = ()

    @property
    def choices(self) -> Choices:
        """What its own norms choose: the largest, the first of equal ones."""
        return tuple(norms.argmax(axis=1) for norms in self.norms)


class GoldenPair(Protocol):
    """The two U-Nets of a golden folder in some backend; several references merge by `argmax`."""

    def features(
        self, latents: FloatArray, t: IntArray, prompt_embeds: FloatArray
    ) -> tuple[FloatArray, ...] | None:
        """Features of the Reference U-Net ahead of each self-attention, L arrays [N, M_l, C_l].

        None where a backend's graphs do not show them.
        """

    def predict(
        self,
        latents: FloatArray,
        t: IntArray,
        prompt_embeds: FloatArray,
        references: References | None = None,
        choices: Choices | None = None,
    ) -> Prediction:
        """Run the Base U-Net on [B, C, h, w], [B], [B, S, E].

        Args:
            latents: The samples.
            t: Timesteps.
            prompt_embeds: Text states.
            references: What the rows read.
            choices: Of the first merges, in place of their own; those behind choose themselves.
        """


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
    recordings = [_read(path) for path in paths]
    pair: GoldenPair = importlib.import_module(BACKENDS[backend]).load(folder)
    for recording in recordings:
        yield _compare(pair, recording)


@dataclass(frozen=True, eq=False)
class _Recording:
    path: Path
    tensors: dict[str, npt.NDArray[Any]]
    metadata: dict[str, str]

    def number(self, key: str) -> float:
        """A number of the file's metadata."""
        try:
            return float(self.metadata[key])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: metadata {key} is {self.metadata.get(key)!r}, expected a number; "
                "copy the file again",
                self.path,
            ) from error

    @property
    def is_run(self) -> bool:
        return "latents_in" in self.tensors


def _read(path: Path) -> _Recording:
    try:
        with safe_open(path, framework="numpy") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, TypeError) as error:  # TypeError: a type that numpy does not have
        raise CheckpointError(
            f"{path} is truncated or damaged: {error}; copy it again", path
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {describe_os_error(error)}", path) from error
    recording = _Recording(path, tensors, metadata)
    _check_shapes(recording, _RUN_SHAPES if recording.is_run else _FORWARD_SHAPES)
    return recording


def _check_shapes(recording: _Recording, shapes: Mapping[str, str]) -> None:
    """Every tensor is there, finite, of the right type, and sizes of one letter agree."""
    path, sizes = recording.path, dict[str, int]()
    for name, letters in shapes.items():
        tensor = recording.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{path} has no tensor {name!r}; this is no recording of a run or a forward", path
            )
        kind = np.int64 if name == "t" else np.float32
        expected = [int(c) if c.isdigit() else sizes.get(c) for c in letters]
        fits = tensor.ndim == len(letters) and all(
            want is None or got == want for got, want in zip(tensor.shape, expected, strict=True)
        )
        if tensor.dtype != kind or not fits or 0 in tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, expected "
                f"{kind.__name__} [{', '.join(letters)}] with {sizes}; copy the file again",
                path,
            )
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or Inf; copy it again", path)
        sizes |= {c: n for c, n in zip(letters, tensor.shape, strict=True) if c.isalpha()}


def _compare(pair: GoldenPair, recording: _Recording) -> GoldenReport:
    compare = _compare_run if recording.is_run else _compare_forward
    return compare(pair, recording)


def _compare_forward(pair: GoldenPair, recording: _Recording) -> GoldenReport:
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


def _compare_run(pair: GoldenPair, recording: _Recording) -> GoldenReport:
    data = recording.tensors
    num_steps = len(data["t"])
    schedule, solver = _schedule(recording)
    table = solver_table(solver, schedule, num_steps)
    if not np.array_equal(table.timesteps, data["t"]):
        raise CheckpointError(
            f"{recording.path}: timesteps are {data['t'].tolist()}, expected those of {solver} "
            f"with {num_steps} steps, {table.timesteps.tolist()}; copy the file again",
            recording.path,
        )
    steps = [_Step(pair, recording, schedule, index) for index in range(num_steps)]
    following = [*data["latents_in"][1:], data["final_latents"]]
    found: dict[str, list[float]] = {"noise_pred": [], "guided": [], "solver": []}
    flips: dict[tuple[int, ...], float] = {}
    kept: list[Choices] = []
    history = table.initial_history(following[0])
    for index, step in enumerate(steps):
        prediction, choices = step.as_recorded()
        kept.append(choices)
        flips |= _flips(index, prediction, choices)
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
                flips.update(_flips(index, prediction, kept[index]))
            guided = step.guided(output)
            latents, history = table.step(index, latents, output=guided, history=history)
        return latents

    ours = follow(0)
    errors = {name: _largest(values) for name, values in found.items()}
    errors[END_TO_END] = relative_error(ours, data["final_latents"])
    return GoldenReport(
        recording.path.stem,
        errors,
        flips=len(flips),
        flip_distance=max(flips.values(), default=0.0),
        choices=sum(choice.size for of_step in kept for choice in of_step),
        rounding=relative_error(follow(ROUNDING), ours),
    )


class _Step:
    """One step of a recorded run."""

    def __init__(
        self, pair: GoldenPair, recording: _Recording, schedule: NoiseSchedule, index: int
    ) -> None:
        data = recording.tensors
        count, t = len(data["ref_latents"]), data["t"][index]
        reads = np.arange(count, dtype=np.int64)
        self._pair = pair
        self._data, self._index, self._t = data, index, np.full(3, t)
        self._references = References(
            latents=schedule.add_noise(data["ref_latents"], data["ref_noise"][index], int(t)),
            t=np.full(count, t),
            prompt_embeds=data["ref_prompt_embeds"],
            ref_of_row=np.stack([np.full(count, -1), reads, reads]),
            ref_scale=recording.number("ref_scale"),
        )
        self._image_scale = np.float32(recording.number("guidance_scale"))
        self._text_scale = np.float32(recording.number("txtim_guidance_scale"))

    def predict(self, latents: FloatArray, choices: Choices | None = None) -> Prediction:
        """The three rows from `latents` [1, C, h, w]."""
        rows = np.repeat(latents, 3, 0)
        return self._pair.predict(
            rows, self._t, self._data["prompt_embeds"], self._references, choices
        )

    def as_recorded(self) -> tuple[Prediction, Choices]:
        """From the recorded latents, and with the choices that the recording made.

        They are our own; where the output differs by more than the limit, the other choice of
        those that nearly tie is tried, the nearest first, and kept where it comes closer.
        """
        latents = self._data["latents_in"][self._index]
        best = self.predict(latents)
        choices = best.choices
        tried: set[tuple[int, int, int]] = set()
        while self.error(best) > STEP_LIMIT and len(tried) < _MOST_TRIES:
            place = next((one for one in _near_ties(best.norms) if one not in tried), None)
            if place is None:
                break
            tried.add(place)
            layer, row, token = place
            other = choices[layer].copy()
            other[row, token] = np.argsort(-best.norms[layer][row, :, token], kind="stable")[1]
            changed = (*choices[:layer], other)
            prediction = self.predict(latents, changed)
            if self.error(prediction) < self.error(best):
                best, choices = prediction, (*changed, *prediction.choices[layer + 1 :])
        return best, choices

    def error(self, prediction: Prediction) -> float:
        """Of the output, against the recording."""
        return relative_error(prediction.output, self._data["noise_pred"][self._index])

    def guided(self, rows: FloatArray) -> FloatArray:
        """The guided output [1, C, h, w] of the three rows."""
        uncond, image, text_image = rows[0:1], rows[1:2], rows[2:3]
        guided: FloatArray = (
            uncond + self._image_scale * (image - uncond) + self._text_scale * (text_image - image)
        )
        return guided


def _near_ties(norms: Norms) -> list[tuple[int, int, int]]:
    """Merge, row and token of the choices that rounding may decide, the nearest first."""
    found: list[tuple[float, tuple[int, int, int]]] = []
    for layer, of_layer in enumerate(norms):
        ordered = np.sort(of_layer, axis=1)
        distance = 1 - ordered[:, -2] / ordered[:, -1]
        for row, token in np.argwhere(distance <= TIE_LIMIT):
            found.append((float(distance[row, token]), (layer, int(row), int(token))))
    return [place for _, place in sorted(found)]


def _flips(step: int, prediction: Prediction, choices: Choices) -> dict[tuple[int, ...], float]:
    """Step, merge, row and token where the prediction would choose otherwise.

    Returns:
        How near the two norms are, relative to the larger.
    """
    found: dict[tuple[int, ...], float] = {}
    for layer, (norms, kept) in enumerate(zip(prediction.norms, choices, strict=True)):
        own = norms.argmax(axis=1)
        for row, token in np.argwhere(own != kept).tolist():
            largest, taken = (norms[row, choice[row, token], token] for choice in (own, kept))
            found[step, layer, row, token] = float(1 - taken / largest)
    return found


def _schedule(recording: _Recording) -> tuple[NoiseSchedule, SolverName]:
    """Noise schedule and solver of a recorded run, with the defaults of diffusers 0.26.

    There DDIM clips x_0 and UniPC ends at the smallest sigma; spacing is each scheduler's own.
    """
    name = recording.metadata.get("scheduler", "")
    beta = re.fullmatch(r"(\w+) ([\d.e-]+)\.\.([\d.e-]+)", recording.metadata.get("beta", ""))
    if name not in _SOLVER_OF_SCHEDULER or beta is None:
        raise CheckpointError(
            f"{recording.path}: metadata scheduler is {name!r} and beta is "
            f"{recording.metadata.get('beta')!r}, expected {' or '.join(_SOLVER_OF_SCHEDULER)} and "
            "such as 'scaled_linear 0.00085..0.012'; copy the file again",
            recording.path,
        )
    try:
        schedule = NoiseSchedule.from_config(
            {
                "num_train_timesteps": 1000,
                "beta_schedule": beta[1],
                "beta_start": float(beta[2]),
                "beta_end": float(beta[3]),
                "clip_sample": True,
                "final_sigmas_type": "sigma_min",
            }
        )
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"{recording.path}: {error}", recording.path) from error
    return schedule, _SOLVER_OF_SCHEDULER[name]


def relative_error(got: npt.NDArray[Any], recorded: npt.NDArray[Any]) -> float:
    """Max |got - recorded| / max |recorded|; NaN where `got` is not finite, Inf on other shapes."""
    if got.shape != recorded.shape:
        return float("inf")
    if not np.isfinite(got).all():
        return float("nan")
    difference = float(np.abs(got.astype(np.float64) - recorded).max())
    scale = float(np.abs(recorded).max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def _largest(errors: Iterable[float]) -> float:
    """The largest; NaN if any is NaN, which `max` would lose."""
    return float(np.max(list(errors)))
