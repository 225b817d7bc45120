"""`bootpig-rt serve` in which something goes wrong while a file says so.

    python faulty_server.py FOLDER MODEL [FLAGS]

A fault is on while FOLDER/<its name> is there. Pictures of 64 px are the ones that it meets, so
that others can be drawn beside them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.backends.onnxruntime.backend import OnnxRuntimeBackend
from bootpig_rt.backends.onnxruntime.steps import OnnxRuntimeRun
from bootpig_rt.cli.main import main
from bootpig_rt.errors import EngineError, OutOfDeviceMemory
from bootpig_rt.server import local

FOLDER = Path(sys.argv[1])
LARGE = 16
"""Latents of 64 px."""


def is_on(name: str) -> bool:
    return (FOLDER / name).exists()


def wait_while(name: str) -> None:
    if is_on(name):
        (FOLDER / f"{name}.met").touch()
    while is_on(name):
        time.sleep(0.01)


start, step, decode = OnnxRuntimeBackend.start, OnnxRuntimeRun.step, OnnxRuntimeBackend.decode
encode_image, load_local, now = OnnxRuntimeBackend.encode_image, local.load_local, time.time


def start_or_fail(self: OnnxRuntimeBackend, batch: Any) -> OnnxRuntimeRun:
    pictures, side = batch.state.shape[1], batch.state.shape[-1]
    if side == LARGE and (is_on("oom") or (is_on("oom-together") and pictures > 1)):
        raise OutOfDeviceMemory(f"uploading a batch of {pictures} pictures")
    run = start(self, batch)
    run.side = side  # type: ignore[attr-defined]
    return run


def step_or_fail(self: OnnxRuntimeRun, index: int) -> None:
    if self.side == LARGE:  # type: ignore[attr-defined]
        if is_on("lost"):
            error = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
            raise EngineError("onnxruntime failed while running a graph") from error
        if is_on("broken"):
            raise RuntimeError("something that nobody has foreseen, in /secret/place")
        if is_on("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        wait_while("hang")
    wait_while("slow")
    step(self, index)


def decode_or_fail(self: OnnxRuntimeBackend, latents: Any, **options: Any) -> Any:
    if latents.shape[-1] == LARGE:
        if is_on("oom-decode") or (is_on("oom-decode-together") and len(latents) > 1):
            raise OutOfDeviceMemory("decoding")
        if is_on("nan"):
            return np.full_like(decode(self, latents, **options), np.nan)
    return decode(self, latents, **options)


def encode_or_fail(self: OnnxRuntimeBackend, pixels: Any) -> Any:
    latents = encode_image(self, pixels)
    return np.full_like(latents, np.nan) if is_on("nan-encode") else latents


def load_slowly(*args: Any, **options: Any) -> Any:
    wait_while("load")
    return load_local(*args, **options)


def shifted_time() -> float:
    with contextlib.suppress(OSError, ValueError):
        return now() + float((FOLDER / "clock").read_text())
    return now()


OnnxRuntimeBackend.start = start_or_fail  # type: ignore[method-assign]
OnnxRuntimeRun.step = step_or_fail  # type: ignore[method-assign]
OnnxRuntimeBackend.decode = decode_or_fail  # type: ignore[method-assign]
OnnxRuntimeBackend.encode_image = encode_or_fail  # type: ignore[method-assign]
local.load_local = load_slowly
time.time = shifted_time

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[2:]]))
