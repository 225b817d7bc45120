"""Every way to a picture, by name. The one file that knows how the pipeline is called.

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
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from bootpig_rt.backends import BACKENDS, available_backends
from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.published import SCHEDULERS, PublishedWay, Scene
from bootpig_rt.benchmarks.way import Ready, Unavailable, Way
from bootpig_rt.bundle.bundle import is_bundle, read_manifest
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.engine.events import StepEvent
from bootpig_rt.images.picture import prepare_reference
from bootpig_rt.kernels import choose
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import GenerationResult, Request
from bootpig_rt.text.tokenizer import Tokenizer

PROMPT = "a photo of a dog, in the middle of a sandy beach"
REFERENCE_PROMPT = "a photo of a dog"
SEED = 7
EXACT: dict[str, Any] = {"reference_schedule": "exact"}
"""The schedule with which ours computes the numbers of the published way."""

DIFFERENCES = {
    "cpu float32": 2.2e-6,
    "cpu bfloat16": 1.34e-2,
    "cpu openvino float32": 2.5e-6,
    "cpu openvino bf16": 1.81e-2,
    "cpu openvino int8": 5e-2,
    "cuda float16": 7.2e-3,
    "cuda bfloat16": 6e-2,
    "cuda float32": 1e-3,
}
"""What latents were measured to differ from the published way's, as a share of what the references
change in it: a way that did not read them would score 1. A gate allows five times as much."""

GATE = 5.0

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


class Truth:
    """The scene that all ways draw, and what the published way makes of it, computed once.

    Args:
        folder: Of the pair.
        device: `cpu` or `cuda`.
        references: R.
        steps: T; that of the pair if None.
        images: The references; drawings by default.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        *,
        references: int = 1,
        steps: int | None = None,
        images: Sequence[Image.Image] = (),
    ) -> None:
        self.folder, self.device, self.references = folder, device, references
        self._images = images or [drawing(index) for index in range(references)]
        self.dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self.steps = steps

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @property
    def precision(self) -> str:
        """Name of the type."""
        return str(self.dtype).removeprefix("torch.")

    def pair(self) -> Pair:
        """Modules that belong to the caller."""
        return load_pair(self.folder, device=self.device, dtype=self.dtype)

    @cached_property
    def published(self) -> PublishedWay:
        """As published."""
        return PublishedWay(self.pair(), self.device)

    @cached_property
    def scene(self) -> Scene:
        """From the same prompt, references and seeds as `OurWay`."""
        pair = self.published._pair
        config = pair.config
        side = config.sample_size_px
        vae: Any = pair.vae
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        pixels = [
            prepare_reference(image, side, subject_share=config.subject_share)
            for image in self._images
        ]
        shape = (int(pair.base.unet.config.in_channels), side // scale, side // scale)
        return Scene(
            ids=Tokenizer.from_folder(pair.tokenizer_folder)(["", PROMPT, REFERENCE_PROMPT]),
            pixels=np.stack(pixels),
            noise=picture_noise(SEED, shape),
            add_noise=partial(add_noise, noise_schedule=NoiseSchedule.from_config(pair.scheduler)),
            solver=config.default_solver,
            steps=self.steps or config.default_steps,
        )

    @cached_property
    def _expected(self) -> NDArray[np.float32]:
        """Latents of the published way, float32 [1, C, h, w]."""
        self.published.picture(self.scene)
        return latents_of(self.published)

    @cached_property
    def _effect(self) -> float:
        """How much the references change: the norm of the difference to latents without them."""
        backend = backends_here(self.folder, self.device)[0]
        ours = OurWay(self.folder, backend=backend, device=self.device, steps=self.steps)
        return float(np.linalg.norm(ours.latents(OurWay.no_reference) - self._expected))

    def difference(self, latents: NDArray[np.float32]) -> float:
        """Norm of the difference of latents, as a share of what the references change in them."""
        return float(np.linalg.norm(latents[:1] - self._expected)) / self._effect

    def limit(self, precision: str) -> float:
        """The largest difference of a way that computes in `precision`, see `DIFFERENCES`."""
        return GATE * DIFFERENCES[f"{self.kind} {precision}"]


def latents_of(way: PublishedWay) -> NDArray[np.float32]:
    """Of the picture that a published way drew last."""
    assert way.latents is not None
    found: NDArray[np.float32] = way.latents.float().cpu().numpy()
    return found


def add_noise(
    latents: NDArray[np.float32],
    timesteps: NDArray[np.int64],
    *,
    noise_schedule: NoiseSchedule,
) -> NDArray[np.float32]:
    """Reference latents [R, C, h, w] at timesteps [T], as `exact` does: [T, R, C, h, w]."""
    return reference_latents(
        latents,
        ReferenceSchedule("exact"),
        timesteps,
        noise_seed=0,
        noise_schedule=noise_schedule,
    )


_COMPILED, _RECORDED = {"compiles": True}, {"records": True}
_HALF = {"autocast": torch.bfloat16}
_VARIANTS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "cpu": {
        "_compile": (", torch.compile", _COMPILED),
        "_bf16": (", bfloat16 autocast", _HALF),
        "_compile_bf16": (", torch.compile, bfloat16 autocast", _COMPILED | _HALF),
    },
    "cuda": {
        "_compile": (", torch.compile", _COMPILED),
        "_graph": (", recorded as a CUDA graph", _RECORDED),
        "_compile_graph": (", torch.compile, recorded as a CUDA graph", _COMPILED | _RECORDED),
    },
}


def published_ways(
    truth: Truth, group: str, *, suffix: str = "", kind: str | None = None
) -> list[Way]:
    """The published way as it is, compiled, recorded, and in bfloat16 where a CPU has that.

    The strongest of them is what ours is compared with.

    Args:
        truth: The scene, and what is right.
        group: Of the rows.
        suffix: Of their names.
        kind: `cpu` or `cuda`, whose variants are meant; that of the device by default.
    """

    def make(options: dict[str, Any]) -> Ready:
        if "autocast" in options and machine.bf16_flag() is None:
            raise Unavailable(
                f"this processor has none of {', '.join(machine.BF16_FLAGS)}: bfloat16 would be "
                "computed by float32"
            )
        way = PublishedWay(truth.pair(), truth.device, **options) if options else truth.published
        draw = partial(way.picture, truth.scene)
        limit = truth.limit("bfloat16" if "autocast" in options else truth.precision)

        def difference() -> float:
            draw()
            return truth.difference(latents_of(way))

        return Ready(draw, difference=difference, limit=limit)

    variants = {"": (", SDPA", {}), **_VARIANTS[kind or truth.kind]}
    return [
        Way(
            f"published{name}{suffix}", f"published way{label}", partial(make, options), group=group
        )
        for name, (label, options) in variants.items()
    ]


def our_way(
    truth: Truth,
    name: str,
    label: str,
    load: Callable[[], OurWay],
    draw: Callable[[OurWay], GenerationResult],
    *,
    group: str,
    precision: str | None = None,
    pictures: int = 1,
) -> Way:
    """One of this package's ways, compared with the published one before it is timed.

    Args:
        truth: What is right.
        name: Of the row.
        label: Of the row.
        load: The pipeline; ways that share one give the same cached function.
        draw: What is timed.
        group: Of the row.
        precision: What it computes in; that of the truth by default.
        pictures: How many it draws; the first of them is compared.
    """

    def make() -> Ready:
        ours = load()
        return Ready(
            partial(draw, ours),
            difference=lambda: truth.difference(ours.latents(draw)),
            limit=truth.limit(precision or ours.compared_as or truth.precision),
        )

    return Way(name, label, make, pictures, group)


def known(ours: OurWay) -> GenerationResult:
    """A picture of the known subject, with the schedule `exact`."""
    return ours.warm(**EXACT)


def new(ours: OurWay) -> GenerationResult:
    """A picture of a new subject, with the schedule `exact`."""
    return ours.cold(**EXACT)


def four(ours: OurWay) -> GenerationResult:
    """Four pictures of the known subject, with the schedule `exact`."""
    return ours.warm(4, **EXACT)


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


def text_pipeline(pair: Pair, solver: str) -> Any:
    """`StableDiffusionPipeline` over the parts of a pair: no reference."""
    diffusers_logging.set_verbosity_error()  # it advises on checkpoints of a hub
    scheduler = SCHEDULERS[solver].from_config({**pair.scheduler, "steps_offset": 1})
    pipe: Any = StableDiffusionPipeline(
        vae=pair.vae,
        text_encoder=pair.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(pair.tokenizer_folder, local_files_only=True),
        unet=pair.base.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_way(truth: Truth, group: str) -> Way:
    """Text to image of diffusers over the parts of a pair: two guidance rows."""

    def make() -> Ready:
        pair, scene = truth.pair(), truth.scene
        pipe = text_pipeline(pair, scene.solver)
        side = pair.config.sample_size_px

        def draw() -> Any:
            with torch.inference_mode():
                return pipe(
                    PROMPT,
                    generator=torch.Generator().manual_seed(SEED),
                    num_inference_steps=scene.steps,
                    width=side,
                    height=side,
                    output_type="np",
                ).images[0]

        return Ready(draw)

    return Way("diffusers_text_to_image", "diffusers, text to image", make, group=group)


def psnr_db(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of pixels up to 255; 200 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 200.0 if error == 0 else min(200.0, 10 * float(np.log10(255.0**2 / error)))


def attention_shapes(folder: Path) -> tuple[int, list[tuple[int, int, int]]]:
    """Side of a pair's pictures, and heads, tokens and head dim of its self-attentions in order."""
    pair = load_pair(folder, dtype=torch.float32)
    vae: Any = pair.vae
    side = pair.config.sample_size_px
    latents = side // 2 ** (len(vae.config.block_out_channels) - 1)
    shapes = zip(pair.base.layer_shapes(), pair.base.layer_levels(), strict=True)
    return side, [
        (heads, (latents >> level) ** 2, width // heads) for (_, heads, width), level in shapes
    ]
