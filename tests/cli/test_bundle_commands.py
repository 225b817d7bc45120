"""`build-engine`, `verify`, `inspect` and `doctor` as a user meets them.

They run on the bundle inside the package; a checkout whose pair was not built yet skips those.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from bootpig_rt.backends.host_table import table_bytes
from bootpig_rt.bundle.bundle import is_bundle, list_files, open_bundle, write_manifest
from bootpig_rt.bundle.manifest import TARGETS
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.cli import build_engine as build_engine_command
from bootpig_rt.cli.main import main
from bootpig_rt.pipeline import Pipeline


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle."""
    if not is_bundle(default_model()):
        pytest.skip("the pair inside the package was not built")
    return shutil.copytree(default_model(), tmp_path / "bundle")


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must end in exit code 2 and one line."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# build-engine


def test_a_dry_run_says_what_would_be_built_and_builds_nothing(
    tiny_pair_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build-engine", "--pair", str(tiny_pair_folder), "-o", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ("tiny", "denoise_step_argmax", "disk", "memory", "table", "nothing was built"):
        assert part in text
    values = run_json(capsys, *words, "--dry-run", "--target", "sm_89", "--max-references", "1")
    assert values["graphs"][-2:] == ["shallow_step", "vae_decoder"]
    assert values["options"]["precision"] == "float16"
    assert values["estimate"]["largest"]["total_bytes"] > values["estimate"]["usual"]["table_bytes"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_another_schedule_and_type_of_table_take(
    tiny_pair_folder: Path, pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build-engine", "--pair", str(tiny_pair_folder), "-o", "out"]
    shown = [*words, "--dry-run", "--table-dtype", "int8", "--reference-schedule"]
    clean, exact = (
        run_json(capsys, *shown, schedule)["estimate"] for schedule in ("clean", "exact")
    )
    assert (clean["reference_schedule"], clean["table_dtype"]) == ("clean", "int8")
    assert (clean["table_entries"], exact["table_entries"]) == (1, 2)
    expected = table_bytes(
        pipeline.spec.reference_shapes, num_entries=1, num_references=1, dtype="int8"
    )
    assert clean["usual"]["table_bytes"] == expected
    assert exact["usual"]["table_bytes"] == 2 * expected
    assert "4 x heads, the scales" in run_json(capsys, *shown, "clean")["formula"]
    engine = run_json(capsys, *shown, "clean", "--target", "sm_89")["estimate"]
    assert engine["table_dtype"] == "float16"  # as engines read it, however it is kept
    assert "expected exact, clean" in fails(capsys, *shown, "none")
    assert "expected them with --dry-run" in fails(capsys, *words, "--table-dtype", "int8")


def test_a_dry_run_reads_the_published_layout(
    published_layout_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(published_layout_folder.parent / "base_model")
    words = ["build-engine", "--pair", str(published_layout_folder), "-o", "out", "--dry-run"]
    values = run_json(capsys, *words, "--base-model", base)
    assert values["options"]["profile"]["resolution_px"][1] == 32
    assert "give --base-model" in fails(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm_90"], "target is 'sm_90', expected one of: cpu, openvino, cuda, sm_75"),
        (
            ["--target", "openvino", "--precision", "float16"],
            "for target openvino, expected float32",
        ),
        (["--resolution", "33"], "multiples of 8"),
        (["--merge", "max"], "merge is 'max'"),
        (["--precision", "int8"], "precision is 'int8'"),
        (["--max-batch", "many"], "invalid int value: 'many'"),
        (["--sign", "none.pem"], "cannot read the private key none.pem"),
        (["--pair", "nowhere"], "pair nowhere is no folder"),
    ],
)
def test_a_bad_order_is_one_line_and_exit_code_2(
    tiny_pair_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    pytest.importorskip("cryptography")
    order = ["build-engine", "--pair", str(tiny_pair_folder), "-o", str(tmp_path / "out"), *words]
    assert message in fails(capsys, *order)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_output_that_a_build_would(
    tiny_pair_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    words = ["build-engine", "--pair", str(tiny_pair_folder), "--dry-run", "-o"]
    assert "is no bundle; choose another -o" in fails(capsys, *words, str(tmp_path / "out"))
    assert main([*words, str(tmp_path / "none" / "out")]) == 1
    assert "make it" in capsys.readouterr().err


def test_a_latent_size_that_is_no_number_is_named(
    published_layout_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = shutil.copytree(published_layout_folder, tmp_path / "pair")
    path = pair / "base_unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": [64, 96]}))
    words = ["build-engine", "--pair", str(pair), "-o", str(tmp_path / "out"), "--dry-run"]
    message = fails(
        capsys, *words, "--base-model", str(published_layout_folder.parent / "base_model")
    )
    assert "sample_size is [64, 96], expected a whole number" in message


def test_progress_shows_a_line_for_each_part_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with build_engine_command.build_progress(is_shown=True) as progress:
        assert progress is not None
        for what in ("exporting vae_decoder", "building vae_decoder", "building vae_decoder: a: b"):
            progress(what, 0.25)
    assert capsys.readouterr().err.splitlines() == [
        " 25% exporting vae_decoder",
        " 25% building vae_decoder",
    ]
    for words in ({"is_shown": False}, {"is_shown": True, "has_lines": False}):
        with build_engine_command.build_progress(**words) as progress:
            assert progress is None


def test_progress_shows_the_part_and_the_time_left_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with build_engine_command.build_progress(is_shown=True) as progress:
        assert progress is not None
        progress("exporting denoise_step", 0.25)
        progress("exporting vae_decoder", 0.5)
    text = capsys.readouterr().err
    assert "exporting denoise_step" in text
    assert "50%" in text


# inspect and verify


def test_inspect_shows_graphs_sizes_and_parity(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle), "--tensors", "--layers"]) == 0
    text = capsys.readouterr().out
    manifest = open_bundle(bundle).manifest
    for part in (manifest.pair.name, manifest.target, "prompt_embeds", "    Attention "):
        assert part in text
    assert all(graph.file in text for graph in manifest.graphs)
    assert f"parity with torch: {manifest.parity.status}" in text
    assert run_json(capsys, "inspect", str(bundle))["pair"]["fingerprint"] in repr(manifest)


def test_inspect_says_what_became_of_the_attentions_of_engines(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engines of text: nothing of them is loaded."""
    manifest = open_bundle(bundle).manifest
    graph = next(graph for graph in manifest.graphs if graph.name == "vae_decoder")
    layers = {
        "num_layers": 9,
        "fused_attentions": 1,
        "unfused_attentions": 0,
        "float32_layers": ["a", "b"],
        "score_types": ["fp32"],
    }
    (bundle / "vae_decoder.engine").write_text("plan")
    report = {"target": "sm_89", "layers": layers}
    (bundle / "vae_decoder.layers.json").write_text(json.dumps(report))
    files = list_files(bundle)
    engine = next(file for file in files if file.path == "vae_decoder.engine")
    changed = replace(
        graph, file=engine.path, sha256=engine.sha256, size_bytes=engine.size_bytes, num_nodes=9
    )
    write_manifest(bundle, replace(manifest, graphs=(changed,), files=files))
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "1 attentions fused, scores summed in fp32, 2 products in float32" in text


def test_inspect_and_verify_refuse_a_damaged_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = bundle / "denoise_step.onnx"
    data = bytearray(graph.read_bytes())
    data[1000] ^= 1
    graph.write_bytes(bytes(data))
    for command in ("inspect", "verify"):
        assert "denoise_step.onnx is damaged" in fails(capsys, command, str(bundle))


def test_a_folder_without_a_manifest_is_said_to_be_unfinished(
    tiny_pair_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "this is no finished bundle" in fails(capsys, "verify", str(tiny_pair_folder))


def test_verify_checks_files_alone_when_asked(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = run_json(capsys, "verify", str(bundle), "--files-only")
    assert values["files"] == len(open_bundle(bundle).manifest.files)


@pytest.mark.slow
def test_verify_runs_the_gate_and_records_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    words = ["verify", str(bundle), "--steps", "1", "--record", "--report", str(report)]
    values = run_json(capsys, *words)
    assert values["status"] == "passed"
    assert (report / "report.json").is_file()
    recorded = open_bundle(bundle).manifest.parity
    assert [result.name for result in recorded.results] == [r["name"] for r in values["results"]]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bundle_for_cpus_is_compared_in_openvino_as_well(
    bundle: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    ov = pytest.importorskip("openvino")
    if precision == "bfloat16":
        if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("no bfloat16 on this processor")
    words = ["verify", str(bundle), "--backend", "openvino", "--precision", precision]
    own = open_bundle(bundle).manifest.parity
    if precision == "float32":
        message = fails(capsys, *words, "--record")
        assert "expected the backend that the bundle was built for" in message
        assert run_json(capsys, *words)["status"] == "passed"
        return
    values = run_json(capsys, *words, "--record")
    assert (values["status"], values["backend"]) == ("passed", "openvino")
    assert values["reason"] == "in float32: reference_kv"
    manifest = open_bundle(bundle).manifest
    (variant,) = manifest.variants
    assert (manifest.parity, variant.parity.status) == (own, "passed")
    assert main(["inspect", str(bundle)]) == 0
    assert "in bfloat16:\nparity with torch: passed (openvino on cpu)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "bfloat16"], "expected float32 for onnxruntime"),
        (["--backend", "openvino", "--precision", "int8"], "expected float32 or bfloat16 for open"),
        (["--backend", "tensorrt"], "built for cpu, expected onnxruntime or openvino"),
    ],
)
def test_verify_refuses_what_does_not_run_the_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in fails(capsys, "verify", str(bundle), *words)


def test_verify_refuses_another_pair(
    bundle: Path, tiny_pair_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "verify", str(bundle), "--pair", str(tiny_pair_folder), "--quiet")
    assert "was built from pair" in message


def test_verify_on_the_wrong_machine_says_where_to_run_it(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = open_bundle(bundle).manifest
    runtime = replace(
        manifest.runtime, name="tensorrt_rtx", minimum_version=None, architecture="sm_75"
    )
    write_manifest(bundle, replace(manifest, target="sm_75", runtime=runtime))
    message = fails(capsys, "verify", str(bundle))
    assert "is for sm_75, and this machine lacks" in message
    assert "--files-only" in message


def test_a_key_to_sign_with_needs_something_to_record(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "without --record" in fails(capsys, "verify", str(bundle), "--sign", "key.pem")


# doctor


def test_doctor_says_what_can_be_built_and_run(capsys: pytest.CaptureFixture[str]) -> None:
    values = run_json(capsys, "doctor")
    assert [target["target"] for target in values["targets"]] == list(TARGETS)
    assert values["backends"]["torch"] is True
    for target in values["targets"]:
        assert target["can_build"] == (not target["missing_to_build"])
        assert target["can_run"] == (not target["missing_to_run"])
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(target in text for target in TARGETS)
    assert "packages" in text


def test_doctor_tells_what_openvino_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootpig_rt.export import targets

    monkeypatch.setattr(targets, "is_installed", lambda package: package != "openvino")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"openvino +no +no +openvino; pip install 'bootpig-rt\[export,openvino\]'", text
    )


def test_doctor_names_the_command_that_installs_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootpig_rt.export import targets

    monkeypatch.setattr(targets, "is_installed", lambda _package: False)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "pip install 'bootpig-rt[export,cpu]'" in text
    assert re.search(r"cpu +no +no ", text)


# Several pipelines on one bundle


def test_pipelines_on_one_bundle_draw_at_the_same_time_what_each_draws_alone(bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    pipelines = [Pipeline(bundle, backend="onnxruntime", device="cpu") for _ in range(2)]
    pictures: dict[int, Any] = {}

    def draw(index: int) -> None:
        result = pipelines[index % 2](
            "a photo of a dog",
            subject=None,
            reference_images=np.full((64, 64, 4), 200, dtype=np.uint8),
            num_inference_steps=2,
            seed=index // 2,
        )
        pictures[index] = np.asarray(result.images[0])

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pictures) == [0, 1, 2, 3]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[2] == pictures[3]).all()
    assert (pictures[0] != pictures[2]).any()
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before
    assert os.path.exists(bundle / "manifest.json")
