"""The modules of the page, read by TypeScript: every type in a comment is true."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def test_the_types_in_comments_hold() -> None:
    compiler = shutil.which("tsc")
    if compiler is None:
        pytest.skip("no TypeScript on this machine: npm install -g typescript")
    project = Path(__file__).with_name("tsconfig.json")
    done = subprocess.run([compiler, "-p", str(project)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
