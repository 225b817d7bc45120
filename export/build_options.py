"""What a build is asked for, checked before any work is done.

Knows targets, precisions and sizes; knows no graphs and no files but a pair's configurations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec

from bootpig_rt.backends.control_inputs import CONTROL_GRAPHS, STEP_GRAPH
from bootpig_rt.bundle.manifest import (
    GRAPH_TARGETS,
    PRECISIONS,
    TARGETS,
    Precision,
    Profile,
    Target,
)
from bootpig_rt.bundle.pair_config import MERGES, Merge, PairConfig, read_json
from bootpig_rt.checks import MAX_STEPS, check_int
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.parity_limits import LIMITS

# Like the pipeline: pictures far from the trained size repeat themselves.
_MAX_SIZE_FACTOR = 4
_DEFAULT_MAX_BATCH = 8
INT8_LIMIT = 2e-2
"""Most relative error of a step in int8, unless another is asked for."""
_ENGINE_MAX_BATCH = 4
_ENGINE_MAX_STEPS = 50

# Up to here an attention that holds all scores is the quicker one (suite `kernels`, rows `onnx`).
_MOST_TOKENS_OF_HELD_SCORES = 512


Stored: TypeAlias = Literal["float16", "float32"]
Weights: TypeAlias = Literal["auto", "float16", "float32", "as-is"]
"""How weights are stored: `as-is` as the pair has them, `float16` and `float32` always. `auto`:
linked where the pair's files can be used, float16 where they must be written anew; for OpenVINO
float32."""
WEIGHTS: tuple[str, ...] = get_args(Weights)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """A checked order for a bundle.

    Attributes:
        target: What it is for.
        precision: Of the arithmetic in the graphs.
        profile: Sizes that it must take.
        merges: Ways to combine several references; a graph each.
        plugin: Engines of the full TensorRT hold our kernel of the reference attention.
        weights: How they are stored beside the graphs.
        int8: For OpenVINO: step graphs in 8 bits beside the others.
        calibration: Folder with pictures of subjects to take their ranges from; empty: the drawings
            inside the package.
        int8_limit: Most relative error of a step in int8; parts stay wide until it is met.
        tiny_decoder: The pair has a tiny autoencoder, whose decoder is a graph too.
        controls: Kinds of the pair's controls, each of which has two graphs.
    """

    target: Target
    precision: Precision
    profile: Profile
    merges: tuple[Merge, ...]
    plugin: bool = True
    weights: Weights = "auto"
    int8: bool = False
    calibration: str = ""
    int8_limit: float = INT8_LIMIT
    tiny_decoder: bool = False
    controls: tuple[str, ...] = ()

    @property
    def is_engine(self) -> bool:
        """Whether TensorRT runs it, rather than ONNX Runtime or OpenVINO."""
        return self.target not in GRAPH_TARGETS

    @property
    def stored_as(self) -> Stored | None:
        """Type that all weights must have on disk; None: any that the pair has.

        OpenVINO maps weights in float32, and all models share those pages. Of any others each model
        makes itself a float32 copy, and keeps it beside what it lays out for its arithmetic.
        """
        if self.weights == "float16" or self.weights == "float32":
            return self.weights
        return "float32" if self.weights == "auto" and self.target == "openvino" else None

    def for_output(self, pair_folder: Path, output: Path) -> BuildOptions:
        """As these, but a pair's own folder becomes a bundle with the weights that it has."""
        is_linked = self.weights == "auto" and is_in_place(pair_folder, output)
        return replace(self, weights="as-is") if is_linked else self

    def dialect(self, pixels_per_latent: int) -> Dialect:
        """What graphs are written for; `pixels_per_latent` along a side, of the autoencoder."""
        if self.target == "openvino":
            return "cpu"  # its fused attention never holds all scores
        if self.target != "cpu" or self.precision != "float32":
            return "portable"
        usual_tokens = (self.profile.resolution_px[1] // pixels_per_latent) ** 2
        return "cpu" if usual_tokens <= _MOST_TOKENS_OF_HELD_SCORES else "cpu-large"

    def to_dict(self) -> dict[str, Any]:
        """For json."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def is_in_place(pair_folder: Path, output: Path) -> bool:
    """Whether the bundle is to be the pair's own folder."""
    return output.resolve() == pair_folder.resolve()


def build_options(
    config: PairConfig,
    *,
    size_multiple_px: int,
    target: str = "cpu",
    precision: str | None = None,
    resolution: str | None = None,
    max_batch: int | None = None,
    max_references: int | None = None,
    max_steps: int | None = None,
    merges: tuple[str, ...] = (),
    plugin: bool = True,
    weights: str = "auto",
    calibration: Path | None = None,
    int8_limit: float | None = None,
) -> BuildOptions:
    """Check what was asked for and fill in what was left out.

    Graphs for ONNX Runtime and OpenVINO are small files beside weights that are stored once, and
    take any size: by default they are built for all merges and a wide profile. Engines hold the
    weights, and are faster the less they must take: by default one merge and the pair's own size.
    Step graphs in int8 hold weights as well: with them one merge, and a wide profile.

    Args:
        config: Of the pair.
        size_multiple_px: Sides of pictures must be multiples of this.
        target: One of `TARGETS`.
        precision: `float32` or `float16`; by default float32 on a CPU and float16 elsewhere. `int8`
            for OpenVINO: graphs in both, and what is computed in is chosen when it draws.
        resolution: `512`, `256:768` or `256:512:768`: smallest, usual and largest side.
        max_batch: Pictures drawn at once.
        max_references: References of one subject; the pair's own limit by default.
        max_steps: Steps of the solver.
        merges: Some of `argmax`, `softmax`, `mean`, `concat`.
        plugin: For `local`: use our kernel of the reference attention where it can be had.
        weights: One of `WEIGHTS`.
        calibration: With `int8`: folder with pictures of subjects, each named for what it shows.
        int8_limit: With `int8`: most relative error of a step; 2 % by default.

    Raises:
        ParameterError: Names the option, what it got and what is expected.
    """
    if target not in TARGETS:
        raise ParameterError(f"target is {target!r}, expected one of: {', '.join(TARGETS)}")
    is_engine, is_cpu = target not in GRAPH_TARGETS, target in ("cpu", "openvino")
    if precision is None:
        precision = "float32" if is_cpu else "float16"
    int8 = target == "openvino" and precision == "int8"
    if int8:
        precision = "float32"
    if calibration is not None and not int8:
        raise ParameterError(
            f"--calibration is {str(calibration)!r}, expected it with --target openvino "
            "--precision int8 alone; nothing else is calibrated"
        )
    if int8_limit is not None and not int8:
        raise ParameterError(
            f"--int8-limit is {int8_limit:g}, expected it with --target openvino --precision int8"
        )
    most = LIMITS["int8"].graph
    if int8_limit is not None and not 1e-3 <= int8_limit <= most:
        raise ParameterError(
            f"--int8-limit is {int8_limit:g}, expected 0.001..{most:g}; the comparison with torch "
            "refuses more"
        )
    if precision not in PRECISIONS:
        raise ParameterError(
            f"precision is {precision!r}, expected one of: {', '.join(PRECISIONS)}"
        )
    if target == "openvino" and precision != "float32":
        raise ParameterError(
            f"precision is {precision!r} for target openvino, expected float32 or int8: what it "
            "computes in is chosen when it draws, with --precision of generate or serve"
        )
    if weights not in WEIGHTS:
        raise ParameterError(f"--weights is {weights!r}, expected one of: {', '.join(WEIGHTS)}")
    unknown = [merge for merge in merges if merge not in MERGES]
    if unknown:
        raise ParameterError(f"merge is {unknown[0]!r}, expected one of: {', '.join(MERGES)}")
    references = check_int(
        "--max-references",
        config.max_references if max_references is None else max_references,
        1,
        1024,
        f"the pair was made for {config.max_references}",
    )
    if not merges:
        merges = (config.merge,) if is_engine or int8 else MERGES
    batch = (
        (_ENGINE_MAX_BATCH if is_engine else _DEFAULT_MAX_BATCH)
        if max_batch is None
        else (max_batch)
    )
    if max_steps is None:
        max_steps = max(_ENGINE_MAX_STEPS, config.default_steps) if is_engine else MAX_STEPS
    profile = Profile(
        resolution_px=_resolution(resolution, config, size_multiple_px, is_engine),
        max_batch=check_int("--max-batch", batch, 1, 1024, "8 is usual"),
        max_references=references,
        max_steps=check_int("--steps", max_steps, 1, MAX_STEPS, "50 is usual"),
    )
    # With one reference all merges are the same, and need no graph of their own.
    kept = tuple(merge for merge in MERGES if merge in merges) if references > 1 else ()
    return BuildOptions(
        target=cast("Target", target),
        precision=cast("Precision", precision),
        profile=profile,
        merges=kept,
        plugin=plugin,
        weights=cast("Weights", weights),
        int8=int8,
        calibration="" if calibration is None else str(calibration),
        int8_limit=INT8_LIMIT if int8_limit is None else int8_limit,
    )


def size_multiple_px(folder: Path, rest: Path) -> int:
    """What sides of a pair's pictures must be multiples of.

    Args:
        folder: Holds `base_unet`.
        rest: Holds `vae`.

    Raises:
        CheckpointError: A configuration is missing or does not say it.
    """
    sizes = 0
    for path in (folder / "base_unet" / "config.json", rest / "vae" / "config.json"):
        blocks = read_json(path).get("block_out_channels")
        if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
            raise CheckpointError(
                f"{path}: block_out_channels is {blocks!r}, expected a list of 1 to 8 numbers; "
                "copy the model folder again",
                path,
            )
        sizes += len(blocks) - 1
    return int(2**sizes)


def _resolution(
    text: str | None, config: PairConfig, multiple: int, is_engine: bool
) -> tuple[int, int, int]:
    side = config.sample_size_px
    if text is None:
        return (side, side, side) if is_engine else (multiple, side, _MAX_SIZE_FACTOR * side)
    if not re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5}){0,2}", text):
        raise ParameterError(
            f"--resolution is {text!r}, expected a side in pixels such as {side}, or a range "
            f"such as {side // 2}:{side} or {side // 2}:{side}:{2 * side}"
        )
    numbers = [int(part) for part in text.split(":")]
    low, high = numbers[0], numbers[-1]
    usual = numbers[1] if len(numbers) == 3 else min(max(side, low), high)
    limit = _MAX_SIZE_FACTOR * side
    for number in (low, usual, high):
        if number % multiple or not multiple <= number <= limit:
            raise ParameterError(
                f"--resolution holds {number}, expected multiples of {multiple} up to {limit}; "
                f"this pair was trained at {side}"
            )
    if not low <= usual <= high:
        raise ParameterError(
            f"--resolution is {text!r}, expected sides from small to large; swap them"
        )
    return low, usual, high


def graph_names(options: BuildOptions) -> tuple[str, ...]:
    """The graphs of a bundle, in the order in which they are built."""
    kinds = ["denoise_step", "shallow_step", *[STEP_GRAPH] * bool(options.controls)]
    of_controls = [f"{name}{kind}" for kind in options.controls for name in CONTROL_GRAPHS]
    steps = [
        name for kind in kinds for name in (kind, *(f"{kind}_{merge}" for merge in options.merges))
    ]
    decoders = ("vae_decoder", "tiny_decoder") if options.tiny_decoder else ("vae_decoder",)
    first = ("text_encoder", "text_kv", "vae_encoder", "reference_kv")
    return (*first, *steps, *of_controls, *decoders)
