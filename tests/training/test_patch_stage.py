"""Stage `vae` with an autoencoder of patches, and U-Nets on its latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.load import load_pair, load_vae
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.losses import draw_timesteps
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.stages.vae import VaeStage, cut, stacked, target_of

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH: dict[str, Any] = {
    "kind": "patch",
    "block_channels": (8, 16),
    "encoder_channels": (8, 16),
    "latent_channels": 6,
    "kl_weight": 0.0,
    "squared_weight": 1.0,
    "multiscale_weight": 0.5,
    "latent_noise": 0.1,
    "crop_px": 8,
}


@pytest.fixture
def config_of(make_config: Any, other_samples: Path, tmp_path: Path) -> Any:
    """`config_of(name, ...)`: a stage `vae` that trains an autoencoder of patches."""

    def make(name: str = "run", **changes: Any) -> Any:
        vae = {**PATCH, **changes.pop("vae", {})}
        settings = {"validation_data": str(other_samples), **changes}
        return make_config("vae", tmp_path / name, vae=vae, **settings)

    return make


@pytest.fixture(scope="session")
def patch_vae(make_config: Any, train: Any, share: Any) -> Path:
    """A finished stage, hardly trained: latents are [6, 4, 4]."""
    folder: Path = share(
        "patch_vae", lambda folder: train(make_config("vae", folder, steps=4, vae=PATCH))
    )
    return folder / "result"


def log_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def build(config: Any) -> Any:
    return build_stage(config, torch.device("cpu"))[0]


def test_a_run_is_the_same_when_it_is_stopped_resumed_and_validated(
    config_of: Any, train: Any
) -> None:
    settings = {"steps": 4, "log_every": 1, "mixed_precision": "bf16"}
    whole = train(config_of("whole", **settings))
    part = config_of("part", **settings, validate_every=2)
    assert train(part, stop_after=1).step == 1
    rest = train(part)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, rest.parameters[name])
        assert torch.equal(whole.ema.average[name], rest.ema.average[name])


def test_it_starts_above_the_linear_floor_and_rises(config_of: Any, train: Any) -> None:
    config = config_of(
        steps=60,
        validate_every=60,
        batch_size=6,
        vae={"latent_noise": 0.0, "crop_px": 0},
        optimizer={"learning_rate": 4e-3},
    )
    start = build(config).validate().figures
    assert start["above_floor_db"] > 0
    assert start["subject_db"] - start["floor_db"] == pytest.approx(start["above_floor_db"])
    trained = log_rows(train(config).folder)[-1]
    assert trained["validation/floor_db"] == pytest.approx(start["floor_db"], abs=1e-3)
    assert trained["validation/above_floor_db"] > start["above_floor_db"] + 0.1


def test_a_sheet_shows_originals_reconstructions_and_the_floor(config_of: Any) -> None:
    stage: VaeStage = build(config_of())
    rows = stage.validate().rows
    assert [row.shape for row in rows] == [rows[0].shape] * 3
    apart = [float(np.square(row.astype(float) - rows[0]).mean()) for row in rows[1:]]
    assert 0 < apart[0] < apart[1]


def test_noise_is_a_share_of_each_channels_spread(config_of: Any) -> None:
    stage: VaeStage = build(config_of(vae={"latent_noise": 0.5}))
    pixels = stacked(target_of(stage.samples, row) for row in range(16))
    with torch.no_grad():
        latents = mean_latents(stage.vae, pixels)
        noised, kl = stage._noised(pixels, Draws(0, 0, range(16)))
    assert kl is None
    spread = (noised - latents).std(dim=(0, 2, 3)) / latents.std(dim=(0, 2, 3))
    # Uniform up to a half: of root mean square a half over the root of three.
    assert torch.allclose(spread, torch.full((6,), 0.5 / 3**0.5), rtol=0.35)


def test_crops_lie_in_the_picture_and_around_the_subject() -> None:
    pixels: Any = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32, 1)
    mask = np.zeros((32, 32), bool)
    mask[3, 4] = True
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = cut(rng, pixels, mask, 8, 1.0)
        assert found.shape == (8, 8, 1)
        assert pixels[3, 4] in found
    seen = {int(cut(rng, pixels, None, 8, 1.0).min()) for _ in range(400)}
    rows, columns = {n // 32 for n in seen}, {n % 32 for n in seen}
    assert rows == columns == set(range(25))


@pytest.mark.parametrize(("crop_px", "what"), [(6, "multiple of 4"), (24, "at most 16")])
def test_crops_that_do_not_fit_are_refused(config_of: Any, crop_px: int, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        build(config_of(vae={"crop_px": crop_px}))


def test_the_result_says_how_its_channels_are_scaled(patch_vae: Path, samples: Path) -> None:
    from bootpig_rt.training.shards import read_samples

    vae: Any = load_vae(patch_vae / "vae")
    pixels = stacked(sample.target for sample in read_samples(samples))
    with torch.no_grad():
        scaled = LatentScale(vae).scaled(mean_latents(vae, pixels))
    assert float(scaled.pow(2).mean()) == pytest.approx(1.0, abs=1e-2)
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    spread = scaled.std(dim=(0, 2, 3))
    assert spread[0] == spread.max() > 1.2 * spread.min()


def test_a_small_decoder_learns_the_latents_of_another(
    patch_vae: Path, config_of: Any, train: Any
) -> None:
    small = {"kind": "patch_decoder", "block_channels": (4, 4)}
    trainer = train(config_of(start_from=str(patch_vae), steps=3, log_every=1, vae=small))
    assert not any(name.startswith("vae.encoder") for name in trainer.parameters)
    made, start = load_vae(trainer.folder / "result" / "vae"), load_vae(patch_vae / "vae")
    assert made.config.block_out_channels == [3, 4, 4]
    assert made.config.latents_std == start.config.latents_std
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = mean_latents(start, pixels)
        assert torch.equal(mean_latents(made, pixels), latents)
        assert made.decode(latents).sample.shape == pixels.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 5}, "latent_channels is 5, expected 2 and 6"),
        ({"block_channels": (4, 4, 4)}, "has 3 numbers"),
    ],
)
def test_a_decoder_that_does_not_fit_the_latents_is_refused(
    patch_vae: Path, config_of: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(config_of(start_from=str(patch_vae), vae={"kind": "patch_decoder", **changes}))


def test_a_decoder_alone_needs_a_start_of_its_kind(config_of: Any, vae_result: Path) -> None:
    with pytest.raises(ConfigError, match="needs the result of a stage 'vae'"):
        config_of(vae={"kind": "patch_decoder"})
    with pytest.raises(ConfigError, match="start from nothing"):
        config_of(start_from=str(vae_result))
    with pytest.raises(ConfigError, match="class AutoencoderKL, expected a PatchAutoencoder"):
        build(config_of(start_from=str(vae_result), vae={"kind": "patch_decoder"}))


def test_u_nets_train_on_its_latents(
    patch_vae: Path, make_config: Any, train: Any, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "start_from": str(patch_vae),
        "steps": 3,
        "log_every": 1,
        "unet": {"prediction_type": "v_prediction"},
        "diffusion": {"timestep_sampling": "logit_normal", "channel_weight": "pixels"},
    }
    trainer = train(make_config("base", tmp_path / "base", **changes))
    weight = trainer.stage.channel_weight.flatten()
    assert float(weight.mean()) == pytest.approx(1)
    assert weight[0] == weight.max()
    pair: Any = load_pair(tmp_path / "base" / "result")
    assert pair.base.unet.config.in_channels == 6
    assert len(pair.vae.config.latents_std) == 6
    assert pair.scheduler["prediction_type"] == "v_prediction"


def test_a_quarter_of_logit_normal_timesteps_is_below_a_quarter() -> None:
    drawn = draw_timesteps(Draws(0, 0, range(8000)), 1000, "logit_normal")
    assert float((drawn < 250).float().mean()) == pytest.approx(0.25, abs=0.015)
    assert 0 <= int(drawn.min()) < 20
    assert 970 < int(drawn.max()) < 1000
    assert float(drawn.float().median()) == pytest.approx(1000 / (1 + np.exp(0.3)), rel=0.03)
