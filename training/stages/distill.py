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
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bootpig_rt.diffusion.noise_schedule import PredictionType
from bootpig_rt.diffusion.solver import NoiseSchedule, solver_table, x0_rows
from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import Pair
from bootpig_rt.models.unet import BaseUNet, WalkedUNet
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import Batch, DiffusionData
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.losses import loss_weight, nothing_of, target_of
from bootpig_rt.training.pictures import subject_difference, to_uint8
from bootpig_rt.training.sampling import Conditions, Drawer, encode_conditions, guidance_of
from bootpig_rt.training.stage import Validation, trainable
from bootpig_rt.training.stages.diffusion import decoded, validation_conditions, validation_noise

NEUTRAL = 1.0
"""With both scales at 1 the runtime draws the `text_image` row alone (`engine/rows.py`)."""


def teacher_timesteps(steps: Tensor, substeps: int) -> list[list[int]]:
    """Timesteps that the teacher visits inside each of the student's steps [T], falling.

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
    """The student's Base U-Net; see `stage.Stage`. Samples lend captions and references alone.

    Raises:
        ConfigError: The pair reads references with noise alone, or has too few timesteps.
    """

    def __init__(self, config: TrainConfig, teacher: Pair, data: DiffusionData) -> None:
        self.config, self.teacher, self.data = config, teacher, data
        pair, settings, self.device = teacher.config, config.distill, data.device
        if pair.reference_timestep == "same":
            raise ConfigError(
                f"start_from {config.start_from} reads references noised to each timestep "
                "(reference_timestep 'same'), expected a pair that reads them clean: 'clean' or "
                "'mixed'; train it so in stage 'pair'"
            )
        self.schedule = NoiseSchedule.from_config(teacher.scheduler)
        if settings.steps * settings.substeps > self.schedule.num_train_timesteps:
            raise ConfigError(
                f"distill.steps {settings.steps} times distill.substeps {settings.substeps} is "
                f"above the {self.schedule.num_train_timesteps} timesteps of {config.start_from}; "
                "lower one of them"
            )
        self.order, self.expect = data.order, data.expect
        self.guidance = guidance_of(teacher)
        # One step over several of the teacher's is DDIM's: what it learns has no history.
        self.solver = pair.default_solver if settings.substeps == 1 else "ddim"
        self.table = solver_table(self.solver, self.schedule, settings.steps)
        self.inside = teacher_timesteps(torch.from_numpy(self.table.timesteps), settings.substeps)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.unet: Any = copy.deepcopy(teacher.base.unet).requires_grad_(True)
        self.student = BaseUNet(self.unet)
        self._teacher_pictures: Tensor | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The student's Base U-Net."""
        return {"base_unet": self.unet}

    def walks(self) -> list[WalkedUNet]:
        """The student's; the teacher is whole in each process."""
        return [self.student]

    def frozen(self) -> list[nn.Module]:
        """All of the teacher."""
        teacher = self.teacher
        parts: list[Any] = [teacher.base.unet, teacher.reference.unet, teacher.vae]
        return [*dict.fromkeys(parts), teacher.text_encoder]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: all of the student."""
        return [{"params": trainable(self.unet), "lr": self.config.optimizer.learning_rate}]

    @property
    def _prediction_type(self) -> PredictionType:
        return self.schedule.prediction_type

    # The loss ------------------------------------------------------------------------------------

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Difference to the teacher at each step of the student's own pictures.

        Returns:
            The mean over pictures and steps, and the plain error of x_0 as `error`, that of the
            first and of the last step as `error_first` and `error_last`.
        """
        batch = self.data.batch(indices, draws)
        conditions = self._conditions(batch)
        with torch.no_grad():
            teacher = Drawer(self.teacher.base, conditions, self.teacher, self.guidance)
        student = Drawer(self.student, conditions, self.teacher, None)
        latents = draws.part(batch.order).normal(*batch.latents.shape[1:]).to(self.device)
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
        loss = total / self.table.num_steps
        if not batch.kept:
            loss = loss + nothing_of(student.table)
        return loss, figures

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

    def _conditions(self, batch: Batch) -> Conditions:
        ref_of_row = torch.full((len(batch.ids), batch.ref_of_row.shape[1]), -1)
        ref_of_row[: batch.kept] = batch.ref_of_row
        empty = self.data.empty_ids.to(self.device)
        references, reference_ids = batch.reference_latents, batch.reference_ids
        if not batch.kept:  # the keys and values of one are made, for nothing
            references, reference_ids = torch.zeros_like(batch.latents[:1]), empty
        return encode_conditions(
            self.teacher,
            batch.ids,
            empty,
            references,
            reference_ids,
            ref_of_row,
            like=batch.latents,
        )

    # Validation and result -----------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> Validation:
        """Draw held-out samples with teacher and student from the same noise.

        The rows are reference, teacher and student. `teacher_gap` is the mean difference of the two
        in pixels, 0..2; `subject_error` that of the student to the rendered target where the
        subject is, `teacher_subject_error` the teacher's.
        """
        latents = self.data.validation
        if latents is None:
            return Validation()
        conditions, references = validation_conditions(self.teacher, self.data, latents)
        noise = validation_noise(latents).to(self.device)
        if self._teacher_pictures is None:
            pair = self.teacher.config
            full = solver_table(pair.default_solver, self.schedule, pair.default_steps)
            drawer = Drawer(self.teacher.base, conditions, self.teacher, self.guidance)
            self._teacher_pictures = decoded(self.teacher, drawer.picture(full.astype32(), noise))
        teacher = self._teacher_pictures
        drawer = Drawer(self.student, conditions, self.teacher, None)
        student = decoded(self.teacher, drawer.picture(self.table.astype32(), noise))
        target, given = (decoded(self.teacher, x) for x in (latents.targets, references))
        figures = {
            "teacher_gap": float((student - teacher).abs().mean()),
            "subject_error": subject_difference(student, target, latents.masks),
            "teacher_subject_error": subject_difference(teacher, target, latents.masks),
            "samples": float(len(student)),
        }
        return Validation(figures, [to_uint8(given), to_uint8(teacher), to_uint8(student)])

    def result(self) -> Pair:
        """The student as a pair whose defaults are its steps and no guidance."""
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
        return replace(self.teacher, base=self.student, config=config, fingerprint="")
