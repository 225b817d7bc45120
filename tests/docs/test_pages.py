"""The pages: nothing public is left out, nothing is loaded from elsewhere, links lead on."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import bootpig_rt
from bootpig_rt.cli.main import MODULE_OF_COMMAND, build_parser


@pytest.fixture(scope="module")
def hooks(root: Path) -> ModuleType:
    """The module that writes parts of pages when the site is built."""
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", root / "mkdocs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name(root: Path) -> None:
    page = (root / "docs" / "reference" / "api.md").read_text()
    told = set(re.findall(r"^::: bootpig_rt\.(\w+)$", page, re.M))
    errors = {
        name
        for name, value in vars(bootpig_rt.errors).items()
        if isinstance(value, type) and issubclass(value, bootpig_rt.BootPIGError)
    }
    assert told == set(bootpig_rt.__all__) - errors - {"__version__"}


def test_the_command_line_page_has_every_command_and_option(hooks: ModuleType) -> None:
    page = hooks.commands()
    assert re.findall(r"^## (\S+)$", page, re.M) == list(MODULE_OF_COMMAND)
    for name in MODULE_OF_COMMAND:
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        usage = hooks._subparsers(build_parser([name]))[name].format_usage()
        options = set(re.findall(r"--[a-z][a-z-]+", usage)) - {"--debug"}
        assert options <= set(re.findall(r"`(--[a-z-]+)", section))


def test_the_error_page_has_every_error(hooks: ModuleType) -> None:
    table = hooks.error_table()
    assert "| [`ParameterError`][bootpig_rt.errors.ParameterError] | 2 |" in table
    assert len(table.splitlines()) == 2 + len(set(hooks._errors(bootpig_rt.BootPIGError)))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", '<script src="https://cdn.example/x.js">', ["https://cdn.example/x.js"]),
        ("a.html", "<img alt=x src=//pics.example/x.png>", ["//pics.example/x.png"]),
        (
            "a.html",
            '<link href="https://f.example/a.css" rel="stylesheet">',
            ["https://f.example/a.css"],
        ),
        ("a.html", '<a href="https://arxiv.org">paper</a> <img src="demo.png">', []),
        ("a.css", '@import "https://f.example/a.css";', ["https://f.example/a.css"]),
        ("a.css", "a {background: url(https://f.example/a.svg)}", ["https://f.example/a.svg"]),
        ("a.css", "a {background: url(../a.svg)}", []),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(
    hooks: ModuleType, tmp_path: Path, name: str, text: str, found: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert hooks.loads(tmp_path / name) == found


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_of_the_texts_outside_of_the_site_lead_to_files(root: Path, name: str) -> None:
    text = (root / name).read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)
    assert [link for link in links if not (root / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_first_texts_are_short(root: Path, name: str) -> None:
    assert len((root / name).read_text().splitlines()) <= 150
