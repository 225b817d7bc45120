"""Suite `baselines`: ours beside the ways that people would otherwise take, on the same weights.

All ratios are to the strongest form of the published way on this machine: as it is, through
`torch.compile`, recorded as a CUDA graph, or in bfloat16 where the processor has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bootpig_rt.benchmarks.floors import BareUNet
from bootpig_rt.benchmarks.openvino_ways import load_openvino, openvino_loaders
from bootpig_rt.benchmarks.ours import EXACT, OurWay, torch_threads
from bootpig_rt.benchmarks.result import Row, SuiteResult, Target, make_check
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.truth import Truth
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Way
from bootpig_rt.benchmarks.ways import diffusers_way, four, known, new, our_way, published_ways
from bootpig_rt.errors import BootPIGError

HELP = "a picture and a step, beside the strongest published way, torch, diffusers and floors"

ROWS = 3
"""Of a step of one picture with guidance."""

PICTURES = "picture, image and prompt to pixels"
STEPS = "step of three rows"
SMOKE_STEPS = 3


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Find the strongest published way, then time all ways in turn beside it.

    Raises:
        BootPIGError: No form of the published way can be timed.
        ParameterError: `--only` matches no row.
    """
    bench = Bench(settings, journal)
    steps = SMOKE_STEPS if settings.is_smoke else None
    rows: list[Row] = []
    groups = [
        _group(settings, references, steps)
        for references in ((settings.references or (1, 4)) if settings.is_cuda else (1,))
    ]
    of_steps = [] if settings.is_cuda else _step_ways(settings, steps)
    # Nothing is loaded yet: a name that is none is refused before anything is measured.
    every = [way for group in groups for way in (*group.published, *group.others)]
    settings.check_only(way.name for way in (*every, *of_steps))
    del every
    with torch_threads(settings.threads):
        while groups:  # what one has loaded is let go before the next
            group = groups.pop(0)
            truth = group.truth
            baseline = settings.baseline + group.suffix if settings.baseline else None
            baseline = baseline or strongest(bench, group.published, group.name)
            ways = [*group.published, *group.others]
            rows += bench.rows(group.name, ways, baseline=baseline)
            bench.forget()
        if of_steps:
            rows += bench.rows(STEPS, of_steps, baseline=of_steps[0].name)
    config = truth.published._pair.config
    return SuiteResult(
        "baselines",
        tuple(rows),
        settings={
            "pair": config.name,
            "steps": truth.scene.steps,
            "solver": config.default_solver,
            "size_px": config.sample_size_px,
            "references": 1,
            "precision": truth.precision,
        },
        checks=tuple(bench.checks),
        targets=() if settings.is_cuda else tuple(targets(rows)),
    )


@dataclass(frozen=True)
class _Group:
    """Ways that draw one scene: forms of the published way, and what is compared with them."""

    name: str
    suffix: str
    truth: Truth
    published: list[Way]
    others: list[Way]


def _group(settings: Settings, references: int, steps: int | None) -> _Group:
    suffix = "" if references == 1 else f" r{references}"
    name = PICTURES + (f", {references} references" if references > 1 else "")
    truth = Truth(settings.pair, settings.device, references=references, steps=steps)
    published = published_ways(truth, name, suffix=suffix)
    if settings.is_smoke:  # compiling takes minutes
        published = [way for way in published if "compile" not in way.name]
    return _Group(name, suffix, truth, published, list(offered(settings, truth, name, suffix)))


def strongest(bench: Bench, published: list[Way], group: str) -> str:
    """Name of the quickest of some ways, in as many rounds as the ratios get.

    `--only` does not narrow it: a ratio to a weaker way would be flattering.
    """
    timed = bench.rows(f"strongest, {group}", published, wants_all=True)
    medians = {row.name: row.median_ms for row in timed if row.median_ms is not None}
    if not medians:
        reasons = "; ".join(f"{row.name}: {row.status}" for row in timed)
        raise BootPIGError(f"no form of the published way can be timed: {reasons}")
    return min(medians, key=lambda name: medians[name] or 0.0)


def offered(settings: Settings, truth: Truth, group: str, suffix: str) -> Iterator[Way]:
    """What is compared with the published way."""
    make = functools.cache(partial(_load, settings, truth))

    def way(
        name: str, label: str, draw: Callable[[OurWay], Any], load: Callable[[], OurWay],
        pictures: int = 1, precision: str | None = None,
    ) -> Way:  # fmt: skip
        return our_way(
            truth, name + suffix, label, load, draw,
            group=group, pictures=pictures, precision=precision,
        )  # fmt: skip

    if not suffix:
        yield diffusers_way(truth, group)
    if settings.is_cuda:
        yield from _rungs(settings, truth, way)
        ours = partial(make, "torch")
    else:
        torch_ours = partial(make, "torch")
        yield way("torch_new", "our torch backend, new subject", new, torch_ours)
        yield way("torch_known", "our torch backend, known subject", known, torch_ours)
        ours = partial(make, "onnxruntime")
    yield Way("ours_text" + suffix, "ours, text to image", lambda: Ready(ours().no_reference),
              group=group)  # fmt: skip
    yield way("ours_new", "ours, new subject", new, ours)
    yield way("ours_known", "ours, known subject", known, ours)
    yield way("ours_four", "ours, four pictures of a known subject", four, ours, pictures=4)
    if not settings.is_cuda:
        loaders = openvino_loaders(settings, truth.folder, steps=truth.steps)
        for precision, load in loaders.items():
            named = f"ours, OpenVINO {precision}"
            for kind, (label, draw) in _KINDS.items():
                yield way(f"ours_openvino_{precision}_{kind}", f"{named}, {label}", draw, load,
                          precision=f"openvino {precision}")  # fmt: skip
            for kind, (label, batches) in _BATCHES.items():
                load = functools.cache(
                    partial(load_openvino, settings, truth.folder, precision, batches=batches,
                            steps=truth.steps)
                )  # fmt: skip
                yield way(f"ours_openvino_{precision}_{kind}", f"{named}, {label}", four, load, 4,
                          f"openvino {precision}")  # fmt: skip
    if not settings.is_cuda and not settings.is_smoke:  # its export takes a minute
        label = f"floor: the U-Net alone in ONNX Runtime, {ROWS} full rows"
        yield Way("floor_unet", label, partial(_floor, settings, truth), group=group)


_KINDS: dict[str, tuple[str, Callable[[OurWay], Any]]] = {
    "new": ("new subject", new),
    "known": ("known subject", known),
}

_BATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "four": ("four pictures, one after another", {"streams": 1}),
    "streams": ("four pictures, two at once on a core each", {"streams": 2}),
    "launch": ("four pictures in one launch", {"streams": 1, "buckets": (1, 4)}),
}
"""Ways to launch a batch."""


def targets(rows: Sequence[Row]) -> list[Target]:
    """What was aimed at for the small pair on processors with AMX, of the quickest of ours."""
    times = {row.name: row.median_ms for row in rows if row.median_ms is not None}
    ours = [times[name] for name in times if name.startswith("ours") and name.endswith("known")]
    float32 = [times[name] for name in ("published", "published_compile") if name in times]
    best = min(ours, default=None)
    ratio = None if best is None or not float32 else min(float32) / best
    return [
        Target("known subject, times the published way in float32", 6.0, ratio),
        Target("picture of a known subject, s", 0.25, None if best is None else best / 1e3,
               is_most=True),
    ]  # fmt: skip


def _load(settings: Settings, truth: Truth, backend: str, **options: Any) -> OurWay:
    eager = options.pop("eager", False)
    return OurWay(
        truth.folder, backend=backend, device=truth.device, threads=settings.threads,
        references=truth.references, eager=eager, backend_options=options,
        steps=truth.steps,
    )  # fmt: skip


def _rungs(settings: Settings, truth: Truth, way: Callable[..., Way]) -> Iterator[Way]:
    """What ours adds, one after the other, up to what a user gets."""
    host: dict[str, Any] = {"cuda_graph": False, "channels_last": False}
    rungs = {
        "table": ("+ reference and text read once, ahead of the steps", host | {"eager": True}),
        "fused": ("+ fused kernels, channels-last", {"cuda_graph": False}),
        "rows": ("ours, without channels-last", {"channels_last": False}),
        "joined": ("ours, queries, keys and values as one product, all time embeddings as another",
                   {"joined_products": True}),
    }  # fmt: skip
    for name, (label, options) in rungs.items():
        load = functools.cache(partial(_load, settings, truth, "torch", **options))
        yield way(f"rung_{name}_new", f"{label}, new subject", new, load)
        yield way(f"rung_{name}_known", f"{label}, known subject", known, load)


def _floor(settings: Settings, truth: Truth) -> Ready:
    """What nothing that computes three full rows a step can be quicker than."""
    unet, steps = _bare(settings, truth), truth.scene.steps
    return Ready(lambda: [unet.launch() for _ in range(steps)])


def _bare(settings: Settings, truth: Truth) -> BareUNet:
    pair = truth.pair()
    name = f"unet-{pair.fingerprint[:12]}-torch-{torch.__version__}.onnx"
    return BareUNet(
        pair.base.unet, settings.work / "graphs" / name, rows=ROWS, threads=settings.threads,
        side=truth.scene.noise.shape[-1], tokens=truth.scene.ids.shape[1],
    )  # fmt: skip


def _step_ways(settings: Settings, steps: int | None) -> list[Way]:
    """A step from its end to the end of the next, beside the U-Net alone."""
    truth = Truth(settings.pair, steps=steps)

    def floor() -> Ready:
        unet = _bare(settings, truth)
        off = make_check("floor_step", unet.difference(truth.pair().base.unet), 5 * _BARE)
        return Ready(unet.launch, difference=lambda: off.value or 0.0, limit=off.limit)

    def ours(backend: str) -> Ready:
        way = _load(settings, truth, backend)
        return Ready(partial(way.step_ms, **EXACT))

    def in_openvino(load: Callable[[], OurWay]) -> Ready:
        return Ready(partial(load().step_ms, **EXACT))

    ways = [
        Way("ours_step", "ours, with reference, guidance and solver",
            partial(ours, "onnxruntime"), group=STEPS),
        Way("torch_step", "our torch backend", partial(ours, "torch"), group=STEPS),
        *(
            Way(f"ours_openvino_{precision}_step", f"ours, OpenVINO {precision}",
                partial(in_openvino, load), group=STEPS)
            for precision, load in openvino_loaders(settings, truth.folder, steps=steps).items()
        ),
    ]  # fmt: skip
    if not settings.is_smoke:
        ways = [Way("floor_step", "the U-Net alone in ONNX Runtime", floor, group=STEPS), *ways]
    return ways


_BARE = 5.3e-7
"""What the exported U-Net was measured to differ from torch by, as a share of its output."""
