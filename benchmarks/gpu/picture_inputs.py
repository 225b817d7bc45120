"""What a picture is drawn from: token ids, reference pixels and noise. Ways share one set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bootpig_rt.backends.base import FloatArray, IntArray
from bootpig_rt.benchmarks.gpu.plan import PictureCase, Plan
from bootpig_rt.benchmarks.gpu.random_pair import TEXT_TOKENS
from bootpig_rt.benchmarks.gpu.timer import synchronize
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.diffusion.solver import SolverTable, solver_table
from bootpig_rt.engine.flight import picture_noise
from bootpig_rt.models.load import Pair

NEGATIVE, PROMPT, REFERENCE = range(3)
"""Rows of the token ids."""


@dataclass(frozen=True)
class PictureInputs:
    """Inputs of B pictures of one subject.

    Attributes:
        ids: int64 [3, 77]: no prompt, the prompt, the reference prompt.
        pixels: float32 [R, 3, H, W] in [-1, 1].
        noise: float32 [B, C, h, w].
        solver: UniPC.
        noise_schedule: Of the pair.
        image_scale: s_image.
        text_scale: s_text.
    """

    ids: IntArray
    pixels: FloatArray
    noise: FloatArray
    solver: SolverTable
    noise_schedule: NoiseSchedule
    image_scale: float
    text_scale: float

    @property
    def references(self) -> int:
        """R."""
        return len(self.pixels)

    @property
    def batch(self) -> int:
        """B."""
        return len(self.noise)


def make_picture_inputs(plan: Plan, case: PictureCase, pair: Pair) -> PictureInputs:
    """Random inputs of a case; the first picture is the same whatever the batch."""
    rng = np.random.default_rng(case.references)
    encoder: Any = pair.text_encoder
    vae: Any = pair.vae
    unet: Any = pair.base.unet
    side = plan.size_px // 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (int(unet.config.in_channels), side, side)
    schedule = NoiseSchedule.from_config(pair.scheduler)
    size = (case.references, 3, plan.size_px, plan.size_px)
    return PictureInputs(
        ids=rng.integers(0, int(encoder.config.vocab_size), (3, TEXT_TOKENS)),
        pixels=rng.uniform(-1, 1, size).astype(np.float32),
        noise=np.stack([picture_noise(seed, shape) for seed in range(case.batch)]),
        solver=solver_table("unipc", schedule, plan.steps),
        noise_schedule=schedule,
        image_scale=pair.config.image_guidance_scale,
        text_scale=pair.config.text_guidance_scale,
    )


@dataclass
class Stages:
    """Times of the stages of one picture.

    Attributes:
        device: Waited for at both ends of a stage.
        ms: Milliseconds by name.
    """

    device: str
    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        synchronize(self.device)
        start_s = time.perf_counter()
        yield
        synchronize(self.device)
        self.ms[name] = self.ms.get(name, 0.0) + 1e3 * (time.perf_counter() - start_s)


class Steps(Protocol):
    """Pictures on their way."""

    def step(self, index: int) -> None:
        """Do one step."""

    def latents(self) -> FloatArray:
        """float32 [B, C, h, w], on the host."""


class PictureWay(Protocol):
    """A way to draw pictures."""

    def begin(self, inputs: PictureInputs, stages: Stages) -> Steps:
        """Everything ahead of the first step: text, reference images, reference pass."""

    def decode(self, latents: FloatArray) -> FloatArray:
        """Pixels float32 [B, 3, H, W], on the host."""

    def forget(self) -> None:
        """Free what was kept for the last inputs."""


def draw(way: PictureWay, inputs: PictureInputs, stages: Stages) -> FloatArray:
    """Draw, from ids and pixels of the host to pixels of the host; returns the latents."""
    steps = way.begin(inputs, stages)
    with stages.stage("denoise"):
        for index in range(inputs.solver.num_steps):
            steps.step(index)
        latents = steps.latents()
    with stages.stage("decode"):
        way.decode(latents)
    return latents
