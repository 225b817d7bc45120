"""`python -m bootpig_rt.training.road`: what `make road` runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from bootpig_rt.errors import BootPIGError
from bootpig_rt.training.road.drive import Road, drive
from bootpig_rt.training.road.report import write_report
from bootpig_rt.training.road.steps import Size


def main() -> int:
    """Drive, and say where the report is."""
    parser = argparse.ArgumentParser(
        prog="python -m bootpig_rt.training.road",
        description="From a Stable Diffusion folder to a picture over HTTP, at small size.",
        epilog="Interrupted, the same command goes on where it was.",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/road"), metavar="DIR")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="drawings that fetch-data made; plain shapes stand in where there are none",
    )
    parser.add_argument(
        "--no-layout",
        action="store_true",
        help="leave out the folder of random weights in the shape of Stable Diffusion 2.1",
    )
    for field in fields(Size):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, help=f"default: {field.default}"
        )
    args = parser.parse_args()
    size = Size(**{field.name: getattr(args, field.name) for field in fields(Size)})
    road = Road(args.output, size, args.data, with_layout=not args.no_layout)
    try:
        with tqdm(total=9 + 5 * road.with_layout, unit="step") as bar:

            def on_step(name: str) -> None:
                bar.update(bar.n < bar.total)
                bar.set_description(name)

            done = drive(road, on_step=on_step)
        report = write_report(road.output, done)
    except BootPIGError as error:
        sys.stderr.write(f"road: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
