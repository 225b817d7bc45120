"""diffusers' own common pipeline tests, where BOOTPIG_RT_DIFFUSERS names a checkout of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("BOOTPIG_RT_DIFFUSERS", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="BOOTPIG_RT_DIFFUSERS names no checkout of diffusers"),
]


def test_the_common_pipeline_tests_pass(root: Path, tiny_pair_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "test_mixins.py"  # away from the conftest.py of this suite
    shutil.copy(root / "tests" / "integrations" / "diffusers_mixins.py", program)
    environment = os.environ | {
        "BOOTPIG_RT_TINY_PAIR": str(tiny_pair_folder),
        "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{root}",
        "PYTHONSAFEPATH": "1",
        "RUN_SLOW": "0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c"]
    command += [os.devnull, "--rootdir", str(tmp_path), str(program)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    passed = int(last.split(" passed")[0].split()[-1])
    assert passed >= 24, last
