"""The page of faults has every number once and names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FAULTS = 57
FAULTS_OF_THE_ROAD = 14
FAULTS_OF_OPENVINO = 11


@pytest.fixture(scope="module")
def rows(root: Path) -> list[list[str]]:
    """The cells of each row of both tables."""
    page = (root / "docs/reference/faults.md").read_text()
    found = []
    for part in page.partition("\n## Fuzzing")[0].split("\n## "):
        lines = [line for line in part.splitlines() if line.startswith("|")]
        found += [line.strip("| ").split(" | ") for line in lines[2:]]  # below its head
    return found


def test_every_fault_stands_in_its_table_once_and_in_order(rows: list[list[str]]) -> None:
    numbers = [str(number) for number in range(1, FAULTS + 1)]
    numbers += [f"R{number}" for number in range(1, FAULTS_OF_THE_ROAD + 1)]
    numbers += [f"O{number}" for number in range(1, FAULTS_OF_OPENVINO + 1)]
    assert [row[0] for row in rows] == numbers
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
