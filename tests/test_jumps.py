"""How far a reader must jump to follow one picture."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.checks import check_steps


@pytest.fixture(scope="module")
def tool(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "tests" / "tools" / "count_jumps.py"))


def test_a_jump_is_a_call_in_another_module_than_the_last_one(tool: dict[str, Any]) -> None:
    calls = (("a", "f"), ("a", "g"), ("b", "f"), ("a", "f"), ("a", "f"))
    counted = tool["Jumps"](calls)
    assert (counted.modules, counted.functions, counted.jumps) == (2, 3, 3)


def test_only_the_package_is_recorded(tool: dict[str, Any]) -> None:
    def work() -> None:
        Path("a").joinpath("b")
        check_steps(3)

    calls = tool["record"](work).calls
    assert calls == (("bootpig_rt.checks", "check_steps"), ("bootpig_rt.checks", "check_int"))


def test_one_picture_takes_fewer_than_ninety_jumps(tool: dict[str, Any], tmp_path: Path) -> None:
    """The count of ARCHITECTURE.md; `make jumps` shows them. Newer Pythons count fewer."""
    assert tool["count_jumps"](tmp_path).jumps < 90
