"""The script of a GPU: its order, its limits, and that its commands are commands."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bootpig_rt.cli.main import build_parser


@pytest.fixture(scope="module")
def checks(root: Path) -> ModuleType:
    """The script as a module."""
    path = root / "tests" / "tools" / "gpu_checks.py"
    spec = importlib.util.spec_from_file_location("gpu_checks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_checks"] = module
    spec.loader.exec_module(module)
    return module


def test_what_must_be_right_is_first_and_all_of_it_fits(checks: ModuleType, tmp_path: Path) -> None:
    parts = list(checks.parts(tmp_path, is_smoke=False))
    assert [part.name for part in parts] == [
        "about", "gpu-tests", "headline", "ladder", "kernels", "tensorrt", "onnxruntime",
    ]  # fmt: skip
    assert sum(part.limit_s for part in parts) <= 780


@pytest.mark.parametrize("is_smoke", [True, False])
def test_every_command_is_read_by_the_real_parser(
    checks: ModuleType, tmp_path: Path, is_smoke: bool
) -> None:
    seen = set()
    for part in checks.parts(tmp_path, is_smoke=is_smoke):
        for command in part.commands:
            if "bootpig_rt" in command:
                words = list(command[command.index("bootpig_rt") + 1 :])
                build_parser().parse_args(words)
                seen.add(words[0])
    assert seen == {"bench", "build-engine", "verify"}


def test_a_part_that_fails_takes_too_long_or_lacks_a_package_costs_itself_alone(
    checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(name: str, code: str, limit_s: float = 30.0, **others: object) -> object:
        return checks.Part(name, ((sys.executable, "-c", code),), limit_s, **others)

    made = [
        one("good", "print('seen')"),
        one("bad", "raise SystemExit(3)"),
        one("slow", "print('begun', flush=True); import time; time.sleep(60)", 1.0),
        one("gone", "", needs=("no_such_package",)),
    ]
    monkeypatch.setattr(checks, "parts", lambda out, is_smoke: made)
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", "-o", str(tmp_path)])
    assert checks.main() == 1
    told = json.loads((tmp_path / "summary.json").read_text())
    assert [each["state"] for each in told.values()] == [
        "passed", "failed: exit code 3", "cut off after 1 s",
        "left out: none of no_such_package is installed",
    ]  # fmt: skip
    assert "seen" in (tmp_path / "good.txt").read_text()
    assert "begun" in (tmp_path / "slow.txt").read_text()


def test_parts_that_passed_are_left_out_the_next_time(
    checks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "runs"
    code = f"open({str(mark)!r}, 'a').write('x')"
    part = checks.Part("good", ((sys.executable, "-c", code),), 30)
    monkeypatch.setattr(checks, "parts", lambda out, is_smoke: [part])
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", "-o", str(tmp_path)])
    assert [checks.main() for _ in range(2)] == [0, 0]
    assert mark.read_text() == "x"
