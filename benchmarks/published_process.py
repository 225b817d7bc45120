"""The published way as a process of its own, from its start to a PNG: for the suite `latency`.

python -m bootpig_rt.benchmarks.published_process PAIR REFERENCE.png OUTPUT.png THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from bootpig_rt.backends.torch.backend import load
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.images.picture import to_pil


def main(pair: str, reference: str, output: str, threads: str) -> None:
    """Load, draw one picture with the settings of the pair, write it."""
    torch.set_num_threads(int(threads))
    backend = load(Path(pair), "cpu", None)
    config = backend.spec.config
    way = PublishedWay(backend, steps=config.default_steps, solver=config.default_solver)
    way.install()
    with Image.open(reference) as image:
        _, pixels = way.picture(image.convert("RGBA"))
    to_pil(pixels)[0].save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
