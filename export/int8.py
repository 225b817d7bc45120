"""The int8 variant of a bundle for OpenVINO: its step graphs, quantised and measured.

Drawn in float32 first (`calibration.py`), then graph by graph: ranges (`quantise_graph.py`), what
stays wide (`quantise_choice.py`), and the file, an OpenVINO IR: `denoise_step.int8.xml` beside
`denoise_step.int8.bin`. The step graphs alone are quantised. They are over nine tenths of a
picture's time; what else is launched runs once for each subject or picture, and what it loses every
step would inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from bootpig_rt.backends.base import PairSpec
from bootpig_rt.backends.host_memory import return_freed_memory
from bootpig_rt.errors import EngineError, one_line
from bootpig_rt.export.build_options import INT8_LIMIT
from bootpig_rt.export.calibration import (
    Arrays,
    Calibration,
    CalibrationOptions,
    record_calibration,
)
from bootpig_rt.export.describe import INT8_SUFFIX
from bootpig_rt.export.quantise_choice import WideChoice, choose_wide
from bootpig_rt.export.quantise_graph import quantised, stored
from bootpig_rt.export.quantise_parts import Switched, parts_of, with_wide
from bootpig_rt.export.work_folder import WorkFolder

_END = 5.0
"""Most relative error of latents after all steps, over that of a step."""

_SHARES = {"record": 0.15, "ranges": 0.35, "choice": 0.5}


@dataclass(frozen=True)
class Int8Graph:
    """A graph that was quantised.

    Attributes:
        name: Of the graph that it takes the place of.
        choice: What stays wide.
        resumed: An earlier build had finished it.
    """

    name: str
    choice: WideChoice
    resumed: bool


def build_int8(
    work: WorkFolder,
    folder: str,
    spec: PairSpec,
    names: Sequence[str],
    *,
    merges: Sequence[str],
    options: CalibrationOptions,
    limit: float = INT8_LIMIT,
    steps: int | None = None,
    side_px: int | None = None,
    told: Callable[[str, float], object] | None = None,
) -> tuple[Int8Graph, ...]:
    """Write the int8 graphs that are not there yet.

    Args:
        work: Of the build; what it has finished is kept.
        folder: Of the float32 graphs, within it; the new files take their place there too.
        spec: Of the pair.
        names: Step graphs to quantise.
        merges: Those that have a graph among them.
        options: What is drawn to calibrate.
        limit: Most relative error of a step; parts stay wide until it is met.
        steps: T of the pictures; the pair's default if left out.
        side_px: Of the pictures; the pair's own if left out.
        told: (what is being done, share done 0..1).

    Raises:
        EngineError: OpenVINO or NNCF refuses a graph.
        ParameterError, ImageError: The pictures to calibrate on cannot be used.
    """
    tell = told or (lambda *_: None)
    done = {name: _finished(work, folder, name) for name in names}
    if all(choice is not None for choice in done.values()):
        return tuple(Int8Graph(name, c, True) for name, c in done.items() if c is not None)
    launches = Launches(work.path / folder)
    calibration = record_calibration(
        launches, spec, options, merges=merges, steps=steps, side_px=side_px,
        told=lambda share: tell("drawing to calibrate", _SHARES["record"] * share),
    )  # fmt: skip
    launches.forget()
    made = []
    for number, name in enumerate(names):
        choice = done[name]
        if choice is not None:
            made.append(Int8Graph(name, choice, True))
            continue
        base = _SHARES["record"] + (1 - _SHARES["record"]) * number / len(names)
        scale = (1 - _SHARES["record"]) / len(names)

        def inside(what: str, share: float, base: float = base, scale: float = scale) -> None:
            tell(what, base + scale * share)

        known = made[0].choice.alone if made else None
        model, choice = quantise_one(launches, name, calibration, known, inside, limit)
        _write(work, folder, name, model, choice)
        made.append(Int8Graph(name, choice, False))
    return tuple(made)


def quantise_one(
    launches: Launches,
    name: str,
    calibration: Calibration,
    known: Mapping[str, float] | None,
    told: Callable[[str, float], object],
    limit: float = INT8_LIMIT,
) -> tuple[ov.Model, WideChoice]:
    """One graph with 8 bit weights, and what stays wide in it.

    `known` are errors of its parts alone, where another graph of the same layers told them.
    """
    share = _SHARES["ranges"] / (_SHARES["ranges"] + _SHARES["choice"])
    rounded = quantised(
        launches.read(name),
        calibration.to_calibrate(name),
        lambda done: told(f"ranges of {name}", share * done),
    )
    parts = parts_of(rounded)
    samples = calibration.to_judge(name)
    true = [launches(name, sample) for sample in samples]
    launches.forget()
    choice = choose_wide(
        Switched(rounded, parts),
        samples,
        true=true,
        limit=limit,
        pictures=calibration.judging(name),
        end_limit=_END * limit,
        known=known,
        told=lambda done: told(f"what stays wide in {name}", share + (1 - share) * done),
    )
    return stored(with_wide(rounded, choice.wide, parts)), choice


class Launches:
    """Float32 graphs of a folder, compiled when they are first launched.

    Args:
        folder: Holds `NAME.onnx` and the weights.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._folder, self._core = folder, ov.Core()
        self._requests: dict[str, ov.InferRequest] = {}

    def read(self, name: str) -> ov.Model:
        """The graph.

        Raises:
            EngineError: OpenVINO cannot read it.
        """
        try:
            return self._core.read_model(self._folder / f"{name}.onnx")
        except RuntimeError as error:
            raise EngineError(
                f"openvino {ov.__version__} cannot read the graph {name}: "
                f"{one_line(str(error), 200)}"
            ) from error

    def forget(self) -> None:
        """Let go of what was compiled: each model holds its weights once more."""
        self._requests.clear()
        return_freed_memory()

    def __call__(self, name: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Run a graph in float32; outputs by name."""
        if name not in self._requests:
            config = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = self._core.compile_model(self.read(name), "CPU", config)
            self._requests[name] = compiled.create_infer_request()
        made = self._requests[name].infer(dict(inputs))
        return {output.get_any_name(): np.array(value) for output, value in made.items()}


def _write(work: WorkFolder, folder: str, name: str, model: ov.Model, choice: WideChoice) -> None:
    """Write the two files of a graph, weights first: the other says that both are there."""
    file = f"{folder}/{name}{INT8_SUFFIX}"
    ov.save_model(model, work.path / f"{file}.xml", compress_to_fp16=False)
    work.finish(f"{file}.bin", {})
    work.finish(f"{file}.xml", asdict(choice))


def _finished(work: WorkFolder, folder: str, name: str) -> WideChoice | None:
    """What an earlier build chose for a graph whose files are there and unchanged."""
    file = f"{folder}/{name}{INT8_SUFFIX}"
    details = work.finished(f"{file}.xml")
    if details is None or work.finished(f"{file}.bin") is None:
        return None
    return WideChoice(**{**details, "wide": tuple(details["wide"])})
