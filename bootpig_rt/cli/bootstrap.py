"""`bootpig-rt bootstrap`: make training samples with a text-to-image model and a segmenter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

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
    outcome = bootstrap(config)
    print(json.dumps(outcome) if args.json else _text(outcome))
    return 0


def _text(outcome: dict[str, Any]) -> str:
    rejects = ", ".join(f"{name} {count}" for name, count in outcome["rejects"].items()) or "none"
    return (
        f"{outcome['samples']} samples of {outcome['pictures']} pictures and "
        f"{outcome['captions']} captions in {outcome['folder']} ({outcome['shards']} shards); "
        f"rejected: {rejects}; look at {outcome['folder']}/sheets"
    )
