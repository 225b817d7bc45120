"""`bootpig-rt train`: run one stage of training from its config file, or a whole recipe."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bootpig_rt.errors import EXIT_OK, EXIT_REQUEUE, ParameterError

NAME = "train"
HELP = "train one stage (vae, base, pair or distill) or a recipe of all; runs again to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "config",
        type=Path,
        help="TOML file of a stage, like training/configs/vae.toml, or of a recipe, which makes "
        "samples and runs stages one after another, like training/configs/recipe-128.toml",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="changes to it: key=value, like steps=200 optimizer.beta2=0.95; of a recipe "
        "STAGE.key=value, like base.steps=200",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="with a recipe: the share of its samples and steps, to rehearse it (0.001)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="with a recipe: processes that make samples"
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        help="stop with a checkpoint after this long; run again to go on",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what it needs (memory of each process, time, data, disk) and train nothing",
    )
    parser.add_argument(
        "--processes",
        type=int,
        help="with --dry-run: plan for so many GPUs, by default those of the launcher, or one",
    )
    parser.add_argument(
        "--fsdp", action="store_true", help="with --dry-run: plan for weights that are sharded"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Train; exit code 0 when the stage is finished or stopped, 75 when a scheduler stopped it."""
    if not args.dry_run and (args.processes is not None or args.fsdp):
        raise ParameterError(
            "--processes and --fsdp are of --dry-run alone; to train so use accelerate launch"
        )
    if args.processes is not None and args.processes < 1:
        raise ParameterError(f"--processes is {args.processes}, expected at least 1")
    if not 0 < args.scale <= 1:
        raise ParameterError(f"--scale is {args.scale}, expected a share above 0, at most 1")
    from bootpig_rt.training.recipe import is_recipe

    if is_recipe(args.config):
        return _run_recipe(args)
    if args.scale != 1:
        raise ParameterError(
            "--scale is of recipes alone; of a stage change the steps, like steps=200"
        )
    from bootpig_rt.training.config import load_config
    from bootpig_rt.training.run import plan, train

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from bootpig_rt.training.estimate import in_words

        processes = args.processes or int(os.environ.get("WORLD_SIZE", "1"))
        found = plan(config, processes=processes, is_sharded=args.fsdp)
        print(json.dumps(found.to_dict()) if args.json else in_words(found))
        return EXIT_OK
    with _held(Path(config.output)):
        outcome = train(config, max_minutes=args.max_minutes)
    if args.json:
        print(json.dumps(outcome))
    elif outcome["is_finished"]:
        print(f"stage {config.stage} is finished: {outcome['result']}")
    else:
        print(f"stopped at step {outcome['step']} of {config.steps}; run the same command to go on")
    return EXIT_REQUEUE if outcome["requeue"] else EXIT_OK


def _run_recipe(args: argparse.Namespace) -> int:
    """Make the samples of a recipe, then train its stages; each goes on where it stopped."""
    import time

    from tqdm import tqdm

    from bootpig_rt.training.config import TrainConfig
    from bootpig_rt.training.recipe import fit_steps, make_samples, read_recipe, steps_of
    from bootpig_rt.training.run import train

    def train_for(config: TrainConfig, minutes: float) -> int:
        return int(train(config, max_minutes=minutes)["step"])

    if args.dry_run:
        raise ParameterError(
            "--dry-run is of one stage, a later stage's start is not there yet; rehearse a recipe "
            "with --scale 0.001, or plan one of its configs"
        )
    recipe = read_recipe(args.config)
    steps = list(steps_of(recipe, args.config, args.overrides, scale=args.scale))
    started = time.monotonic()
    with tqdm(unit="sample", desc="samples", disable=None) as bar:
        make_samples(
            recipe,
            args.config,
            scale=args.scale,
            num_workers=args.workers,
            on_shard=lambda record: bar.update(record["samples"]),
        )
    outcome: dict[str, object] = {}
    for number, step in enumerate(steps, start=1):
        left = None
        if args.max_minutes is not None:
            left = max(0.0, args.max_minutes - (time.monotonic() - started) / 60)
        with _held(Path(step.config.output)):
            config = fit_steps(step, train_for)
            outcome = {"stage": step.name, **train(config, max_minutes=left)}
        if not outcome["is_finished"]:
            break
        if not args.json:
            print(f"stage {step.name}, {number} of {len(steps)}, is finished: {outcome['result']}")
    if args.json:
        print(json.dumps(outcome))
    elif not outcome["is_finished"]:
        print(
            f"stopped in stage {outcome['stage']} at step {outcome['step']}; run the same command "
            "to go on"
        )
    return EXIT_REQUEUE if outcome["requeue"] else EXIT_OK


def _held(output: Path) -> AbstractContextManager[None]:
    """The run's folder, held against other runs by the first of this run's processes."""
    from bootpig_rt.files.held import held

    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    return held(output, "training")
