"""`bootpig-rt tune-kernels`: measure tile configurations on this GPU and write their table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.errors import EXIT_OK

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
        "  bootpig-rt tune-kernels --dtype float16 -o tiles.json"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="table to write")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), help="tune for this type alone (default: both)"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    parser.add_argument("--json", action="store_true", help="print the new rows as json")


def run(args: argparse.Namespace) -> int:
    """Tune, write, and print what was chosen."""
    from bootpig_rt.kernels import autotune, tiles

    def show(row: TileRow) -> None:
        if not args.json:
            padded = " padded" if row.is_padded else ""
            what = f"{row.mode} {row.bits} bit d{row.block_d}{padded} from {row.min_tokens} tokens"
            print(f"{what}: {row.tile} {row.measured_us} us", flush=True)

    shapes = [s for s in autotune.default_shapes() if args.dtype in (None, s.dtype)]
    rows = autotune.tune(shapes, device=args.device, progress=show)
    output = args.output or tiles.TABLE
    tiles.write_rows(autotune.replace_rows(tiles.read_rows(), rows), output)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(f"{output}: {len(rows)} rows")
    return EXIT_OK
