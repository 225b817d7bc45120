"""The figures of the README are those of the files in benchmarks/results."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.benchmarks.readme import PLOT, ROOT, fill, plot
from bootpig_rt.errors import ParameterError


def test_the_readme_says_what_the_result_files_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- figures: ") == 12
    assert fill(text) == text


def test_the_plot_is_drawn_from_the_same_files() -> None:
    assert (ROOT / PLOT).read_text(encoding="utf-8") == plot()


def test_a_block_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(ParameterError, match="figures 'speed', expected one of baselines"):
        fill("<!-- figures: speed -->\n<!-- /figures -->\n")


def test_text_outside_of_the_blocks_stays(tmp_path: Path) -> None:
    assert fill("a\n\nb | c\n", tmp_path) == "a\n\nb | c\n"
