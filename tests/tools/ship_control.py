"""Puts a trained control into the package, in place of the one of that kind.

make ship-control CONTROL=runs/control/result/controlnet_depth

Makes what ships: of the weights what training added, in eight bits, and the graphs that the pair
has not, compared with torch. Nothing in the package changes before all is done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from bootpig_rt.bundle.control import ControlFolder
from bootpig_rt.bundle.shipped import CONTROLS
from bootpig_rt.cli.build_engine import build_progress
from bootpig_rt.errors import BootPIGError, ParameterError
from bootpig_rt.export.packaged_control import build_packaged_control

ASSETS = Path(__file__).resolve().parents[2] / "bootpig_rt" / "assets"


def ship_control(control: ControlFolder, assets: Path = ASSETS) -> Path:
    """Make it, then put it in place.

    Returns:
        Its folder in the package.

    Raises:
        ParameterError: The package has no control of that kind.
        BootPIGError: See `build_packaged_control`.
    """
    if control.kind not in CONTROLS:
        raise ParameterError(
            f"control is of kind {control.kind}, expected one of: {', '.join(CONTROLS)}"
        )
    place = assets / f"control_{control.kind}"
    new, old = (assets / f".{place.name}.{name}" for name in ("new", "old"))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    with build_progress(is_shown=True) as progress:
        build_packaged_control(assets / "pair", control, new, progress=progress)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("control", help="its folder, controlnet_KIND, or KIND=DIR")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder in the package")
    args = parser.parse_args()
    try:
        place = ship_control(ControlFolder.parse(args.control), args.assets)
    except BootPIGError as error:
        sys.stderr.write(f"ship_control: error: {error}\n")
        return error.exit_code
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"{place}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
