"""What may import what, and what a light import must not pull in."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["accelerate", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt", "torch"]
HEAVY += ["transformers"]
HEAVY += ["triton", "resvg_py", "tensorboard", "c2pa"]
HEAVY += ["fastapi", "opentelemetry", "prometheus_client", "pydantic", "ray", "uvicorn"]
HEAVY += ["DracoPy", "moderngl"]

PARSER = "from bootpig_rt.cli.main import build_parser; build_parser()"


@functools.cache
def loaded_by(code: str, root: Path) -> frozenset[str]:
    """Top-level packages in `sys.modules` after `code` ran in a new interpreter."""
    code += "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import bootpig_rt",
        "import bootpig_rt.cli.main",
        PARSER,
        "import bootpig_rt; bootpig_rt.Pipeline; bootpig_rt.Subject",
    ],
)
def test_light_imports_load_no_heavy_package(code: str, root: Path) -> None:
    assert loaded_by(code, root).isdisjoint(HEAVY)


@pytest.mark.parametrize("code", ["import bootpig_rt", "import bootpig_rt.cli.main", PARSER])
def test_the_command_line_starts_without_numpy_and_pillow(code: str, root: Path) -> None:
    assert loaded_by(code, root).isdisjoint({"numpy", "PIL", "safetensors", "tokenizers"})


def test_import_contracts_hold(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
        "--config",
        str(root / "pyproject.toml"),
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def sources(root: Path) -> list[Path]:
    """Every Python file of the project, each once (the links in bootpig_rt are left out)."""
    folders = ["bootpig_rt", "kernels", "export", "training", "benchmarks", "tests"]
    folders += ["integrations", "examples"]
    found = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    links = [root / "bootpig_rt" / name for name in ("kernels", "export", "training")]
    return [path for path in found if not any(path.is_relative_to(link) for link in links)]


def test_every_source_file_says_what_it_is_for(root: Path) -> None:
    silent = [
        str(path.relative_to(root))
        for path in sources(root)
        if not path.is_relative_to(root / "tests")
        and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_no_module_is_named_like_a_package_that_it_could_hide(root: Path) -> None:
    taken = {"onnx", "onnxruntime", "tensorrt", "torch", "triton", "diffusers", "transformers"}
    taken |= {"numpy", "math", "types", "typing", "random", "logging", "tokenizers"}
    assert [path.name for path in sources(root) if path.stem in taken] == []
