"""What the stages `base` and `pair` share: the loss, and validation sheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.diffusion.solver import NoiseSchedule, solver_table
from bootpig_rt.models.latent_scale import LatentScale
from bootpig_rt.models.load import Pair
from bootpig_rt.models.rows import RowPlan
from bootpig_rt.models.unet import ReferenceKVLayers, WalkedUNet
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import DiffusionData
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.latent_statistics import pixel_weight
from bootpig_rt.training.latents import Latents
from bootpig_rt.training.losses import (
    add_noise,
    draw_timesteps,
    loss_weight,
    nothing_of,
    target_of,
    timestep_share,
)
from bootpig_rt.training.pictures import subject_difference, to_uint8
from bootpig_rt.training.resident import ResidentData
from bootpig_rt.training.sampling import (
    Conditions,
    Drawer,
    encode_conditions,
    guidance_of,
    told_size,
)
from bootpig_rt.training.stage import Validation, trainable

VALIDATION_STEPS = 12
VALIDATION_SEED = 1234
CLEAN_SHARE = 0.5
"""Of references that are read clean where the pair reads `mixed`."""
MEASURED_SAMPLES = 16
"""Whose latents show what each channel does to pixels."""


class DiffusionStage:
    """A pair in training and the samples that it learns from; see `stage.Stage`.

    Its U-Nets and text encoder are those that are trained, or frozen; its scheduler and `pair.json`
    say how.
    """

    def __init__(self, config: TrainConfig, pair: Pair, data: DiffusionData) -> None:
        self.config, self.pair, self.data = config, pair, data
        self.order = data.order
        self.expect: Callable[[Iterator[tuple[Tensor, Draws]]], None] = data.expect
        self.schedule = NoiseSchedule.from_config(pair.scheduler)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.resident: ResidentData | None = None
        self._predict: Callable[..., Tensor] = self._read_and_draw
        if config.samples.resident:
            self.resident = ResidentData(data, config.diffusion)
            self.expect = ignore
            if config.compile:
                self._predict = torch.compile(self._read_and_draw, dynamic=False)
        self.channel_weight: Tensor | None = None
        if config.diffusion.channel_weight == "pixels":
            count = min(len(data.samples), MEASURED_SAMPLES)
            latents = data.train.targets(range(count)).float().to(data.device)
            self.channel_weight = pixel_weight(pair.vae, latents)

    def result(self) -> Pair:
        """The pair."""
        return self.pair

    def walks(self) -> list[WalkedUNet]:
        """Both roles, which may share one U-Net."""
        return [self.pair.base, self.pair.reference]

    def frozen(self) -> list[nn.Module]:
        """The VAE; the text encoder where it is not trained."""
        parts: list[nn.Module] = [self.pair.vae, self.pair.text_encoder]
        return [part for part in parts if not trainable(part)]

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the base's prediction with references (paper, section 3.3 and algorithm 1).

        The references are clean (t = 0), noised to the target's timestep with noise of their own,
        or one of the two at random, as the pair's `reference_timestep` says.
        """
        settings, device, pair = self.config.diffusion, self.data.device, self.pair
        if self.resident is not None:
            return self._resident_loss(self.resident, indices, draws)
        batch = self.data.batch(indices, draws)
        draws = draws.part(batch.order)
        count, shape = len(batch.latents), batch.latents.shape[1:]
        t = draw_timesteps(draws, len(self.alphas_cumprod), settings.timestep_sampling)
        alphas = self.alphas_cumprod[t].to(device)
        noise = draws.normal(*shape).to(device)
        noisy = add_noise(batch.latents, noise, alphas)
        references, reference_ids, owner = (
            batch.reference_latents,
            batch.reference_ids,
            batch.owner,
        )
        if not batch.kept:  # the Reference U-Net still runs, for nothing
            references, reference_ids = torch.zeros_like(batch.latents[:1]), self._empty_ids()
            owner = [0]
        states = batch.states
        if states is None:
            states = pair.text_encoder(torch.cat([batch.ids, reference_ids]))[0]
        elif not batch.kept:
            states = torch.cat([states, states[:1]])
        states = told_size(pair, states, count, batch.latents)
        reference_t = _reference_timesteps(pair.config, t, draws, owner)
        reference_noise = draws.normal(*references.shape[1:], of=owner)
        level = torch.where(
            reference_t > 0, self.alphas_cumprod[reference_t], torch.ones(len(reference_t))
        )
        references = add_noise(references, reference_noise.to(device), level.to(device))
        features = pair.reference(references, reference_t.to(device), states[count:])
        table = pair.base.project_reference(features, ref_scale=pair.config.ref_scale)
        ref_of_row = torch.full((count, batch.ref_of_row.shape[1]), -1, dtype=torch.long)
        ref_of_row[: batch.kept] = batch.ref_of_row
        samples = indices[torch.tensor(batch.order)].tolist()
        predicted = self._draw(
            noisy, t.to(device), states[:count], table, ref_of_row, samples
        ).float()
        loss, figures = self._weighed(predicted, batch.latents, noise, alphas, batch.masks)
        if not batch.kept:
            loss = loss + nothing_of(table)
        return loss, figures

    def _draw(
        self,
        noisy: Tensor,
        t: Tensor,
        states: Tensor,
        table: ReferenceKVLayers,
        ref_of_row: Tensor,
        samples: list[int],
    ) -> Tensor:
        """The base's prediction for the rows of a batch, of which `samples` are the numbers."""
        drawn: Tensor = self.pair.base(
            noisy, t, states, table, ref_of_row, merge=self.pair.config.merge
        )
        return drawn

    def _weighed(
        self, predicted: Tensor, latents: Tensor, noise: Tensor, alphas: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of predictions, and the plain error, of all and of subjects."""
        settings, prediction_type = self.config.diffusion, self.schedule.prediction_type
        target = target_of(prediction_type, latents, noise, alphas)
        error = (predicted - target).pow(2)
        if self.channel_weight is not None:
            error = error * self.channel_weight
        emphasis = 1.0 + settings.foreground_weight * masks[:, None]
        per_sample = (error * emphasis).mean(dim=(1, 2, 3)) / emphasis.mean(dim=(1, 2, 3))
        weight = loss_weight(prediction_type, alphas, settings.snr_gamma, settings.snr_floor)
        inside = (error * masks[:, None]).sum() / (masks.sum() * error.shape[1] + 1e-6)
        return (weight * per_sample).mean(), {"error": error.mean(), "error_subject": inside}

    def _resident_loss(
        self, resident: ResidentData, indices: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of data on the device, where all shapes are those of every step.

        What is drawn depends on how the samples of a step are divided.
        """
        settings, device = self.config.diffusion, resident.device
        generator = resident.generator(draws)
        batch = resident.batch(indices, generator)

        def normal() -> Tensor:
            return torch.randn(batch.latents.shape, generator=generator, device=device)

        def uniform() -> Tensor:
            return torch.rand(len(indices), generator=generator, device=device)

        levels = self.alphas_cumprod.to(device)
        share = timestep_share(settings.timestep_sampling, uniform, lambda: normal()[:, 0, 0, 0])
        t = (share * len(levels)).long().clamp_(max=len(levels) - 1)
        timestep = self.pair.config.reference_timestep
        reference_t = t if timestep == "same" else torch.zeros_like(t)
        if timestep == "mixed":
            reference_t = torch.where(uniform() < CLEAN_SHARE, reference_t, t)
        alphas = levels[t]
        level = torch.where(reference_t > 0, levels[reference_t], torch.ones_like(alphas))
        noise = normal()
        noisy = add_noise(batch.latents, noise, alphas)
        references = add_noise(batch.references, normal(), level)
        predicted = self._predict(
            noisy,
            t,
            torch.cat([batch.ids, batch.reference_ids]),
            references,
            reference_t,
            batch.plan(),
        )
        return self._weighed(predicted.float(), batch.latents, noise, alphas, batch.masks)

    def _read_and_draw(
        self,
        noisy: Tensor,
        t: Tensor,
        ids: Tensor,
        references: Tensor,
        reference_t: Tensor,
        plan: RowPlan,
    ) -> Tensor:
        """Text encoder and both U-Nets: what is compiled whole."""
        pair = self.pair
        states = told_size(pair, pair.text_encoder(ids)[0], len(noisy), noisy)
        features = pair.reference(references, reference_t, states[len(noisy) :])
        table = pair.base.project_reference(features, ref_scale=pair.config.ref_scale)
        drawn: Tensor = pair.base(
            noisy, t, states[: len(noisy)], table, plan, merge=pair.config.merge
        )
        return drawn

    def _empty_ids(self) -> Tensor:
        return self.data.empty_ids.to(self.data.device)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Draw held-out samples on fixed seeds, with the pair's own guidance.

        The rows are reference, target and drawn. `subject_error` is the mean difference to the
        target's pixels where the subject is, and `wrong_subject_error` that of the next sample's
        picture: the first should be far below.
        """
        latents = self.data.validation
        if latents is None:
            return Validation()
        conditions, references = validation_conditions(self.pair, self.data, latents)
        drawer = Drawer(self.pair.base, conditions, self.pair, guidance_of(self.pair))
        table = solver_table("ddim", self.schedule, VALIDATION_STEPS).astype32()
        drawn = drawer.picture(table, validation_noise(latents).to(self.data.device))
        shown, wanted, given = (decoded(self.pair, x) for x in (drawn, latents.targets, references))
        figures = {
            "subject_error": subject_difference(shown, wanted, latents.masks),
            "wrong_subject_error": subject_difference(shown.roll(1, 0), wanted, latents.masks),
            "samples": float(len(shown)),
        }
        return Validation(figures, [to_uint8(given), to_uint8(wanted), to_uint8(shown)])


def _reference_timesteps(config: PairConfig, t: Tensor, draws: Draws, owner: list[int]) -> Tensor:
    """Timestep of each reference, int64 [n]."""
    of_owner = t[owner]
    if config.reference_timestep == "same":
        return of_owner
    clean = torch.zeros_like(of_owner)
    if config.reference_timestep == "clean":
        return clean
    return torch.where(draws.uniform(of=owner) < CLEAN_SHARE, clean, of_owner)


def ignore(upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
    """Nothing is read ahead of what lies on the device."""


def validation_conditions(
    pair: Pair, data: DiffusionData, latents: Latents
) -> tuple[Conditions, Tensor]:
    """What held-out samples are drawn from, each with its first reference, and those references."""
    device = data.device
    references = latents.references[latents.first_reference[:-1]].float().to(device)
    conditions = encode_conditions(
        pair,
        data.ids(latents.captions).to(device),
        data.empty_ids.to(device),
        references,
        data.ids(latents.reference_prompts).to(device),
        torch.arange(len(references))[:, None],
        like=latents.targets,
    )
    return conditions, references


def validation_noise(latents: Latents) -> Tensor:
    """The start of held-out samples, the same each time, [N, C, h, w]."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    return torch.randn(latents.targets.shape, generator=generator)


def decoded(pair: Pair, latents: Tensor) -> Tensor:
    """Pixels of latents, [N, 3, H, W] in [-1, 1], float32 on the CPU."""
    vae: Any = pair.vae
    plain = LatentScale(vae).unscaled(latents.to(device=vae.device, dtype=vae.dtype))
    pixels: Tensor = vae.decode(plain).sample.float()
    return pixels.clamp(-1, 1).cpu()
