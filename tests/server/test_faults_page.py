"""The page of faults has every number once and names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FAULTS = 57


@pytest.fixture(scope="module")
def rows(root: Path) -> list[list[str]]:
    """The cells of each row of the table."""
    text = (root / "docs/reference/faults.md").read_text().partition("\n## ")[0]
    lines = text.splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return cells[2:]  # below its head


def test_every_fault_stands_in_the_table_once_and_in_order(rows: list[list[str]]) -> None:
    assert [row[0] for row in rows] == [str(number) for number in range(1, FAULTS + 1)]
    assert {len(row) for row in rows} == {4}
    assert all(all(row) for row in rows)


def test_every_test_on_the_page_is_there(root: Path, rows: list[list[str]]) -> None:
    for number, *_, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named or tests == "no test", number
        assert len(named) == tests.count("::"), number
        for file, name in named:
            text = (root / file).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.M), f"{file}::{name}"
