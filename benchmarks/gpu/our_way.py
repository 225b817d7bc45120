"""Our way to draw: the torch backend with given options, through its own interface.

What is left out of a `Pipeline` is the tokenizer, the look into the store, and making PNG files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, ReferencePass
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch.backend import TorchBackend
from bootpig_rt.benchmarks.gpu.picture_inputs import (
    NEGATIVE,
    PROMPT,
    REFERENCE,
    PictureInputs,
    Stages,
    Steps,
)
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.engine.guidance import PictureBranches, plan_guidance
from bootpig_rt.kernels import choose
from bootpig_rt.models.load import Pair
from bootpig_rt.models.rows import RowPlan
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers, TextKVLayers
from bootpig_rt.reference.reference_table import ReferenceSchedule, reference_latents

Subject = Literal["cold", "warm", "none"]
"""`cold`: reference images are encoded and read. `warm`: the table is there. `none`: text alone."""


class UnsharedRows(BaseUNet):
    """A Base U-Net that computes every row from its start, for the row of the ablation."""

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        prompt_embeds: Tensor | TextKVLayers,
        reference_kv: ReferenceKVLayers | None = None,
        ref_of_row: Tensor | RowPlan | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As `BaseUNet.forward`, with the pictures of the plan spread to its rows first."""
        plan = ref_of_row
        if isinstance(plan, RowPlan) and plan.shared is not None:
            picture_of_row = plan.restore(plan.shared.picture_of_row)
            latents, t = (part.index_select(0, picture_of_row) for part in (latents, t))
            plan = replace(plan, shared=None)
        return super().forward(latents, t, prompt_embeds, reference_kv, plan, **kwargs)


class KnownSubject:
    """The table of the one subject of a case: all ways that know it read the same."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.table: ReferencePass | None = None

    @property
    def nbytes(self) -> int:
        """Device memory that it holds."""
        return 0 if self.table is None else self.table.size_bytes


class OurWay:
    """Implements `PictureWay`.

    Args:
        backend: Draws.
        subject: What is known ahead of the call.
        known: Where the table of a known subject is kept.
        rows_per_launch: Of a reference pass; None: the references of one timestep at a time.
        attention: `auto` or `eager`, see `bootpig_rt.kernels.choose`.
    """

    def __init__(
        self,
        backend: TorchBackend,
        subject: Subject,
        known: KnownSubject,
        *,
        rows_per_launch: int | None = 16,
        attention: str = "auto",
    ) -> None:
        """Keep what to draw with."""
        self.backend = backend
        self._subject, self._rows, self._attention = subject, rows_per_launch, attention
        self._known = known

    def begin(self, inputs: PictureInputs, stages: Stages) -> Steps:
        """Text; for a new subject also its images and its table."""
        with choice_of_attention(self._attention):
            with stages.stage("text"):
                ids = inputs.ids if self._subject == "cold" else inputs.ids[:REFERENCE]
                texts = self.backend.encode_text(ids)
            table = None
            if self._subject == "cold":
                table = self._read(inputs, texts[REFERENCE:], stages)
            elif self._subject == "warm":
                table = self.read_subject(inputs)
            batch = make_batch(inputs, texts, table)
            return _OurSteps(self, self.backend.start(batch))

    def read_subject(self, inputs: PictureInputs) -> ReferencePass:
        """The table of the known subject; made by whoever asks first."""
        if self._known.table is None:
            with choice_of_attention(self._attention):
                states = self.backend.encode_text(inputs.ids[REFERENCE:])
                self._known.table = self._read(inputs, states, Stages(self.backend.device))
        return self._known.table

    def decode(self, latents: FloatArray) -> FloatArray:
        """Pixels of the latents."""
        return self.backend.decode(latents)

    def forget(self) -> None:
        """Drop all recordings; the table belongs to the case."""
        self.backend.free_caches()

    @property
    def attention(self) -> str:
        """`auto` or `eager`."""
        return self._attention

    def _read(self, inputs: PictureInputs, states: Tensor, stages: Stages) -> ReferencePass:
        with stages.stage("encode"):
            latents = self.backend.encode_image(inputs.pixels)
        with stages.stage("reference"):
            timesteps = inputs.solver.timesteps
            noised = reference_latents(
                latents,
                ReferenceSchedule("exact"),
                timesteps,
                noise_seed=0,
                noise_schedule=inputs.noise_schedule,
            )
            return self.backend.reference_kv(
                noised,
                timesteps,
                states.expand(inputs.references, -1, -1),
                dtype=self.backend.spec.table_dtype,
                rows_per_launch=self._rows or inputs.references,
            )


class _OurSteps:
    """Implements `Steps`."""

    def __init__(self, way: OurWay, run: Any) -> None:
        self._way, self._run = way, run

    def step(self, index: int) -> None:
        with choice_of_attention(self._way.attention):
            self._run.step(index)

    def latents(self) -> FloatArray:
        found: FloatArray = self._run.latents()
        return found


def make_batch(inputs: PictureInputs, texts: Tensor, table: ReferencePass | None) -> DenoiseBatch:
    """The batch of B pictures of one subject, or of none."""
    count, steps = inputs.batch, inputs.solver.num_steps
    references = tuple(range(inputs.references)) if table is not None else ()
    rows = plan_guidance(
        [
            PictureBranches(PROMPT, NEGATIVE, references, inputs.image_scale, inputs.text_scale)
            for _ in range(count)
        ]
    )
    return DenoiseBatch(
        latents=inputs.noise,
        prompt_embeds=texts,
        text_of_row=rows.text_of_row,
        picture_of_row=rows.picture_of_row,
        ref_of_row=rows.ref_of_row,
        rows_of_picture=rows.rows_of_picture,
        image_guidance_scale=np.full(count, inputs.image_scale, np.float32),
        text_guidance_scale=np.full(count, inputs.text_scale, np.float32),
        tables=() if table is None else (table.data,),
        num_references=() if table is None else (inputs.references,),
        entry_of_step=np.arange(steps)[None] if table is not None else np.zeros((0, steps), int),
        solver=BatchSolver.of([inputs.solver] * count),
        merge="argmax",
    )


def make_backend(
    pair: Pair, device: str, options: TorchOptions, *, channels_last: bool, shares_rows: bool
) -> TorchBackend:
    """A backend over the pair's modules.

    The backend itself puts modules on CUDA into channels-last; for a row of the ablation without
    it they are put back, ahead of any recording.
    """
    if not shares_rows:
        pair = replace(pair, base=UnsharedRows(pair.base.unet))
    backend = TorchBackend(pair, device, options)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    modules: tuple[Any, ...] = (pair.base.unet, pair.reference.unet, pair.vae)
    for module in modules:
        nn.Module.to(module, memory_format=layout)  # type: ignore[call-overload]
    return backend


@contextlib.contextmanager
def choice_of_attention(choice: str) -> Iterator[None]:
    """Force eager attention, or leave the choice to the device."""
    before = os.environ.get(choose.VARIABLE)
    os.environ[choose.VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            del os.environ[choose.VARIABLE]
        else:
            os.environ[choose.VARIABLE] = before
