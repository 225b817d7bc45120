"""Graphs of controls: what a build asks for, sizes for TensorRT, and that they are today's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import structs

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.bundle_spec import residual_shapes
from bootpig_rt.bundle.control import ControlFolder
from bootpig_rt.bundle.manifest import Profile
from bootpig_rt.errors import BackendUnavailable, BundleError, ParameterError
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import BuildOptions, graph_names
from bootpig_rt.export.control_graphs import build_control_graph
from bootpig_rt.export.onnx_export import export_graph
from bootpig_rt.export.parity import make_plan, record
from bootpig_rt.export.stage_pair import check_in_place, link_pair, pair_files
from bootpig_rt.export.tensorrt_profiles import input_ranges, pair_shape
from bootpig_rt.models.load import Pair, load_pair

PROFILE = Profile((32, 32, 64), 2, 2, 4)
GRAPHS = (
    "control_map_depth",
    "control_depth",
    "control_map_outline",
    "control_outline",
    "controlled_step",
    "controlled_step_argmax",
)


@pytest.fixture(scope="module")
def pair(controlled_pair_folder: Path) -> Pair:
    """The tiny pair with its controls."""
    return load_pair(controlled_pair_folder)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "control_map_depth"))
        for name in GRAPHS
    ],
)
def test_a_committed_graph_is_what_the_exporter_writes(
    name: str, controlled_pair_folder: Path, root: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(controlled_pair_folder, tmp_path / "pair")
    made = export_graph(name, load_pair(folder), folder, dialect="cpu")
    committed = root / "tests" / "data" / "controls" / made.name
    assert made.read_bytes() == committed.read_bytes(), f"cp {made} {committed}"


def test_maps_of_another_kind_have_the_same_graph_with_other_weights(
    controlled_bundle_folder: Path,
) -> None:
    depth, outline = (
        str(
            onnx.load(
                controlled_bundle_folder / f"control_map_{kind}.onnx", load_external_data=False
            )
        )
        for kind in ("depth", "outline")
    )
    assert outline != depth
    assert outline == depth.replace("depth", "outline")


def test_a_build_has_graphs_of_each_control_and_a_step_for_each_merge() -> None:
    options = BuildOptions(
        target="cpu",
        precision="float32",
        profile=PROFILE,
        merges=("mean",),
        controls=("canny", "depth"),
    )
    plain = graph_names(replace(options, controls=()))
    names = graph_names(options)
    assert tuple(name for name in names if name in plain) == plain
    assert set(names) - set(plain) == {
        "controlled_step",
        "controlled_step_mean",
        *(f"control_{part}{kind}" for part in ("", "map_") for kind in ("canny", "depth")),
    }


def test_residuals_are_as_large_as_the_skips_that_they_are_added_to(
    pair: Pair, controlled_pair_folder: Path
) -> None:
    net = pair.controls[0].net
    unet = json.loads((controlled_pair_folder / "base_unet" / "config.json").read_text())
    shapes = residual_shapes(unet, 16, 8)
    assert [(c, h, w) for c, h, w in shapes] == [
        (channels, 16 >> level, 8 >> level) for channels, level in net.residual_shapes()
    ]


def test_engines_take_all_that_a_batch_of_controls_may_have(
    pair: Pair, controlled_pair_folder: Path
) -> None:
    shape = pair_shape(controlled_pair_folder)
    for name in GRAPHS:
        graph = build_control_graph(name, pair)
        open_axes = {
            key: [-1 if n in graph.axes.get(key, {}) else size for n, size in enumerate(t.shape)]
            for key, t in graph.inputs.items()
        }
        ranges = input_ranges(name, open_axes, profile=PROFILE, shape=shape)
        assert set(ranges) == set(graph.inputs)
    residual = input_ranges("control_depth", {"given_3": (-1, 32, -1, -1)}, profile=PROFILE,
                            shape=shape)["given_3"]  # fmt: skip
    assert residual.least == (1, 32, 4, 4)
    assert residual.most == (6, 32, 8, 8)
    step = input_ranges("controlled_step", {"residual_0": (-1, 16, -1, -1)}, profile=PROFILE,
                        shape=shape)["residual_0"]  # fmt: skip
    assert step.most == (6, 16, 16, 16)


def test_a_graph_of_a_control_that_the_pair_lacks_is_refused(
    pair: Pair, tiny_pair_folder: Path
) -> None:
    with pytest.raises(ParameterError, match="controls of kind depth, outline"):
        build_control_graph("control_pose", pair)
    with pytest.raises(ParameterError, match="the pair has no controls"):
        build_control_graph("controlled_step", load_pair(tiny_pair_folder))


def test_a_control_from_elsewhere_is_linked_beside_the_pair(
    controlled_pair_folder: Path, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    given = ControlFolder("canny", controlled_pair_folder / "controlnet_depth")
    files = pair_files(tiny_pair_folder)
    assert files is not None
    link_pair(tiny_pair_folder, files, tmp_path / "graphs", (given,))
    staged = load_pair(tmp_path / "graphs").controls
    assert [one.kind for one in staged] == ["canny"]
    assert "controlnet_depth/config.json" in (pair_files(controlled_pair_folder) or [])
    with pytest.raises(ParameterError, match="in its own place with --control: copy"):
        check_in_place(tiny_pair_folder, files, (given,))


def test_the_gate_compares_pictures_that_follow_maps(
    controlled_pair_folder: Path, controlled_bundle_folder: Path
) -> None:
    torch_backend = create_backend("torch", controlled_pair_folder, device="cpu")
    plan = make_plan(
        torch_backend, profile=PROFILE, merges=("argmax",), steps=2, takes_controls=True
    )
    cases = tuple(case for case in plan.cases if case.has_maps)
    assert [case.name for case in cases] == [
        "controlled_one_reference",
        "controlled_two_references_argmax",
    ]
    plan = replace(plan, cases=cases[:1])
    wanted = record(torch_backend, plan)
    got = record(create_backend("onnxruntime", controlled_bundle_folder, device="cpu"), plan)
    for name in ("controlled_one_reference.first_step", "controlled_one_reference.latents"):
        for ours, theirs in zip(got[name], wanted[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    plain = replace(plan, cases=(replace(cases[0], has_maps=False),))
    free = record(torch_backend, plain)
    name = "controlled_one_reference.latents"
    assert np.abs(free[name][0] - wanted[name][0]).max() > 1e-2


def test_a_bundle_says_which_controls_it_has(controlled_bundle_folder: Path) -> None:
    from bootpig_rt.bundle.bundle import open_bundle

    bundle = open_bundle(controlled_bundle_folder)
    assert [control.kind for control in bundle.manifest.controls] == ["depth", "outline"]
    text = bundle.manifest.to_json()
    assert "controls" not in json.loads(structs.replace(bundle.manifest, controls=()).to_json())
    assert json.loads(text)["controls"][0]["kind"] == "depth"


@pytest.mark.slow
def test_a_bundle_is_built_with_a_control(
    shallow_pair_folder: Path, tmp_path: Path, write_controls: Any
) -> None:
    control = write_controls(shallow_pair_folder, tmp_path / "controls")
    options = BuildOptions(
        target="cpu", precision="float32", profile=Profile((16, 32, 32), 2, 1, 2), merges=()
    )
    folders = (ControlFolder("canny", control),)
    built = build_engine(shallow_pair_folder, tmp_path / "out", options, controls=folders)
    names = [result.name for result in built.bundle.manifest.parity.results]
    assert "controlled_one_reference.latents" in names
    assert built.bundle.manifest.parity.status == "passed"
    try:
        backend = create_backend("openvino", tmp_path / "out", device="cpu")
    except (BackendUnavailable, BundleError):
        return
    assert [one.kind for one in backend.spec.controls] == ["canny"]
