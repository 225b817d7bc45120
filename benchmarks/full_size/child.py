"""One way of suite `full-size` in a process of its own: load, draw, tell times, leave pixels.

python -m bootpig_rt.benchmarks.full_size.child ORDER TOLD
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from bootpig_rt.benchmarks.full_size import draw
from bootpig_rt.benchmarks.full_size.told import Drawn, Order, Stopwatch, Told


def main(order: Order) -> Told:
    """Load, draw each kind of picture, and save their pixels as uint8 [H, W, 3]."""
    start = Stopwatch()
    kinds = draw.LOADERS[order.engine](order)
    load_ms = start.wall_ms
    drawn: dict[str, Drawn] = {}
    pixels: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = {}
    first_ms = 0.0
    for kind, one in kinds.items():
        warm_up = Stopwatch()
        one()
        first_ms = first_ms or warm_up.wall_ms
        drawn[kind], pixels[kind] = one()
    np.savez(order.pixels, **pixels)  # type: ignore[arg-type]
    return Told(load_ms, first_ms, drawn)


if __name__ == "__main__":
    asked = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(main(asked)))
