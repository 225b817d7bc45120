"""`bootpig-rt tune-kernels`: measure tile configurations on this GPU and write their table."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.errors import EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.kernels.tiles import TileRow

NAME = "tune-kernels"
HELP = "measure tile configurations of the attention kernels on this GPU and write their table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Takes some minutes. Rows of other GPUs stay as they are. Without -o the table of the\n"
        "installed package is changed, and the next run uses it.\n\n"
        "examples:\n"
        "  bootpig-rt tune-kernels\n"
        "  bootpig-rt tune-kernels --dtype float16 --head-dim 64 -o tiles.json"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="table to write")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), help="tune for this type alone (default: both)"
    )
    parser.add_argument(
        "--head-dim", type=int, action="append", help="tune for it alone; may be repeated"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that compile (default: one a core)",
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    parser.add_argument("--json", action="store_true", help="print the new rows as json")


def run(args: argparse.Namespace) -> int:
    """Tune, write, and print what was chosen."""
    from bootpig_rt.kernels import autotune, checks, tiles

    def show(row: TileRow) -> None:
        if not args.json:
            padded = " padded" if row.is_padded else ""
            what = f"{row.mode} {row.bits} bit d{row.block_d}{padded} from {row.min_tokens} tokens"
            print(f"{what}: {row.tile} {row.measured_us} us", flush=True)

    if args.jobs < 1:
        raise ParameterError(f"--jobs is {args.jobs}, expected 1 or more")
    for head_dim in args.head_dim or ():
        if not checks.supports_head_dim(head_dim):
            raise ParameterError(f"--head-dim is {head_dim}, expected 16 to 128 in steps of 8")
    shapes = autotune.default_shapes(args.head_dim or autotune.HEAD_DIMS)
    shapes = [shape for shape in shapes if args.dtype in (None, shape.dtype)]
    rows = autotune.tune(shapes, device=args.device, progress=show, jobs=args.jobs)
    output = args.output or tiles.TABLE
    tiles.write_rows(autotune.replace_rows(tiles.read_rows(), rows), output)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(f"{output}: {len(rows)} rows")
    return EXIT_OK
