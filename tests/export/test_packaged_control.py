"""A control as the package keeps it: what it adds to a pair, and that both make a bundle again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.control import ControlFolder
from bootpig_rt.bundle.shipped import GRAPHS, _fill
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export.packaged_control import build_packaged_control


@pytest.mark.slow
def test_a_control_and_its_pair_make_a_bundle_that_passed_its_gate(
    tiny_bundle_folder: Path, controlled_pair_folder: Path, tmp_path: Path
) -> None:
    control = ControlFolder("depth", controlled_pair_folder / "controlnet_depth")
    kept = tmp_path / "kept"
    build_packaged_control(tiny_bundle_folder, control, kept)
    assert not (tmp_path / ".kept.work").exists()
    with zipfile.ZipFile(kept / GRAPHS) as graphs:
        new = graphs.namelist()
    assert "control_depth.onnx" in new
    assert "controlled_step_argmax.onnx" in new
    assert "denoise_step.onnx" not in new  # it is the pair's, to the last bit

    whole = tmp_path / "whole"
    _fill(whole, tiny_bundle_folder, kept)
    bundle = open_bundle(whole)
    assert bundle.manifest.parity.status == "passed"
    assert [one.kind for one in bundle.manifest.controls] == ["depth"]


def test_what_is_no_control_or_is_there_already_is_refused(
    tiny_bundle_folder: Path, controlled_pair_folder: Path, tmp_path: Path
) -> None:
    control = ControlFolder("depth", controlled_pair_folder / "controlnet_depth")
    with pytest.raises(ParameterError, match="exists already"):
        build_packaged_control(tiny_bundle_folder, control, tmp_path)
    with pytest.raises(CheckpointError, match="expected what stage control wrote"):
        build_packaged_control(
            tiny_bundle_folder, ControlFolder("depth", tmp_path), tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()
