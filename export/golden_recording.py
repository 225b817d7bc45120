"""Recordings of the published code: files of numbers, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bootpig_rt.diffusion.noise_schedule import NoiseSchedule, SolverName
from bootpig_rt.errors import CheckpointError, ConfigError, describe_os_error

# Tensors of each kind of file; letters are sizes that must agree within the file.
RUN_SHAPES = {
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

FORWARD_SHAPES = {
    "x": "BChw",
    "rx": "BChw",
    "t": "B",
    "e": "BSE",
    "re": "BSE",
    "pred": "BChw",
    "pred_without_reference": "BChw",
}


_SOLVER_OF_SCHEDULER: dict[str, SolverName] = {
    "DDIMScheduler": "ddim",
    "UniPCMultistepScheduler": "unipc",
}


@dataclass(frozen=True, eq=False)
class Recording:
    """Tensors of a file by name, with its metadata."""

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
        """Of a run; otherwise of a forward."""
        return "latents_in" in self.tensors


def read_recording(path: Path) -> Recording:
    """Read a file of a golden folder.

    Raises:
        CheckpointError: It is damaged, or no recording.
    """
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
    recording = Recording(path, tensors, metadata)
    check_shapes(recording, RUN_SHAPES if recording.is_run else FORWARD_SHAPES)
    return recording


def check_shapes(recording: Recording, shapes: Mapping[str, str]) -> None:
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


def schedule_of(recording: Recording) -> tuple[NoiseSchedule, SolverName]:
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
