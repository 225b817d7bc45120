"""Configuration files: read, overridden, checked; what is wrong is named in one line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from bootpig_rt.errors import ConfigError
from bootpig_rt.training.config import PairSettings, TrainConfig, UNetConfig, load_config

MINIMAL = 'stage = "vae"\noutput = "runs/x"\n'
FOLDER = Path(__file__).parents[2] / "training" / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "stage.toml"
    path.write_text(text)
    return path


OTHERS = ("bootstrap", "recipe", "world3d")
STAGES = [path for path in sorted(FOLDER.glob("*.toml")) if not path.stem.startswith(OTHERS)]


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(path: Path) -> None:
    config = load_config(path, [])
    assert config.stage in ("vae", "base", "pair", "distill", "control")
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
        ("stepz=5", "unknown field `stepz`"),
        ("optimizer.lr=5", r"unknown field `lr` - at `\$.optimizer`"),
        ("steps=1.5", r"Expected `int`, got `float` - at `\$.steps`"),
        ("steps=many", r"Expected `int`, got `str` - at `\$.steps`"),
        ("steps=true", r"Expected `int`, got `bool` - at `\$.steps`"),
        ("output=12", r"Expected `str`, got `int` - at `\$.output`"),
        ("optimizer.beta1=fast", r"Expected `float`, got `str` - at `\$.optimizer.beta1`"),
        ("stage=gan", r"Invalid enum value 'gan' - at `\$.stage`"),
        ("pair.merge=max", r"Invalid enum value 'max' - at `\$.pair.merge`"),
        (
            "pair.default_steps=0",
            r"default_steps is 0, expected .* - at `\$.pair`",
        ),
        ("pair.ref_scale=fast", r"Expected `float \| null`, got `str` - at `\$.pair.ref_scale`"),
        ("pair.merge=softmax", r"stage 'vae' does not read \[pair\], only \[optimizer\], \[vae\]"),
        ("unet.max_tokens=30", "sizes, noise schedule and prediction come from start_from"),
        ("vae.block_channels=32", r"Expected `array`, got `int` - at `\$.vae.block_channels`"),
        ("vae.block_channels=[32, 0.5]", "Expected `int`, got `float`"),
        ("vae=3", r"Expected `object`, got `int` - at `\$.vae`"),
        ("steps", "override 'steps' has no '='"),
        ("output.more=5", "override 'output.more=5': output is no table"),
        ("steps=0", r"Expected `int` >= 1 - at `\$.steps`"),
        ("keep_checkpoints=0", r"Expected `int` >= 1 - at `\$.keep_checkpoints`"),
        ("seed=-1", r"Expected `int` >= 0 - at `\$.seed`"),
        ("max_samples=-5", r"Expected `int` >= 0 - at `\$.max_samples`"),
        ("optimizer.learning_rate=0", r"Expected `float` > 0.0 - at `\$.optimizer.learning_rate`"),
        ("optimizer.learning_rate=nan", r"at `\$.optimizer.learning_rate`"),
        ("optimizer.clip_norm=inf", r"at `\$.optimizer.clip_norm`"),
        ("optimizer.warmup_steps=-1", r"Expected `int` >= 0 - at `\$.optimizer.warmup_steps`"),
        ("optimizer.ema_decay=1.0", r"Expected `float` < 1.0 - at `\$.optimizer.ema_decay`"),
        ("vae.block_channels=[]", r"block_channels is \[\]"),
        ("vae.block_channels=[20, 32]", r"expected multiples of norm_groups 16 - at `\$.vae`"),
        ("vae.norm_groups=0", r"Expected `int` >= 1 - at `\$.vae.norm_groups`"),
        ("vae.kl_weight=-1", r"Expected `float` >= 0.0 - at `\$.vae.kl_weight`"),
        ("vae.latent_channels=0", r"Expected `int` >= 1 - at `\$.vae.latent_channels`"),
        ("unet.block_channels=[48, 96]", r"expected multiples of head_dim 32 - at `\$.unet`"),
        ("unet.text_heads=3", "text_width is 128, expected a multiple of text_heads 3"),
        ("unet.vocabulary=500", r"Expected `int` >= 514 - at `\$.unet.vocabulary`"),
        ("unet.max_tokens=2", r"Expected `int` >= 3 - at `\$.unet.max_tokens`"),
        (
            "diffusion.prompt_dropout=1.5",
            r"<= 1.0 - at `\$.diffusion.prompt_dropout`",
        ),
        ("diffusion.snr_gamma=-1", r"Expected `float` >= 0.0 - at `\$.diffusion.snr_gamma`"),
        (
            "diffusion.snr_floor=6",
            r"snr_floor is 6.0, expected at most snr_gamma 5.0 - at",
        ),
        ("distill.steps=0", r"Expected `int` >= 1 - at `\$.distill.steps`"),
        ("distill.substeps=0", r"Expected `int` >= 1 - at `\$.distill.substeps`"),
        ("diffusion.max_references=0", r"Expected `int` >= 1 - at `\$.diffusion.max_references`"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('output = "x"', "missing required field `stage`"),
        ('stage = "vae"', "missing required field `output`"),
        ('stage = "base"\noutput = "x"', "stage 'base' needs start_from"),
        ('stage = "pair"\noutput = "x"', "stage 'pair' needs start_from"),
        ("stage = vae", "is not valid TOML"),
        (MINIMAL + "[optimizer]\nspeed = 1", r"unknown field `speed` - at `\$.optimizer`"),
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
    values = json.loads(json.dumps(config.to_dict()))
    assert msgspec.convert(values, TrainConfig) == config
    assert config.unet == UNetConfig(block_channels=(32, 64), max_tokens=32)
