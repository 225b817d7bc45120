"""Suite `latency`: from process start to picture, and every part of it, per backend."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PROMPT, REFERENCE_PROMPT
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.pipeline import Pipeline

NAME = "latency"
HELP = "process to picture, import, load, and the parts of a picture, over its settings"

_BACKENDS = ("onnxruntime", "torch")
_PROCESS = "process start to its end"


def run(settings: Settings) -> SuiteResult:
    """Time processes first, then pictures in this process."""
    rows: list[Row] = []
    with torch_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        if settings.is_wanted("process"):
            rows += _processes(settings, Path(folder))
        ours = {
            name: OurWay(settings.pair, backend=name, threads=settings.threads, references=4)
            for name in _BACKENDS
        }
        config = ours["onnxruntime"].pipe.spec.config
        for name, way in ours.items():
            ways = [each for each in _ways(settings, name, way) if settings.is_wanted(each.name)]
            timed = time_ways(ways, settings.rounds, progress=settings.progress)
            rows += [_with_rate(row) for row in timed]
            rows += _share(name, rows)
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "rounds": settings.rounds,
        },
    )  # fmt: skip


def _processes(settings: Settings, folder: Path) -> list[Row]:
    """Whole processes: an interpreter, an import, a generated picture per backend."""
    reference = folder / "reference.png"
    from bootpig_rt.benchmarks.drawing import drawing

    drawing().save(reference)
    words: dict[str, tuple[str, list[str]]] = {
        "process python": ("python that does nothing", ["-c", ""]),
        "process import": (
            "import bootpig_rt, Pipeline",
            ["-c", "from bootpig_rt import Pipeline"],
        ),
    }
    for backend in _BACKENDS:
        words[f"process generate {backend}"] = (
            f"generate, one reference, {backend}",
            [
                "-m", "bootpig_rt", "generate", "--model", str(settings.pair),
                "--reference", str(reference), "--reference-prompt", REFERENCE_PROMPT,
                "--prompt", PROMPT, "--backend", backend, "--seed", "1",
                "-o", str(folder / f"{backend}.png"),
            ],
        )  # fmt: skip
    peaks: dict[str, int] = {}

    def child(name: str, command: list[str]) -> None:
        made = run_child(command, environment={"OMP_NUM_THREADS": str(settings.threads)})
        if made.peak_bytes is not None:
            peaks[name] = max(peaks.get(name, 0), made.peak_bytes)

    ways = [
        Way(name, label, partial(child, name, command), group=_PROCESS)
        for name, (label, command) in words.items()
    ]
    rows = time_ways(ways, max(2, settings.rounds // 2), progress=settings.progress)
    return [
        replace(row, values={"peak_bytes": float(peaks[row.name])}) if row.name in peaks else row
        for row in rows
    ]


def _ways(settings: Settings, name: str, ours: OurWay) -> Iterator[Way]:
    pipe = ours.pipe
    config = pipe.spec.config
    size = config.sample_size_px
    backend: Any = pipe._backend
    one = pipe.encode_subject(ours.images[0], REFERENCE_PROMPT)
    latents = np.zeros(
        (
            1,
            pipe.spec.latent_channels,
            size // pipe.spec.vae_scale_factor,
            size // pipe.spec.vae_scale_factor,
        ),
        np.float32,
    )
    ids = pipe._tokenizer(["", PROMPT])
    draw = partial(pipe, PROMPT, subject=one, seed=1)
    part, shape = f"{name}: parts", f"{name}: warm picture"
    options: dict[str, Any] = {"backend_options": {"intra_op_threads": settings.threads}}

    def load() -> None:
        Pipeline(settings.pair, backend=name, device="cpu", **(options if name != "torch" else {}))

    yield Way(f"{name} load", "load the pair", load, group=part)
    yield Way(
        f"{name} encode subject", "encode a subject",
        partial(pipe.encode_subject, ours.images[0], REFERENCE_PROMPT), group=part,
    )  # fmt: skip
    yield Way(
        f"{name} text", "text encoder, two prompts", partial(backend.encode_text, ids), group=part
    )
    yield Way(f"{name} decode", "decode one picture", partial(backend.decode, latents), group=part)
    yield Way(f"{name} step", "step, three rows", _steps(ours), config.default_steps, group=part)
    yield Way(f"{name} picture", "picture of a known subject", draw, group=part)
    yield Way(f"{name} new subject", "picture of a new subject", ours.cold, group=part)
    for count in () if settings.is_smoke else (2, 4, 8):
        yield Way(
            f"{name} batch {count}", f"batch of {count}", partial(draw, num_images=count), count,
            group=shape,
        )  # fmt: skip
    for count in (2,) if settings.is_smoke else (2, 3, 4):
        subject = pipe.encode_subject(ours.images[:count], REFERENCE_PROMPT)
        label = f"{count} references"
        yield Way(
            f"{name} references {count}", label, partial(pipe, PROMPT, subject=subject, seed=1),
            group=shape,
        )  # fmt: skip
    for count in (4,) if settings.is_smoke else (4, 8, 12, 50):
        yield Way(
            f"{name} steps {count}", f"{count} steps", partial(draw, num_inference_steps=count),
            group=shape,
        )  # fmt: skip
    for side in () if settings.is_smoke else (32, 96, 128):
        other = partial(draw, width=side, height=side)
        yield Way(f"{name} size {side}", f"{side} px", other, group=shape)


def _steps(ours: OurWay) -> partial[None]:
    backend, batch = ours.recorded_batch()
    run, count = backend.start(batch), batch.solver.num_steps

    def steps() -> None:
        for index in range(count):
            run.step(index)

    return partial(steps)


def _with_rate(row: Row) -> Row:
    if "picture" not in row.label and "batch" not in row.label and "warm" not in row.group:
        return row
    assert row.median_ms is not None
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
            f"{name}: parts", values={"share": round(share, 4)},
        )
    ]  # fmt: skip
