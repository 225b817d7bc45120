"""What the stages `base` and `pair` share: batches of latents, the loss, validation sheets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel

from bootpig_rt.diffusion.solver import NoiseSchedule
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.config import DiffusionConfig, TrainConfig
from bootpig_rt.training.latents import Latents, load_latents
from bootpig_rt.training.losses import add_noise, draw_timesteps, loss_weight, target_of
from bootpig_rt.training.pictures import save_sheet, to_uint8
from bootpig_rt.training.sampling import Guidance, sample

VALIDATION_ROWS = 16
VALIDATION_STEPS = 12


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """Return the noise schedule of the small world, in diffusers' form.

    Stable Diffusion's betas, rescaled to end in pure noise and used with trailing spacing, as Lin
    et al. (2023) advise: scenes at night and on snow need means far from grey.
    """
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }


@dataclass(frozen=True)
class Models:
    """The modules of a pair in training; `reference` may wrap the same U-Net as `base`."""

    base: BaseUNet
    reference: ReferenceUNet
    text_encoder: CLIPTextModel
    vae: AutoencoderKL


def load_vae(folder: Path, device: torch.device) -> Any:
    """Load a frozen VAE from the folder of a finished stage.

    Raises:
        CheckpointError: The folder has no VAE.
    """
    if not (folder / "vae" / "config.json").exists():
        raise CheckpointError(
            f"{folder} has no vae/; finish that stage first, start_from is its result"
        )
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").to(device)
    return vae.eval().requires_grad_(False)


class DiffusionData:
    """Training and validation latents with their token ids, and the noise schedule."""

    def __init__(
        self, config: TrainConfig, vae: Any, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        """Read or make the latents and tokenise every caption once."""
        self.config, self.device = config, device
        vae_folder, cache = Path(config.start_from) / "vae", Path(config.output).parent / "latents"
        self.train = load_latents(
            Path(config.data),
            vae_folder,
            vae,
            cache,
            augmentation=config.diffusion.reference_augmentation,
            max_samples=config.max_samples,
            device=device,
        )
        self.validation: Latents | None = None
        if config.validation_data:
            self.validation = load_latents(
                Path(config.validation_data),
                vae_folder,
                vae,
                cache,
                augmentation="none",
                max_samples=VALIDATION_ROWS,
                device=device,
            )
        self.tokenizer = tokenizer
        self.caption_ids = self.ids(self.train.captions)
        self.reference_ids = self.ids(self.train.reference_prompts)
        self.empty_ids = self.ids([""])
        schedule = NoiseSchedule.from_config(scheduler_config(config.diffusion.prediction_type))
        self.alphas_cumprod = torch.tensor(schedule.alphas_cumprod, dtype=torch.float32)

    def ids(self, texts: list[str]) -> Tensor:
        """Tokenise texts to int64 [N, S]."""
        return torch.from_numpy(self.tokenizer(texts))


@dataclass(frozen=True)
class Batch:
    """One batch on the device; the first `kept` rows have references, `ref_of_row` [kept, R]."""

    latents: Tensor
    masks: Tensor
    ids: Tensor
    kept: int
    reference_latents: Tensor
    reference_ids: Tensor
    ref_of_row: Tensor


def make_batch(data: DiffusionData, indices: Tensor, generator: torch.Generator) -> Batch:
    """Gather samples, drop prompts and references, choose which references are read."""
    settings, train, count = data.config.diffusion, data.train, len(indices)
    draws = torch.rand(3, count, generator=generator)
    drop_both = draws[0] < settings.both_dropout
    drop_reference = (draws[1] < settings.reference_dropout) | drop_both
    drop_prompt = (draws[2] < settings.prompt_dropout) | drop_both
    # Rows with a reference come first, so that attention works on two plain blocks.
    order = torch.argsort(drop_reference.long(), stable=True)
    indices, drop_prompt = indices[order], drop_prompt[order]
    kept = int((~drop_reference).sum())
    ids = data.caption_ids[indices].clone()
    ids[drop_prompt] = data.empty_ids
    rows, ref_of_row = _choose_references(train, indices[:kept], settings.max_references, generator)
    owner = indices[:kept].repeat_interleave((ref_of_row >= 0).sum(1))
    device = data.device
    return Batch(
        latents=train.targets[indices].float().to(device),
        masks=train.masks[indices].float().to(device) / 255.0,
        ids=ids.to(device),
        kept=kept,
        reference_latents=train.references[rows].float().to(device),
        reference_ids=data.reference_ids[owner].to(device),
        ref_of_row=ref_of_row,
    )


def _choose_references(
    train: Latents, indices: Tensor, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of the reference table [n], and which of them each sample reads [len(indices), R]."""
    rows: list[int] = []
    table = torch.full((len(indices), max(1, most)), -1, dtype=torch.long)
    for place, index in enumerate(indices.tolist()):
        first, last = int(train.first_reference[index]), int(train.first_reference[index + 1])
        chosen = torch.randperm(last - first, generator=generator)[: max(1, most)].tolist()
        for slot, k in enumerate(chosen):
            table[place, slot] = len(rows)
            rows.append(first + k)
    return torch.tensor(rows, dtype=torch.long), table


def diffusion_loss(
    models: Models, data: DiffusionData, indices: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the base's prediction with references (paper, section 3.3 and algorithm 1).

    The references are clean (t = 0), noised to the target's timestep with noise of their own, or
    one of the two at random, as `reference_timestep` says.
    """
    settings, device = data.config.diffusion, data.device
    batch = make_batch(data, indices, generator)
    count = len(batch.latents)
    t = draw_timesteps(count, len(data.alphas_cumprod), settings.timestep_sampling, generator)
    alphas = data.alphas_cumprod[t].to(device)
    noise = torch.randn(batch.latents.shape, generator=generator).to(device)
    noisy = add_noise(batch.latents, noise, alphas)
    states = models.text_encoder(torch.cat([batch.ids, batch.reference_ids]))[0]
    table = ref_of_row = None
    if batch.kept:
        owner = torch.arange(batch.kept).repeat_interleave((batch.ref_of_row >= 0).sum(1))
        reference_t = _reference_timesteps(settings, t[owner], generator)
        reference_noise = torch.randn(batch.reference_latents.shape, generator=generator)
        level = torch.where(
            reference_t > 0, data.alphas_cumprod[reference_t], torch.ones(len(reference_t))
        )
        references = add_noise(
            batch.reference_latents, reference_noise.to(device), level.to(device)
        )
        features = models.reference(references, reference_t.to(device), states[count:])
        table = models.base.project_reference(features, ref_scale=settings.ref_scale)
        ref_of_row = torch.full((count, batch.ref_of_row.shape[1]), -1, dtype=torch.long)
        ref_of_row[: batch.kept] = batch.ref_of_row
    predicted = models.base(
        noisy, t.to(device), states[:count], table, ref_of_row, merge=settings.merge
    ).float()
    target = target_of(settings.prediction_type, batch.latents, noise, alphas)
    error = (predicted - target).pow(2)
    emphasis = 1.0 + settings.foreground_weight * batch.masks[:, None]
    per_sample = (error * emphasis).mean(dim=(1, 2, 3)) / emphasis.mean(dim=(1, 2, 3))
    weight = loss_weight(settings.prediction_type, alphas, settings.snr_gamma, settings.snr_floor)
    inside = (error * batch.masks[:, None]).sum() / (batch.masks.sum() * error.shape[1] + 1e-6)
    return (weight * per_sample).mean(), {"error": error.mean(), "error_subject": inside}


def _reference_timesteps(
    settings: DiffusionConfig, t: Tensor, generator: torch.Generator
) -> Tensor:
    if settings.reference_timestep == "same":
        return t
    if settings.reference_timestep == "clean":
        return torch.zeros_like(t)
    is_clean = torch.rand(len(t), generator=generator) < 0.5
    return torch.where(is_clean, torch.zeros_like(t), t)


@torch.no_grad()
def validate(models: Models, data: DiffusionData, folder: Path, step: int) -> dict[str, float]:
    """Draw held-out samples on fixed seeds: a sheet (reference, target, drawn) and figures.

    `subject_error` is the mean difference to the target's pixels where the subject is, and
    `wrong_subject_error` that of the next sample's picture: the first should be far below.
    """
    latents = data.validation
    if latents is None:
        return {}
    device, count = data.device, len(latents.targets)
    references = latents.references[latents.first_reference[:-1]].float().to(device)
    drawn = sample(
        models.base,
        models.reference,
        scheduler=scheduler_config(data.config.diffusion.prediction_type),
        prompt_embeds=models.text_encoder(data.ids(latents.captions).to(device))[0],
        negative_embeds=models.text_encoder(data.empty_ids.to(device))[0],
        reference_latents=references,
        reference_embeds=models.text_encoder(data.ids(latents.reference_prompts).to(device))[0],
        guidance=Guidance(2.0, 2.0),
        steps=VALIDATION_STEPS,
        ref_scale=data.config.diffusion.ref_scale,
        generator=torch.Generator().manual_seed(1234),
    )

    def pixels(x: Tensor) -> Tensor:
        decoded: Tensor = models.vae.decode(x / models.vae.config.scaling_factor).sample
        return decoded.clamp(-1, 1).cpu()

    targets = latents.targets.float().to(device)
    shown, wanted = pixels(drawn), pixels(targets)
    mask = torch.nn.functional.interpolate(latents.masks.float()[:, None] / 255, shown.shape[-1])
    rows = [to_uint8(pixels(references)), to_uint8(wanted), to_uint8(shown)]
    save_sheet(rows, folder / f"step-{step:07d}.png")

    def difference(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs() * mask).sum() / (3 * mask.sum()))

    return {
        "subject_error": difference(shown, wanted),
        "wrong_subject_error": difference(shown.roll(1, 0), wanted),
        "samples": float(count),
    }


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module that are trained."""
    return [p for p in module.parameters() if p.requires_grad]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a finished stage."""
    return Tokenizer.from_folder(folder / "tokenizer")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
