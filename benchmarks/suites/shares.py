"""Suite `shares`: how far a step is from its floor, and which operators its time goes to.

The floor is arithmetic: products and convolutions of the U-Net's rows at the speed that these
cores reach in one large product of matrices.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.openvino_ways import PRECISIONS, is_for_openvino, load_openvino
from bootpig_rt.benchmarks.operators import OperatorTime, profiled
from bootpig_rt.benchmarks.ours import EXACT, OurWay, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Journal, Unavailable, why_not
from bootpig_rt.bundle.pair_config import read_json, read_pair_config
from bootpig_rt.errors import BootPIGError

HELP = "a step beside its floor, and its time by operator, as the runtimes tell"

_SHOWN = 10
_ROWS = 3


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Measure the floor, then a step of each engine, without and with a profile.

    Raises:
        ParameterError: `--only` matches no row.
    """
    ways = ["onnxruntime", *(f"openvino {precision}" for precision in PRECISIONS)]
    if is_for_openvino(settings.pair):
        ways = ways[1:]
    settings.check_only(ways)
    steps = 3 if settings.is_smoke else 11
    rows: list[Row] = []
    with torch_threads(settings.threads):
        floors = dict(_floors(settings))
        rows += floors.values()
        for done, way in enumerate(ways):
            if settings.is_wanted(way):
                settings.progress(way, done, len(ways))
                rows += _engine(settings, way, steps, floors)
    config = read_pair_config(settings.pair / "pair.json")
    return SuiteResult(
        "shares",
        tuple(rows),
        settings={
            "pair": config.name, "steps": steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1,
        },
    )  # fmt: skip


def _floors(settings: Settings) -> Iterator[tuple[str, Row]]:
    """Products of a step over the speed of a large product, by precision."""
    flops = _flops(settings)
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        row = Row(f"floor {name}", f"floor: products of {_ROWS} rows, {name}", "floor of a step")
        if name == "bf16" and machine.bf16_flag() is None:
            status = "not available: this processor has no bfloat16"
            yield name, Row(row.name, row.label, row.group, status=status)
            continue
        speed = _speed(dtype, 256 if settings.is_smoke else 2048)
        yield (
            name,
            Row(row.name, row.label, row.group, (1e3 * flops / speed,)).with_values(
                gflop=round(flops / 1e9, 3), gflop_per_s=round(speed / 1e9, 1)
            ),
        )


def _flops(settings: Settings) -> int:
    """Of the Base U-Net with three rows, reference left out; counted without weights."""
    unet_config, vae, text = (
        read_json(settings.pair / name / "config.json")
        for name in ("base_unet", "vae", "text_encoder")
    )
    size_px = read_pair_config(settings.pair / "pair.json").sample_size_px
    side = size_px // 2 ** (len(vae["block_out_channels"]) - 1)
    width = unet_config["cross_attention_dim"]
    with torch.device("meta"), torch.inference_mode():
        unet: Any = UNet2DConditionModel.from_config(unet_config)
        rows = torch.zeros(_ROWS, unet.config.in_channels, side, side)
        states = torch.zeros(
            _ROWS, text["max_position_embeddings"], width if isinstance(width, int) else width[0]
        )
        with FlopCounterMode(display=False) as counter:
            unet(rows, torch.tensor(500), states)
    return int(counter.get_total_flops())


def _speed(dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second in the best of some products of square matrices."""
    a = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _engine(settings: Settings, way: str, steps: int, floors: dict[str, Row]) -> Iterator[Row]:
    """A step without a profile, then its operators with one."""
    name, _, precision = way.partition(" ")
    group = f"step in {way}"

    def load(*, is_profiled: bool = False) -> OurWay:
        if name == "openvino":
            return load_openvino(
                settings, settings.pair, precision, steps=steps, is_profiled=is_profiled
            )
        return OurWay(settings.pair, threads=settings.threads, steps=steps)

    try:
        ours = load()
        ours.warm(**EXACT)
        step_ms = ours.step_ms(**EXACT)
        del ours
        with tempfile.TemporaryDirectory() as folder, profiled(name, Path(folder)) as read:
            shown = load(is_profiled=True)
            shown.warm(**EXACT)
            shown.warm(**EXACT)
            operators = read(2 * steps)
    except (BootPIGError, ImportError, RuntimeError) as error:
        missing = isinstance(error, (Unavailable, ImportError))
        status = f"not available: {error}" if missing else why_not(error)
        yield Row(way, way, group, status=status)
        return
    floor = floors["float32" if precision in ("", "float32") else "bf16"].median_ms
    yield Row(way, "step, without a profile", group, (step_ms,)).with_values(
        times_floor=None if floor is None else round(step_ms / floor, 2)
    )
    yield from _shares(way, group, operators)


def _shares(way: str, group: str, operators: list[OperatorTime]) -> Iterator[Row]:
    total = float(np.sum([each.ms for each in operators])) or 1.0
    for each in operators[:_SHOWN]:
        row = Row(f"{way} {each.kind}", f"`{each.kind}`", group)
        yield row.with_values(share=each.ms / total, calls=round(each.calls, 1))
    rest = operators[_SHOWN:]
    if rest:
        share = sum(each.ms for each in rest) / total
        calls = round(sum(each.calls for each in rest), 1)
        yield Row(f"{way} rest", f"{len(rest)} others", group).with_values(share=share, calls=calls)
