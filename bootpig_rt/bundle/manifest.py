"""What `manifest.json` says, as frozen dataclasses; `schema.json` says what is allowed.

Knows no files and checks no hashes: that is `bundle.py`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from bootpig_rt.bundle.json_schema import SchemaError, check_schema
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.noise_schedule import SolverName

FORMAT = 1
"""Version of `manifest.json` that this package writes, and the newest that it reads."""

Target: TypeAlias = Literal["cpu", "cuda", "sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "local"]
TARGETS: tuple[str, ...] = get_args(Target)

RuntimeName: TypeAlias = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]
Precision: TypeAlias = Literal["float32", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

Status: TypeAlias = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Profile:
    """Sizes that the graphs of a bundle were built and checked for.

    Attributes:
        resolution_px: Smallest, usual and largest side of a picture.
        max_batch: Pictures drawn at once; up to three rows of the Base U-Net each.
        max_references: References of one subject.
        max_steps: Steps of the solver.
    """

    resolution_px: tuple[int, int, int]
    max_batch: int
    max_references: int
    max_steps: int


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph.

    Attributes:
        name: In the graph.
        dtype: `float32`, `float16`, `bfloat16`, `int64`, `int32` or `bool`.
        shape: A number, or the name of a size that may vary, for each axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One graph or engine.

    Attributes:
        name: `denoise_step`.
        file: `denoise_step.onnx`, within the folder.
        sha256: Of the file.
        size_bytes: Of the file, without weights that it points to.
        num_nodes: Nodes of the graph, or layers of the engine.
        inputs: In the order of the graph.
        outputs: In the order of the graph.
    """

    name: str
    file: str
    sha256: str
    size_bytes: int
    num_nodes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class FileInfo:
    """A file of the bundle.

    Attributes:
        path: Within the folder, with forward slashes.
        size_bytes: Its length.
        sha256: Of its bytes.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class RuntimeInfo:
    """What runs the graphs.

    Attributes:
        name: Of the package.
        version: That the bundle was built and checked with.
        minimum_version: Oldest that runs it; None where only exactly `version` does.
        architecture: `sm_89` where engines are tied to one; None where any machine will do.
    """

    name: RuntimeName
    version: str
    minimum_version: str | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class PairInfo:
    """Which pair the graphs are of.

    Attributes:
        name: From `pair.json`.
        fingerprint: sha256 over weights and configuration, as `Pipeline.spec.fingerprint`.
        weights_sha256: Over the weights files alone.
        config_sha256: Over all other files of the pair.
        source_fingerprint: Of the pair as it was given, where its files were written anew, such as
            in the published layout; None where they are the same.
    """

    name: str
    fingerprint: str
    weights_sha256: str
    config_sha256: str
    source_fingerprint: str | None = None


@dataclass(frozen=True)
class SolverInfo:
    """The pair's default solver and number of steps; the graphs run any."""

    name: SolverName
    steps: int


@dataclass(frozen=True)
class ParityResult:
    """One comparison with torch.

    Attributes:
        name: A graph, or a part of an end-to-end run.
        relative_error: Norm of the difference over norm of torch's; None where it is not finite.
        largest_error: Largest difference of two numbers; None where it is not finite.
        psnr_db: Of pictures; None elsewhere, and where the pictures are equal.
        relative_limit: Most that `relative_error` may be.
        psnr_limit_db: Least that `psnr_db` may be; None where there is no picture.
    """

    name: str
    relative_error: float | None
    largest_error: float | None
    psnr_db: float | None
    relative_limit: float
    psnr_limit_db: float | None

    @property
    def passed(self) -> bool:
        """Whether all is finite and within the limits."""
        error, psnr = self.relative_error, self.psnr_db
        if error is None or self.largest_error is None or not error <= self.relative_limit:
            return False
        return psnr is None or self.psnr_limit_db is None or psnr >= self.psnr_limit_db


@dataclass(frozen=True)
class ParityReport:
    """What the parity gate found.

    Attributes:
        status: `passed`, `failed` or `not run`.
        reason: Why it was not run, or a remark; may be empty.
        backend: That was compared with torch; empty when none was.
        device: That it ran on.
        results: One for each comparison; for engines that cannot run here, those of their graphs.
    """

    status: Status
    reason: str = ""
    backend: str = ""
    device: str = ""
    results: tuple[ParityResult, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        target: What the bundle was built for.
        runtime: What runs it.
        pair: Which pair it is of.
        precision: Of the arithmetic in the graphs.
        opset: ONNX operators' version.
        profile: Sizes that it was built for.
        merges: Ways to combine several references that it has graphs for.
        solver: Defaults of the pair.
        rsa_kernel_sha256: Over the kernels of reference self-attention that engines hold; None for
            standard operators.
        tools: Versions of what built it, by package.
        graphs: One for each graph or engine.
        parity: What the parity gate found.
        files: All files but `manifest.json` and `manifest.sig`.
        format: Version of the manifest.
    """

    target: Target
    runtime: RuntimeInfo
    pair: PairInfo
    precision: Precision
    opset: int
    profile: Profile
    merges: tuple[Merge, ...]
    solver: SolverInfo
    rsa_kernel_sha256: str | None
    tools: Mapping[str, str]
    graphs: tuple[GraphInfo, ...]
    parity: ParityReport
    files: tuple[FileInfo, ...]
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        """The text of `manifest.json`, fields in the order of the schema, with a final newline.

        Raises:
            SchemaError: A field is not as the schema says.
        """
        values = {**asdict(self), "tools": dict(self.tools), "size_bytes": self.size_bytes}
        parsed = json.loads(json.dumps(values))  # tuples become lists
        schema = manifest_schema()
        check_schema(parsed, schema)
        ordered = {name: parsed[name] for name in schema["properties"]}
        return json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Build from parsed json.

        Raises:
            SchemaError: A field is missing, unknown or wrong, or the sizes do not add up.
        """
        check_schema(values, manifest_schema())
        profile, parity = values["profile"], values["parity"]
        manifest = cls(
            format=values["format"],
            target=values["target"],
            runtime=RuntimeInfo(**values["runtime"]),
            pair=PairInfo(**values["pair"]),
            precision=values["precision"],
            opset=values["opset"],
            profile=Profile(**{**profile, "resolution_px": tuple(profile["resolution_px"])}),
            merges=tuple(values["merges"]),
            solver=SolverInfo(**values["solver"]),
            rsa_kernel_sha256=values["rsa_kernel_sha256"],
            tools=values["tools"],
            graphs=tuple(_graph(graph) for graph in values["graphs"]),
            parity=ParityReport(
                **{**parity, "results": tuple(ParityResult(**r) for r in parity["results"])}
            ),
            files=tuple(FileInfo(**file) for file in values["files"]),
        )
        if manifest.size_bytes != values["size_bytes"]:
            raise SchemaError(
                f"size_bytes is {values['size_bytes']}, expected the sum of the files, "
                f"{manifest.size_bytes}"
            )
        return manifest


@functools.cache
def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`."""
    path = Path(__file__).with_name("schema.json")
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def finite_or_none(value: float) -> float | None:
    """A number as json can hold it: NaN and Inf become None."""
    return float(value) if math.isfinite(value) else None


def _graph(values: Mapping[str, Any]) -> GraphInfo:
    tensors = {
        side: tuple(
            TensorInfo(tensor["name"], tensor["dtype"], tuple(tensor["shape"]))
            for tensor in values[side]
        )
        for side in ("inputs", "outputs")
    }
    return GraphInfo(**{**values, **tensors})
