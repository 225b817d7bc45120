"""Suite `latency`: from process start to picture, and every part of it, per backend."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from bootpig_rt.benchmarks.child import ChildRun, run_child
from bootpig_rt.benchmarks.ours import (
    PROMPT,
    REFERENCE_PROMPT,
    OurWay,
    backends_here,
    drawing,
    torch_threads,
)
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.truth import Truth
from bootpig_rt.benchmarks.way import Bench, Journal, Ready, Way
from bootpig_rt.benchmarks.ways import known, our_way
from bootpig_rt.images.picture import to_pil

HELP = "process to picture, import, load, and the parts of a picture, over its settings"

PROCESS = "process start to its end"
_PUBLISHED = "process published"
_INSIDE = "in a process of its own"


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Time processes first, then pictures in this process.

    Raises:
        ParameterError: `--only` matches no row.
    """
    bench = Bench(settings, journal)
    rows: list[Row] = []
    names = backends_here(settings.pair, settings.device)
    with torch_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        processes = _Processes(settings, names, Path(folder))
        rows += processes.rows(bench)
        truth = Truth(settings.pair, settings.device)
        for name in names:
            load = cache(partial(_load, settings, name))
            parts, pictures = list(_parts(name, load)), list(_pictures(settings, truth, name, load))
            rows += bench.rows(f"{name}: parts", parts)
            timed = bench.rows(f"{name}: pictures", pictures, baseline=pictures[0].name)
            rows += [_with_rate(row) for row in timed]
    settings.check_only(bench.names)
    config = truth.published._pair.config
    return SuiteResult(
        "latency",
        tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1,
        },
        checks=tuple(bench.checks),
    )  # fmt: skip


def _load(settings: Settings, backend: str) -> OurWay:
    return OurWay(settings.pair, backend=backend, device=settings.device, threads=settings.threads)


class _Processes:
    """Whole processes: an interpreter, an import, a picture by each way."""

    def __init__(self, settings: Settings, backends: list[str], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._reference = folder / "reference.png"
        drawing().save(self._reference)
        self._runs: dict[str, list[ChildRun]] = {}
        self._backends = backends
        self._ways = list(self._offered())

    def rows(self, bench: Bench) -> list[Row]:
        """Times of whole processes, and of what they report of themselves."""
        warmups = 0 if self._settings.is_smoke else 1
        timed = bench.rows(PROCESS, self._ways, baseline=_PUBLISHED, warmups=warmups)
        found: list[Row] = []
        for row in timed:
            peaks = [run.peak_bytes for run in self._runs[row.name]]
            known_peaks = [float(peak) for peak in peaks if peak is not None]
            found.append(row.with_values(peak_bytes=max(known_peaks)) if known_peaks else row)
        return [*found, *self._inside(warmups)]

    def _offered(self) -> Iterator[Way]:
        settings = self._settings
        pair, threads, device = str(settings.pair), str(settings.threads), settings.device
        words = ["-m", "bootpig_rt.benchmarks.suites.latency", pair, str(self._reference)]
        words += [str(self._folder / "published.png"), threads, device]
        yield self._way(_PUBLISHED, "published way, one reference", words)
        yield self._way("process python", "python that does nothing", ["-c", ""])
        yield self._way("process import", "import bootpig_rt, Pipeline",
                        ["-c", "from bootpig_rt import Pipeline"])  # fmt: skip
        for name in self._backends:
            words = [
                "-m", "bootpig_rt", "generate", "--model", pair, "--device", device,
                "--reference", str(self._reference), "--reference-prompt", REFERENCE_PROMPT,
                "--prompt", PROMPT, "--backend", name, "--seed", "1", "--json",
                "-o", str(self._folder / f"{name}.png"),
            ]  # fmt: skip
            if name in ("onnxruntime", "openvino"):  # the others heed OMP_NUM_THREADS
                words += ["--threads", threads]
            label = f"generate, one reference, {name}"
            yield self._way(f"process generate {name}", label, words)

    def _way(self, name: str, label: str, words: list[str]) -> Way:
        threads = str(self._settings.threads)
        runs = self._runs.setdefault(name, [])

        def child() -> None:
            # A store would make the subject known.
            environment = {"OMP_NUM_THREADS": threads, "BOOTPIG_RT_STORE": ""}
            runs.append(run_child(words, environment=environment))

        return Way.of(name, label, child, group=PROCESS)

    def _inside(self, warmups: int) -> Iterator[Row]:
        """Loading and the first picture, as `generate --json` reports them."""
        for name in self._backends:
            runs = self._runs[f"process generate {name}"][warmups:]
            told = [json.loads(run.output)["timings"] for run in runs]
            for part, label, key in (
                ("load", "load the pair", "load_ms"),
                ("first picture", "first picture, after loading", "total_ms"),
            ):
                samples = tuple(float(timings[key]) for timings in told)
                if samples:
                    row = f"process {part} {name}"
                    yield Row(row, f"{label}, {name}", _INSIDE, samples_ms=samples)


def _parts(name: str, load: Callable[[], OurWay]) -> Iterator[Way]:
    """What a picture is made of."""
    group = f"{name}: parts, one reference"

    def way(what: str, label: str, run: Callable[[OurWay], object]) -> Way:
        return Way(f"{name} {what}", label, lambda: Ready(partial(run, load())), group=group)

    yield way("step", "step", lambda ours: ours.step_ms())
    yield way("encode", "encode a new subject, with its table", lambda ours: ours.encode())
    yield way("text", "text encoder, two prompts", lambda ours: ours.text())
    yield way("decode", "decode one picture", lambda ours: ours.decode())
    yield way("load", "load the pair", lambda ours: ours.load())


def _pictures(
    settings: Settings, truth: Truth, name: str, load: Callable[[], OurWay]
) -> Iterator[Way]:
    """A picture of a known subject, compared with the published one, and what is varied of it."""
    group = f"{name}: pictures, one reference where nothing else is said"
    is_smoke = settings.is_smoke

    def way(what: str, label: str, draw: Callable[[OurWay], Any], count: float = 1) -> Way:
        return Way(f"{name} {what}", label, lambda: Ready(partial(draw, load())), count, group)

    yield our_way(truth, f"{name} exact", "picture of a known subject, schedule `exact`", load,
                  known, group=group)  # fmt: skip
    yield way("picture", "picture of a known subject", lambda ours: ours.warm())
    yield way("new subject", "picture of a new subject", lambda ours: ours.cold())
    for count in (2,) if is_smoke else (2, 4, 8):
        label = f"batch of {count}"
        yield way(f"batch {count}", label, partial(_warm, count=count), count)
    for count in (2,) if is_smoke else (2, 3, 4):
        make = partial(_several, settings, name, count)
        yield Way(f"{name} references {count}", f"{count} references", make, group=group)
    for count in (4,) if is_smoke else (4, 8, 12, 50):
        yield way(f"steps {count}", f"{count} steps", partial(_warm, num_inference_steps=count))
    own = truth.scene.size_px
    for side in (own // 2,) if is_smoke else (own // 2, own * 3 // 2, 2 * own):
        yield way(f"size {side}", f"{side} px", partial(_warm, width=side, height=side))


def _warm(ours: OurWay, count: int = 1, **options: Any) -> object:
    return ours.warm(count, **options)


def _several(settings: Settings, name: str, count: int) -> Ready:
    ours = OurWay(
        settings.pair, backend=name, device=settings.device, threads=settings.threads,
        references=count,
    )  # fmt: skip
    return Ready(ours.warm)


def _with_rate(row: Row) -> Row:
    if row.median_ms is None:
        return row
    return row.with_values(pictures_per_s=round(1e3 / row.median_ms, 3))


def published_process(pair: str, reference: str, output: str, threads: str, device: str) -> None:
    """The published way as a process of its own: load, draw one picture, write it."""
    import torch
    from PIL import Image

    torch.set_num_threads(int(threads))
    with Image.open(reference) as image:
        truth = Truth(Path(pair), device, images=[image.convert("RGBA")])
    to_pil(truth.published.picture(truth.scene))[0].save(output)


if __name__ == "__main__":
    published_process(*sys.argv[1:])
