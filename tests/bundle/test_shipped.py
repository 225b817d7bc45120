"""The few-step pair of the package and that with a control, put together from what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import (
    _put_together,
    default_model,
    few_step_model,
    packaged_model,
    take_packaged,
)
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.images.picture import read_parameters
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.server.local import model_folders
from bootpig_rt.server.options import DEFAULT_MODEL, ServerOptions

DEPTH = PairOptions(controls="depth")


def test_the_few_step_pair_is_a_whole_bundle_that_draws_in_steps_of_one_row() -> None:
    folder = few_step_model()
    assert folder is not None
    teacher = open_bundle(default_model()).manifest.pair
    assert open_bundle(folder).manifest.pair.fingerprint != teacher.fingerprint
    with Pipeline(folder) as pipe:
        config = pipe.spec.config
        assert (config.image_guidance_scale, config.text_guidance_scale) == (1.0, 1.0)
        result = pipe.generate([Request(prompt="a photo of an owl", seed=1)])
        assert result.parameters[0].num_inference_steps == config.default_steps == 4


def test_it_has_a_name_in_python_and_on_the_command_line(root: Path, tmp_path: Path) -> None:
    owl = root / "bootpig_rt" / "assets" / "subjects" / "owl.png"
    with Pipeline(variant="fast") as pipe:
        assert pipe.spec.config.default_steps == 4
        fingerprint = pipe.spec.fingerprint
    words = ["generate", "--fast", "--reference", str(owl), "--prompt", "a photo of an owl, at sea"]
    assert main([*words, "-o", str(tmp_path / "fast.png"), "--quiet"]) == 0
    drawn = read_parameters(tmp_path / "fast.png")
    assert drawn["model_fingerprint"] == fingerprint
    assert drawn["num_inference_steps"] == 4


def test_other_pairs_and_other_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="got variant 'fast' and a model, expected one"):
        Pipeline(tmp_path, variant="fast")
    with pytest.raises(ParameterError, match="variant is 'quick', expected one of: full, fast"):
        Pipeline(variant="quick")  # type: ignore[arg-type]


def test_a_missing_student_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    _put_together.cache_clear()
    with pytest.raises(CheckpointError, match="no student inside the package"):
        packaged_model("fast")
    with pytest.raises(CheckpointError, match="no control of kind depth inside the package"):
        packaged_model("full", ("depth",))
    _put_together.cache_clear()


def test_it_is_put_together_once() -> None:
    assert few_step_model() is few_step_model()


def test_a_missing_shipped_pair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="no pair inside the package"):
        default_model()


def depth_map(side_px: int, *, is_left: bool) -> np.ndarray:
    """Ground that comes nearer, and a card that stands on it at one side."""
    rows = np.linspace(0, 120, side_px).astype(np.uint8)
    depth = np.repeat(rows[:, None], side_px, axis=1)
    begin = side_px // 8 if is_left else side_px // 2
    depth[side_px // 4 : 7 * side_px // 8, begin : begin + 3 * side_px // 8] = 230
    return depth


def test_the_package_has_a_control_for_depth_whose_maps_move_what_is_drawn(root: Path) -> None:
    owl = root / "bootpig_rt" / "assets" / "subjects" / "owl.png"
    prompt = "a photo of an owl, in the middle of a sandy beach"
    engine = "onnxruntime"  # with any, a machine may take two for two bundles
    with Pipeline(pair=DEPTH, backend=engine) as pipe, Pipeline(backend=engine) as plain:
        assert [control.kind for control in pipe.spec.controls] == ["depth"]
        side_px = pipe.spec.config.sample_size_px
        maps = [depth_map(side_px, is_left=is_left) for is_left in (True, False)]
        call: dict[str, Any] = {"reference_images": owl, "reference_prompt": "a photo of an owl"}
        call["num_inference_steps"] = 6
        left, right = (
            np.asarray(pipe(prompt, control_image={"depth": one}, seed=3, **call).images[0], int)
            for one in maps
        )
        own, alone = (np.asarray(one(prompt, seed=3, **call).images[0]) for one in (pipe, plain))
    assert np.abs(left - right).mean() > 5
    assert np.array_equal(own, alone)  # without a map it is the pair itself, to the last bit


def test_controls_of_the_package_are_named_by_their_kind_alone() -> None:
    assert take_packaged("depth") == (("depth",), [])
    assert take_packaged(["canny=maps", "depth"]) == (("depth",), ["canny=maps"])
    assert take_packaged({"depth": "maps"}) == ((), {"depth": "maps"})
    assert take_packaged(None) == ((), None)
    assert packaged_model("full", ("depth",)) == packaged_model("full", ("depth",))
    with pytest.raises(ParameterError, match="got variant 'fast' and control depth"):
        Pipeline(variant="fast", pair=DEPTH)


def test_a_kind_alone_names_no_control_of_another_pair(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="a kind alone is a control of the pair inside"):
        Pipeline(tmp_path, pair=DEPTH)


def test_damaged_graphs_of_the_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("pair", "control_depth"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "manifest.json").write_text("{}")
    content = (default_model().parent / "control_depth" / "graphs.zip").read_bytes()
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    _put_together.cache_clear()
    changed = content[:500] + b"x" * 99 + content[599:]
    for damaged in (b"no archive", content[:1000], changed):
        (tmp_path / "control_depth" / "graphs.zip").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"graphs\.zip of the package is damaged"):
            packaged_model("full", ("depth",))
    _put_together.cache_clear()


def test_commands_and_the_server_take_the_kind_alone(root: Path, tmp_path: Path) -> None:
    side_px = read_pair_config(default_model() / "pair.json").sample_size_px
    Image.fromarray(depth_map(side_px, is_left=True)).save(tmp_path / "depth.png")
    words = ["generate", "--control", "depth", "--control-image", f"depth={tmp_path}/depth.png"]
    words += ["--prompt", "a photo of an owl, in the middle of a sandy beach", "--steps", "2"]
    words += ["--reference", str(root / "bootpig_rt" / "assets" / "subjects" / "owl.png")]
    assert main([*words, "-o", str(tmp_path / "there.png"), "--quiet"]) == 0
    drawn = read_parameters(tmp_path / "there.png")
    assert [control["kind"] for control in drawn["controls"]] == ["depth"]
    folders = model_folders(ServerOptions(control=("depth",)))
    assert folders[DEFAULT_MODEL] == packaged_model("full", ("depth",))
