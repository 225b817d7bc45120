"""Configuration of a training stage: one TOML file, checked, with command-line overrides."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bootpig_rt.bundle.pair_config import Merge, PairConfig, ReferenceTimestep
from bootpig_rt.diffusion.noise_schedule import PredictionType, SolverName
from bootpig_rt.errors import ConfigError, describe_os_error

StageName = Literal["vae", "base", "pair", "distill"]
TimestepSampling = Literal["uniform", "middle"]
Augmentation = Literal["none", "paper", "light"]
MixedPrecision = Literal["no", "fp16", "bf16"]

# Every byte alone and at the end of a word, and the two tokens around a prompt.
LEAST_VOCABULARY = 514


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
    """Stage `base` only: the U-Net, its text encoder, and what the U-Net predicts."""

    block_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = 1
    head_dim: int = 32
    norm_groups: int = 16
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    max_tokens: int = 24
    vocabulary: int = 1536
    prediction_type: PredictionType = "sample"


@dataclass(frozen=True)
class DiffusionConfig:
    """Loss, dropout, and which references are read."""

    snr_gamma: float = 5.0
    snr_floor: float = 0.3
    timestep_sampling: TimestepSampling = "middle"
    foreground_weight: float = 1.0
    prompt_dropout: float = 0.1
    reference_dropout: float = 0.1
    both_dropout: float = 0.05
    # Drawn anew for each batch.
    augmentation: Augmentation = "none"
    max_references: int = 1


@dataclass(frozen=True)
class PairSettings:
    """Stages `base` and `pair`: what `pair.json` says otherwise than that of `start_from`.

    `reference_timestep`, `ref_scale` and `merge` are also how the references are read in training.
    """

    reference_timestep: ReferenceTimestep | None = None
    ref_scale: float | None = None
    merge: Merge | None = None
    max_references: int | None = None
    default_steps: int | None = None
    default_solver: SolverName | None = None
    image_guidance_scale: float | None = None
    text_guidance_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what `pair.json` cannot say."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        try:
            PairConfig(name="pair", sample_size_px=64, **values)
        except ConfigError as error:
            raise ConfigError(f"pair.{error}") from error


_TABLES: dict[StageName, tuple[str, ...]] = {
    "vae": ("vae",),
    "base": ("unet", "diffusion", "pair"),
    "pair": ("diffusion", "pair"),
    "distill": ("diffusion", "distill"),
}
"""The tables that each stage reads, beside [optimizer]."""


@dataclass(frozen=True)
class DistillConfig:
    """Stage `distill` only: what the student's steps are."""

    # Of the student; they become the pair's default.
    steps: int = 8
    # Steps of the teacher that one of the student covers; 1 bakes in the guidance alone.
    substeps: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; written into the run's folder."""

    stage: StageName
    output: str
    data: str = "data/train"
    validation_data: str = ""
    # Stage `base` starts from a finished VAE, `pair` from a base, a pair or a Stable Diffusion
    # folder, `distill` from a pair.
    start_from: str = ""
    steps: int = 1000
    # Of one process, in one of `accumulate` parts of a step.
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
    pair: PairSettings = field(default_factory=PairSettings)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is loaded."""
        _check_ranges(self)
        _check_channels("vae", self.vae.block_channels, "norm_groups", self.vae.norm_groups)
        unet, diffusion = self.unet, self.diffusion
        _check_channels("unet", unet.block_channels, "norm_groups", unet.norm_groups)
        _check_channels("unet", unet.block_channels, "head_dim", unet.head_dim)
        if unet.text_width < 1 or unet.text_width % unet.text_heads:
            raise ConfigError(
                f"unet.text_width is {unet.text_width}, expected a multiple of unet.text_heads "
                f"{unet.text_heads}"
            )
        if diffusion.snr_gamma and diffusion.snr_floor > diffusion.snr_gamma:
            raise ConfigError(
                f"diffusion.snr_floor is {diffusion.snr_floor}, expected at most "
                f"diffusion.snr_gamma {diffusion.snr_gamma}"
            )
        self._check_tables()
        if self.stage != "vae" and not self.start_from:
            raise ConfigError(
                f"stage {self.stage!r} needs start_from: the folder that the stage before it made"
            )

    def _check_tables(self) -> None:
        """Refuse settings that the stage would ignore: what a start knows cannot be said again."""
        used = _TABLES[self.stage]
        for name in {name for tables in _TABLES.values() for name in tables} - set(used):
            table = getattr(self, name)
            if table != type(table)():
                read = ", ".join(f"[{each}]" for each in ("optimizer", *used))
                raise ConfigError(
                    f"stage {self.stage!r} does not read [{name}], only {read}: take it out; "
                    "sizes, noise schedule and prediction come from start_from"
                )


_AT_LEAST: dict[int, str] = {
    0: "seed max_samples validate_every",
    1: "steps batch_size accumulate log_every checkpoint_every keep_checkpoints "
    "vae.layers_per_block vae.latent_channels vae.norm_groups unet.layers_per_block "
    "unet.text_layers unet.text_heads unet.norm_groups unet.head_dim diffusion.max_references "
    "distill.steps distill.substeps",
    3: "unet.max_tokens",
    LEAST_VOCABULARY: "unet.vocabulary",
}
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "a number above 0": (lambda x: 0 < x < math.inf, "learning_rate rsa_learning_rate clip_norm"),
    "0 or more": (
        lambda x: 0 <= x < math.inf,
        "final_learning_rate warmup_steps weight_decay kl_weight gradient_weight snr_gamma "
        "snr_floor foreground_weight",
    ),
    "at least 0 and below 1": (lambda x: 0 <= x < 1, "beta1 beta2 ema_decay"),
    "a share from 0 to 1": (
        lambda x: 0 <= x <= 1,
        "prompt_dropout reference_dropout both_dropout",
    ),
}
"""What each number may be, by its name, which no two tables share."""


def _check_ranges(config: TrainConfig) -> None:
    for least, names in _AT_LEAST.items():
        for name in names.split():
            value = attrgetter(name)(config)
            if value < least:
                wanted = f"at least {least}" if least else "0 or more"
                raise ConfigError(f"{name} is {value}, expected {wanted}")
    for table in ("optimizer", "vae", "diffusion"):
        values = vars(getattr(config, table))
        for wanted, (is_right, names) in _NUMBERS.items():
            for name in names.split():
                if name in values and not is_right(values[name]):
                    raise ConfigError(f"{table}.{name} is {values[name]}, expected {wanted}")


def _check_channels(table: str, channels: tuple[int, ...], name: str, divisor: int) -> None:
    if not channels or any(c < 1 or c % divisor for c in channels):
        raise ConfigError(
            f"{table}.block_channels is {list(channels)}, expected multiples of "
            f"{table}.{name} {divisor}"
        )


T = TypeVar("T")


def load_config(path: Path, overrides: list[str]) -> TrainConfig:
    """Read a stage's TOML file and apply `key=value` overrides such as `optimizer.beta2=0.95`.

    Raises:
        ConfigError: The file is missing or is no TOML, a key is unknown or missing, or a value is
            of the wrong type or out of range.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no config file {path}; the repository's are in training/configs"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the config: {describe_os_error(error)}") from error
    except ValueError as error:  # bad TOML and bad UTF-8 are ValueErrors
        raise ConfigError(f"{path} is not valid TOML: {error}; correct the file") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(
                f"override {override!r} has no '='; expected key=value, like steps=200"
            )
        table = values
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"override {override!r}: {parent} is no table; expected key=value or "
                    "table.key=value, like optimizer.beta2=0.95"
                )
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
    for needed in dataclasses.fields(cls):  # type: ignore[arg-type]
        defaults = (needed.default, needed.default_factory)
        if needed.name not in values and all(d is dataclasses.MISSING for d in defaults):
            raise ConfigError(f"{where}: {needed.name} is missing; add it")
    ready = {key: _check(hints[key], key, value, where) for key, value in values.items()}
    return cls(**ready)


def _check(hint: Any, key: str, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is {value!r}, expected a table [{key}]")
        return build(hint, value, where=f"{where}, [{key}]")  # type: ignore[arg-type]
    if get_origin(hint) in (Union, UnionType):  # an optional value
        hint = next(each for each in get_args(hint) if each is not NoneType)
        if value is None:
            return None
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
