"""Suite `latency`: from process start to picture, and every part of it, per backend."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import bootpig_rt
from bootpig_rt.benchmarks.backends_here import BackendHere, backends_here
from bootpig_rt.benchmarks.child import ChildRun, drop_cached_files, run_child
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.ours import OurWay, StepBlock, picture_difference
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, choose, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.bundle.bundle import is_bundle, read_manifest

NAME = "latency"
HELP = "process to picture, import, load, and the parts of a picture, over its settings"

_PROCESS = "process start to its end"
_PUBLISHED = "process published"
_INSIDE = "in a process of its own"

_BLOCK = 5
_PIXELS = {"cpu": 0.5, "cuda": 2.0}
"""Largest mean difference, in steps of 255, between pictures of two backends; a GPU may compute in
less than float32."""

_GOALS = (
    ("process generate onnxruntime", "process to picture, ms", (4000.0,)),
    ("process generate onnxruntime uncached", "process to picture, not cached, ms", (4000.0,)),
    ("process import", "import, ms", (700.0, 500.0)),
)
_SHARE_GOAL = 0.1

_PACKAGES = ("onnxruntime", "numpy", "pillow", "tokenizers", "safetensors", "tqdm")


def run(settings: Settings) -> SuiteResult:
    """Time processes first, then pictures in this process.

    Raises:
        ParameterError: `--only` matches no row.
    """
    rows: list[Row] = []
    checks: list[Check] = []
    names: list[str] = []
    here = backends_here(settings.pair)
    with torch_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        processes = _Processes(settings, here, Path(folder))
        names += [way.name for way in processes.ways]
        rows += processes.rows()
        ours: dict[str, OurWay] = {}
        # Backends whose rows are not asked for are not loaded.
        wanted = [each for each in here if _may_be_wanted(settings, each.name)]
        for each in wanted or here[:1]:
            ours[each.name] = OurWay(
                settings.pair, backend=each.backend, device=each.device, threads=settings.threads
            )
        first, *others = ours.values()
        for each, way in zip((wanted or here[:1])[1:], others, strict=True):
            difference = picture_difference(way.cold().images, first.cold().images)
            checks.append(Check(f"pixels: {each.name}", difference, _PIXELS[each.device]))
        for name, way in ours.items():
            parts, pictures = list(_parts(name, way)), list(_pictures(settings, name, way))
            names += [each.name for each in (*parts, *pictures)]
            rows += time_ways(
                choose(parts, settings),
                # Quick, and so there can be enough samples for the 99th percentile.
                5 * settings.rounds,
                baseline=f"{name} step",
                progress=settings.progress,
            )
            rows += map(
                _with_rate,
                time_ways(
                    choose(pictures, settings),
                    max(2, settings.rounds // 2),
                    baseline=f"{name} picture",
                    progress=settings.progress,
                ),
            )
            rows += _share(name, rows)
    settings.check_only(names)
    config = first.pipe.spec.config
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "rounds": settings.rounds,
        },
        checks=tuple(checks),
        goals=tuple(_goals(rows)),
    )  # fmt: skip


def _may_be_wanted(settings: Settings, name: str) -> bool:
    """Could a row that begins with `name` be asked for?"""
    return not settings.only or any(
        f"{name} ".startswith(start) or start.startswith(f"{name} ") for start in settings.only
    )


class _Processes:
    """Whole processes: an interpreter, an import, a picture by each way that runs on the CPU."""

    def __init__(self, settings: Settings, here: list[BackendHere], folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._reference = folder / "reference.png"
        drawing().save(self._reference)
        self._runs: dict[str, list[ChildRun]] = {}
        self._here = [each for each in here if each.device == "cpu"]
        self.ways = list(self._ways())

    def rows(self) -> list[Row]:
        """Times of whole processes, and of what they report of themselves."""
        rows = time_ways(
            choose(self.ways, self._settings),
            max(1, self._settings.rounds // 4),
            baseline=_PUBLISHED,
            warmups=0 if self._settings.is_smoke else 1,
            progress=self._settings.progress,
        )
        found: list[Row] = []
        for row in rows:
            peaks = [run.peak_bytes for run in self._runs[row.name]]
            known = [peak for peak in peaks if peak is not None]
            peak = {"peak_bytes": float(max(known))} if known else {}
            found.append(replace(row, values=dict(row.values) | peak))
        return [*found, *self._inside()]

    def _ways(self) -> Iterator[Way]:
        pair, reference, threads = (
            str(self._settings.pair), str(self._reference), str(self._settings.threads),
        )  # fmt: skip
        published = ["-m", "bootpig_rt.benchmarks.published_process", pair, reference]
        yield self._way(
            _PUBLISHED, "published way, one reference",
            [*published, str(self._folder / "published.png"), threads],
        )  # fmt: skip
        yield self._way("process python", "python that does nothing", ["-c", ""])
        yield self._way(
            "process import",
            "import bootpig_rt, Pipeline",
            ["-c", "from bootpig_rt import Pipeline"],
        )
        for each in self._here:
            words = [
                "-m", "bootpig_rt", "generate", "--model", pair, "--device", "cpu",
                "--reference", reference, "--reference-prompt", REFERENCE_PROMPT,
                "--prompt", PROMPT, "--backend", each.backend, "--seed", "1", "--json",
                "-o", str(self._folder / f"{each.backend}.png"),
            ]  # fmt: skip
            if each.backend == "onnxruntime":  # the others heed OMP_NUM_THREADS
                words += ["--threads", threads]
            label = f"generate, one reference, {each.backend}"
            yield self._way(f"process generate {each.backend}", label, words)
            if each.backend == "onnxruntime" and not self._settings.is_smoke:
                yield self._way(
                    f"process generate {each.backend} uncached",
                    f"{label}, files of its packages not cached",
                    words, is_uncached=True,
                )  # fmt: skip

    def _way(self, name: str, label: str, words: list[str], *, is_uncached: bool = False) -> Way:
        threads = str(self._settings.threads)
        self._runs[name] = []

        def child() -> None:
            # A store would make the subject known.
            made = run_child(
                words, environment={"OMP_NUM_THREADS": threads, "BOOTPIG_RT_STORE": ""}
            )
            self._runs[name].append(made)

        return Way(
            name, label, child, group=_PROCESS, notes={"threads": threads},
            prepare=self._drop_cached if is_uncached else None,
        )  # fmt: skip

    def _drop_cached(self) -> None:
        drop_cached_files([*_installed(), self._settings.pair])

    def _inside(self) -> Iterator[Row]:
        """Loading and the first picture, as `generate --json` reports them."""
        for each in self._here:
            runs = self._runs[f"process generate {each.backend}"]
            if not self._settings.is_smoke:
                runs = runs[1:]  # the first warms up
            told = [json.loads(run.output)["timings"] for run in runs]
            for part, label, key in (
                ("load", "load the pair", "load_ms"),
                ("first picture", "first picture, after loading", "total_ms"),
            ):
                samples = tuple(float(timings[key]) for timings in told)
                if samples:
                    name = f"process {part} {each.backend}"
                    yield Row(name, f"{label}, {each.backend}", _INSIDE, samples_ms=samples)


def _installed() -> list[Path]:
    """Folders of this package and of those that it needs to draw."""
    folders = {Path(bootpig_rt.__file__).parent}
    for package in _PACKAGES:
        try:
            files = metadata.files(package) or ()
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if ".." not in file.parts and len(file.parts) > 1:
                folders.add(Path(str(file.locate())).parents[len(file.parts) - 2])
    return sorted(folders)


def _parts(name: str, ours: OurWay) -> Iterator[Way]:
    """What is quick, beside a step."""
    pipe = ours.pipe
    side = pipe.spec.config.sample_size_px // pipe.spec.vae_scale_factor
    backend: Any = pipe._backend
    latents = np.zeros((1, pipe.spec.latent_channels, side, side), np.float32)
    ids = pipe._tokenizer(["", PROMPT])
    block = StepBlock(ours, _BLOCK)
    group = f"{name}: parts, one reference"
    yield Way(
        f"{name} step", "step", block.run, block.count, group=group, prepare=block.prepare,
        values={
            "rows": float(len(block.batch.text_of_row)),
            "references": float(block.num_references),
        },
    )  # fmt: skip
    yield Way(
        f"{name} encode subject", "encode a new subject, with its table", ours.encode, group=group
    )
    yield Way(
        f"{name} reference table", "its reference table alone", ours.reference_table, group=group
    )
    yield Way(
        f"{name} reference table exact", "its table with an entry for each step",
        partial(ours.reference_table, "exact"), group=group,
    )  # fmt: skip
    # Reading the states waits for a GPU.
    yield Way(
        f"{name} text", "text encoder, two prompts",
        lambda: backend.download_states(backend.encode_text(ids)), group=group,
    )  # fmt: skip
    yield Way(f"{name} decode", "decode one picture", partial(backend.decode, latents), group=group)


def _pictures(settings: Settings, name: str, ours: OurWay) -> Iterator[Way]:
    """What takes as long as a picture, beside a picture of a known subject."""
    pipe = ours.pipe
    draw = partial(pipe, PROMPT, subject=ours.subject, seed=1)
    group = f"{name}: pictures, one reference where nothing else is said"
    is_smoke = settings.is_smoke

    def way(what: str, label: str, run: partial[Any], count: float = 1) -> Way:
        return Way(f"{name} {what}", label, run, count, group=group)

    yield way("picture", "picture of a known subject", draw)
    yield way("new subject", "picture of a new subject", partial(ours.cold))
    yield way("load", "load the pair", partial(ours.load))
    for count in () if is_smoke else (2, 4, 8):
        yield way(f"batch {count}", f"batch of {count}", partial(draw, num_images=count), count)
    most = pipe.spec.config.max_references
    for count in (2,) if is_smoke else range(2, min(4, most) + 1):
        images = [drawing(index) for index in range(count)]
        subject = pipe.encode_subject(images, REFERENCE_PROMPT)
        label = f"{count} references"
        yield way(f"references {count}", label, partial(pipe, PROMPT, subject=subject, seed=1))
    for count in (4,) if is_smoke else (4, 8, 12, 50):
        yield way(f"steps {count}", f"{count} steps", partial(draw, num_inference_steps=count))
    for side in sides(settings.pair, ours)[: 1 if is_smoke else None]:
        other = partial(draw, width=side, height=side)
        yield way(f"size {side}", f"{side} px", other)


def sides(folder: Path, ours: OurWay) -> list[int]:
    """Sides of pictures over all that the bundle was built for, but for the pair's own, in px."""
    spec = ours.pipe.spec
    own, multiple = spec.config.sample_size_px, spec.size_multiple_px
    low, high = own // 2, 2 * own
    if is_bundle(folder):
        low, _, high = read_manifest(folder).profile.resolution_px
    between = (own // 2, own * 3 // 2, 2 * own)
    found = {side // multiple * multiple for side in (low, *between, high)}
    return sorted(side for side in found if low <= side <= high and side != own)


def _with_rate(row: Row) -> Row:
    if row.median_ms is None or row.name.endswith(" load"):
        return row
    return replace(row, values={"pictures_per_s": round(1e3 / row.median_ms, 3)})


def _share(name: str, rows: list[Row]) -> list[Row]:
    """What text encoder and decoder take of a picture."""
    found = {row.name: row.median_ms for row in rows}
    needed = [found.get(f"{name} {part}") for part in ("text", "decode", "picture")]
    if None in needed:
        return []
    text, decode, picture = (float(each or 0) for each in needed)
    share = (text + decode) / picture
    return [
        Row(
            f"{name} text and decoder", "text encoder and decoder, share of a picture",
            f"{name}: share", values={"share": round(share, 4)},
        )
    ]  # fmt: skip


def _goals(rows: list[Row]) -> Iterator[Check]:
    found = {row.name: row for row in rows}
    for name, label, limits in _GOALS:
        median_ms = found[name].median_ms if name in found else None
        if median_ms is not None:
            yield from (Check(label, median_ms, limit) for limit in limits)
    share = found.get("onnxruntime text and decoder")
    if share is not None:
        yield Check("text and decoder of a picture", share.values["share"] or 0.0, _SHARE_GOAL)
