"""What README and docs tell people to type: Python runs, commands are those that there are."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import bootpig_rt
from bootpig_rt.backends.onnxruntime.sessions import Sessions
from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.cli.main import MODULE_OF_COMMAND, build_parser, main
from bootpig_rt.server.config import read_config

ROOT = Path(__file__).resolve().parents[2]
FEW_STEPS = 3
STEPS_OF_PAGE = dict.fromkeys(
    (
        "docs/explanation/cheaper-pictures.md",
        "docs/explanation/tables.md",
        "docs/how-to/diffusers.md",
        "docs/how-to/follow-a-map.md",
        "docs/how-to/many-requests.md",
    ),
    5,
)
"""Of pages whose code does something at a later step, or in a share of the steps."""
PROGRAM = f"""
from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.cli.main import main

PairConfig.default_steps = property(lambda config: {FEW_STEPS}, lambda config, steps: None)
raise SystemExit(main())
"""
"""`bootpig-rt` in a process of its own, whose pictures take few steps as in `desk`."""
DEFAULT_ADDRESS = "http://127.0.0.1:8000"
OUTPUTS = {"text", "json", "toml", ""}
OTHER_PROGRAMS = {"accelerate", "git", "hf", "openssl", "pytest", "python3"}
OTHER_PROGRAMS |= {"chown", "docker", "kubectl", "serve", "tritonserver"}
FOLDERS = (
    "bootpig_rt/",
    "examples/",
    "benchmarks/",
    "training/",
    "tests/",
    "docs/",
    "export/",
    "kernels/",
)

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n>]*?) -->\n)?```(?P<language>\S*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: Of the page, of the fence.
        language: `python`, `console`, or that of an output: `text`, `json`, empty.
        mark: Of the line `<!-- mark -->` right above: `run` or `fails: CODE` for commands that are
            run, `server` for one that goes on while the blocks below it run, `gpu` for Python that
            is not run; empty elsewhere.
        code: What is inside.
    """

    line: int
    language: str
    mark: str
    code: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a console block; lines that end in a backslash go on."""
        lines = self.code.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [[each[0].removeprefix(".venv/bin/"), *each[1:]] for each in words if each]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(text.count("\n", 0, m.start()) + 1, m["language"], m["mark"] or "", m["code"])
        for m in _BLOCK.finditer(text)
    ]
    assert text.count("```") == 2 * len(found), (
        f"{page} has a fence that is not closed, or indented"
    )
    return found


PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


KINDS: dict[str, Callable[[Block], bool]] = {
    "block": lambda block: True,
    "console_block": lambda block: block.language == "console",
    "toml_block": lambda block: block.language == "toml",
    "gpu_block": lambda block: block.mark == "gpu",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `page` runs for each page with code, others for each block of a kind."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", [each for each in PAGES if blocks_of(ROOT / each)])
    for kind in set(KINDS).intersection(metafunc.fixturenames):
        named = [(f"{page}:{b.line}", b) for page in PAGES for b in blocks_of(ROOT / page)]
        found = [(name, block) for name, block in named if KINDS[kind](block)]
        metafunc.parametrize(kind, [b for _, b in found], ids=[name for name, _ in found])


@pytest.fixture
def blocks(page: str) -> list[Block]:
    """The blocks of a page."""
    return blocks_of(ROOT / page)


@pytest.fixture(scope="module")
def sessions() -> dict[str, Any]:
    """Sessions of ONNX Runtime that hold no state of a launch, for `desk` to keep."""
    return {}


@pytest.fixture
def desk(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    root: Path,
    sessions: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder that a reader works in: the sample drawings, and the repository's folders.

    Pictures take few steps: what is tested is that the code does what the page says. A graph that
    was loaded for one page is not optimised anew for another.
    """
    create = Sessions._create

    def kept(self: Sessions, name: str) -> Any:
        key = repr((self._folder, self._device, self._options, sha256(self._read(name)).digest()))
        if key not in sessions:
            sessions[key] = create(self, name)
        return sessions[key]

    monkeypatch.setattr(Sessions, "_create", kept)
    page = request.getfixturevalue("page") if "page" in request.fixturenames else ""
    steps = STEPS_OF_PAGE.get(page, FEW_STEPS)
    few = property(lambda config: steps, lambda config, steps: None)
    monkeypatch.setattr(PairConfig, "default_steps", few)
    for drawing in (root / "bootpig_rt" / "assets" / "subjects").glob("*.png"):
        shutil.copy(drawing, tmp_path)
    for name in FOLDERS:
        (tmp_path / name.rstrip("/")).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOOTPIG_RT_STORE", raising=False)
    return tmp_path


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers, numpy 2
def test_the_code_of_a_page_runs(page: str, blocks: list[Block], desk: Path) -> None:
    """In order, in one folder; Python blocks share their names, as in a notebook."""
    names: dict[str, Any] = {"__name__": "__main__"}
    address, server = DEFAULT_ADDRESS, None
    try:
        for block in blocks:
            if block.mark == "server":
                address, server = started_server(block.commands[0])
            elif block.language == "python" and block.mark != "gpu":
                code = "\n" * block.line + block.code  # so that a traceback has the page's lines
                code = code.replace(DEFAULT_ADDRESS, address)
                exec(compile(code, page, "exec"), names)
            elif block.mark == "run" or block.mark.startswith("fails: "):
                expected = int(block.mark.partition(": ")[2] or 0)
                for _, *words in block.commands:
                    assert main(words) == expected, f"{page}:{block.line}: {' '.join(words)}"
    finally:
        for value in names.values():
            if isinstance(value, bootpig_rt.Pipeline):
                value.close()
            elif hasattr(value, "close") and type(value).__module__.startswith("openai"):
                value.close()
        if server is not None:
            server.terminate()
            server.communicate(timeout=60)


def started_server(words: list[str]) -> tuple[str, subprocess.Popen[str]]:
    """The server of a console block, on a free port, once it is ready; and its address."""
    command = [sys.executable, "-c", PROGRAM, *words[1:], "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    line = server.stdout.readline()
    assert "is ready at" in line, line
    return line.split()[-1], server


def test_mapped_requests_find_the_table_that_encoding_made(root: Path, desk: Path) -> None:
    page = root / "docs" / "how-to" / "many-requests.md"
    names: dict[str, Any] = {}
    exec(next(block.code for block in blocks_of(page) if block.language == "python"), names)
    names["pipe"].close()
    assert names["result"].reference_passes == 0
    assert names["result"].parameters[0].seed == len(names["requests"]) - 1


def test_settings_of_a_service_are_read(toml_block: Block, tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(toml_block.code)
    assert read_config(path)


def test_a_block_says_what_it_is(block: Block) -> None:
    if block.language == "python":
        assert block.mark in ("", "gpu")
    elif block.language == "console":
        assert block.mark in ("", "run", "server") or re.fullmatch(r"fails: \d+", block.mark)
        assert block.commands
    else:
        assert block.language in OUTPUTS
        assert not block.mark


def test_commands_are_read_by_the_parser(console_block: Block, root: Path) -> None:
    for program, *words in console_block.commands:
        for word in words:
            if word.startswith(FOLDERS):
                assert (root / word).exists(), f"{word} is not in the repository"
        if program == "bootpig-rt":
            assert words[0] in MODULE_OF_COMMAND
            build_parser([words[0]]).parse_args(words)  # raises ParameterError
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M)
            assert {word for word in words if "=" not in word} <= set(targets)
        elif program == "pip":
            assert extras_of(words) <= extras(root)
        else:
            assert program in OTHER_PROGRAMS


def test_python_for_a_gpu_names_what_there_is(gpu_block: Block) -> None:
    """Not run: every public name exists, and takes the arguments that it is given."""
    tree = ast.parse(gpu_block.code)
    assert imported(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target = target_of(call)
        if target is not None:
            keywords = {each.arg: None for each in call.keywords if each.arg}
            inspect.signature(target).bind_partial(*[None] * len(call.args), **keywords)


def imported(tree: ast.AST) -> set[str]:
    """Names that come from bootpig_rt; all of them exist."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {name.name for node in nodes if node.module == "bootpig_rt" for name in node.names}
    assert names <= set(bootpig_rt.__all__)
    return names


def target_of(call: ast.Call) -> Any:
    """What a call calls, where it is a public name or a method of `pipe`."""
    if isinstance(call.func, ast.Name) and call.func.id in bootpig_rt.__all__:
        return getattr(bootpig_rt, call.func.id)
    if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "pipe":
        return getattr(bootpig_rt.Pipeline, call.func.attr).__get__(object())
    return None


def extras_of(words: list[str]) -> set[str]:
    """Extras in the words of a `pip install`."""
    found = (re.search(r"\[([\w,]+)\]", word) for word in words)
    return {extra for match in found if match for extra in match[1].split(",")}


def extras(root: Path) -> set[str]:
    """Extras that pyproject.toml declares."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])
