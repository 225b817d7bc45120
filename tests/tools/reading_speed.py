"""How fast samples come from shards: whole ones, as latents are made of, and references, each step.

    python tests/tools/reading_speed.py SHARDS [--threads 4] [--seconds 10]

Seconds are those of the clock and of processors; the first depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from bootpig_rt.training.augment import augment
from bootpig_rt.training.read_ahead import each_ahead
from bootpig_rt.training.samples import Samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        begun = time.perf_counter()
        samples = Samples(args.shards, Path(cache))
        side = int(samples.sizes_px[0, 0])
        print(
            f"{len(samples)} samples of {side} px, indexed in {time.perf_counter() - begun:.1f} s"
        )

        def whole(number: int) -> object:
            return samples.read(number % len(samples))

        def reference(number: int) -> object:
            picture = samples.reference(number % len(samples), 0)
            return augment(np.random.default_rng(number), picture, "paper")

        _time("whole samples", whole, args.threads, args.seconds)
        _time("references, augmented", reference, args.threads, args.seconds)


def _time(what: str, read: Callable[[int], object], threads: int, seconds: float) -> None:
    done, begun, begun_cpu = 0, time.perf_counter(), time.process_time()
    for _ in each_ahead(read, count(), threads):
        done += 1
        if time.perf_counter() - begun > seconds:
            break
    passed, used = time.perf_counter() - begun, time.process_time() - begun_cpu
    print(
        f"{what}: {done / passed:.0f} a second with {threads} threads, "
        f"{1000 * used / done:.2f} ms of processor time each"
    )


if __name__ == "__main__":
    main()
