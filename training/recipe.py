"""A whole recipe as one file: samples, then stages one after another, each from the one before.

Everything is a function of the file: seeds stand in it and in the configurations that it names, so
the same file makes the same pair. Run again, it goes on with what is not finished.
"""

from __future__ import annotations

import json
import logging
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import ValidationError, structs

from bootpig_rt.errors import ConfigError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.training.compose import WorldConfig
from bootpig_rt.training.config import Amount, Count, Size, Table, TrainConfig, load_config
from bootpig_rt.training.splits import Split
from bootpig_rt.training.synthesize import SynthesisConfig, synthesize
from bootpig_rt.training.world import load_subjects

logger = logging.getLogger(__name__)

TRAIN, VALIDATION = "train", "validation"
NOTHING = "none"
FITTED_FILE = "fitted_steps.json"
PROBE_MINUTES = 0.4


class SamplesOfRecipe(Table, frozen=True):
    """One folder of samples: made here, or there already."""

    # `train` and `validation` are those that stages use where they name no others.
    name: str
    # A folder that is there already, relative to the recipe's file; nothing is made then.
    folder: str = ""
    split: Split = "train"
    # `drawn`, or `3d`, which needs the extra `render`.
    world: Literal["drawn", "3d"] = "drawn"
    # To the settings of the 3-D world, as on the command line: "drawing_share=0.5".
    changes: tuple[str, ...] = ()
    count: Count = 20000
    seed: Size = 0
    size_px: Count = 64
    # None: 2000, 250 of the 3-D world.
    shard_size: Count | None = None


class StageOfRecipe(Table, frozen=True):
    """One stage: a configuration beside the recipe's file, and what it reads."""

    name: str
    config: str
    # To that configuration, as on the command line: "batch_size=512".
    changes: tuple[str, ...] = ()
    # How long it is to take: its steps then follow from how quick the first ones are. 0: as the
    # configuration says.
    minutes: Amount = 0.0
    samples: str = TRAIN
    validation: str = VALIDATION
    # The stage that it starts from; by default the one before. "none": from nothing.
    start: str = ""
    # Of stage `base`: the stage whose smaller U-Net it begins as.
    grow: str = ""


class Recipe(Table, frozen=True):
    """Contents of a recipe's file."""

    # Folder of all that is made; relative to where the command is run, as outputs of stages are.
    output: str
    # What `fetch-data` made.
    drawings: str = "data"
    samples: tuple[SamplesOfRecipe, ...] = ()
    stages: tuple[StageOfRecipe, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that are doubled or unknown."""
        for kind, names in (
            ("samples", [each.name for each in self.samples]),
            ("stages", [each.name for each in self.stages]),
        ):
            if not names:
                raise ConfigError(f"a recipe has no [[{kind}]], expected at least one")
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ConfigError(f"[[{kind}]] has two with the name {doubled[0]!r}: rename one")
        for each in self.samples:
            if each.changes and each.world == "drawn":
                raise ConfigError(
                    f"samples {each.name!r} change settings of the 3-D world, and are of the drawn "
                    'one: take `changes` out, or add world = "3d"'
                )
        known = {each.name for each in self.samples}
        before: set[str] = set()
        for stage in self.stages:
            if stage.samples not in known or stage.validation not in known | {""}:
                raise ConfigError(
                    f"stage {stage.name!r} reads samples {stage.samples!r} and "
                    f"{stage.validation!r}, expected names of [[samples]]: {', '.join(known)}"
                )
            for other in (stage.start, stage.grow):
                if other not in before | {"", NOTHING}:
                    raise ConfigError(
                        f"stage {stage.name!r} starts from {other!r}, expected a stage before it"
                    )
            before.add(stage.name)


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, as it is trained."""

    name: str
    config: TrainConfig
    minutes: float


def is_recipe(path: Path) -> bool:
    """Whether a TOML file is a recipe and not the configuration of one stage."""
    try:
        return "stages" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file.

    Raises:
        ConfigError: It cannot be read, or says something wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe: {describe_os_error(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; correct the file") from error
    try:
        return msgspec.convert(values, Recipe)
    except ValidationError as error:
        raise ConfigError(f"{path}: {error}; correct the recipe") from error


def steps_of(
    recipe: Recipe, path: Path, overrides: list[str], *, scale: float = 1.0
) -> Iterator[Step]:
    """The stages of a recipe in order, each with its configuration.

    Args:
        recipe: What `path` says.
        path: Its file; the configurations lie beside it.
        overrides: `stage.key=value`, as in `base.steps=200` or `vae.optimizer.beta2=0.95`.
        scale: Share of the steps that is trained, for a rehearsal.

    Raises:
        ConfigError: An override names no stage, or a configuration is wrong.
    """
    of_stage: dict[str, list[str]] = {stage.name: [] for stage in recipe.stages}
    for override in overrides:
        name, separator, rest = override.partition(".")
        if not separator or name not in of_stage:
            raise ConfigError(
                f"override {override!r} names no stage, expected STAGE.key=value with one of "
                f"{', '.join(of_stage)}"
            )
        of_stage[name].append(rest)
    root = Path(recipe.output)
    folders = {each.name: _samples_folder(recipe, each, path, scale) for each in recipe.samples}
    before = ""
    for stage in recipe.stages:
        changes = [*stage.changes, *of_stage[stage.name]]
        config = load_config(path.parent / stage.config, changes)
        start = "" if stage.start == NOTHING else stage.start or before
        if stage.grow:
            grown = structs.replace(config.unet, grow_from=str(root / stage.grow / "result"))
            config = structs.replace(config, unet=grown)
        config = structs.replace(
            config,
            output=str(root / stage.name),
            data=str(folders[stage.samples]),
            validation_data=str(folders[stage.validation]) if stage.validation else "",
            start_from=str(root / start / "result") if start else "",
        )
        yield Step(stage.name, _scaled(config, scale), scale * stage.minutes)
        before = stage.name


def make_samples(
    recipe: Recipe,
    path: Path,
    *,
    scale: float = 1.0,
    num_workers: int = 1,
    on_shard: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Make the samples of a recipe that are not there yet.

    `on_shard` is called with the record of each shard that is there.

    Raises:
        BackendUnavailable: The 3-D world is asked for, and moderngl or EGL is missing.
        ConfigError, InputError, StorageError: As for `synthesize` and `load_subjects`.
    """
    for each in recipe.samples:
        if each.folder:
            continue
        count = max(_LEAST_SAMPLES, round(each.count * scale)) if scale < 1 else each.count
        make = _make_3d if each.world == "3d" else _make_drawn
        make(
            _samples_folder(recipe, each, path, scale),
            Path(recipe.drawings),
            structs.replace(each, count=min(count, each.count)),
            num_workers=num_workers,
            on_shard=on_shard,
        )


def _make_drawn(folder: Path, data: Path, samples: SamplesOfRecipe, **running: Any) -> None:
    world = WorldConfig(size_px=samples.size_px)
    config = SynthesisConfig(samples.count, samples.seed, samples.shard_size or 2000, world)
    synthesize(folder, load_subjects(data, samples.split), config, **running)


def _make_3d(folder: Path, data: Path, samples: SamplesOfRecipe, **running: Any) -> None:
    # The renderer is an extra: a recipe of drawings does without.
    from bootpig_rt.training.world3d.config import DEFAULTS_FILE, load_world_config
    from bootpig_rt.training.world3d.identities import load_identities
    from bootpig_rt.training.world3d.synthesize import Synthesis3dConfig, synthesize_3d

    changes = [*samples.changes, f"size_px={samples.size_px}"]
    world = load_world_config(DEFAULTS_FILE, changes)
    config = Synthesis3dConfig(samples.count, samples.seed, samples.shard_size or 250, world)
    identities = load_identities(data, samples.split, with_drawings=world.drawing_share > 0)
    synthesize_3d(folder, identities, config, **running)


def fit_steps(
    step: Step, train: Callable[[TrainConfig, float], int], *, probe_minutes: float = PROBE_MINUTES
) -> TrainConfig:
    """The configuration of a stage that is to take so many minutes, with steps that fit.

    It is trained for a while first, at the top of its learning rate; its folder then says how many
    steps it has, and a run that goes on keeps them.

    Args:
        step: With `minutes`, or its configuration is returned as it is.
        train: Trains a configuration for so many minutes and returns the step it came to.
        probe_minutes: So long twice: the first time it may compile and read its data.
    """
    config = step.config
    if not step.minutes:
        return config
    kept = Path(config.output) / FITTED_FILE
    if kept.is_file():
        return structs.replace(config, steps=int(json.loads(kept.read_text())["steps"]))
    first = train(config, probe_minutes)
    started = time.monotonic()
    second = train(config, probe_minutes)
    took = (time.monotonic() - started) / 60
    if second == first:  # all of it is done, or nothing can be said
        return config
    left = max(0.0, step.minutes - 2 * probe_minutes)
    steps = second + max(1, round(left * (second - first) / took))
    atomic_write_text(kept, json.dumps({"steps": steps, "minutes": step.minutes}) + "\n")
    logger.info("stage %s is trained for %d steps, about %.1f minutes", step.name, steps, left)
    return structs.replace(config, steps=steps)


_LEAST_SAMPLES = 64
"""Of a rehearsal."""
_LEAST_STEPS = 2


def _samples_folder(recipe: Recipe, samples: SamplesOfRecipe, path: Path, scale: float) -> Path:
    if samples.folder:
        return path.parent / samples.folder
    return Path(recipe.output) / "samples" / samples.name


def _scaled(config: TrainConfig, scale: float) -> TrainConfig:
    """A share of the steps, and of what is counted in steps; all else stays."""
    if scale >= 1:
        return config

    def share(count: int, least: int) -> int:
        return min(count, max(least, round(count * scale)))

    steps = share(config.steps, _LEAST_STEPS)
    return structs.replace(
        config,
        steps=steps,
        log_every=share(config.log_every, 1),
        validate_every=min(config.validate_every, steps),
        checkpoint_every=min(config.checkpoint_every, steps),
        optimizer=structs.replace(
            config.optimizer, warmup_steps=share(config.optimizer.warmup_steps, 1)
        ),
    )
