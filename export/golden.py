"""Compare a backend with tensors recorded from the published pipeline.

A golden folder holds the two U-Nets of one pair (`base_unet`, `ref_unet`) and files of recorded
tensors, of two kinds:

- a run: what the published pipeline computed at each denoising step, and what came out;
- a forward: one training-style call of both U-Nets.

Each quantity is compared by its relative error, max |got - recorded| / max |recorded|. Steps start
from the recorded latents, so that an error does not add up; `end to end` follows our own latents
from the first step to the last. The recorded pairs are random and guided hard, which magnifies
rounding: in float64 the DDIM runs end 3e-4 to 4e-4 from their float32 recordings.

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

END_TO_END = "end to end"

# Backend -> module with `load(folder) -> GoldenPair`. Imported when asked for.
BACKENDS = {
    "torch": "bootpig_rt.export.golden_pair",
    "onnxruntime": "bootpig_rt.export.golden_onnx",
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
    ) -> FloatArray:
        """Output of the Base U-Net: float32 [B, C, h, w] from [B, C, h, w], [B], [B, S, E]."""


@dataclass(frozen=True)
class GoldenReport:
    """How far one file's quantities are from the recording.

    Attributes:
        name: File name without its suffix.
        errors: Quantity -> largest relative error over steps; NaN where the output was not finite.
    """

    name: str
    errors: Mapping[str, float]

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
        """Both errors are finite and within their limits."""
        end = self.end_to_end_error
        return self.step_error <= STEP_LIMIT and (end is None or end <= END_TO_END_LIMIT)


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
    return GoldenReport(recording.path.stem, compare(pair, recording))


def _compare_forward(pair: GoldenPair, recording: _Recording) -> dict[str, float]:
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
        "pred": relative_error(pair.predict(*inputs, references), data["pred"]),
        "pred_without_reference": relative_error(
            pair.predict(*inputs), data["pred_without_reference"]
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
    return errors


def _compare_run(pair: GoldenPair, recording: _Recording) -> dict[str, float]:
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
    outputs = [
        _guided(pair, recording, schedule, i, latents)
        for i, latents in enumerate(data["latents_in"])
    ]
    after = [*data["latents_in"][1:], data["final_latents"]]
    stepped: list[FloatArray] = []
    history = table.initial_history(after[0])
    for i in range(num_steps):
        # The history is our own: a multistep solver cannot start in the middle.
        sample, output = data["latents_in"][i], data["guided"][i]
        following, history = table.step(i, sample, output=output, history=history)
        stepped.append(following)
    latents: FloatArray = data["latents_in"][0]
    history = table.initial_history(latents)
    for i in range(num_steps):
        _, guided = outputs[0] if i == 0 else _guided(pair, recording, schedule, i, latents)
        latents, history = table.step(i, latents, output=guided, history=history)
    return {
        "noise_pred": _largest(
            relative_error(pred, data["noise_pred"][i]) for i, (pred, _) in enumerate(outputs)
        ),
        "guided": _largest(
            relative_error(guided, data["guided"][i]) for i, (_, guided) in enumerate(outputs)
        ),
        "solver": _largest(map(relative_error, stepped, after)),
        END_TO_END: relative_error(latents, data["final_latents"]),
    }


def _guided(
    pair: GoldenPair, recording: _Recording, schedule: NoiseSchedule, i: int, latents: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Step i from `latents` [1, C, h, w]: outputs of the three rows, and the guided output."""
    data, t = recording.tensors, recording.tensors["t"][i]
    count = len(data["ref_latents"])
    reads = np.arange(count, dtype=np.int64)
    references = References(
        latents=schedule.add_noise(data["ref_latents"], data["ref_noise"][i], int(t)),
        t=np.full(count, t),
        prompt_embeds=data["ref_prompt_embeds"],
        ref_of_row=np.stack([np.full(count, -1), reads, reads]),
        ref_scale=recording.number("ref_scale"),
    )
    rows = pair.predict(np.repeat(latents, 3, 0), np.full(3, t), data["prompt_embeds"], references)
    uncond, image, text_image = rows[0:1], rows[1:2], rows[2:3]
    image_scale = np.float32(recording.number("guidance_scale"))
    text_scale = np.float32(recording.number("txtim_guidance_scale"))
    guided = uncond + image_scale * (image - uncond) + text_scale * (text_image - image)
    return rows, guided


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
