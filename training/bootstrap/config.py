"""Settings of `bootpig-rt bootstrap`: one TOML file, checked, with command-line overrides."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bootpig_rt.errors import ConfigError
from bootpig_rt.images.picture import SUBJECT_SHARE
from bootpig_rt.training.config import Amount, Count, Rate, Share, Size, Table, read_config

CaptionSource = Literal["grammar", "world", "llm", "endpoint", "file"]
PictureSource = Literal["diffusers", "pair"]
MaskSource = Literal["sam", "grabcut", "onnx", "plain"]
Finder = Literal["grounding_dino", "clipseg", "centre"]
Dtype = Literal["auto", "float32", "bf16", "fp16"]

Side = Annotated[int, Meta(ge=8, le=4096)]
Fill = Annotated[float, Meta(gt=0, le=1)]

ENCODERS = ("phash", "efficientnet")
"""Encoders that are no folders."""

PAIR_TEMPLATE = (
    "two photos of the same {noun} side by side, on the left {place}, on the right {other_place}"
)


def _need(table: str, values: dict[str, str], why: str) -> None:
    for name, value in values.items():
        if not value:
            raise ConfigError(f"[{table}] {name} is empty, expected a value {why}; set it")


def _check_template(name: str, template: str, fields: tuple[str, ...]) -> None:
    try:
        found = {
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        }
    except ValueError as error:
        raise ConfigError(f"{name} is {template!r}: {error}; correct its braces") from error
    if not found or not found <= set(fields):
        wanted = ", ".join(f"{{{field}}}" for field in fields)
        raise ConfigError(f"{name} is {template!r}, expected text with some of {wanted}")


class CaptionsConfig(Table, frozen=True):
    """Where captions come from, and what is taken for one."""

    source: CaptionSource = "grammar"
    # Different captions wanted.
    count: Count = 1000
    # llm: folder of a causal language model with a chat template. endpoint: the model's name there.
    model: str = ""
    # endpoint: up to and without /chat/completions.
    url: str = ""
    # endpoint: the environment variable that holds the key; it may be unset.
    api_key_env: str = "OPENAI_API_KEY"
    # llm, endpoint: captions asked for at once, and answers that one prompt is given by the llm.
    per_ask: Count = 50
    answers: Count = 8
    temperature: Amount = 1.2
    max_new_tokens: Count = 2000
    # llm, endpoint: text file of the instruction, with {count} and {theme}.
    instruction: str = ""
    # file: text file, a caption a line.
    file: str = ""
    # Captions have fewer words than this.
    max_words: Count = 18
    # endpoint: requests at once; how long one may take; how long it may be out of order.
    batch_size: Count = 8
    timeout_s: Rate = 120.0
    max_wait_s: Amount = 600.0

    def __post_init__(self) -> None:
        """Refuse a source that lacks what it needs."""
        if self.source == "llm":
            _need("captions", {"model": self.model}, "(a folder) for source 'llm'")
        if self.source == "endpoint":
            needs = {"url": self.url, "model": self.model}
            _need("captions", needs, "for source 'endpoint'")
        if self.source == "file":
            _need("captions", {"file": self.file}, "(a text file) for source 'file'")


class PicturesConfig(Table, frozen=True):
    """What draws the captions."""

    source: PictureSource = "diffusers"
    # diffusers: folder of a text-to-image pipeline. pair: folder of a pair or bundle, "" ours.
    model: str = ""
    per_caption: Count = 1
    batch_size: Count = 8
    # None: the model's own.
    steps: Count | None = None
    guidance: Amount | None = None
    negative_prompt: str = ""
    template: str = "{caption}"
    # Side at which the model draws; 0 is the model's own.
    draw_px: Size = 0

    def __post_init__(self) -> None:
        """Refuse a source that lacks what it needs."""
        if self.source == "diffusers":
            needs = {"model": self.model}
            _need("pictures", needs, "(a diffusers folder) for source 'diffusers'")
        fields = ("caption", "noun", "position", "scene")
        _check_template("[pictures] template", self.template, fields)


class MasksConfig(Table, frozen=True):
    """What finds the subject and cuts it out."""

    source: MaskSource = "sam"
    # sam: folder of SAM or SAM 2. onnx: file of a background remover.
    model: str = ""
    # sam only: what finds the phrase, and its folder.
    finder: Finder = "grounding_dino"
    finder_model: str = ""
    box_threshold: Share = 0.3
    text_threshold: Share = 0.25
    heat_threshold: Share = 0.4
    # Several instances: the best one, or a reject.
    several: Literal["best", "reject"] = "best"
    # sam: of the IoU that SAM expects of its own mask.
    min_score: Share = 0.5
    # plain: how far from the background's colour a pixel still is background, 0 to 255.
    tolerance: Annotated[int, Meta(ge=0, le=255)] = 24
    batch_size: Count = 8

    def __post_init__(self) -> None:
        """Refuse a source that lacks what it needs."""
        if self.source in ("sam", "onnx"):
            what = "a SAM folder" if self.source == "sam" else "a .onnx file"
            _need("masks", {"model": self.model}, f"({what}) for source {self.source!r}")
        if self.source == "sam" and self.finder != "centre":
            needs = {"finder_model": self.finder_model}
            _need("masks", needs, f"(a folder) for finder {self.finder!r}")


class FiltersConfig(Table, frozen=True):
    """What a sample must be like. A limit of 0 is none."""

    # The mask stays this far from the border of a picture of 512 px, and in proportion of others.
    border_px: Size = 25
    min_area: Share = 0.05
    max_area: Share = 0.7
    # Share of the mask that its largest connected part has.
    min_largest: Share = 0.95
    # Variance of the Laplacian where the subject is, grey levels 0 to 255.
    min_sharpness: Amount = 0.0
    # Folder of a CLIP model, and the least cosine of picture and caption; "" asks none.
    clip: str = ""
    min_agreement: Share = 0.2
    # "none", "phash", "efficientnet" or a CLIP or DINO folder; pictures nearer than this are one.
    duplicates: str = "phash"
    max_similarity: Share = 0.93
    batch_size: Count = 8

    def __post_init__(self) -> None:
        """Refuse limits that cross."""
        if self.min_area >= self.max_area:
            raise ConfigError(
                f"[filters] min_area is {self.min_area}, expected less than max_area "
                f"{self.max_area}"
            )


class PairsConfig(Table, frozen=True):
    """The same subject twice in one picture, so that reference and target differ."""

    # Share of the captions that are drawn so.
    share: Share = 0.0
    template: str = PAIR_TEMPLATE
    # "efficientnet", or a CLIP or DINO folder. Cosine of the two cut-outs: under the floor they
    # are two subjects, over the ceiling one picture.
    encoder: str = "efficientnet"
    floor: Share = 0.6
    ceiling: Share = 0.97

    def __post_init__(self) -> None:
        """Refuse limits that cross, and a template that nothing fills."""
        if self.floor >= self.ceiling:
            raise ConfigError(
                f"[pairs] floor is {self.floor}, expected less than ceiling {self.ceiling}"
            )
        fields = ("caption", "noun", "place", "other_place")
        _check_template("[pairs] template", self.template, fields)


class TripletsConfig(Table, frozen=True):
    """What references look like."""

    # Longest side of the subject over the side of its reference: `subject_share` of pair.json.
    fill: Fill = SUBJECT_SHARE


class BootstrapConfig(Table, frozen=True):
    """Everything that decides what samples are made, and where they go."""

    output: str
    # What the stages made is kept here, for the next run: "" is OUTPUT/work.
    work: str = ""
    seed: Size = 0
    size_px: Side = 512
    shard_size: Count = 1000
    # Items that an interruption may cost a stage.
    part_size: Count = 200
    # 0: as many as pass.
    max_samples: Size = 0
    device: str = "auto"
    # auto: bf16 on a GPU, float32 on a CPU.
    dtype: Dtype = "auto"
    captions: CaptionsConfig = CaptionsConfig()
    pictures: PicturesConfig = PicturesConfig(source="pair")
    masks: MasksConfig = MasksConfig(source="grabcut")
    filters: FiltersConfig = FiltersConfig()
    pairs: PairsConfig = PairsConfig()
    triplets: TripletsConfig = TripletsConfig()

    def __post_init__(self) -> None:
        """Refuse folders that cannot be what they are for."""
        if not self.output.strip():
            raise ConfigError("output is empty, expected the folder of the shards; set it")
        if self.work and Path(self.work) == Path(self.output):
            raise ConfigError(
                f"work and output are both {self.output}; leave work out, or name another folder"
            )

    @property
    def output_folder(self) -> Path:
        """Of the shards."""
        return Path(self.output)

    @property
    def work_folder(self) -> Path:
        """Of what the stages made."""
        return Path(self.work) if self.work else self.output_folder / "work"

    def to_dict(self) -> dict[str, Any]:
        """As json has it, tables too."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


_OF_THE_RUN = frozenset(
    "output work device batch_size url api_key_env timeout_s max_wait_s part_size".split()
)
SOURCES = {
    "captions": ("model", "file", "instruction"),
    "pictures": ("model",),
    "masks": ("model", "finder_model"),
    "filters": ("clip", "duplicates"),
    "pairs": ("encoder",),
}
"""Settings by table that name a file or a folder, or something else."""


def settings_of(config: BootstrapConfig, identify: Callable[[str], str]) -> dict[str, Any]:
    """All of a configuration that decides what the samples are: nothing about where or how fast.

    Args:
        config: The configuration.
        identify: Makes of a source's name what it is: two folders of one content are the same.
    """
    plain = config.to_dict()
    for table, names in SOURCES.items():
        for name in names:
            plain[table][name] = identify(plain[table][name])

    def kept(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in _OF_THE_RUN
        }

    return kept(plain)


def load_bootstrap_config(path: Path, overrides: list[str]) -> BootstrapConfig:
    """Read the TOML file and apply `key=value` overrides such as `captions.count=200`.

    Raises:
        ConfigError: The file is missing or is no TOML, a key is unknown or missing, or a value is
            of the wrong type or out of range.
    """
    return read_config(path, overrides, BootstrapConfig)
