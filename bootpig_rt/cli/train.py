"""`bootpig-rt train`: run one stage of training from its config file."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bootpig_rt.errors import EXIT_OK, EXIT_REQUEUE, ParameterError

NAME = "train"
HELP = "train one stage (vae, base, pair or distill) from a config file; runs again to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("config", type=Path, help="TOML file, like training/configs/vae.toml")
    parser.add_argument(
        "overrides", nargs="*", help="changes to it: key=value, like steps=200 optimizer.beta2=0.95"
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


def _held(output: Path) -> AbstractContextManager[None]:
    """The run's folder, held against other runs by the first of this run's processes."""
    from bootpig_rt.files.held import held

    if os.environ.get("RANK", "0") != "0":
        return nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    return held(output, "training")
