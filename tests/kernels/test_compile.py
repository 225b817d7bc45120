"""Kernels compiled without a GPU: what the machine code holds, and the artefacts for hosts."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels import compile as kernel_compile
from bootpig_rt.kernels import launch_blocks, tiles
from bootpig_rt.kernels.variants import (
    TYPE_OF_DTYPE,
    Variant,
    attention_variant,
    merge_variant,
    variants_of,
)

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton installed"),
]

TENSOR_CORE = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


def _cli(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-m", "bootpig_rt", "compile-kernels", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def assert_fits(record: dict[str, Any]) -> None:
    """No stack, no spills, within the limits of the architecture, on tensor cores."""
    architecture = int(record["target"].removeprefix("sm_"))
    assert record["stack_bytes"] == 0, record["name"]
    assert record["spills"] == 0, record["name"]
    assert record["registers"] <= 255
    assert record["shared_bytes"] <= kernel_compile.SHARED_LIMIT[architecture] * 1024
    assert record["programs_per_sm"] >= 1
    if record["kernel"] == "reference_attention" and record["dtype"] != "float32":
        instructions = record["tensor_core_instructions"]
        assert instructions.get(TENSOR_CORE[architecture], 0) >= 8, record["name"]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Path, dict[str, Any]]:
    """What the command writes for one Hopper target."""
    folder = tmp_path_factory.mktemp("kernels") / "sm_90"
    words = ["--target", "sm_90", "-o", str(folder), "--channels", "320", "--json"]
    done = _cli(*words, root=root)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.slow
def test_hopper_kernels_use_its_tensor_cores_and_do_not_spill(
    artefacts: tuple[Path, dict[str, Any]],
) -> None:
    records = artefacts[1]["kernels"]
    assert records
    for record in records:
        assert_fits(record)


@pytest.mark.slow
def test_the_manifest_describes_every_file(artefacts: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = artefacts
    assert json.loads((folder / "kernels.json").read_text()) == manifest
    files = {path.name for path in folder.iterdir()} - {"kernels.json"}
    named = {record[kind] for record in manifest["kernels"] for kind in ("cubin", "ptx")}
    assert files == named
    for record in manifest["kernels"]:
        for kind in ("cubin", "ptx"):
            data = (folder / record[kind]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == record[f"{kind}_sha256"]
    assert manifest["triton"]
    assert re.fullmatch(r"V[\d.]+", manifest["ptxas"])


@pytest.mark.slow
def test_the_ptx_takes_the_parameters_of_the_manifest(
    artefacts: tuple[Path, dict[str, Any]],
) -> None:
    folder, manifest = artefacts
    for record in manifest["kernels"]:
        ptx = (folder / record["ptx"]).read_text()
        head = re.search(rf"\.visible \.entry {record['entry']}\((.*?)\)", ptx, re.DOTALL)
        assert head is not None
        found = re.findall(r"\.param \.[ubf](\d+)", head[1])
        types = [parameter["type"] for parameter in record["parameters"]]
        expected = ["64" if kind.startswith("*") else "32" for kind in types]
        assert found == expected + ["64"] * record["hidden_pointers"]
        # The scratch pointers at the end are never loaded: a host may pass null.
        for index in range(len(found) - record["hidden_pointers"], len(found)):
            assert f"{record['entry']}_param_{index}]" not in ptx
        assert f".reqntid {record['threads']}" in ptx
        assert record["ptx_target"] == "sm_90a"


@pytest.mark.parametrize("architecture", [80, 120])
def test_large_tiles_of_other_architectures_fit(architecture: int) -> None:
    tile = tiles.attention_tile(
        architecture=architecture, mode="joint", dtype="bfloat16", head_dim=64, tokens=4096
    )
    variant = attention_variant(
        architecture=architecture, mode="joint", dtype="bfloat16", head_dim=64, tile=tile
    )
    record = kernel_compile.compile_one(variant).describe()
    assert record["target"] == f"sm_{architecture}"
    assert_fits(record)


def test_tiles_of_the_copy_engine_fit_and_copy_in_bulk() -> None:
    rows = [row for row in tiles.read_rows() if row.tile.uses_tma]
    assert any(row.tile.max_registers is not None for row in rows)
    for row in rows:
        variant = attention_variant(
            architecture=row.architecture,
            mode=row.mode,
            dtype="float16",
            head_dim=row.block_d,
            tile=row.tile,
        )
        compiled = kernel_compile.compile_one(variant)
        assert_fits(compiled.describe())
        if row.tile.max_registers is not None:
            assert compiled.resources.programs_per_sm == 2  # what the limit is for
        assert "cp.async.bulk.tensor" in compiled.ptx
        assert "tensordesc" in variant.signature["ref_k_ptr"]


def test_hosts_get_plain_pointers() -> None:
    variants = variants_of(90, dtypes=["float16"], head_dims=[64], channels=[])
    assert all("tensordesc" not in str(variant.signature) for variant in variants)
    assert len({variant.name for variant in variants}) == len(variants)


def kind_of(argument: Any) -> str:
    """Triton's type of what a launch passes."""
    if isinstance(argument, torch.Tensor):
        return f"*{TYPE_OF_DTYPE[str(argument.dtype).removeprefix('torch.')]}"
    return "fp32" if isinstance(argument, float) else "i32"


def launched_around_attention(monkeypatch: pytest.MonkeyPatch, dtype: str) -> list[dict[str, Any]]:
    """What the launches of a U-Net's blocks ask the compiler for, with all that they can do."""
    asked: list[dict[str, Any]] = []

    def record(kernel: Any, grid: Any, of: Any, *arguments: Any, **settings: Any) -> None:
        options = {name: settings.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        rest = iter(arguments)
        signature = {
            name: "constexpr" if name in settings else kind_of(next(rest))
            for name in kernel.arg_names
        }
        name = kernel.fn.__name__.removesuffix("_kernel")
        pointers = tuple(each for each in signature if each.endswith("_ptr"))
        asked.append(
            {
                "name": name,
                "kernel": name,
                "dtype": dtype,
                "signature": signature,
                "constants": settings,
                "aligned": pointers,
                "options": options,
                "grid": (),
            }
        )

    monkeypatch.setattr(launch_blocks, "run_kernel", record)
    x = torch.zeros(1, 960, 2, 2, dtype=getattr(torch, dtype))
    row, numbers = x[:, :, 0, 0], x[0, :, 0, 0]
    for most_pixels in (4, 0):
        launch_blocks.launch_group_norm(
            x, numbers, numbers, 32, 1e-5, True, row, most_pixels=most_pixels
        )
    launch_blocks.launch_layer_norm(row, row, numbers, numbers, 1e-5)
    launch_blocks.launch_geglu(torch.cat([row, row], dim=1))
    launch_blocks.launch_residual_add(x, x, numbers)
    return asked


AROUND = ((80, "float32"), (90, "float16"), (120, "float16"))
WIDEST = max(tiles.BLOCK_WARPS, key=lambda kernel: tiles.BLOCK_WARPS[kernel])
"""Of the kernels around attention, the one whose programs have the most warps."""


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        pytest.param(
            kernel,
            target,
            id=f"{kernel}-sm_{target[0]}",
            marks=() if kernel == WIDEST or target[0] != 120 else pytest.mark.slow,
        )
        for kernel in tiles.BLOCK_WARPS
        for target in AROUND
    ],
)
def test_a_kernel_around_attention_fits(
    kernel: str, target: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, dtype = target
    asked = launched_around_attention(monkeypatch, dtype)
    (settings,) = (each for each in asked if each["kernel"] == kernel)
    record = kernel_compile.compile_one(Variant(architecture=architecture, **settings)).describe()
    assert record["target"] == f"sm_{architecture}"
    assert_fits(record)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_configuration_of_the_table_fits(architecture: int) -> None:
    variants = variants_of(
        architecture,
        dtypes=["float16", "float32"],
        head_dims=[16, 24, 32, 40, 64, 80, 128],
        channels=[640],
    )
    assert variants
    for variant in variants:
        assert_fits(kernel_compile.compile_one(variant).describe())


def test_the_committed_table_names_every_configuration(root: Path) -> None:
    page = (root / "kernels" / "resources.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| reference_")
    ]
    for architecture in tiles.ARCHITECTURES:
        named = {row[0] for row in rows if row[1] == f"sm_{architecture}"}
        for variant in variants_of(
            architecture, dtypes=["float16"], head_dims=[64, 128], channels=[]
        ):
            assert variant.name.replace(f"_sm_{architecture}", "") in named
    for row in rows:
        assert row[3:5] == ["0", "0"], row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm_75"], "target is sm_75, expected one of sm_80"),
        (["--target", "90"], "target is '90', expected names like sm_80"),
        (["--target", "sm_90", "--dtype", "int8"], "dtype is 'int8', expected one of float16"),
        (["--target", "sm_90", "--head-dim", "20"], "head dim is '20', expected 16 to 128"),
        (["--target", "sm_90", "--channels", "many"], "channels is 'many', expected 1 to 8192"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile-kernels", *words, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_compiled_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = merge_variant(architecture=90, dtype="float16", channels=64, merge="mean")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ParameterError, match="TRITON_INTERPRET is set"):
        kernel_compile.compile_one(variant)
