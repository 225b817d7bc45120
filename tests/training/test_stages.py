"""The real stages, tiny: what they train and read, and bit-identical resume."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bootpig_rt.errors import CheckpointError, ConfigError, InputError
from bootpig_rt.models.load import load_pair
from bootpig_rt.training import references as references_module
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.latents import Latents
from bootpig_rt.training.pictures import to_tensor
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.shards import read_samples
from bootpig_rt.training.stage import Validation
from bootpig_rt.training.stages.base import BaseStage
from bootpig_rt.training.stages.pair import PairStage
from bootpig_rt.training.stages.vae import VaeStage, stacked, target_of
from bootpig_rt.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

pytestmark = pytest.mark.usefixtures("one_thread", "_short_validation")
CPU = torch.device("cpu")
STAGES = ("vae", "base", "pair")
ConfigOf = Callable[..., TrainConfig]


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config_of(make_config: Any, vae_result: Path, base_result: Path, make_output: Any) -> ConfigOf:
    """`config_of(stage, name, ...)`: a config that starts from the finished stage before."""
    start = {"vae": "", "base": str(vae_result), "pair": str(base_result)}

    def make(stage: str, name: str = "run", **changes: Any) -> TrainConfig:
        settings = {"start_from": start[stage], **changes}
        made: TrainConfig = make_config(stage, make_output(name), **settings)
        return made

    return make


def build(config: TrainConfig) -> Any:
    return build_stage(config, CPU)[0]


def everything(stage: Any) -> Latents:
    """All samples that a stage trains on."""
    train, samples = stage.data.train, stage.data.samples
    all_of_them = range(len(samples))
    counts = [samples.num_references(n) for n in all_of_them]
    texts = [samples.texts(n) for n in all_of_them]
    return Latents(
        train.targets(all_of_them),
        train.references([(n, k) for n, count in enumerate(counts) for k in range(count)]),
        train.masks(all_of_them),
        torch.tensor([0, *counts]).cumsum(0),
        [caption for caption, _ in texts],
        [prompt for _, prompt in texts],
    )


def draws_of(count: int, *, step: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, step, range(count))


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    found = {f"weight/{k}": p.detach() for k, p in trainer.parameters.items()}
    found |= {f"average/{k}": v for k, v in trainer.ema.average.items()}
    for name, parameter in trainer.parameters.items():
        for key, value in trainer.optimizer.state[parameter].items():
            found[f"{key}/{name}"] = value
    return found


def assert_equal(first: Trainer, second: Trainer) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    assert len(one) > 4 * len(first.parameters) - 60  # weights, averages and both moments
    apart = {k: float((one[k] - other[k]).abs().max()) for k in one}
    assert {name: gap for name, gap in apart.items() if gap} == {}


def losses(trainer: Trainer) -> list[dict[str, float]]:
    rows = log_rows(trainer.folder / "log.jsonl")
    return [{k: v for k, v in r.items() if k != "samples_per_s"} for r in rows if "loss" in r]


# Resume and validation, for every stage -----------------------------------------------------------


EVERYTHING_ON: dict[str, Any] = {
    "accumulate": 2,
    "mixed_precision": "bf16",
    "diffusion": {"augmentation": "paper", "max_references": 3, "reference_dropout": 0.4},
    "pair": {"reference_timestep": "mixed", "merge": "softmax"},
}


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("vae", {}),
        ("base", {"unet": {"block_channels": (16, 32)}}),
        ("pair", {}),
        ("pair", EVERYTHING_ON),
    ],
    ids=["vae", "base of two levels", "pair", "pair in bfloat16 with everything on"],
)
def test_a_run_is_the_same_when_it_is_stopped_resumed_and_validated(
    stage: str, settings: dict[str, Any], config_of: ConfigOf, train: Any, samples: Path
) -> None:
    settings = {"steps": 3, "log_every": 1, **settings}
    whole = train(config_of(stage, "whole", **settings))
    settings |= {"validation_data": str(samples), "validate_every": 2}
    assert train(config_of(stage, "part", **settings), stop_after=1).step == 1
    rest = train(config_of(stage, "part", **settings))
    assert rest.step == 3
    assert_equal(whole, rest)
    assert losses(whole) == losses(rest)
    assert len(losses(rest)) == 3
    sheets = sorted(p.name for p in (rest.folder / "validation").iterdir())
    assert sheets == ["step-0000002.png"]
    assert not (whole.folder / "validation").exists()


# VAE ----------------------------------------------------------------------------------------------


def test_latents_of_the_exported_vae_have_unit_variance(vae_result: Path, samples: Path) -> None:
    vae: Any = AutoencoderKL.from_pretrained(vae_result / "vae")
    pixels = stacked(sample.target for sample in read_samples(samples))
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_vae_learns(config_of: ConfigOf, train: Any) -> None:
    optimizer = {"learning_rate": 5e-3}
    trainer = train(config_of("vae", steps=50, batch_size=6, log_every=10, optimizer=optimizer))
    rows = losses(trainer)
    assert rows[-1]["l1"] < 0.8 * rows[0]["l1"]
    assert rows[-1]["psnr_db"] > rows[0]["psnr_db"] + 1


def test_a_quarter_of_the_vaes_pictures_are_references(config_of: ConfigOf, samples: Path) -> None:
    stage: VaeStage = build(config_of("vae"))
    batch = stage._read(torch.arange(8), draws_of(8))
    expected = stacked(target_of(stage.samples, row) for row in range(8))
    references = [each for sample in read_samples(samples) for each in sample.references]
    for row in (0, 4):
        expected[row] = stacked([references[row]])[0]
    assert torch.equal(batch, expected)


def test_the_vaes_loss_is_its_formula(config_of: ConfigOf) -> None:
    stage: VaeStage = build(config_of("vae", vae={"gradient_weight": 0.25, "kl_weight": 0.01}))
    indices = torch.tensor([1, 2, 3])
    loss, figures = stage.loss(indices, draws_of(3))
    pixels = stacked(target_of(stage.samples, row) for row in (1, 2, 3))
    with torch.no_grad():
        posterior = stage.vae.encode(pixels).latent_dist
        noise = draws_of(3).normal(*posterior.mean.shape[1:])
        decoded = stage.vae.decode(posterior.mean + posterior.std * noise).sample
    error = (decoded - pixels).double()
    mean, logvar = posterior.mean.double(), posterior.logvar.double()
    kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum() / pixels.numel()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    expected = error.abs().mean() + 0.25 * edges + 0.01 * kl
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    psnr = -10 * math.log10(float(error.pow(2).mean()) / 4)
    assert float(figures["psnr_db"]) == pytest.approx(psnr, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_the_same_however_it_is_divided(
    stage: str, config_of: ConfigOf, train: Any
) -> None:
    settings: dict[str, Any] = {"steps": 2, "log_every": 1}
    big = train(config_of(stage, "big", batch_size=4, **settings))
    small = train(config_of(stage, "small", batch_size=2, accumulate=2, **settings))
    for one, other in zip(losses(big), losses(small), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-2)


def test_the_vae_is_validated_on_held_out_pictures(
    config_of: ConfigOf, samples: Path, other_samples: Path
) -> None:
    stage: VaeStage = build(config_of("vae", validation_data=str(other_samples)))
    found = stage.validate()
    held_out = list(read_samples(other_samples))
    seen = np.stack([sample.target for sample in read_samples(samples)])
    shown = [sample.target for sample in held_out] + [s.references[0] for s in held_out[:4]]
    assert np.array_equal(found.rows[0], np.stack(shown))
    assert not any((picture == seen).all((1, 2, 3)).any() for picture in found.rows[0])
    pixels = to_tensor(found.rows[0])
    with torch.no_grad():
        decoded = stage.vae.decode(stage.vae.encode(pixels).latent_dist.mode()).sample
    psnr = -10 * math.log10(float((decoded.clamp(-1, 1) - pixels).pow(2).mean()) / 4)
    assert found.figures["psnr_db"] == pytest.approx(psnr, rel=1e-4)
    assert build(config_of("vae")).validate() == Validation()


# What the U-Nets get ------------------------------------------------------------------------------


class Spy:
    """Records what goes into both U-Nets of a stage; both compute as always."""

    def __init__(self, stage: BaseStage | PairStage) -> None:
        self.reference: list[tuple[Tensor, ...]] = []
        self.base: list[tuple[Any, ...]] = []
        stage.pair.reference.register_forward_pre_hook(lambda _, args: self.reference.append(args))
        stage.pair.base.register_forward_pre_hook(lambda _, args: self.base.append(args))

    def timesteps(self, call: int) -> tuple[Tensor, Tensor]:
        """Timesteps of the references of one call, and of the rows that read them."""
        table = self.base[call][4]
        owner = [row for row, slots in enumerate(table.tolist()) for slot in slots if slot >= 0]
        return self.reference[call][1], self.base[call][1][owner]


def observed(config: TrainConfig, *, calls: int = 3) -> tuple[Any, Spy]:
    stage = build(config)
    spy = Spy(stage)
    for step in range(calls):
        with torch.no_grad():
            loss, _ = stage.loss(torch.arange(8), draws_of(8, step=step, seed=1))
        assert torch.isfinite(loss)
    return stage, spy


NO_DROPOUT = {"prompt_dropout": 0.0, "reference_dropout": 0.0, "both_dropout": 0.0}


def test_same_noises_each_reference_to_the_timestep_of_its_picture(config_of: ConfigOf) -> None:
    diffusion = {**NO_DROPOUT, "max_references": 2}
    same = {"reference_timestep": "same"}
    stage, spy = observed(config_of("base", diffusion=diffusion, pair=same))
    for call in range(3):
        references, pictures = spy.timesteps(call)
        assert torch.equal(references, pictures)
    assert len({int(t) for call in range(3) for t in spy.timesteps(call)[0]}) > 10
    latents, t, _ = spy.reference[0]
    clean = everything(stage).references.float()
    distance = (latents[:, None] - clean[None]).flatten(2).abs().amax(-1).amin(1)
    assert (distance[t > 0] > 0.01).all()


def test_clean_gives_every_reference_as_it_is_at_timestep_zero(config_of: ConfigOf) -> None:
    diffusion = {**NO_DROPOUT, "max_references": 2}
    stage, spy = observed(config_of("base", diffusion=diffusion))
    for latents, t, _ in spy.reference:
        assert (t == 0).all()
        clean = everything(stage).references.float()
        distance = (latents[:, None] - clean[None]).flatten(2).abs().amax(-1).amin(1)
        assert (distance == 0).all()
    assert any((t > 0).any() for _, t, *_ in spy.base)


def test_mixed_gives_some_references_clean_and_some_at_the_pictures_timestep(
    config_of: ConfigOf,
) -> None:
    stage, spy = observed(
        config_of("pair", diffusion=NO_DROPOUT, pair={"reference_timestep": "mixed"}), calls=8
    )
    references, pictures = (torch.cat(p) for p in zip(*map(spy.timesteps, range(8)), strict=True))
    is_clean, is_same = references == 0, references == pictures
    assert (is_clean | is_same).all()
    assert 0.3 < is_clean.float().mean() < 0.7
    latents = torch.cat([call[0] for call in spy.reference])
    clean = everything(stage).references.float()
    distance = (latents[:, None] - clean[None]).flatten(2).abs().amax(-1).amin(1)
    assert (distance[is_clean] == 0).all()
    assert (distance[~is_clean] > 0.01).all()


def test_references_have_noise_of_their_own(config_of: ConfigOf) -> None:
    diffusion = {**NO_DROPOUT, "timestep_sampling": "uniform"}
    same = {"reference_timestep": "same"}
    stage, spy = observed(config_of("base", diffusion=diffusion, pair=same), calls=1)
    level = stage.alphas_cumprod[spy.base[0][1]].view(-1, 1, 1, 1)
    train = everything(stage)
    order = train.first_reference[:8].tolist()
    noise = {
        "picture": spy.base[0][0] - level.sqrt() * train.targets[:8].float(),
        "reference": spy.reference[0][0]
        - level.sqrt() * torch.stack([train.references[k] for k in order]).float(),
    }
    together = torch.stack([n.flatten() for n in noise.values()])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.6


def test_references_dropped_everywhere_are_read_by_no_picture(config_of: ConfigOf) -> None:
    """The Reference U-Net runs on nothing, so that all processes walk the same way."""
    stage, spy = observed(config_of("base", diffusion={"reference_dropout": 1.0}), calls=2)
    assert len(spy.reference) == 2
    assert all(len(latents) == 1 for latents, _, _ in spy.reference)
    assert (spy.base[0][4] == -1).all()
    del stage


def test_more_references_than_allowed_are_not_read(config_of: ConfigOf) -> None:
    for most in (1, 2, 3):
        diffusion = {**NO_DROPOUT, "max_references": most}
        stage, spy = observed(config_of("base", diffusion=diffusion), calls=1)
        counts = (spy.base[0][4] >= 0).sum(1)
        have = everything(stage).first_reference.diff()[:8]
        assert sorted(counts.tolist()) == sorted(have.clamp(max=most).tolist())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_weighted_by_snr_and_by_the_subjects_mask(
    prediction_type: str, config_of: ConfigOf
) -> None:
    diffusion = {
        **NO_DROPOUT,
        "foreground_weight": 3.0,
        "snr_gamma": 4.0,
        "snr_floor": 0.5,
    }
    unet = {"prediction_type": prediction_type}
    stage: BaseStage = build(config_of("base", diffusion=diffusion, unet=unet))
    spy, outputs = Spy(stage), []
    stage.pair.base.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        loss, figures = stage.loss(torch.arange(6), draws_of(6, step=3))
    noisy, t = (v.double() for v in spy.base[0][:2])
    alpha = stage.alphas_cumprod[t.long()].double()
    snr = alpha / (1 - alpha)
    x = everything(stage).targets[:6].double()
    root, sigma = alpha.sqrt().view(-1, 1, 1, 1), (1 - alpha).sqrt().view(-1, 1, 1, 1)
    noise = (noisy - root * x) / sigma
    wanted = {"epsilon": noise, "sample": x, "v_prediction": root * noise - sigma * x}
    error = (outputs[0].double() - wanted[prediction_type]).pow(2)
    mask = everything(stage).masks[:6].double()[:, None] / 255
    emphasis = 1 + 3.0 * mask
    share = {"epsilon": 1 / snr, "sample": torch.ones(6), "v_prediction": 1 / (snr + 1)}
    weight = snr.clamp(0.5, 4.0) * share[prediction_type]
    per_sample = (error * emphasis).sum((1, 2, 3)) / (4 * emphasis.sum((1, 2, 3)))
    assert float(loss) == pytest.approx(float((weight * per_sample).mean()), rel=1e-3)
    assert float(figures["error"]) == pytest.approx(float(error.mean()), rel=1e-3)
    inside = (error * mask).sum() / (4 * mask.sum())
    assert float(figures["error_subject"]) == pytest.approx(float(inside), rel=1e-3)


# Batches ------------------------------------------------------------------------------------------


def test_every_row_of_a_batch_has_its_own_caption_mask_and_references(config_of: ConfigOf) -> None:
    diffusion = {"reference_dropout": 0.4, "prompt_dropout": 0.3, "max_references": 3}
    stage: BaseStage = build(config_of("base", diffusion=diffusion))
    data, train = stage.data, everything(stage)
    caption_ids, prompt_ids = data.ids(train.captions), data.ids(train.reference_prompts)
    empty = data.empty_ids[0]
    for step in range(4):
        batch = data.batch(torch.arange(24), draws_of(24, step=step))
        same = (batch.latents[:, None] == train.targets.float()[None]).flatten(2).all(-1)
        index = same.int().argmax(1)
        assert sorted(index.tolist()) == list(range(24))
        for row, n in enumerate(index.tolist()):
            ids = batch.ids[row]
            assert torch.equal(ids, caption_ids[n]) or torch.equal(ids, empty)
            assert torch.equal(batch.masks[row], train.masks[n] / 255.0)
            if row >= batch.kept:
                continue
            first, last = train.first_reference[n : n + 2].tolist()
            own = train.references[first:last].float()
            slots = [k for k in batch.ref_of_row[row].tolist() if k >= 0]
            assert len(slots) == last - first
            for k in slots:
                assert (batch.reference_latents[k] == own).flatten(1).all(1).any()
                assert torch.equal(batch.reference_ids[k], prompt_ids[n])
        assert len(batch.ref_of_row) == batch.kept < 24


def test_prompts_and_references_are_dropped_as_often_as_asked(config_of: ConfigOf) -> None:
    diffusion = {"prompt_dropout": 0.2, "reference_dropout": 0.1, "both_dropout": 0.1}
    stage: BaseStage = build(config_of("base", diffusion=diffusion))
    no_prompt = no_reference = both = 0
    count = 2000
    batch = stage.data.batch(torch.arange(count) % 24, draws_of(count))
    is_empty = (batch.ids == stage.data.empty_ids).all(1)
    no_prompt, no_reference = int(is_empty.sum()), count - batch.kept
    both = int(is_empty[batch.kept :].sum())
    assert no_prompt / count == pytest.approx(0.1 + 0.9 * 0.2, abs=0.025)
    assert no_reference / count == pytest.approx(0.1 + 0.9 * 0.1, abs=0.025)
    assert both / count == pytest.approx(0.1 + 0.9 * 0.2 * 0.1, abs=0.02)


# Augmentation -------------------------------------------------------------------------------------


def references_of_epochs(stage: Any, epochs: int = 3) -> list[Tensor]:
    """The reference latents of a sample that has one reference, seen again and again."""
    sample = next(n for n in range(24) if stage.data.samples.num_references(n) == 1)
    batches = (
        stage.data.batch(torch.tensor([sample]), draws_of(1, step=epoch)) for epoch in range(epochs)
    )
    return [batch.reference_latents for batch in batches]


def test_augmented_references_are_drawn_anew_each_epoch(config_of: ConfigOf) -> None:
    diffusion = {**NO_DROPOUT, "augmentation": "paper"}
    found = references_of_epochs(build(config_of("pair", diffusion=diffusion)))
    assert not any(torch.equal(found[0], other) for other in found[1:])
    again = references_of_epochs(build(config_of("pair", diffusion=diffusion)))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    plain = references_of_epochs(build(config_of("pair", diffusion=NO_DROPOUT)))
    assert torch.equal(plain[0], plain[1])


def test_references_encoded_for_a_batch_are_those_of_the_cache_but_for_what_is_changed(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references_module, "augment", lambda rng, picture, augmentation: picture)
    cached = build(config_of("pair", diffusion={**NO_DROPOUT, "max_references": 3}))
    settings = {**NO_DROPOUT, "max_references": 3, "augmentation": "paper"}
    fresh = build(config_of("pair", diffusion=settings))
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (stage.data.batch(torch.arange(6), draws_of(6)) for stage in (cached, fresh))
    assert torch.equal(one.ref_of_row, other.ref_of_row)
    torch.testing.assert_close(one.reference_latents, other.reference_latents, rtol=2e-3, atol=2e-3)


# Base ---------------------------------------------------------------------------------------------


def test_the_base_trains_one_unet_in_both_roles_and_its_text_encoder(config_of: ConfigOf) -> None:
    stage: BaseStage = build(config_of("base", diffusion=NO_DROPOUT))
    unet = stage.modules()["unet"]
    assert stage.pair.base.unet is stage.pair.reference.unet is unet
    loss, _ = stage.loss(torch.arange(4), draws_of(4))
    loss.backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None] == []
    assert all(p.grad is not None for p in stage.pair.text_encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in stage.pair.vae.parameters())


def test_the_path_from_the_reference_is_trained_in_the_base(config_of: ConfigOf) -> None:
    stage: BaseStage = build(config_of("base", diffusion=NO_DROPOUT))
    features: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: tuple[Tensor, ...]) -> None:
        for feature in output:
            feature.retain_grad()
        features.extend(output)

    stage.pair.reference.register_forward_hook(keep)
    loss, _ = stage.loss(torch.arange(4), draws_of(4))
    loss.backward()
    assert features
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)


def test_the_base_is_a_pair_of_one_unet_with_averaged_weights_in_float32(
    config_of: ConfigOf, train: Any
) -> None:
    trainer = train(config_of("base", steps=2, pair={"text_guidance_scale": 2.5}))
    pair = load_pair(trainer.folder / "result")
    assert pair.base.unet is pair.reference.unet
    for name, parameter in pair.base.unet.named_parameters():
        assert torch.equal(parameter, trainer.ema.average[f"unet.{name}"])
    for name, parameter in pair.text_encoder.named_parameters():
        assert torch.equal(parameter, trainer.ema.average[f"text_encoder.{name}"])
    assert pair.scheduler["prediction_type"] == "sample"
    assert pair.scheduler["rescale_betas_zero_snr"] is True
    assert pair.config.text_guidance_scale == 2.5
    assert pair.config.reference_timestep == "clean"


def test_the_tokenizer_of_a_run_is_kept_when_it_resumes(config_of: ConfigOf) -> None:
    config = config_of("base")
    stage: BaseStage = build(config)
    path = Path(config.output) / "tokenizer" / "merges.txt"
    kept = path.stat().st_mtime_ns
    again: BaseStage = build(config)
    assert path.stat().st_mtime_ns == kept
    captions = everything(stage).captions
    assert torch.equal(stage.data.ids(captions), again.data.ids(captions))


# Pair ---------------------------------------------------------------------------------------------


def test_the_pair_trains_the_reference_unet_and_the_bases_self_attentions_only(
    config_of: ConfigOf, accelerator: Accelerator
) -> None:
    config = config_of("pair", steps=2, diffusion=NO_DROPOUT)
    stage: PairStage = build(config)
    pair = stage.pair
    modules = {
        "base": pair.base.unet,
        "reference": pair.reference.unet,
        "text": pair.text_encoder,
        "vae": pair.vae,
    }
    before = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
    for name, value in before["base"].items():
        assert torch.equal(before["reference"][name], value)  # untied copies at the start
    Trainer(config, stage, accelerator, lambda _, folder: folder.mkdir()).run()
    base = modules["base"].state_dict()
    changed = {name for name, v in base.items() if not torch.equal(v, before["base"][name])}
    assert changed == {name for name in before["base"] if ".attn1." in name}
    after = modules["reference"].state_dict()
    still = {name for name, v in before["reference"].items() if torch.equal(v, after[name])}
    # Behind the last self-attention nothing is computed, so nothing is learned.
    last = "up_blocks.0.attentions.1."
    dead = ("conv_norm_out", "conv_out", f"{last}proj_out", f"{last}transformer_blocks.0.")
    assert all(name.startswith(dead) for name in still)
    assert len(still) < len(after) / 5
    for name in ("text", "vae"):
        state = modules[name].state_dict()
        assert all(torch.equal(v, before[name][k]) for k, v in state.items())


def test_the_two_parts_of_the_pair_have_rates_of_their_own(config_of: ConfigOf) -> None:
    optimizer = {"learning_rate": 3e-3, "rsa_learning_rate": 7e-4}
    stage: PairStage = build(config_of("pair", optimizer=optimizer))
    reference, base = stage.parameter_groups()
    assert (reference["lr"], base["lr"]) == (3e-3, 7e-4)
    unet = stage.modules()["base_unet"]
    names = {id(p): n for n, p in unet.named_parameters()}
    assert len(base["params"]) == 5 * stage.pair.base.num_layers
    assert all(".attn1." in names[id(p)] for p in base["params"])
    assert len(reference["params"]) == len(list(stage.pair.reference.unet.parameters()))


def test_the_exported_pair_loads_as_the_runtime_loads_it(config_of: ConfigOf, train: Any) -> None:
    settings = {"reference_timestep": "mixed", "merge": "softmax"}
    trainer = train(config_of("pair", steps=2, pair=settings))
    pair = load_pair(trainer.folder / "result")
    for part, module in (("base_unet", pair.base.unet), ("ref_unet", pair.reference.unet)):
        for name, parameter in module.named_parameters():
            average = trainer.ema.average.get(f"{part}.{name}")
            if average is not None:
                assert torch.equal(parameter, average.half().float())


# Validation and bad starts ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_validation_gives_the_same_pictures_and_figures_each_time(
    stage: str, config_of: ConfigOf, samples: Path
) -> None:
    made = build(config_of(stage, validation_data=str(samples)))
    first = made.validate()
    torch.rand(3)
    again = made.validate()
    assert first.figures == again.figures
    assert all(np.isfinite(value) for value in first.figures.values())
    assert len(first.rows) == (2 if stage == "vae" else 3)
    for one, other in zip(first.rows, again.rows, strict=True):
        assert np.array_equal(one, other)
        assert one.shape == (16 if stage == "vae" else 4, 16, 16, 3)


def test_without_validation_data_the_diffusion_stages_validate_nothing(
    config_of: ConfigOf,
) -> None:
    assert build(config_of("base")).validate() == Validation()


@pytest.mark.parametrize(
    ("stage", "message"),
    [("base", "has no vae/; finish that stage first"), ("pair", "neither base_unet nor unet")],
)
def test_a_start_without_a_finished_stage_is_refused(
    stage: str, message: str, make_config: Any, tmp_path: Path
) -> None:
    config = make_config(stage, tmp_path / "run", start_from=str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        build(config)


def test_missing_samples_are_refused_with_the_command(make_config: Any, tmp_path: Path) -> None:
    config = make_config("vae", tmp_path / "run", data=str(tmp_path / "none"))
    with pytest.raises(InputError, match="bootpig-rt synthesize"):
        build(config)


def test_pictures_of_another_size_than_the_start_are_refused_with_the_command(
    config_of: ConfigOf, base_result: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    for item in base_result.iterdir():
        (start / item.name).symlink_to(item)
    (start / "pair.json").unlink()
    settings = json.loads((base_result / "pair.json").read_text()) | {"sample_size_px": 512}
    (start / "pair.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="of 16 px, .* made for 512; .*--size-px 512"):
        build(config_of("pair", start_from=str(start)))
