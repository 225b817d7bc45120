"""The repository for Triton: whole, and saying what the model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bootpig_rt.bundle.control import ControlFolder
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError, ParameterError, StorageError
from bootpig_rt.serving.triton_repository import TritonOptions, config_text, export_repository
from bootpig_rt.serving.triton_tensors import INPUTS, OUTPUTS


def test_the_command_writes_a_repository_with_the_pair_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    assert main(["export-triton", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "Dockerfile",
        "bootpig/config.pbtxt",
        "bootpig/1/model.py",
        "bootpig/1/pair/pair.json",
    } <= files
    assert told["size_bytes"] == sum((folder / name).stat().st_size for name in files)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]  # nothing half made is left


def test_the_pair_is_copied_as_it_is(tmp_path: Path) -> None:
    export_repository(default_model(), tmp_path / "models", TritonOptions())
    copied = tmp_path / "models" / "bootpig" / "1" / "pair"
    for file in default_model().rglob("*"):
        if file.is_file():
            copy = copied / file.relative_to(default_model())
            assert copy.read_bytes() == file.read_bytes()
            assert not copy.is_symlink()


def test_the_configuration_has_every_tensor_once_with_its_type() -> None:
    text = config_text(TritonOptions())
    found = re.findall(r'^(input|output) \[ \{ name: "(\w+)", data_type: (\w+)', text, re.M)
    assert found == [("input", one.name, one.kind) for one in INPUTS] + [
        ("output", one.name, one.kind) for one in OUTPUTS
    ]
    assert 'name: "PROMPT", data_type: TYPE_STRING, dims: [ 1 ] }' in text  # required
    assert text.count("optional: true") == len(INPUTS) - 1
    assert "decoupled" not in text


def test_options_become_instances_and_parameters() -> None:
    text = config_text(
        TritonOptions(
            name="dogs",
            gpus=(0, 2),
            instances=2,
            max_batch=4,
            max_waiting=9,
            store='/data/"tables"',
            trust=Path("key.pem"),
            is_streaming=True,
        )
    )
    assert 'name: "dogs"' in text
    assert "instance_group [ { kind: KIND_GPU, count: 2, gpus: [ 0, 2 ] } ]" in text
    assert 'key: "store", value: { string_value: "/data/\\"tables\\"" }' in text
    assert 'key: "trust", value: { string_value: "trust.pem" }' in text
    assert 'key: "max_batch", value: { string_value: "4" }' in text
    assert "decoupled: true" in text


@pytest.mark.parametrize("is_streaming", [False, True])
def test_the_readme_has_every_tensor_and_a_client_that_compiles(
    tmp_path: Path, is_streaming: bool
) -> None:
    options = TritonOptions(name="dogs", is_streaming=is_streaming)
    export_repository(default_model(), tmp_path / "models", options)
    text = (tmp_path / "models" / "README.md").read_text()
    for one in (*INPUTS, *OUTPUTS):
        assert f"| `{one.name}` |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(code, "README.md", "exec")
    assert '"dogs", inputs' in code
    assert "{" not in (tmp_path / "models" / "Dockerfile").read_text().replace("${", "")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ParameterError, match="not empty"):
        export_repository(default_model(), tmp_path, TritonOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_controls_are_put_beside_the_pair(
    tiny_pair_folder: Path, controlled_pair_folder: Path, tmp_path: Path
) -> None:
    net = controlled_pair_folder / "controlnet_depth"
    words = ["--model", str(tiny_pair_folder), "--control", f"near={net}"]
    assert main(["export-triton", str(tmp_path / "models"), *words]) == 0
    copied = tmp_path / "models" / "bootpig" / "1" / "pair" / "controlnet_near"
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (copied / name).read_bytes() == (net / name).read_bytes()
    # Such a pair has no graphs: torch draws it.
    assert 'ARG BOOTPIG="bootpig-rt[torch]==' in (tmp_path / "models" / "Dockerfile").read_text()


def test_a_pair_brings_its_own_controls(controlled_bundle_folder: Path, tmp_path: Path) -> None:
    export_repository(controlled_bundle_folder, tmp_path / "models", TritonOptions())
    copied = tmp_path / "models" / "bootpig" / "1" / "pair"
    assert (copied / "controlnet_depth" / "config.json").is_file()
    assert (copied / "control_depth.onnx").is_file()


def test_controls_that_would_not_be_loaded_are_refused(
    tiny_bundle_folder: Path, tiny_pair_folder: Path, controlled_pair_folder: Path, tmp_path: Path
) -> None:
    folder, net = tmp_path / "models", controlled_pair_folder / "controlnet_depth"
    depth = TritonOptions(controls=(ControlFolder("depth", net),))
    with pytest.raises(ParameterError, match=r"is a bundle, .* build-engine --control depth="):
        export_repository(tiny_bundle_folder, folder, depth)
    with pytest.raises(ParameterError, match="control depth is given twice"):
        export_repository(controlled_pair_folder, folder, depth)
    nothing = TritonOptions(controls=(ControlFolder("depth", tmp_path),))
    with pytest.raises(CheckpointError, match="is no ControlNet in diffusers' layout"):
        export_repository(tiny_pair_folder, folder, nothing)
    assert not folder.exists()


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no pair.json"):
        export_repository(tmp_path, tmp_path / "models", TritonOptions())
    assert not (tmp_path / "models").exists()


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder is wanted")
    with pytest.raises(StorageError, match="cannot write"):
        export_repository(default_model(), tmp_path / "file" / "models", TritonOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "../up"], "the model's name"),
        (["--gpus", "0,x"], "--gpus is '0,x'"),
        (["--gpus", "0", "--threads", "2"], "together with gpus"),
        (["--instances", "0"], "instances is 0"),
        (["--max-batch", "0"], "max_batch is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["export-triton", str(tmp_path / "models"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
