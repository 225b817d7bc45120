"""The bundle of a student, from that of its teacher: the same graphs with other weights.

Stage `distill` trains the Base U-Net alone, so nothing has to be exported again. What the student
adds to its teacher's weights is rounded to eight bits, as the package keeps it, and the bundle is
of the rounded weights: compared with torch, and listed in a manifest of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from bootpig_rt.bundle.bundle import (
    Bundle,
    Manifest,
    ParityReport,
    is_bundle,
    open_bundle,
    write_manifest,
)
from bootpig_rt.bundle.difference import SUFFIX, apply_difference, write_difference
from bootpig_rt.bundle.files import MANIFEST, SIGNATURE, measure
from bootpig_rt.bundle.model_index import FILE as INDEX_FILE
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import BASE_WEIGHTS
from bootpig_rt.errors import CheckpointError, ParameterError, ParityError
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.describe import describe_graphs
from bootpig_rt.export.gate import compare_backend, describe_worst, place_of, record_reference

WEIGHTS = BASE_WEIGHTS
"""All of a student's weights that are its own."""
DIFFERENCE = WEIGHTS.removesuffix(".safetensors") + SUFFIX

_SETTINGS = (INDEX_FILE, "README.md", "provenance.json", "card.json")
"""Of a trained pair, beside `pair.json`: they may say what they like."""


def build_student(
    teacher: Path, student: Path, output: Path, *, settings: Mapping[str, Any]
) -> Bundle:
    """Make the bundle of a student, and beside its weights the difference from its teacher's.

    Args:
        teacher: A bundle for a CPU, its weights in float16.
        student: What stage `distill` wrote, started from the pair of that bundle.
        output: The folder to make, whole; the difference lies beside it, `NAME.difference...`, see
            `difference_of`.
        settings: What its `pair.json` says otherwise than that of `student`, such as `name`.

    Raises:
        CheckpointError: The student is of another pair, or a folder cannot be used.
        ParameterError: The output exists, or the teacher is a bundle for something else.
        ParityError: The graphs with the student's weights differ from torch.
        StorageError: The output cannot be written.
    """
    manifest = open_bundle(teacher).manifest
    if manifest.target != "cpu":
        raise ParameterError(f"{teacher} is for {manifest.target}, expected a bundle for cpu")
    if output.exists():
        raise ParameterError(f"{output} exists already; choose another folder, or delete it")
    _check_student(teacher, student)
    shutil.copytree(teacher, output, ignore=shutil.ignore_patterns(".*", MANIFEST, SIGNATURE))
    write_difference(teacher / WEIGHTS, student / WEIGHTS, difference_of(output))
    apply_difference(teacher / WEIGHTS, difference_of(output), output / WEIGHTS)
    config = replace(read_pair_config(student / "pair.json"), **settings)
    (output / "pair.json").write_text(config.to_json(), encoding="utf-8")
    write_manifest(output, _compared(output, manifest))
    return open_bundle(output)


def difference_of(output: Path) -> Path:
    """Where `build_student` leaves the difference of the weights."""
    return output.with_name(f"{output.name}{SUFFIX}")


def _check_student(teacher: Path, student: Path) -> None:
    """Refuse a student that differs from its teacher in more than the Base U-Net's weights."""
    if is_bundle(student):
        raise CheckpointError(f"{student} is a bundle, expected what stage distill wrote", student)
    for path in sorted(student.rglob("*")):
        file = path.relative_to(student).as_posix()
        if not path.is_file() or file in (WEIGHTS, "pair.json", *_SETTINGS):
            continue
        own = teacher / file
        if not own.is_file() or measure(own)[1] != measure(path)[1]:
            raise CheckpointError(
                f"{path} is not as in {teacher}, expected a student that stage distill started "
                "from that pair: all but its Base U-Net is its teacher's",
                path,
            )


def _compared(folder: Path, teacher: Manifest) -> Manifest:
    """The manifest of a student, once its graphs are as near to torch as they have to be."""
    from bootpig_rt.backends.torch.backend import TorchBackend
    from bootpig_rt.models.load import load_pair

    pair = load_pair(folder)
    options = BuildOptions(
        target=teacher.target,
        precision=teacher.precision,
        profile=teacher.profile,
        merges=teacher.merges,
    )
    parity = ParityReport("not run", "not compared yet")
    manifest = describe_graphs(folder, options, pair.config, pair.fingerprint, parity)
    manifest = structs.replace(manifest, controls=teacher.controls)
    write_manifest(folder, manifest)  # which the backend reads
    taken: dict[str, Any] = {"keeps_features": True, "takes_masks": True, "takes_controls": True}
    reference = record_reference(
        TorchBackend(pair, "cpu"), profile=teacher.profile, merges=teacher.merges, **taken
    )
    gate = compare_backend(folder, place_of(teacher.target), reference, teacher.precision)
    if gate.report.status != "passed":
        raise ParityError(
            f"the graphs of {folder} with the student's weights differ from torch: "
            f"{describe_worst(gate.report.results)}; build the student's own graphs with "
            "bootpig-rt build-engine"
        )
    return structs.replace(manifest, parity=gate.report)
