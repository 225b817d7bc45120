"""What `manifest.json` says, and what is allowed in it: frozen structs with the limits of fields.

Knows no files and checks no hashes: that is `bundle.py`. A change of `FORMAT`'s structs is a change
of the format.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct, ValidationError

from bootpig_rt.bundle.lora import FusedLora, Sha256
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.diffusion.noise_schedule import SolverName

FORMAT: Literal[1] = 1
"""Version of `manifest.json` that this package writes, and the newest that it reads."""

Target: TypeAlias = Literal[
    "cpu", "openvino", "cuda", "sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "local"
]
TARGETS: tuple[str, ...] = get_args(Target)

GRAPH_TARGETS: tuple[Target, ...] = ("cpu", "openvino", "cuda")
"""Those whose bundles hold ONNX graphs beside the weights; all others hold engines."""

RuntimeName: TypeAlias = Literal["onnxruntime", "openvino", "tensorrt_rtx", "tensorrt"]
Precision: TypeAlias = Literal["float32", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

VariantPrecision: TypeAlias = Literal["bfloat16", "int8"]

Status: TypeAlias = Literal["passed", "failed", "not run"]
TensorType: TypeAlias = Literal["float32", "float16", "bfloat16", "int64", "int32", "bool"]

Count: TypeAlias = Annotated[int, Meta(ge=1)]
Size: TypeAlias = Annotated[int, Meta(ge=0)]
Side: TypeAlias = Annotated[int, Meta(ge=8)]


class _Part(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the manifest."""


class Profile(_Part, frozen=True):
    """Sizes that the graphs of a bundle were built and checked for.

    Attributes:
        resolution_px: Smallest, usual and largest side of a picture.
        max_batch: Pictures drawn at once; up to three rows of the Base U-Net each.
        max_references: References of one subject.
        max_steps: Steps of the solver.
    """

    resolution_px: tuple[Side, Side, Side]
    max_batch: Count
    max_references: Count
    max_steps: Count


class TensorInfo(_Part, frozen=True):
    """An input or output of a graph.

    Attributes:
        name: In the graph.
        dtype: Of its numbers.
        shape: A number, or the name of a size that may vary, for each axis.
    """

    name: str
    dtype: TensorType
    shape: tuple[int | str, ...]


class GraphInfo(_Part, frozen=True):
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

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$")]
    file: str
    sha256: Sha256
    size_bytes: Size
    num_nodes: Size
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class FileInfo(_Part, frozen=True):
    """A file of the bundle.

    Attributes:
        path: Within the folder, with forward slashes.
        size_bytes: Its length.
        sha256: Of its bytes.
    """

    path: str
    size_bytes: Size
    sha256: Sha256


class RuntimeInfo(_Part, frozen=True):
    """What runs the graphs.

    Attributes:
        name: Of the package.
        version: That the bundle was built and checked with.
        minimum_version: Oldest that runs it; None where only exactly `version` does.
        architecture: `sm_89` where engines are tied to one; None where any machine will do.
    """

    name: RuntimeName
    version: Annotated[str, Meta(pattern="^[0-9][0-9A-Za-z.+-]*$")]
    minimum_version: Annotated[str, Meta(pattern="^[0-9][0-9.]*$")] | None = None
    architecture: Annotated[str, Meta(pattern="^sm_[0-9]+$")] | None = None


class PairInfo(_Part, frozen=True):
    """Which pair the graphs are of.

    Attributes:
        name: From `pair.json`.
        fingerprint: sha256 over weights and configuration, as `Pipeline.spec.fingerprint`.
        weights_sha256: Over the weights files alone.
        config_sha256: Over all other files of the pair.
        source_fingerprint: Of the pair as it was given, where its files were written anew, such as
            in the published layout, or fused with LoRAs; None where they are the same.
        loras: That are in the weights; not written where there are none.
    """

    name: str
    fingerprint: Sha256
    weights_sha256: Sha256
    config_sha256: Sha256
    source_fingerprint: Sha256 | None = None
    loras: tuple[FusedLora, ...] = ()


class ControlInfo(_Part, frozen=True):
    """A control that the bundle has graphs for.

    Attributes:
        kind: What its maps show.
        fingerprint: sha256 over its weights and configuration.
    """

    kind: Annotated[str, Meta(pattern="^[a-z][a-z0-9]{0,31}$")]
    fingerprint: Sha256


class SolverInfo(_Part, frozen=True):
    """The pair's default solver and number of steps; the graphs run any."""

    name: SolverName
    steps: Count


class ParityResult(_Part, frozen=True):
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
    relative_limit: Annotated[float, Meta(ge=0)]
    psnr_limit_db: float | None

    @property
    def passed(self) -> bool:
        """Whether all is finite and within the limits."""
        error, psnr = self.relative_error, self.psnr_db
        if error is None or self.largest_error is None or not error <= self.relative_limit:
            return False
        return psnr is None or self.psnr_limit_db is None or psnr >= self.psnr_limit_db


class ParityReport(_Part, frozen=True):
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


class Identity(_Part, frozen=True):
    """How often the subject of a picture is told from others by a network, beside float32.

    Attributes:
        change_points: Mean over subjects, in percentage points; below 0 it is told less often.
        low_points: Lower end of the 95 % interval.
        high_points: Upper end.
        pictures: That were judged in each precision.
    """

    change_points: float
    low_points: float
    high_points: float
    pictures: Count

    @property
    def passed(self) -> bool:
        """Whether no more than a point was lost."""
        return self.change_points >= -MOST_LOST_POINTS


MOST_LOST_POINTS = 1.0
"""Of identity, that a precision may lose to float32 and still be chosen unasked."""


class Variant(_Part, frozen=True):
    """Another precision that a bundle can be computed in.

    Attributes:
        precision: Of the arithmetic.
        parity: What the parity gate found for it.
        graphs: Those that differ from the bundle's own, of the same names; none where the precision
            is nothing but an option of the runtime.
        identity: What judges found; None: they were not asked.
        float32_graphs: Graphs that had to stay in float32 for the gate; None: it was not asked
            which, and not written.
    """

    precision: VariantPrecision
    parity: ParityReport
    graphs: tuple[GraphInfo, ...] = ()
    identity: Identity | None = None
    float32_graphs: tuple[str, ...] | None = None


class Manifest(_Part, frozen=True, kw_only=True):
    """Contents of `manifest.json`.

    Attributes:
        format: Version of the manifest.
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
        variants: Other precisions; not written where there are none.
        controls: That it has graphs for, by kind; not written where there are none.
    """

    format: Literal[1] = FORMAT
    target: Target
    runtime: RuntimeInfo
    pair: PairInfo
    precision: Precision
    opset: Count
    profile: Profile
    merges: tuple[Merge, ...]
    solver: SolverInfo
    rsa_kernel_sha256: Sha256 | None
    tools: dict[str, str]
    graphs: Annotated[tuple[GraphInfo, ...], Meta(min_length=1)]
    parity: ParityReport
    files: Annotated[tuple[FileInfo, ...], Meta(min_length=1)]
    variants: tuple[Variant, ...] = ()
    controls: tuple[ControlInfo, ...] = ()

    def variant(self, precision: str) -> Variant | None:
        """The one of a precision, if there is one."""
        return next((one for one in self.variants if one.precision == precision), None)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        """The text of `manifest.json`, with a final newline.

        Raises:
            ValidationError: A field is not as it must be.
        """
        values = msgspec.to_builtins(self)
        files = values.pop("files")
        for name in ("variants", "controls"):
            if not values[name]:
                del values[name]
        for variant in values.get("variants", ()):
            if variant["float32_graphs"] is None:
                del variant["float32_graphs"]
        if not self.pair.loras:
            del values["pair"]["loras"]
        values |= {"size_bytes": self.size_bytes, "files": files}
        Manifest.from_dict(values)
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: object) -> Manifest:
        """Build from parsed json.

        Raises:
            ValidationError: A field is missing, unknown or wrong, or the sizes do not add up.
        """
        fields = dict(values) if isinstance(values, dict) else {}
        for name in ("format", "size_bytes"):
            if name not in fields:
                raise ValidationError(f"Object missing required field `{name}`")
        said = fields.pop("size_bytes")
        manifest = msgspec.convert(fields, cls)
        if said != manifest.size_bytes or isinstance(said, bool):
            raise ValidationError(
                f"size_bytes is {said!r:.60}, expected the sum of the files, {manifest.size_bytes}"
            )
        return manifest


def finite_or_none(value: float) -> float | None:
    """A number as json can hold it: NaN and Inf become None."""
    return float(value) if math.isfinite(value) else None
