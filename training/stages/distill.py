"""Stage `distill`: a student of a finished pair that draws in few steps of one row each.

The teacher computes three rows a step for its guidance (paper, section 3.4). The student starts
from the teacher's weights and learns to say with one row, `text_image`, what the teacher says with
all three (Meng et al. 2023, arXiv 2210.03142, first stage, at one fixed pair of scales). With
`substeps` above 1 a step of the student also covers several DDIM steps of the teacher (Salimans and
Ho 2022, arXiv 2202.00512, section 3).

Both learn on the student's own way from noise to a picture: each of its steps is compared with what
the teacher would do from there. So the student learns to mend its own errors, and no trajectories
are stored. The Base U-Net alone is trained; what a reference looks like to it stays the teacher's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bootpig_rt.diffusion.noise_schedule import PredictionType
from bootpig_rt.diffusion.solver import NoiseSchedule, SolverTable, solver_table, x0_rows
from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.rows import RowPlan, plain_rows, plan_rows
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.latents import Latents
from bootpig_rt.training.losses import loss_weight, target_of
from bootpig_rt.training.pictures import save_sheet, to_uint8
from bootpig_rt.training.sampling import Guidance
from bootpig_rt.training.stages.diffusion import (
    Batch,
    DiffusionData,
    make_batch,
    read_tokenizer,
    trainable,
)

NEUTRAL = 1.0
"""With both scales at 1 the runtime draws the `text_image` row alone (`engine/guidance.py`)."""

_VALIDATION_SEED = 1234


@dataclass(frozen=True)
class Conditions:
    """What B pictures are drawn from.

    Attributes:
        prompt: [B, S, E], text states of the prompts.
        negative: [B, S, E], of the empty prompt.
        features: L tensors [N, M_l, C_l] of the Reference U-Net; None when no picture has one.
        ref_of_row: int64 [B, R], -1 for none.
    """

    prompt: Tensor
    negative: Tensor
    features: tuple[Tensor, ...] | None
    ref_of_row: Tensor

    def plan(self, ref_of_row: Tensor) -> RowPlan:
        """The plan of rows that read these references."""
        if self.features is None:
            return plain_rows(len(ref_of_row))
        return plan_rows(ref_of_row, len(self.features[0]), device=self.prompt.device)


class Drawer:
    """One U-Net with what it reads for a batch: gives its output at any latents and timestep.

    Args:
        base: Of the teacher or of the student.
        conditions: Of the batch.
        pair: Gives the merge and the scale of reference keys.
        guidance: Scales; None computes the `text_image` row alone.
    """

    def __init__(
        self, base: BaseUNet, conditions: Conditions, pair: Pair, guidance: Guidance | None
    ) -> None:
        """Project the references, once for all steps, and lay out the rows."""
        self._base, self._guidance, self._merge = base, guidance, pair.config.merge
        self._table: ReferenceKVLayers | None = None
        if conditions.features is not None:
            self._table = base.project_reference(
                conditions.features, ref_scale=pair.config.ref_scale
            )
        refs, prompt, negative = conditions.ref_of_row, conditions.prompt, conditions.negative
        if guidance is None:
            self._embeds, self._rows = prompt, conditions.plan(refs)
            return
        # As in the runtime, the image row of a picture without a subject equals its uncond row.
        rows = torch.cat([refs, refs, torch.full_like(refs, -1)])
        self._embeds, self._rows = torch.cat([prompt, negative, negative]), conditions.plan(rows)

    def output(self, latents: Tensor, t: int) -> Tensor:
        """The model output, guided where there is guidance, float32 [B, C, h, w]."""
        copies = 1 if self._guidance is None else 3
        rows = torch.cat([latents] * copies)
        steps = torch.full((len(rows),), t, device=rows.device)
        table = self._table
        plan = None if table is None else self._rows
        output: Tensor = self._base(rows, steps, self._embeds, table, plan, merge=self._merge)
        output = output.float()
        if self._guidance is None:
            return output
        return self._guidance.combine(*output.chunk(3))

    def picture(self, table: SolverTable, noise: Tensor) -> Tensor:
        """Draw from noise of unit variance to latents [B, C, h, w]."""
        latents = noise * table.init_noise_sigma
        history = table.initial_history(latents)
        for i, t in enumerate(table.timesteps.tolist()):
            output = self.output(latents, t)
            latents, history = table.step(i, latents, output=output, history=history)
        return latents


def teacher_timesteps(steps: Tensor, substeps: int) -> list[list[int]]:
    """Timesteps that the teacher visits inside each step of the student, falling.

    Args:
        steps: int64 [T], timesteps of the student, falling.
        substeps: Teacher's steps in each.

    Returns:
        T lists of at least one timestep; the first is the student's own. A gap with fewer than
        `substeps` timesteps has each of them once.
    """
    ends = [*steps.tolist(), 0]
    return [
        sorted({round(t) for t in np.linspace(a, b, substeps, endpoint=False)}, reverse=True)
        for a, b in pairwise(ends)
    ]


class DistillStage:
    """The student's Base U-Net; see `trainer.Stage`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        """Load the teacher and copy its Base U-Net.

        Raises:
            CheckpointError: `start_from` is no pair.
            ConfigError: The pair reads references with noise alone, or has too few timesteps.
        """
        self.config, self.start, self.device = config, Path(config.start_from), device
        self.teacher = load_pair(self.start, device=device)
        pair, settings = self.teacher.config, config.distill
        if pair.reference_timestep == "same":
            raise ConfigError(
                f"start_from {self.start} reads references noised to each timestep "
                "(reference_timestep 'same'), expected a pair that reads them clean: 'clean' or "
                "'mixed'; train it so in stage 'pair'"
            )
        self.schedule = NoiseSchedule.from_config(self.teacher.scheduler)
        if settings.steps * settings.substeps > self.schedule.num_train_timesteps:
            raise ConfigError(
                f"distill.steps {settings.steps} times distill.substeps {settings.substeps} is "
                f"above the {self.schedule.num_train_timesteps} timesteps of {self.start}; "
                "lower one of them"
            )
        self.data = DiffusionData(config, self.teacher.vae, read_tokenizer(self.start), device)
        self.num_samples = len(self.data.train.targets)
        self.guidance = Guidance(pair.image_guidance_scale, pair.text_guidance_scale)
        # One step over several of the teacher's is DDIM's: what it learns has no history.
        self.solver = pair.default_solver if settings.substeps == 1 else "ddim"
        self.table = solver_table(self.solver, self.schedule, settings.steps)
        self.inside = teacher_timesteps(torch.from_numpy(self.table.timesteps), settings.substeps)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.unet: Any = copy.deepcopy(self.teacher.base.unet).requires_grad_(True)
        self.student = BaseUNet(self.unet)
        self._teacher_pictures: Tensor | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The student's Base U-Net."""
        return {"base_unet": self.unet}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all of the student."""
        return [{"params": trainable(self.unet), "lr": self.config.optimizer.learning_rate}]

    @property
    def _prediction_type(self) -> PredictionType:
        return self.schedule.prediction_type

    # The loss ------------------------------------------------------------------------------------

    def loss(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Difference to the teacher at each step of the student's own pictures.

        Args:
            indices: int64 [B], samples that lend their captions and references; their pictures are
                not read.
            generator: Draws the noise and what is dropped.

        Returns:
            The mean over pictures and steps, and the plain error of x_0 as `error`, that of the
            first and of the last step as `error_first` and `error_last`.
        """
        conditions = self._conditions(make_batch(self.data, indices, generator))
        with torch.no_grad():
            teacher = Drawer(self.teacher.base, conditions, self.teacher, self.guidance)
        student = Drawer(self.student, conditions, self.teacher, None)
        shape = (len(indices), *self.data.train.targets.shape[1:])
        latents = torch.randn(shape, generator=generator).to(self.device)
        latents = latents * self.table.init_noise_sigma
        history = self.table.initial_history(latents)
        total = torch.zeros((), device=self.device)
        errors: list[Tensor] = []
        for i, t in enumerate(self.table.timesteps.tolist()):
            wanted = self._teacher_x0(teacher, latents, i)
            output = student.output(latents, t)
            total = total + self._difference(output, wanted, latents, t)
            with torch.no_grad():
                own = self._x0(latents, output.detach(), t)
                errors.append((own - wanted).pow(2).mean())
                latents, history = self.table.step(
                    i, latents, output=output.detach(), history=history
                )
        figures = {
            "error": torch.stack(errors).mean(),
            "error_first": errors[0],
            "error_last": errors[-1],
        }
        return total / self.table.num_steps, figures

    def _difference(self, output: Tensor, wanted: Tensor, latents: Tensor, t: int) -> Tensor:
        """Weighted error of the student's output, as in `diffusion_loss`, scalar."""
        settings, count = self.config.diffusion, len(latents)
        alphas = self.alphas_cumprod[t].to(self.device).expand(count)
        alpha, sigma = self._level(t)
        noise = (latents - alpha * wanted) / sigma
        target = target_of(self._prediction_type, wanted, noise, alphas)
        weight = loss_weight(self._prediction_type, alphas, settings.snr_gamma, settings.snr_floor)
        return (weight * (output - target).pow(2).mean(dim=(1, 2, 3))).mean()

    @torch.no_grad()
    def _teacher_x0(self, teacher: Drawer, latents: Tensor, i: int) -> Tensor:
        """The x_0 that takes DDIM in one step to where the teacher comes in its substeps.

        With one substep it is the teacher's guided x_0.
        """
        inside = self.inside[i]
        last = i + 1 == self.table.num_steps
        ends = [*inside[1:], -1 if last else int(self.table.timesteps[i + 1])]
        x = latents
        for t, after in zip(inside, ends, strict=True):
            x0 = self._x0(x, teacher.output(x, t), t)
            if len(inside) == 1:
                return x0
            alpha, sigma = self._level(t)
            next_alpha, next_sigma = self._level(after)
            x = next_alpha * x0 + next_sigma / sigma * (x - alpha * x0)
        alpha, sigma = self._level(inside[0])
        next_alpha, next_sigma = self._level(ends[-1])
        ratio = next_sigma / sigma
        return (x - ratio * latents) / (next_alpha - ratio * alpha)

    def _x0(self, latents: Tensor, output: Tensor, t: int) -> Tensor:
        """Clean latents that a model output stands for, [B, C, h, w]."""
        alpha, sigma = (np.array([level]) for level in self._level(t))
        of_latents, of_output = x0_rows(self._prediction_type, alpha, sigma)[0].tolist()
        x0: Tensor = of_latents * latents + of_output * output
        return x0

    def _level(self, t: int) -> tuple[float, float]:
        """Alpha and sigma of a timestep; -1 is the end, without noise."""
        if t < 0:
            return 1.0, 0.0
        bar = float(self.schedule.alphas_cumprod[t])
        return bar**0.5, (1 - bar) ** 0.5

    # What the pictures are drawn from ------------------------------------------------------------

    @torch.no_grad()
    def _conditions(self, batch: Batch) -> Conditions:
        count = len(batch.ids)
        ref_of_row = torch.full((count, max(1, batch.ref_of_row.shape[1])), -1)
        ref_of_row[: batch.kept] = batch.ref_of_row
        return self._encoded(batch.ids, batch.reference_latents, batch.reference_ids, ref_of_row)

    def _encoded(
        self, ids: Tensor, references: Tensor, reference_ids: Tensor, ref_of_row: Tensor
    ) -> Conditions:
        empty = self.data.empty_ids.to(self.device)
        states = self.teacher.text_encoder(torch.cat([ids, empty, reference_ids]))[0]
        count = len(ids)
        features = None
        if len(references):
            clean = torch.zeros(len(references), dtype=torch.long, device=self.device)
            features = self.teacher.reference(references, clean, states[count + 1 :])
        negative = states[count : count + 1].expand(count, -1, -1)
        return Conditions(states[:count], negative, features, ref_of_row)

    # Validation and export -----------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, folder: Path, step: int) -> dict[str, float]:
        """Draw held-out samples with teacher and student from the same noise.

        Writes a sheet (reference, teacher, student). `teacher_gap` is the mean difference of the
        two in pixels, 0..2; `subject_error` that of the student to the rendered target where the
        subject is, `teacher_subject_error` the teacher's.
        """
        latents = self.data.validation
        if latents is None:
            return {}
        conditions = self._validation_conditions(latents)
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        noise = torch.randn(latents.targets.shape, generator=generator).to(self.device)
        if self._teacher_pictures is None:
            pair = self.teacher.config
            full = solver_table(pair.default_solver, self.schedule, pair.default_steps)
            drawer = Drawer(self.teacher.base, conditions, self.teacher, self.guidance)
            self._teacher_pictures = self._pixels(drawer.picture(full.astype32(), noise))
        teacher = self._teacher_pictures
        drawer = Drawer(self.student, conditions, self.teacher, None)
        student = self._pixels(drawer.picture(self.table.astype32(), noise))
        target = self._pixels(latents.targets.float().to(self.device))
        first = latents.references[latents.first_reference[:-1]].float().to(self.device)
        rows = [to_uint8(self._pixels(first)), to_uint8(teacher), to_uint8(student)]
        save_sheet(rows, folder / f"step-{step:07d}.png")
        masks = latents.masks.float()[:, None] / 255
        mask = nn.functional.interpolate(masks, student.shape[-1])

        def difference(a: Tensor, b: Tensor) -> float:
            return float(((a - b).abs() * mask).sum() / (3 * mask.sum()))

        return {
            "teacher_gap": float((student - teacher).abs().mean()),
            "subject_error": difference(student, target),
            "teacher_subject_error": difference(teacher, target),
            "samples": float(len(student)),
        }

    def _validation_conditions(self, latents: Latents) -> Conditions:
        first = latents.references[latents.first_reference[:-1]].float()
        return self._encoded(
            self.data.ids(latents.captions).to(self.device),
            first.to(self.device),
            self.data.ids(latents.reference_prompts).to(self.device),
            torch.arange(len(first))[:, None],
        )

    def _pixels(self, latents: Tensor) -> Tensor:
        vae: Any = self.teacher.vae
        decoded: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
        return decoded.clamp(-1, 1).cpu()

    def export(self, folder: Path) -> None:
        """Save the student as a pair whose defaults are its steps and no guidance, in float16."""
        config = replace(
            self.teacher.config,
            name=Path(self.config.output).name,
            # It has read clean references only, whatever its teacher reads.
            reference_timestep="clean",
            shared_unet=False,
            default_steps=self.config.distill.steps,
            default_solver=self.solver,
            image_guidance_scale=NEUTRAL,
            text_guidance_scale=NEUTRAL,
        )
        save_pair(replace(self.teacher, base=self.student, config=config), folder)
