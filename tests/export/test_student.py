"""A student's bundle from its teacher's graphs, and the tool that puts both into the package."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from safetensors.numpy import load_file, save_file

from bootpig_rt.bundle.bundle import open_bundle, read_manifest, write_manifest
from bootpig_rt.bundle.manifest import ParityReport, Profile
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import _put_together, few_step_model
from bootpig_rt.curve import Curve, CurvePoint, Measure, save_curve
from bootpig_rt.errors import CheckpointError, ParameterError, StorageError
from bootpig_rt.export import student
from bootpig_rt.export.gate import GateRun
from bootpig_rt.export.student import WEIGHTS, build_student, difference_of


def keep_few_merges(bundle: Path) -> None:
    """Have a bundle of the tiny pair offer one merge: a gate compares all that it offers."""
    few = structs.replace(
        read_manifest(bundle), merges=("argmax",), profile=Profile((16, 32, 32), 2, 2, 50)
    )
    write_manifest(bundle, few)


def write_student(pair: Path, folder: Path) -> Path:
    """What stage `distill` leaves: the pair with other weights in its Base U-Net."""
    shutil.copytree(pair, folder)
    rng = np.random.default_rng(0)
    # Norms stay: in an untrained pair they are all the same, and graphs hold equal tensors once.
    changed = {
        name: (tensor * rng.normal(1, 0.05 * (tensor.ndim > 1), tensor.shape)).astype(tensor.dtype)
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
    config = replace(
        read_pair_config(folder / "pair.json"),
        name="distill",
        default_steps=4,
        image_guidance_scale=1.0,
        text_guidance_scale=1.0,
    )
    (folder / "pair.json").write_text(config.to_json())
    return folder


@pytest.fixture(scope="module")
def student_folder(tiny_pair_folder: Path, share: Any) -> Path:
    folder: Path = share(
        "student", lambda folder: write_student(tiny_pair_folder, folder / "result")
    )
    return folder / "result"


@pytest.fixture(scope="module")
def teacher_folder(tiny_bundle_folder: Path, share: Any) -> Path:
    def fill(folder: Path) -> None:
        shutil.copytree(tiny_bundle_folder, folder, dirs_exist_ok=True)
        keep_few_merges(folder)

    folder: Path = share("teacher", fill)
    return folder


def test_a_students_bundle_has_its_teachers_graphs_and_its_own_weights(
    teacher_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    made = build_student(
        teacher_folder, student_folder, tmp_path / "whole", settings={"name": "tiny-turbo"}
    )
    teacher = open_bundle(teacher_folder).manifest
    assert made.manifest.graphs == teacher.graphs
    assert made.manifest.parity.status == "passed"
    assert made.manifest.pair.name == "tiny-turbo"
    assert made.manifest.pair.fingerprint != teacher.pair.fingerprint
    assert made.manifest.solver.steps == 4
    wanted, found = (load_file(folder / WEIGHTS) for folder in (student_folder, made.folder))
    for name, tensor in wanted.items():
        assert np.abs(found[name] - tensor).max() <= 0.2 * np.abs(tensor).max() / 127, name
    sizes = (difference_of(made.folder).stat().st_size, (made.folder / WEIGHTS).stat().st_size)
    assert sizes[0] < 0.35 * sizes[1]  # a byte for each number of four


def test_a_student_of_another_pair_is_refused(
    tiny_bundle_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(student_folder, tmp_path / "student")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(CheckpointError, match="scheduler_config.json is not as in"):
        build_student(tiny_bundle_folder, other, tmp_path / "whole", settings={})
    assert not (tmp_path / "whole").exists()


def test_a_bundle_is_no_student_and_an_output_is_not_written_over(
    tiny_bundle_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is a bundle, expected what stage distill wrote"):
        build_student(tiny_bundle_folder, tiny_bundle_folder, tmp_path / "whole", settings={})
    with pytest.raises(ParameterError, match="exists already"):
        build_student(tiny_bundle_folder, student_folder, tmp_path, settings={})


@pytest.fixture
def tool(root: Path, tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tests/tools/ship.py`, whose graphs are those of the tiny bundle."""
    spec = importlib.util.spec_from_file_location("ship", root / "tests" / "tools" / "ship.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ship", module)  # which its dataclass looks into
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graphs_of_tiny(tool: Any, monkeypatch: pytest.MonkeyPatch, write_tiny_manifest: Any) -> None:
    """Takes the tiny graphs in place of exporting them."""
    tiny = Path(__file__).parents[1] / "data" / "tiny"

    def build(source: Path, output: Path) -> None:
        shutil.copytree(source, output)
        for graph in tiny.glob("*.onnx"):
            shutil.copy(graph, output)
        write_tiny_manifest(output)
        keep_few_merges(output)

    monkeypatch.setattr(tool, "_build", build)


RECORD = {
    "format": 1,
    "config": {
        "stage": "pair", "steps": 7, "batch_size": 2, "accumulate": 1, "seed": 3,
        "mixed_precision": "no", "output": "/somewhere/runs/pair",
    },
    "data": {
        "folder": "/somewhere/train", "samples": 60000,
        "settings": {
            "world": {
                "drawing_share": 0.5, "reference_length": 0.64,
                "scenes": {"drawn": 3.0, "ground": 1.0, "panorama": 0.0},
            },
            "subjects": {"models": 1720, "drawings": 2000},
        },
    },
    "start": None,
}  # fmt: skip


@pytest.fixture
def order(tool: Any, tiny_pair_folder: Path, student_folder: Path, tmp_path: Path) -> Any:
    """Two runs, and a package with another pair and its curve."""
    assets, runs = tmp_path / "assets", tmp_path / "runs"
    for stage, result in (("pair", tiny_pair_folder), ("distill", student_folder)):
        shutil.copytree(result, runs / stage / "result")
        (runs / stage / "log.jsonl").write_text('{"step": 1}\n')
        (runs / stage / "config.json").write_text(json.dumps(RECORD["config"]))
        (runs / stage / "result" / "provenance.json").write_text(json.dumps(RECORD))
    for name in ("pair", "student"):
        (assets / name).mkdir(parents=True)
        (assets / name / "old").touch()
    point = CurvePoint(
        "full", "full", "ef", "old", {}, 1.0, Measure(1.0, 1.0, 1.0), {}, {}, 200.0, 1.0
    )
    save_curve(Curve("old", "ef", "full", 5, 10, {}, "", (point,)), assets / "pair.curve.json")
    return tool.Order(
        runs / "pair" / "result",
        runs / "distill" / "result",
        name="mine",
        assets=assets,
        logs=tmp_path / "logs",
        settings={"image_guidance_scale": 2.5},
    )


@pytest.mark.usefixtures("graphs_of_tiny")
def test_a_pair_and_its_student_take_the_place_of_those_in_the_package(
    tool: Any, order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(tool.ship(order))
    assert "together" in lines
    assert "pair.curve.json was of another pair and is gone" in lines
    assert sorted(path.name for path in order.assets.iterdir()) == ["pair", "student"]
    files = {path.name for path in (order.assets / "student").rglob("*") if path.is_file()}
    assert files == {
        "pair.json",
        "manifest.json",
        "diffusion_pytorch_model.difference.safetensors",
    }
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", order.assets)
    _put_together.cache_clear()
    try:
        whole = few_step_model()
        assert whole is not None
        pair, student = (open_bundle(f).manifest for f in (order.assets / "pair", whole))
    finally:
        _put_together.cache_clear()
    assert (pair.pair.name, student.pair.name) == ("mine", "mine-turbo")
    assert student.parity.status == "passed"
    shares = {
        read_pair_config(f / "pair.json").subject_share for f in (order.assets / "pair", whole)
    }
    assert shares == {0.64}  # which the samples say
    text = (order.assets / "pair" / "README.md").read_text()
    assert "$" not in text
    assert "1720 openly" in text
    assert "No photographs." in text
    assert "Poly Haven" not in text
    assert "75% drawn, 25% rendered grounds." in text
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    assert logs == {
        *(f"{stage}{end}" for stage in ("pair", "student") for end in (".jsonl", "_config.json")),
        "provenance.json",
    }
    assert "/somewhere" not in "".join(p.read_text() for p in (tmp_path / "logs").iterdir())
    told = json.loads((tmp_path / "logs" / "provenance.json").read_text())
    assert told["shipped"] == {
        "fingerprint": pair.pair.fingerprint,
        "set_by_hand": {"name": "mine", "subject_share": 0.64, "image_guidance_scale": 2.5},
    }


@pytest.mark.usefixtures("graphs_of_tiny")
def test_a_pair_that_is_too_large_changes_nothing(
    tool: Any, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_through(*_: Any, **__: Any) -> GateRun:
        return GateRun(ParityReport("passed"), {})

    for side in ("record_reference", "compare_backend"):
        monkeypatch.setattr(student, side, let_through)
    with pytest.raises(StorageError, match="expected at most 0.5; train smaller ones"):
        tool.ship(replace(order, most_mb=0.5))
    assert (order.assets / "pair" / "old").is_file()
    assert (order.assets / "pair.curve.json").is_file()


def test_what_is_no_result_of_a_stage_is_refused(tool: Any, order: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not what a stage of training wrote"):
        tool.ship(replace(order, student=tmp_path))
    assert (order.assets / "student" / "old").is_file()
