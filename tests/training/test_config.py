"""Configuration files: read, overridden, checked; what is wrong is named in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import PairSettings, TrainConfig, UNetConfig, build, load_config

MINIMAL = 'stage = "vae"\noutput = "runs/x"\n'
FOLDER = Path(__file__).parents[2] / "training" / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "stage.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    config = load_config(path, [])
    assert config.stage in ("vae", "base", "pair", "distill")
    assert config.steps > 100


def test_there_is_a_config_for_each_stage_and_each_starts_from_the_one_before() -> None:
    vae, base, pair = (load_config(FOLDER / f"{name}.toml", []) for name in ("vae", "base", "pair"))
    assert base.start_from == f"{vae.output}/result"
    assert pair.start_from == f"{base.output}/result"
    assert base.unet.prediction_type == "sample"
    assert pair.pair == PairSettings(reference_timestep="mixed")


def test_a_file_without_a_key_gets_the_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), [])
    assert config == TrainConfig(stage="vae", output="runs/x")


def test_overrides_win_over_the_file_and_reach_into_tables(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "steps = 5\n[optimizer]\nbeta2 = 0.5\n")
    config = load_config(
        path,
        [
            "steps=7",
            "optimizer.beta1=0.25",
            "vae.block_channels=[16, 32]",
            "vae.kl_weight=0.5",
            "data=some/where",
        ],
    )
    assert config.steps == 7
    assert config.optimizer.beta1 == 0.25
    assert config.optimizer.beta2 == 0.5
    assert config.vae.block_channels == (16, 32)
    assert config.vae.kl_weight == 0.5
    assert config.data == "some/where"


def test_a_whole_number_is_fine_where_a_number_is_expected(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL), ["optimizer.learning_rate=1"])
    assert type(config.optimizer.learning_rate) is float


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=5", "unknown key 'stepz', expected one of"),
        ("optimizer.lr=5", r"\[optimizer\]: unknown key 'lr'"),
        ("steps=1.5", "steps is 1.5, expected int"),
        ("steps=many", "steps is 'many', expected int"),
        ("steps=true", "steps is True, expected int"),
        ("output=12", "output is 12, expected str"),
        ("optimizer.beta1=fast", "beta1 is 'fast', expected float"),
        ("stage=gan", r"stage is 'gan', expected one of \['vae', 'base', 'pair', 'distill'\]"),
        ("pair.merge=max", "merge is 'max', expected one of"),
        ("pair.default_steps=0", "pair.default_steps is 0, expected a whole number"),
        ("pair.ref_scale=fast", "ref_scale is 'fast', expected float"),
        ("pair.merge=softmax", r"stage 'vae' does not read \[pair\], only \[optimizer\], \[vae\]"),
        ("unet.max_tokens=30", "sizes, noise schedule and prediction come from start_from"),
        ("vae.block_channels=32", "block_channels is 32, expected a list of whole numbers"),
        ("vae.block_channels=[32, 0.5]", "expected a list of whole numbers"),
        ("vae=3", r"vae is 3, expected a table \[vae\]"),
        ("steps", "override 'steps' has no '='"),
        ("output.more=5", "override 'output.more=5': output is no table"),
        ("steps=0", "steps is 0, expected at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints is 0, expected at least 1"),
        ("seed=-1", "seed is -1, expected 0 or more"),
        ("max_samples=-5", "max_samples is -5, expected 0 or more"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate is 0.0, expected a number above 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan"),
        ("optimizer.clip_norm=inf", "optimizer.clip_norm is inf"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps is -1, expected 0 or more"),
        ("optimizer.ema_decay=1.0", "optimizer.ema_decay is 1.0, expected at least 0 and below 1"),
        ("vae.block_channels=[]", r"vae.block_channels is \[\]"),
        ("vae.block_channels=[20, 32]", "expected multiples of vae.norm_groups 16"),
        ("vae.norm_groups=0", "vae.norm_groups is 0, expected at least 1"),
        ("vae.kl_weight=-1", "vae.kl_weight is -1.0, expected 0 or more"),
        ("vae.latent_channels=0", "vae.latent_channels is 0, expected at least 1"),
        ("unet.block_channels=[48, 96]", "expected multiples of unet.head_dim 32"),
        ("unet.text_heads=3", "unet.text_width is 128, expected a multiple of unet.text_heads 3"),
        ("unet.vocabulary=500", "unet.vocabulary is 500, expected at least 514"),
        ("unet.max_tokens=2", "unet.max_tokens is 2, expected at least 3"),
        ("diffusion.prompt_dropout=1.5", "diffusion.prompt_dropout is 1.5, expected a share"),
        ("diffusion.snr_gamma=-1", "diffusion.snr_gamma is -1.0, expected 0 or more"),
        ("diffusion.snr_floor=6", "diffusion.snr_floor is 6.0, expected at most"),
        ("diffusion.max_references=0", "diffusion.max_references is 0, expected at least 1"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('output = "x"', "stage is missing; add it"),
        ('stage = "vae"', "output is missing; add it"),
        ('stage = "base"\noutput = "x"', "stage 'base' needs start_from"),
        ('stage = "pair"\noutput = "x"', "stage 'pair' needs start_from"),
        ("stage = vae", "is not valid TOML"),
        (MINIMAL + "[optimizer]\nspeed = 1", r"\[optimizer\]: unknown key 'speed'"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), [])


def test_a_missing_file_and_a_folder_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file .*training/configs"):
        load_config(tmp_path / "none.toml", [])
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path, [])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(tmp_path / "binary.toml", [])


def test_a_config_survives_the_way_through_a_dictionary(tmp_path: Path) -> None:
    config = load_config(FOLDER / "base.toml", ["unet.block_channels=[32, 64]"])
    values: dict[str, Any] = dataclasses.asdict(config)
    values["unet"]["block_channels"] = list(values["unet"]["block_channels"])  # as JSON has it
    assert build(TrainConfig, values, where="copy") == config
    assert config.unet == dataclasses.replace(UNetConfig(), block_channels=(32, 64), max_tokens=32)
