"""A control as the package keeps it: what it adds to the bundle of the pair.

The weights of a control began as some of the Base U-Net's. What training added is rounded to eight
bits, and the graphs are built from the rounded weights and compared with torch beside the pair.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from safetensors.numpy import load_file, save_file

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.control import CONTROL_PREFIX, CONTROL_WEIGHTS, ControlFolder
from bootpig_rt.bundle.difference import SUFFIX, apply_difference, write_branch
from bootpig_rt.bundle.shipped import BASE_WEIGHTS, GRAPHS
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.build_track import BuildProgress

_DIFFERENCE = CONTROL_WEIGHTS.removesuffix(".safetensors") + SUFFIX
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP file can name


def build_packaged_control(
    pair: Path, control: ControlFolder, output: Path, *, progress: BuildProgress | None = None
) -> None:
    """Make what `shipped.packaged_model` puts together with a pair again.

    Args:
        pair: A bundle for a CPU.
        control: What stage `control` trained for it, its weights in one file.
        output: The folder to make; beside it `.NAME.work`, which goes once all is done.
        progress: Told what is being built.

    Raises:
        CheckpointError: The control is of another pair, or a folder cannot be used.
        ParameterError: The output exists, or the pair is a bundle for something else.
        ParityError: The graphs differ from torch.
        StorageError: The output cannot be written.
    """
    manifest = open_bundle(pair).manifest
    if manifest.target != "cpu":
        raise ParameterError(f"{pair} is for {manifest.target}, expected a bundle for cpu")
    if output.exists():
        raise ParameterError(f"{output} exists already; choose another folder, or delete it")
    if not (control.path / CONTROL_WEIGHTS).is_file():
        raise CheckpointError(
            f"{control.path} has no {CONTROL_WEIGHTS}, expected what stage control wrote",
            control.path,
        )
    work = output.with_name(f".{output.name}.work")
    name = f"{CONTROL_PREFIX}{control.kind}"
    rounded, whole, kept = work / name, work / "whole", work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    for folder in (rounded, kept / name):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(control.path / "config.json", rounded / "config.json")
    difference = kept / name / _DIFFERENCE
    _round(pair / BASE_WEIGHTS, control.path / CONTROL_WEIGHTS, difference, work)
    apply_difference(pair / BASE_WEIGHTS, difference, rounded / CONTROL_WEIGHTS)
    options = BuildOptions(
        target=manifest.target,
        precision=manifest.precision,
        profile=manifest.profile,
        merges=manifest.merges,
    )
    build_engine(
        pair,
        whole,
        options,
        controls=(ControlFolder(control.kind, rounded),),
        overwrite=whole.exists(),
        progress=progress,
    )
    _keep_new(pair, whole, kept, known=f"{name}/{CONTROL_WEIGHTS}")
    kept.rename(output)
    shutil.rmtree(work)


def _round(base: Path, weights: Path, difference: Path, work: Path) -> None:
    """The difference of weights that training may have written in a wider type than the pair's."""
    dtype = next(iter(load_file(base).values())).dtype
    narrow = {name: tensor.astype(dtype) for name, tensor in load_file(weights).items()}
    save_file(narrow, work / CONTROL_WEIGHTS, metadata={"format": "pt"})
    write_branch(base, work / CONTROL_WEIGHTS, difference)


def _keep_new(pair: Path, whole: Path, kept: Path, *, known: str) -> None:
    """What a bundle has otherwise than the pair's: graphs packed, the rest as it is."""
    with zipfile.ZipFile(kept / GRAPHS, "w") as graphs:
        for path in sorted(path for path in whole.rglob("*") if path.is_file()):
            name = path.relative_to(whole).as_posix()
            own = pair / name
            if name == known or (own.is_file() and own.read_bytes() == path.read_bytes()):
                continue
            if path.suffix == ".onnx":
                graphs.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(),
                                zipfile.ZIP_DEFLATED, 9)  # fmt: skip
                continue
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept / name)
