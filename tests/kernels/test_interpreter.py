"""Runs the tests of `interpreter/` in processes of their own, with Triton's interpreter on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("interpreter")
SLOW = {
    "test_attention",
    "test_block_kernels",
    "test_merge",
    "test_plugin_kernel",
    "test_properties",
}
"""Of `test_module` is what a picture needs."""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton installed")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
        for path in sorted(FOLDER.glob("test_*.py"))
    ],
)
def test_the_kernels_hold_in_the_interpreter(name: str, root: Path) -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-m", "pytest", str(FOLDER / f"{name}.py"), "-q", "-x"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
