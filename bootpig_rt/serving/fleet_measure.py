"""Figures of this machine, for `plan-fleet`: steps by batch, passes, encoding, choosing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from PIL import Image, ImageDraw

from bootpig_rt.engine.events import Launch
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.images.encode_image import ImageFormat, encode_image
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import GenerationResult, Request
from bootpig_rt.serving.fleet_model import IngressFigures, ReplicaFigures
from bootpig_rt.serving.rendezvous import Rendezvous, by_preference_and_load

REQUEST_CPU_S = 0.018
"""CPU time of Ray's proxy and the ingress for one request, its picture's encoding left out: 200
requests over Ray Serve 2.60 on two cores at about 2 GHz, see docs/how-to/many-machines.md."""

_STEPS = 8
_ROUNDS = 3
_CHOICES = 100
_BASE64 = 4 / 3


def measure_replica(
    pipeline: Pipeline, *, steps: int, references: int, tables_bytes: int, max_batch: int
) -> ReplicaFigures:
    """Draw batches of each size on this machine, and make tables.

    Args:
        pipeline: Not served yet; its reference tables are thrown away.
        steps: Of the pictures to plan for: the table of an exact schedule grows with them.
        references: Of a subject.
        tables_bytes: Room for tables on the device.
        max_batch: The largest batch.
    """
    launches: list[Launch] = []
    prepared = pipeline.prepare_references([_disc(number) for number in range(references)])
    with pipeline.serve(EngineOptions(on_launch=launches.append)) as engine:

        def drawn(subject: Subject, batch: int, num_steps: int) -> list[GenerationResult]:
            request = Request(prompt="a disc", subject=subject, num_inference_steps=num_steps)
            jobs = [engine.submit(replace(request, seed=seed)) for seed in range(batch)]
            return [job.result() for job in jobs]

        few = min(steps, _STEPS)
        disc = pipeline.encode_prepared(prepared, "a photo of a disc")
        drawn(disc, 1, few)  # memory, kernels, text states, the table
        step_s, outside_s = {}, []
        for batch in _sizes(max_batch):
            drawn(disc, batch, few)
            launches.clear()
            start = time.perf_counter()
            for _ in range(_ROUNDS):
                drawn(disc, batch, few)
            took_s = time.perf_counter() - start
            whole = [one.took_s for one in launches if one.num_pictures == batch]
            step_s[batch] = statistics.median(whole or [one.took_s for one in launches])
            outside_s.append((took_s - sum(one.took_s for one in launches)) / (_ROUNDS * batch))
        passes_ms = []
        for number in range(_ROUNDS):
            new = pipeline.encode_prepared(prepared, "a photo of a disc", noise_seed=1 + number)
            passes_ms.append(drawn(new, 1, steps)[0].timings.reference_ms)
    table_bytes = pipeline.table_bytes(references, num_inference_steps=steps)
    return ReplicaFigures(
        step_s=step_s,
        picture_s=max(0.0, min(outside_s)),
        pass_s=statistics.median(passes_ms) / 1e3,
        table_bytes=table_bytes,
        tables_bytes=tables_bytes,
    )


def measure_ingress(image: Image.Image, format: ImageFormat = "png") -> IngressFigures:
    """Encode a picture, and choose among replicas, on this machine.

    Raises:
        ParameterError: An unknown format.
    """
    names = [str(number) for number in range(1000)]
    rendezvous, loads = Rendezvous(names), dict.fromkeys(names, 1)

    def choose() -> None:
        for number in range(_CHOICES):
            by_preference_and_load(rendezvous.order(str(number)), loads, spill_over=3)

    return IngressFigures(
        request_s=REQUEST_CPU_S,
        encode_s=_least_s(lambda: encode_image(image, format=format, parameters={})),
        choice_s=_least_s(choose) / _CHOICES,
        answer_bytes=round(_BASE64 * len(encode_image(image, format=format, parameters={}))),
    )


def _disc(number: int) -> Image.Image:
    """A reference image, cut out, so that no remover is asked."""
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(40 + 40 * number % 200, 90, 160, 255))
    return image


def _sizes(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest."""
    sizes = [1]
    while 2 * sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sorted({*sizes, most})


def _least_s(work: Callable[[], object]) -> float:
    """CPU time: that is what the ingress has cores for, whatever else runs here."""
    took = []
    for _ in range(_ROUNDS):
        start = time.thread_time()
        work()
        took.append(time.thread_time() - start)
    return min(took)
