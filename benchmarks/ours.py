"""Our way to a picture. The one file that knows how the pipeline is called.

A picture runs from reference image and prompt to pixels of the host: preparation, image encoder,
text encoder, Reference U-Net, steps, decoder. A known subject skips what belongs to the subject.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bootpig_rt.backends import BACKENDS, available_backends
from bootpig_rt.benchmarks import machine
from bootpig_rt.bundle.bundle import is_bundle, read_manifest
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.kernels import choose
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import GenerationResult, Request

PROMPT = "a photo of a dog, in the middle of a sandy beach"

REFERENCE_PROMPT = "a photo of a dog"

SEED = 7

EXACT: dict[str, Any] = {"reference_schedule": "exact"}
"""The schedule with which ours computes the numbers of the published way."""

_COLOURS = ((220, 60, 30), (30, 120, 220), (40, 160, 70), (200, 160, 20))


def drawing(index: int = 0) -> Image.Image:
    """A reference image, a cut-out of 128 px: any will do, no time depends on what it shows."""
    image = Image.new("RGBA", (128, 128))
    box = (20, 30 + 4 * (index % 4), 110, 100)
    ImageDraw.Draw(image).ellipse(box, fill=_COLOURS[index % len(_COLOURS)])
    return image


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Pin torch's threads, and give back what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def eager_attention(is_eager: bool) -> Iterator[None]:
    """Turn the fused kernels off."""
    before = os.environ.get(choose.VARIABLE)
    if is_eager:
        os.environ[choose.VARIABLE] = "eager"
    try:
        yield
    finally:
        os.environ.pop(choose.VARIABLE, None)
        if before is not None:
            os.environ[choose.VARIABLE] = before


class OurWay:
    """A pipeline with a subject that it knows, and one that keeps nothing.

    Args:
        folder: Of the pair.
        backend: Name of a backend.
        device: What it computes on.
        threads: Of ONNX Runtime and OpenVINO; torch's are pinned by the caller.
        references: Pictures of the subject.
        eager: Without the fused kernels.
        steps: T; that of the pair if None.
        backend_options: Of the backend.
        tables: How tables are made and kept.
    """

    def __init__(
        self,
        folder: Path,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
        threads: int = 2,
        references: int = 1,
        eager: bool = False,
        steps: int | None = None,
        backend_options: dict[str, Any] | None = None,
        tables: TableOptions | None = None,
    ) -> None:
        """Load, and encode the subject."""
        self._eager = eager
        self.pair_folder = folder
        chosen = dict(backend_options or {})
        if backend == "onnxruntime":
            chosen.setdefault("intra_op_threads", threads)
        if backend == "openvino":
            chosen.setdefault("threads", threads)
        self._tables = TableOptions() if tables is None else tables
        self._about = f"{backend} {device} {sorted(chosen.items())} {self._tables}"
        self._usual: dict[str, Any] = {"seed": SEED, "num_inference_steps": steps}
        settings = BACKENDS[backend].options(**chosen)
        self.load = partial(Pipeline, folder, backend=settings, device=device)
        with eager_attention(eager):
            self.pipe = self.load(tables=self._tables)
            self.images = [drawing(index) for index in range(references)]
            self.subject = self.pipe.encode_subject(self.images, REFERENCE_PROMPT)

    @cached_property
    def forgetful(self) -> Pipeline:
        """The same pair in a pipeline that keeps no table: every subject is new to it."""
        return self.load(tables=replace(self._tables, device_bytes=0, host_bytes=0))

    @property
    def config(self) -> Any:
        """Of the pair."""
        return self.pipe.spec.config

    @property
    def compared_as(self) -> str:
        """Of `DIFFERENCES`, without the device, where that is not the precision of the truth."""
        backend = self.pipe._backend
        if backend.name != "openvino":
            return ""
        return f"openvino {backend.spec.precision.replace('bfloat16', 'bf16')}"

    def warm(self, num_images: int = 1, **options: Any) -> GenerationResult:
        """Pictures of the known subject; picture i has the seed SEED + i."""
        options = {**self._usual, "subject": self.subject, **options}
        with eager_attention(self._eager):
            return self.pipe(PROMPT, num_images_per_prompt=num_images, **options)

    def cold(self, **options: Any) -> GenerationResult:
        """A picture of a subject that was never seen: encoded, read, drawn."""
        with eager_attention(self._eager):
            return self.forgetful(
                PROMPT,
                reference_images=self.images,
                reference_prompt=REFERENCE_PROMPT,
                **{**self._usual, **options},
            )

    def encode(self) -> Subject:
        """A subject that was never seen: its latents, and its table where one serves all steps."""
        return self.forgetful.encode_subject(self.images, REFERENCE_PROMPT)

    def draw_many(
        self,
        prompts: Sequence[str],
        subjects: Sequence[Subject | None],
        seeds: Sequence[int],
        **options: Any,
    ) -> list[Image.Image]:
        """A picture for each prompt, in large batches."""
        requests = [
            Request(prompt=prompt, subject=subject, seed=seed, **options)
            for prompt, subject, seed in zip(prompts, subjects, seeds, strict=True)
        ]
        return self.pipe.generate(requests).images

    @property
    def fingerprint(self) -> str:
        """What a picture depends on, besides what is asked for."""
        return f"{self.pipe.spec.fingerprint} {self._about} {machine.versions()}"

    def latents(self, draw: Callable[[OurWay], object]) -> NDArray[np.float32]:
        """What the decoder is given for a picture, float32 [B, C, h, w]."""
        seen: list[NDArray[np.float32]] = []
        for name in ("pipe", "forgetful"):
            backend = getattr(self, name)._backend
            with mock.patch.object(backend, "decode", _recording(backend.decode, seen)):
                draw(self)
            if seen:  # the first pipeline drew it: the other one need not be loaded
                break
        return np.concatenate(seen)

    def text(self) -> object:
        """Two prompts through the text encoder, to the host."""
        backend = self.pipe._backend
        return backend.download_states(backend.encode_text(self.pipe._tokenizer(["", PROMPT])))

    def decode(self) -> object:
        """The latents of one picture through the decoder."""
        spec = self.pipe.spec
        side = spec.config.sample_size_px // spec.vae_scale_factor
        latents = np.zeros((1, spec.latent_channels, side, side), np.float32)
        return self.pipe._backend.decode(latents)

    def no_reference(self, on_event: Callable[[object], None] | None = None) -> GenerationResult:
        """A picture from its prompt alone, as plain text to image draws it: two rows a step."""
        return self.pipe.generate([Request(prompt=PROMPT, **self._usual)], on_event=on_event)

    def step_ms(self, **options: Any) -> float:
        """Median time from the end of a step to the end of the next, in a picture."""
        ends: list[float] = []

        def on_step(event: object) -> None:
            if isinstance(event, StepEvent):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        self.warm(on_event=on_step, **options)
        between = [after - before for before, after in itertools.pairwise(ends)]
        return 1e3 * statistics.median(between)

    def table_bytes(self, **options: Any) -> tuple[int, int]:
        """What the store holds of the known subject's table, and what the formula says."""
        self.pipe.store.clear()
        self.warm(**options)
        stats = self.pipe.store.stats()
        formula = self.pipe.table_bytes(len(self.images), **options)
        return stats.device_bytes + stats.host_bytes, formula


def _recording(
    decode: Callable[..., NDArray[np.float32]], seen: list[NDArray[np.float32]]
) -> Callable[..., NDArray[np.float32]]:
    def recorded(latents: NDArray[np.float32], **options: Any) -> NDArray[np.float32]:
        seen.append(np.array(latents, dtype=np.float32))
        return decode(latents, **options)

    return recorded


def backends_here(folder: Path, device: str) -> list[str]:
    """Backends that can run the pair or bundle in `folder` on a device; ONNX Runtime first."""
    runtime = read_manifest(folder).runtime.name if is_bundle(folder) else "torch"
    installed = available_backends()
    found = []
    if "onnxruntime" in installed and runtime == "onnxruntime":
        import onnxruntime

        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        found += ["onnxruntime"] if provider in onnxruntime.get_available_providers() else []
    if "openvino" in installed and not device.startswith("cuda"):
        found += ["openvino"] if _is_for_cpus(folder) else []
    if "torch" in installed and runtime in ("torch", "onnxruntime", "openvino"):
        found.append("torch")  # such a bundle holds the weights as well
    if "tensorrt" in installed and runtime not in ("torch", "onnxruntime", "openvino"):
        found += ["tensorrt"] if device.startswith("cuda") else []
    return found


def _is_for_cpus(folder: Path) -> bool:
    return is_bundle(folder) and read_manifest(folder).target in ("cpu", "openvino")


def psnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of pixels up to 255; 200 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 200.0 if error == 0 else min(200.0, 10 * float(np.log10(255.0**2 / error)))
