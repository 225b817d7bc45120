"""`bootpig-rt compile-kernels`: cubin and PTX of the attention kernels, without a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.kernels.compile import Compiled

NAME = "compile-kernels"
HELP = "compile the attention kernels ahead of time: cubin, PTX and how to launch them"

_DTYPES = ("float16", "bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Writes <name>.cubin and <name>.ptx, and kernels.json with entry functions, parameters,\n"
        "grids, hashes, versions and resources. Needs Triton on Linux, but no GPU.\n\n"
        "examples:\n"
        "  bootpig-rt compile-kernels --target sm_80,sm_89,sm_90 -o kernels\n"
        "  bootpig-rt compile-kernels --target sm_90 --dtype bfloat16 --head-dim 40,80 -o kernels"
    )
    parser.add_argument(
        "--target", required=True, metavar="SM", help="architectures, as sm_80,sm_89,sm_90"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", type=Path, help="folder to write"
    )
    parser.add_argument(
        "--dtype", default="float16", help=f"of {', '.join(_DTYPES)} (default: float16)"
    )
    parser.add_argument("--head-dim", default="64", metavar="D", help="head dims (default: 64)")
    parser.add_argument(
        "--channels",
        default="320,640,1280",
        metavar="C",
        help="channels that the merges are for (default: 320,640,1280)",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table as a page")
    parser.add_argument("--json", action="store_true", help="print the manifest instead")


def run(args: argparse.Namespace) -> int:
    """Compile, write, and print a table."""
    targets = [_target(word) for word in args.target.split(",")]
    dtypes = args.dtype.split(",")
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise ParameterError(f"dtype is {dtype!r}, expected one of {', '.join(_DTYPES)}")
    head_dims = _numbers("head dim", args.head_dim, low=16, high=128, step=8)
    channels = _numbers("channels", args.channels, low=1, high=8192, step=1)

    from bootpig_rt.files.atomic import atomic_write_text
    from bootpig_rt.kernels.artifacts import COLUMNS, markdown, table_row, write_artifacts
    from bootpig_rt.kernels.toolchain import require_triton
    from bootpig_rt.kernels.variants import variants_of

    require_triton()
    variants = [
        variant
        for target in dict.fromkeys(targets)
        for variant in variants_of(target, dtypes=dtypes, head_dims=head_dims, channels=channels)
    ]

    def show(compiled: Compiled) -> None:
        if sys.stderr.isatty():
            print(f"{compiled.variant.name}", file=sys.stderr)

    manifest = write_artifacts(variants, args.output, progress=show)
    if args.markdown is not None:
        atomic_write_text(args.markdown, markdown(manifest))
    if args.json:
        print(json.dumps(manifest))
    else:
        _print_table([COLUMNS, *(table_row(record) for record in manifest["kernels"])])
        print(f"{args.output}: {len(manifest['kernels'])} kernels")
    return EXIT_OK


def _target(word: str) -> int:
    name = word.strip()
    digits = name.removeprefix("sm_").rstrip("a")
    if not name.startswith("sm_") or not digits.isdigit():
        raise ParameterError(f"target is {word!r}, expected names like sm_80,sm_89,sm_90")
    return int(digits)


def _numbers(what: str, text: str, *, low: int, high: int, step: int) -> list[int]:
    numbers = []
    for word in text.split(","):
        number = int(word) if word.strip().isdigit() else -1
        if not low <= number <= high or number % step:
            steps = f" in steps of {step}" if step > 1 else ""
            raise ParameterError(f"{what} is {word!r}, expected {low} to {high}{steps}")
        numbers.append(number)
    return list(dict.fromkeys(numbers))


def _print_table(rows: list[Any]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
