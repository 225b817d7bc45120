"""`bootpig-rt`: exit codes, one-line errors and what is imported when."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bootpig_rt import __version__
from bootpig_rt.cli import main as cli
from bootpig_rt.errors import (
    BackendUnavailable,
    BootPIGError,
    Cancelled,
    CheckpointError,
    ImageError,
    NumericalError,
    StorageError,
    SubjectMismatch,
)


class Stand:
    """A command that does what a test tells it."""

    NAME = "stand"
    HELP = "stand in for a command"

    def __init__(self) -> None:
        self.outcome: int | BaseException = 0
        self.args: argparse.Namespace | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=1)

    def run(self, args: argparse.Namespace) -> int:
        self.args = args
        logging.getLogger("bootpig_rt.stand").info("chose the left one")
        if isinstance(self.outcome, int):
            return self.outcome
        raise self.outcome


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    command = Stand()
    module = ModuleType("bootpig_rt_stand")
    for name in ("NAME", "HELP", "add_arguments", "run"):
        setattr(module, name, getattr(command, name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.MODULE_OF_COMMAND, command.NAME, module.__name__)
    return command


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_the_commands_own(stand: Stand, code: int) -> None:
    stand.outcome = code
    assert cli.main(["stand", "--number", "4"]) == code
    assert stand.args is not None
    assert stand.args.number == 4


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ImageError("no picture"), 2, "no picture"),
        (CheckpointError("truncated", "vae"), 2, "truncated"),
        (BackendUnavailable("no torch"), 2, "no torch"),
        (SubjectMismatch("other weights"), 2, "other weights"),
        (BootPIGError("two\n  lines"), 1, "two lines"),
        (StorageError("disk full"), 1, "disk full"),
        (NumericalError("NaN at step 3"), 1, "NaN at step 3"),
        (Cancelled("stopped at step 3"), 130, "stopped at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, "no such file (x.txt); check the path"),
        (MemoryError(), 1, "out of memory; ask for fewer or smaller images"),
        (
            ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"),
            2,
            "this command needs the package torch; pip install 'bootpig-rt[torch]'",
        ),
        (
            ModuleNotFoundError("No module named 'odd'", name="odd"),
            2,
            "No module named 'odd'; the installation is incomplete, install bootpig-rt again",
        ),
        (
            ZeroDivisionError("division by zero"),
            1,
            "unexpected ZeroDivisionError: division by zero; run again with --debug and report it",
        ),
    ],
)
def test_each_error_is_one_line_and_its_exit_code(
    stand: Stand,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    stand.outcome = error
    assert cli.main(["stand"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"bootpig-rt: error: {line}"
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("words", [["stand", "--debug"], ["--debug", "stand"]])
def test_debug_shows_the_traceback_before_the_line(
    stand: Stand, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    stand.outcome = ImageError("no picture")
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1] == "bootpig-rt: error: no picture"


def test_log_lines_go_to_stderr_and_leave_no_handler_behind(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.getLogger("bootpig_rt").handlers)
    assert cli.main(["stand"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bootpig-rt: chose the left one" in captured.err
    assert logging.getLogger("bootpig_rt").handlers == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no command given, expected one of generate, encode-subject"),
        (["generat"], "unknown command 'generat'"),
        (["generat"], "did you mean generate?"),
        (["xyz"], "see `bootpig-rt --help`"),
        (["stand", "--number", "many"], "invalid int value: 'many'"),
        (["stand", "--colour"], "unrecognized arguments: --colour"),
        (["stand", "--num", "3"], "unrecognized arguments: --num 3"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    stand: Stand, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("bootpig-rt: error: ")
    assert len(error.splitlines()) == 1
    assert expected in error


def test_version_is_printed_with_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bootpig-rt {__version__}\n"


def test_help_names_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.MODULE_OF_COMMAND)
    assert "examples:" in text


@pytest.mark.parametrize("name", list(cli.MODULE_OF_COMMAND))
def test_each_command_has_help_and_is_known_by_its_own_name(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command = cli.load_command(name)
    assert command.NAME == name
    assert command.HELP
    assert cli.main([name, "--help"]) == 0
    assert f"usage: bootpig-rt {name}" in capsys.readouterr().out


def test_only_the_chosen_command_is_imported(root: Path) -> None:
    code = (
        "import sys; from bootpig_rt.cli.main import MODULE_OF_COMMAND, main;"
        "main(['train', '--help']);"
        "print(set(MODULE_OF_COMMAND.values()) & set(sys.modules), file=sys.stderr)"
    )
    done = run_python(["-c", code], root)
    assert done.stderr.strip() == "{'bootpig_rt.cli.train'}"


def run_python(words: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
    )


def test_python_m_runs_the_same_command(root: Path) -> None:
    done = run_python(["-m", "bootpig_rt", "--version"], root)
    assert (done.returncode, done.stdout) == (0, f"bootpig-rt {__version__}\n")


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_reader_that_leaves_early_causes_no_noise(root: Path, buffering: str) -> None:
    code = (
        "import sys, types; import bootpig_rt.cli.main as cli;"
        "stand = types.ModuleType('stand'); stand.NAME = stand.HELP = 'stand';"
        "stand.add_arguments = repr; stand.run = lambda args: print('word ' * 9) or 0;"
        "sys.modules['stand'] = stand; cli.MODULE_OF_COMMAND['stand'] = 'stand';"
        "sys.exit(cli.main(['stand']))"
    )
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": buffering}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
