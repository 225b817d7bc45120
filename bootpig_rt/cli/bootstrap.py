"""`bootpig-rt bootstrap`: make training samples with a text-to-image model and a segmenter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootpig_rt.training.bootstrap.stage import Runner

NAME = "bootstrap"
HELP = "make training samples with models: captions, pictures, masks, filters, triplets, shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("config", type=Path, help="TOML file, like training/configs/bootstrap.toml")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="changes to it: key=value, like captions.count=200 filters.min_area=0.1",
    )
    parser.add_argument("--device", help="auto, cpu or cuda:N, in place of the config's")
    parser.add_argument(
        "--runner",
        choices=["here", "ray"],
        default="here",
        help="who puts items through the stages: this process, or the workers of a Ray cluster",
    )
    group = parser.add_argument_group("with --runner ray")
    group.add_argument(
        "--ray-address",
        default="",
        metavar="ADDRESS",
        help="of a running cluster: auto, or ray://HOST:10001 (default: one of this machine alone)",
    )
    group.add_argument(
        "--ray-workers",
        type=int,
        default=0,
        metavar="N",
        help="how many build each stage (default: one for each GPU, without GPUs for each CPU)",
    )
    group.add_argument(
        "--ray-cpus", type=float, default=1.0, metavar="N", help="of a worker (default: 1)"
    )
    group.add_argument(
        "--ray-gpus",
        type=float,
        metavar="N",
        help="of a worker, 0.5 where two fit on one (default: 1 where there are GPUs)",
    )
    group.add_argument(
        "--ray-retries",
        type=int,
        default=3,
        metavar="N",
        help="how often items are given out again whose worker died (default: 3)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, make nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """Make the samples; a second run goes on where the first stopped."""
    from bootpig_rt.training.bootstrap.config import load_bootstrap_config
    from bootpig_rt.training.bootstrap.run import bootstrap, describe

    overrides = [*args.overrides, *([f"device={args.device}"] if args.device else [])]
    config = load_bootstrap_config(args.config, overrides)
    if args.dry_run:
        print(json.dumps(describe(config), indent=None if args.json else 1))
        return 0
    outcome = bootstrap(config, runner=open_runner(args))
    print(json.dumps(outcome) if args.json else _text(outcome))
    return 0


def open_runner(args: argparse.Namespace) -> Runner:
    """The runner that the options name.

    Raises:
        ConfigError: Numbers that mean nothing, or more than the cluster has.
        BackendUnavailable: Ray Data is not installed, or the cluster cannot be reached.
    """
    from bootpig_rt.training.bootstrap.stage import run_here

    if args.runner == "here":
        return run_here
    from bootpig_rt.training.bootstrap.ray_stages import RayOptions, RayRunner

    options = RayOptions(
        args.ray_address, args.ray_workers, args.ray_cpus, args.ray_gpus, args.ray_retries
    )
    return RayRunner(options)


def _text(outcome: dict[str, Any]) -> str:
    rejects = ", ".join(f"{name} {count}" for name, count in outcome["rejects"].items()) or "none"
    return (
        f"{outcome['samples']} samples of {outcome['pictures']} pictures and "
        f"{outcome['captions']} captions in {outcome['folder']} ({outcome['shards']} shards); "
        f"rejected: {rejects}; look at {outcome['folder']}/sheets"
    )
