"""Configuration of a training stage: one TOML file, checked, with command-line overrides."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, ValidationError, structs

from bootpig_rt.bundle.pair_config import Merge, PairConfig, ReferenceTimestep
from bootpig_rt.diffusion.noise_schedule import PredictionType, SolverName
from bootpig_rt.errors import ConfigError, describe_os_error

StageName = Literal["vae", "base", "pair", "distill", "control"]
TimestepSampling = Literal["uniform", "middle", "logit_normal"]
ChannelWeight = Literal["equal", "pixels"]
VaeKind = Literal["kl", "patch", "patch_decoder"]
Augmentation = Literal["none", "paper", "official", "light"]
ReferencePrompt = Literal["class", "caption"]
DropoutDraw = Literal["sample", "step"]
TextStates = Literal["computed", "stored"]
MixedPrecision = Literal["no", "fp16", "bf16"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]
EmaDevice = Literal["device", "host"]
Checkpointing = Literal["none", "blocks"]
OnNan = Literal["stop", "skip"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]

T = TypeVar("T")

Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Amount = Annotated[float, Meta(ge=0, le=1e9)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a file of settings. Types and ranges are checked where it is read."""


class OptimizerConfig(Table, frozen=True):
    """AdamW with warm-up and cosine decay; learning rates are those at the top of the cosine."""

    # `adamw8bit` keeps its moments in eight bits; needs bitsandbytes. `muon` moves matrices by
    # orthogonal momentum: a step takes a fifth longer in small batches on a CPU.
    name: OptimizerName = "adamw"
    learning_rate: Rate = 1e-3
    final_learning_rate: Amount = 1e-5
    warmup_steps: Size = 100
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    weight_decay: Amount = 1e-2
    clip_norm: Rate = 1.0
    ema_decay: Decay = 0.999
    # Where the averaged weights are kept; with FSDP they are sharded like the weights.
    ema_device: EmaDevice = "device"
    # Stage `pair` only: the RSA layers of the base have their own rate (paper, section 4.1).
    rsa_learning_rate: Rate = 1e-4


def _check_channels(channels: tuple[int, ...], name: str, divisor: int) -> None:
    if not channels or any(c % divisor for c in channels):
        raise ConfigError(
            f"block_channels is {list(channels)}, expected multiples of {name} {divisor}"
        )


class VaeConfig(Table, frozen=True):
    """The autoencoder of the small world. Channels grow towards the latents."""

    # `kl`: AutoencoderKL, from random weights; `patch`: ours, from principal components;
    # `patch_decoder`: a decoder alone, for the encoder of `start_from`, whose latents stay.
    kind: VaeKind = "kl"
    # Of `kl` at full size and at each half of it; of `patch` at half the size and so on.
    block_channels: tuple[Count, ...] = (32, 64, 64)
    # At each size; `patch` has one block at half the picture's size whatever this says.
    layers_per_block: Count = 1
    latent_channels: Count = 4
    norm_groups: Count = 16
    # Of `patch`: the encoder's network at twice the latents' size, and at it.
    encoder_channels: tuple[Count, Count] = (64, 128)
    kl_weight: Amount = 1e-5
    gradient_weight: Amount = 0.5
    # Squared differences, and differences of pictures of a half and a quarter of the size.
    squared_weight: Amount = 0.0
    multiscale_weight: Amount = 0.0
    # Most noise in latents while the decoder learns, as a share of their spread; drawn up to it.
    latent_noise: Amount = 0.0
    # Squares of this side are cut out of pictures; 0: whole ones. The share is around the subject.
    crop_px: Size = 0
    subject_crops: Share = 0.75
    # Of `patch`: the spread of latents for the U-Net is what a channel changes in pictures, to this
    # power: 1 leaves it so, 0 makes all channels equal.
    channel_spread: Share = 0.6

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.kind != "kl":
            return
        _check_channels(self.block_channels, "norm_groups", self.norm_groups)


class UNetConfig(Table, frozen=True):
    """Stage `base` only: the U-Net, its text encoder, and what the U-Net predicts."""

    block_channels: tuple[Count, ...] = (64, 96, 128)
    layers_per_block: Count = 1
    head_dim: Count = 32
    norm_groups: Count = 16
    text_width: Count = 128
    text_layers: Count = 2
    text_heads: Count = 4
    max_tokens: Annotated[int, Meta(ge=3)] = 24
    # Every byte alone and at the end of a word, and the two tokens around a prompt, at the least.
    vocabulary: Annotated[int, Meta(ge=514)] = 1536
    prediction_type: PredictionType = "sample"
    # A pair of the same layers, for other latents and words, whose Base U-Net this begins as.
    grow_from: str = ""

    def __post_init__(self) -> None:
        """Refuse channels that groups or heads do not divide."""
        _check_channels(self.block_channels, "norm_groups", self.norm_groups)
        _check_channels(self.block_channels, "head_dim", self.head_dim)
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"text_width is {self.text_width}, expected a multiple of text_heads "
                f"{self.text_heads}"
            )


class DiffusionConfig(Table, frozen=True):
    """Loss, dropout, and which references are read."""

    snr_gamma: Amount = 5.0
    snr_floor: Amount = 0.3
    timestep_sampling: TimestepSampling = "middle"
    foreground_weight: Amount = 1.0
    # What an error in a channel of the latents weighs: as any other, or what it does to pixels.
    channel_weight: ChannelWeight = "equal"
    prompt_dropout: Share = 0.1
    reference_dropout: Share = 0.1
    both_dropout: Share = 0.05
    # `step` leaves out the references of all samples of a step, or of none.
    reference_dropout_draw: DropoutDraw = "sample"
    # What the Reference U-Net is told: the class alone ("a photo of a dog"), or all of the caption.
    reference_prompt: ReferencePrompt = "class"
    # Drawn anew for each batch.
    augmentation: Augmentation = "none"
    max_references: Count = 1

    def __post_init__(self) -> None:
        """Refuse limits of the weight that cross."""
        if self.snr_gamma and self.snr_floor > self.snr_gamma:
            raise ConfigError(
                f"snr_floor is {self.snr_floor}, expected at most snr_gamma {self.snr_gamma}"
            )


class SamplesConfig(Table, frozen=True):
    """How samples are read. Every stage reads it."""

    # Widths and heights in pixels; none: all pictures are squares of one size.
    buckets: tuple[tuple[Count, Count], ...] = ()
    # Samples that are shuffled together, after the shards are; 0 for all.
    window: Size = 32768
    # Batches that are read ahead, each by a thread.
    readers: Size = 4
    # Stage `pair` only: computed in each step, or once and read from the disk.
    text_states: TextStates = "computed"
    # Stages `base` and `pair`: all latents and tokens lie on the device, and every step has the
    # same shapes; with `compile` a step of the U-Nets is compiled whole. For one GPU.
    resident: bool = False


class PairSettings(Table, frozen=True):
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
        PairConfig(name="pair", sample_size_px=64, **self.changes())

    def changes(self) -> dict[str, Any]:
        """What is said, by name."""
        return {name: value for name, value in structs.asdict(self).items() if value is not None}


class DistillConfig(Table, frozen=True):
    """Stage `distill` only: what the student's steps are."""

    # Of the student; they become the pair's default.
    steps: Count = 8
    # Steps of the teacher that one of the student covers; 1 bakes in the guidance alone.
    substeps: Count = 1


class ControlConfig(Table, frozen=True):
    """Stage `control` only: what the maps show."""

    # `depth`: the renderer's, where the shards hold it, else that of the small world; `canny`:
    # outlines of the targets.
    kind: Literal["depth", "canny"] = "depth"


TABLES: dict[StageName, tuple[str, ...]] = {
    "vae": ("vae",),
    "base": ("unet", "diffusion", "pair"),
    "pair": ("diffusion", "pair"),
    "distill": ("diffusion", "distill"),
    "control": ("diffusion", "control"),
}
"""The tables that each stage reads, beside [samples] and [optimizer]."""


class TrainConfig(Table, frozen=True):
    """Everything that decides what a run computes; written into the run's folder."""

    stage: StageName
    output: str
    data: str = "data/train"
    validation_data: str = ""
    # Stage `base` starts from a finished VAE, and so does a decoder alone; `pair` from a base, a
    # pair or a Stable Diffusion folder, `distill` and `control` from a pair.
    start_from: str = ""
    steps: Count = 1000
    # Of one process, in one of `accumulate` parts of a step.
    batch_size: Count = 16
    accumulate: Count = 1
    # Of all processes together; 0: batch_size * accumulate * processes. Otherwise `accumulate`
    # follows from it, so the same file trains the same on any number of processes.
    samples_per_step: Size = 0
    seed: Size = 0
    mixed_precision: MixedPrecision = "no"
    # `blocks` keeps the inputs of blocks alone for the backward pass and computes them anew there.
    checkpointing: Checkpointing = "none"
    # Residual and feed-forward blocks by torch's compiler.
    compile: bool = False
    channels_last: bool = False
    # Of float32 products on a GPU.
    tf32: bool = True
    # What a loss or a gradient that is not finite does, in whatever process: end the run, or leave
    # the step out, at most `max_skips` times in a row.
    on_nan: OnNan = "skip"
    max_skips: Count = 10
    # After which the others end when a process is gone.
    timeout_minutes: Count = 30
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    max_samples: Size = 0
    log_every: Count = 20
    validate_every: Size = 500
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    # Writes what would be the result now to `so-far/`, each so many steps; 0: at the end alone.
    export_every: Size = 0
    samples: SamplesConfig = SamplesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    vae: VaeConfig = VaeConfig()
    unet: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pair: PairSettings = PairSettings()
    distill: DistillConfig = DistillConfig()
    control: ControlConfig = ControlConfig()

    def __post_init__(self) -> None:
        """Refuse settings that the stage would ignore: what a start knows cannot be said again."""
        used = TABLES[self.stage]
        for name in {name for tables in TABLES.values() for name in tables} - set(used):
            table = getattr(self, name)
            if table != type(table)():
                read = ", ".join(f"[{each}]" for each in ("optimizer", *used, "samples"))
                raise ConfigError(
                    f"stage {self.stage!r} does not read [{name}], only {read}: take it out; "
                    "sizes, noise schedule and prediction come from start_from"
                )
        if self.samples_per_step and self.accumulate != 1:
            raise ConfigError(
                f"accumulate is {self.accumulate} and samples_per_step {self.samples_per_step}, of "
                "which it would follow: give one of them"
            )
        if self.stage == "vae" and self.samples.buckets:
            raise ConfigError(
                "stage 'vae' trains on pictures of one size, references too: take out "
                "samples.buckets"
            )
        if self.stage == "control" and self.samples.buckets:
            raise ConfigError(
                "stage 'control' trains on pictures of the pair's own size: take out "
                "samples.buckets"
            )
        if self.samples.resident:
            self._check_resident()
        if self.stage == "vae" and bool(self.start_from) != (self.vae.kind == "patch_decoder"):
            raise ConfigError(
                f"stage 'vae' of kind {self.vae.kind!r} with start_from {self.start_from!r}: "
                "'patch_decoder' needs the result of a stage 'vae', the others start from nothing"
            )
        if self.stage != "pair" and self.samples.text_states == "stored":
            raise ConfigError(
                f"stage {self.stage!r} does not read stored text states: take out "
                "samples.text_states"
            )
        if self.stage != "vae" and not self.start_from:
            raise ConfigError(
                f"stage {self.stage!r} needs start_from: the folder that the stage before it made"
            )

    def _check_resident(self) -> None:
        """Refuse what data on the device does not do."""
        for wrong, fix in (
            (self.stage not in ("base", "pair"), "it is of stages 'base' and 'pair'"),
            (bool(self.samples.buckets), "take out samples.buckets: all shapes are the same"),
            (self.diffusion.max_references != 1, "set diffusion.max_references to 1"),
            (self.diffusion.augmentation != "none", "set diffusion.augmentation to 'none'"),
            (self.samples.text_states == "stored", "take out samples.text_states"),
            (self.diffusion.reference_prompt != "class", "take out diffusion.reference_prompt"),
            (self.diffusion.reference_dropout_draw != "sample", "take out reference_dropout_draw"),
        ):
            if wrong:
                raise ConfigError(f"samples.resident is set for stage {self.stage!r}: {fix}")

    def to_dict(self) -> dict[str, Any]:
        """As json has it, tables too."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


def load_config(path: Path, overrides: list[str]) -> TrainConfig:
    """Read a stage's TOML file and apply `key=value` overrides such as `optimizer.beta2=0.95`.

    Raises:
        ConfigError: The file is missing or is no TOML, a key is unknown or missing, or a value is
            of the wrong type or out of range.
    """
    return read_config(path, overrides, TrainConfig)


def read_config(path: Path, overrides: list[str], kind: type[T]) -> T:
    """Read a TOML file as a configuration of any kind; the rest is as for `load_config`."""
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
    try:
        return msgspec.convert(values, kind)
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}; correct it in the file or the overrides") from error


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
