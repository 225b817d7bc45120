"""Who draws in suite `full-size`, each loaded in a process of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bootpig_rt.benchmarks.full_size.genai import GenAiPicture
from bootpig_rt.benchmarks.full_size.told import Draw, Drawn, Order, Stopwatch
from bootpig_rt.benchmarks.openvino_ways import check_openvino, openvino_options
from bootpig_rt.benchmarks.ours import EXACT, PROMPT, REFERENCE_PROMPT, SEED, OurWay
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.truth import Truth
from bootpig_rt.benchmarks.ways import text_pipeline
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.picture import to_pil
from bootpig_rt.models.load import load_pair

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_TORCH = {"float32": torch.float32, "bf16": torch.bfloat16}


def _published(order: Order) -> dict[str, Draw]:
    """The published way, its weights in the precision that it computes in."""
    torch.set_num_threads(order.threads)
    truth = Truth(Path(order.pair), steps=order.steps)
    # Not `truth.pair()`: autocast would convert the weights anew at every step.
    way = PublishedWay(
        load_pair(order.folder, dtype=_TORCH[order.precision]), compiles=order.compiles
    )
    truth.__dict__["published"] = way
    scene = truth.scene

    def picture() -> tuple[Drawn, Pixels]:
        watch = Stopwatch()
        steps: list[float] = []
        output = way._output

        def timed(*inputs: Any) -> torch.Tensor:
            one = Stopwatch()
            found = output(*inputs)
            steps.append(one.wall_ms)
            return found

        way._output = timed
        try:
            pixels = way.picture(scene)
        finally:
            way._output = output
        wall = watch.wall_ms
        return Drawn(tuple(steps), 0.0, wall), np.asarray(to_pil(pixels)[0])

    return {"picture": picture}


def _diffusers(order: Order) -> dict[str, Draw]:
    """Text to image of diffusers from the base of the pair: two rows a step, no reference."""
    torch.set_num_threads(order.threads)
    truth = Truth(Path(order.pair), steps=order.steps)
    truth.__dict__["published"] = _Scenery(load_pair(order.folder, dtype=_TORCH[order.precision]))
    scene = truth.scene
    pipe = text_pipeline(truth.published._pair, scene.solver)
    noise = torch.from_numpy(scene.noise)[None].to(_TORCH[order.precision])

    def text() -> tuple[Drawn, Pixels]:
        watch = Stopwatch()

        def ended(pipe: Any, index: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
            watch()
            return kept

        with torch.inference_mode():
            found = pipe(
                PROMPT,
                latents=noise,
                num_inference_steps=order.steps,
                width=order.side_px,
                height=order.side_px,
                guidance_scale=truth.published._pair.config.text_guidance_scale,
                callback_on_step_end=ended,
                output_type="np",
            ).images[0]
        return Drawn(watch.between_ms(1), 0.0, watch.wall_ms), (255 * found).round().astype("uint8")

    return {"text": text}


class _Scenery:
    """Stands where `Truth` looks for a pair, without the published way's processors."""

    def __init__(self, pair: Any) -> None:
        self._pair = pair


def _genai(order: Order) -> dict[str, Draw]:
    """OpenVINO GenAI's text to image from the same base."""
    config = read_pair_config(Path(order.pair) / "pair.json")
    peer = GenAiPicture(
        Path(order.folder),
        precision={"float32": "f32", "bf16": "bf16"}[order.precision],
        side_px=order.side_px,
        guidance_scale=config.text_guidance_scale,
        threads=order.threads,
    )

    def text() -> tuple[Drawn, Pixels]:
        watch = Stopwatch()
        pixels = peer.draw(PROMPT, steps=order.steps, seed=SEED, on_step=watch)
        return Drawn(watch.between_ms(1), 0.0, watch.wall_ms), pixels

    return {"text": text}


def _ours(order: Order) -> dict[str, Draw]:
    """Ours: a new subject, the same one known, and text to image."""
    torch.set_num_threads(order.threads)
    is_openvino = order.engine == "openvino"
    if is_openvino:
        check_openvino()
    options = openvino_options(order.precision, order.threads) if is_openvino else {}
    ours = OurWay(
        Path(order.folder), backend=order.engine, threads=order.threads, steps=order.steps,
        backend_options=options,
    )  # fmt: skip

    def draw(what: Callable[[Callable[[object], None]], Any]) -> tuple[Drawn, Pixels]:
        watch = Stopwatch()

        def on_event(event: object) -> None:
            if isinstance(event, StepEvent):
                watch()

        result = what(on_event)
        drawn = Drawn(watch.between_ms(1), result.timings.reference_ms, watch.wall_ms)
        return drawn, np.asarray(result.images[0])

    def new(on_event: Callable[[object], None]) -> Any:
        ours.pipe.store.clear()
        ours.subject = ours.pipe.encode_subject(ours.images, REFERENCE_PROMPT)
        return ours.warm(on_event=on_event, **EXACT)

    def known(on_event: Callable[[object], None]) -> Any:
        return ours.warm(on_event=on_event, **EXACT)

    kinds = {"new": new, "known": known, "text": ours.no_reference}
    return {name: functools.partial(draw, what) for name, what in kinds.items()}


LOADERS: dict[str, Callable[[Order], dict[str, Draw]]] = {
    "published": _published,
    "diffusers": _diffusers,
    "genai": _genai,
    "onnxruntime": _ours,
    "openvino": _ours,
}
"""By engine: loads it, and gives what draws each kind of picture."""
