"""Configuration of a training stage: one TOML file, checked, with overrides from the command line."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from bootpig_rt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

StageName = Literal["vae", "base", "pair"]
ReferenceTimestep = Literal["same", "clean", "mixed"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSampling = Literal["uniform", "middle"]
Augmentation = Literal["none", "paper", "light"]
Merge = Literal["argmax", "softmax", "mean", "concat"]
MixedPrecision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay; learning rates are those at the top of the cosine."""

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    # Stage `pair` only: the RSA layers of the base have their own rate (paper, section 4.1).
    rsa_learning_rate: float = 1e-4


@dataclass(frozen=True)
class VaeConfig:
    """AutoencoderKL of the small world. Channels grow towards the latents."""

    block_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 16
    kl_weight: float = 1e-5
    gradient_weight: float = 0.5


@dataclass(frozen=True)
class UNetConfig:
    """The two U-Nets of a pair, and the text encoder that is trained with the base."""

    block_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = 1
    head_dim: int = 32
    norm_groups: int = 16
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    max_tokens: int = 24
    vocabulary: int = 1536


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise, loss and dropout."""

    prediction_type: PredictionType = "sample"
    reference_timestep: ReferenceTimestep = "clean"
    snr_gamma: float = 5.0
    snr_floor: float = 0.3
    timestep_sampling: TimestepSampling = "middle"
    foreground_weight: float = 1.0
    prompt_dropout: float = 0.1
    reference_dropout: float = 0.1
    both_dropout: float = 0.05
    ref_scale: float = 1.0
    reference_augmentation: Augmentation = "none"
    max_references: int = 1
    merge: Merge = "argmax"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; written into the run's folder."""

    stage: StageName
    output: str
    data: str = "data/train"
    validation_data: str = ""
    # Stage `base` starts from a finished VAE; stage `pair` from a finished base.
    start_from: str = ""
    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    mixed_precision: MixedPrecision = "no"
    max_samples: int = 0
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is loaded."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("prompt_dropout", "reference_dropout", "both_dropout"):
            value = getattr(self.diffusion, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"diffusion.{name} is {value}, expected a share from 0 to 1")
        if self.optimizer.learning_rate <= 0 or not 0 <= self.optimizer.ema_decay < 1:
            raise ConfigError(
                f"optimizer.learning_rate {self.optimizer.learning_rate} must be above 0 and "
                f"optimizer.ema_decay {self.optimizer.ema_decay} in [0, 1)"
            )
        if self.stage != "vae" and not self.start_from:
            raise ConfigError(
                f"stage {self.stage!r} needs start_from: the folder that the stage before it made"
            )


T = TypeVar("T")


def load_config(path: Path, overrides: list[str]) -> TrainConfig:
    """Read a stage's TOML file and apply `key=value` overrides such as `optimizer.beta2=0.95`.

    Raises:
        ConfigError: The file is missing or is no TOML, a key is unknown, or a value is of the wrong type.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}; the repository's are in training/configs") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r} has no '='; expected key=value, like steps=200")
        table = values
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = _parse(text.strip())
    return build(TrainConfig, values, where=str(path))


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(cls: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make a config dataclass of a plain dictionary, refusing unknown keys and wrong types."""
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}, expected one of {sorted(known)}")
    ready = {key: _check(hints[key], key, value, where) for key, value in values.items()}
    try:
        return cls(**ready)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check(hint: Any, key: str, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is {value!r}, expected a table [{key}]")
        return build(hint, value, where=f"{where}, [{key}]")  # type: ignore[arg-type]
    choices = get_args(hint)
    if choices and choices[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
            raise ConfigError(f"{where}: {key} is {value!r}, expected a list of whole numbers")
        return tuple(value)
    if choices:
        if value not in choices:
            raise ConfigError(f"{where}: {key} is {value!r}, expected one of {list(choices)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: {key} is {value!r}, expected {hint.__name__}")
    return value
