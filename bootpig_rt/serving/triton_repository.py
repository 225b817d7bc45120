"""`bootpig-rt export-triton`: a model repository for NVIDIA Triton, whole or not there at all.

DIR/README.md               how to run it, with the command
DIR/Dockerfile              Triton with this package in it
DIR/<name>/config.pbtxt     tensors, instances, parameters
DIR/<name>/1/model.py       names the class in `triton_model.py`
DIR/<name>/1/pair/          the pair or bundle
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt import __version__
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.bundle.bundle import is_bundle
from bootpig_rt.bundle.control import CONTROL_PREFIX, ControlFolder, all_controls
from bootpig_rt.checks import check_int
from bootpig_rt.errors import CheckpointError, ParameterError, StorageError, describe_os_error
from bootpig_rt.serving.triton_tensors import INPUTS, OUTPUTS, TritonTensor
from bootpig_rt.serving.triton_texts import (
    DOCKERFILE,
    EXAMPLE,
    MODEL_PY,
    README,
    STREAM,
    STREAM_EXAMPLE,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How the model runs in Triton.

    Attributes:
        name: Of the model.
        gpus: Device numbers, an instance on each; none: on the CPU.
        instances: On each device, each with the pair in memory.
        max_batch: Pictures that an instance draws at once.
        max_waiting: Pictures that may wait to begin, for each instance.
        threads: Of ONNX Runtime; 0 for one a core.
        store: Folder of reference tables, as Triton's process sees it.
        trust: Public key, PEM: only a bundle signed with its private key is loaded.
        is_streaming: Decoupled: previews on the way, over gRPC streams.
        controls: ControlNets that are put beside the pair; a bundle has those that it was built
            with.

    Raises:
        ParameterError: A value is out of range.
    """

    name: str = "bootpig"
    gpus: tuple[int, ...] = ()
    instances: int = 1
    max_batch: int = 8
    max_waiting: int = 64
    threads: int = 0
    store: str | None = None
    trust: Path | None = None
    is_streaming: bool = False
    controls: tuple[ControlFolder, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        if not _NAME.fullmatch(self.name):
            raise ParameterError(
                f"the model's name is {self.name!r}, expected letters, digits, '_' and '-', at "
                "most 64"
            )
        check_int("instances", self.instances, 1, 64)
        check_int("max_batch", self.max_batch, 1, 1024, "8 is usual")
        check_int("max_waiting", self.max_waiting, 1, 1 << 20, "64 is usual")
        check_int("threads", self.threads, 0, 1024)
        for gpu in self.gpus:
            check_int("gpus", gpu, 0, 255)
        if self.threads and self.gpus:
            raise ParameterError(
                f"threads are those of {OnnxRuntimeOptions.name} on a CPU, got {self.threads} "
                "together with gpus; leave one of them out"
            )


def export_repository(model: Path, folder: Path, options: TritonOptions) -> int:
    """Write a model repository.

    Args:
        model: The pair or bundle; its files are copied.
        folder: Made; it must not exist, or be empty.
        options: How it runs.

    Returns:
        Bytes of its files.

    Raises:
        CheckpointError: `model` is no pair, or a control no ControlNet.
        ParameterError: `folder` holds something already, or a control is given for a bundle, or
            lies in the pair already.
        StorageError: It cannot be written; nothing is left.
    """
    if not (model / "pair.json").is_file():
        raise CheckpointError(f"{model} is no pair: it has no pair.json; check --model", model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParameterError(f"{folder} is not empty; name a new folder")
    _check_controls(model, options.controls)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
            made = Path(work) / "repository"
            version = made / options.name / "1"
            shutil.copytree(model, version / "pair")
            for control in options.controls:
                name = f"{CONTROL_PREFIX}{control.kind}"
                shutil.copytree(control.path, version / "pair" / name)
            (version / "model.py").write_text(MODEL_PY)
            if options.trust is not None:
                shutil.copyfile(options.trust, version / "trust.pem")
            (made / options.name / "config.pbtxt").write_text(config_text(options))
            (made / "Dockerfile").write_text(_dockerfile(model, options))
            (made / "README.md").write_text(_readme(model, options))
            if folder.exists():
                folder.rmdir()
            os.replace(made, folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {describe_os_error(error)}") from error
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_controls(model: Path, controls: tuple[ControlFolder, ...]) -> None:
    """Refuse ControlNets that the pair would not be loaded with."""
    if controls and is_bundle(model):
        one = controls[0]
        raise ParameterError(
            f"control {one.kind} is given, but {model} is a bundle, whose graphs have the controls "
            f"that it was built with; build one with it: bootpig-rt build-engine --control "
            f"{one.kind}={one.path}"
        )
    all_controls(model, controls)
    for control in controls:
        if not (control.path / "config.json").is_file():
            raise CheckpointError(
                f"control {control.kind}: {control.path} is no ControlNet in diffusers' layout: it "
                "has no config.json",
                control.path,
            )


def config_text(options: TritonOptions) -> str:
    """`config.pbtxt`: Triton's own batching is left out, for the engine batches between steps."""
    parameters = {
        "model": "pair",
        "max_batch": str(options.max_batch),
        "max_waiting": str(options.max_waiting),
    }
    if options.threads:
        parameters["threads"] = str(options.threads)
    if options.store is not None:
        parameters["store"] = options.store
    if options.trust is not None:
        parameters["trust"] = "trust.pem"
    kind = "KIND_GPU" if options.gpus else "KIND_CPU"
    gpus = f", gpus: [ {', '.join(map(str, options.gpus))} ]" if options.gpus else ""
    lines = [
        f"name: {_quoted(options.name)}",
        'backend: "python"',
        "max_batch_size: 0",
        *(_tensor("input", one) for one in INPUTS),
        *(_tensor("output", one) for one in OUTPUTS),
        f"instance_group [ {{ kind: {kind}, count: {options.instances}{gpus} }} ]",
        *(
            f"parameters {{ key: {_quoted(name)}, value: {{ string_value: {_quoted(value)} }} }}"
            for name, value in parameters.items()
        ),
    ]
    if options.is_streaming:
        lines.append("model_transaction_policy { decoupled: true }")
    return "\n".join(lines) + "\n"


def _tensor(what: str, one: TritonTensor) -> str:
    optional = ", optional: true" if what == "input" and one.is_optional else ""
    dims = ", ".join(map(str, one.dims))
    return f'{what} [ {{ name: "{one.name}", data_type: {one.kind}, dims: [ {dims} ]{optional} }} ]'


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _extra(model: Path, options: TritonOptions) -> str:
    """What the package is installed with: a pair without graphs is drawn by torch."""
    if not is_bundle(model):
        return "torch"
    return "gpu" if options.gpus else "cpu"


def _dockerfile(model: Path, options: TritonOptions) -> str:
    return DOCKERFILE.format(
        name=options.name,
        gpus="--gpus all " if options.gpus else "",
        extra=_extra(model, options),
        version=__version__,
    )


def _readme(model: Path, options: TritonOptions) -> str:
    example = STREAM_EXAMPLE if options.is_streaming else EXAMPLE
    return README.format(
        name=options.name,
        version=__version__,
        gpus="--gpus all " if options.gpus else "",
        extra=_extra(model, options),
        client="grpc" if options.is_streaming else "http",
        example=example.replace("{name}", options.name),
        inputs="\n".join(
            f"| `{one.name}` | {one.kind[5:]} | {list(one.dims)} | "
            f"{'optional' if one.is_optional else 'required'} |"
            for one in INPUTS
        ),
        outputs="\n".join(
            f"| `{one.name}` | {one.kind[5:]} | {list(one.dims)} |" for one in OUTPUTS
        ),
        stream=STREAM if options.is_streaming else "",
    )
