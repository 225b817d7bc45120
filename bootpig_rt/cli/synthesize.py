"""`bootpig-rt synthesize`: make shards of training samples."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootpig_rt.errors import ParameterError

Make = Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]]
"""Makes samples, tells of each shard's record, and returns the manifest."""

NAME = "synthesize"
HELP = "make training samples: pictures, masks, references and captions, in shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument(
        "--world",
        choices=["drawn", "3d"],
        default="drawn",
        help="drawn: drawings in drawn scenes; 3d: rendered models and drawings in drawn scenes, "
        "on rendered grounds and in panoramas, needs the extra `render` (default: drawn)",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="TOML file of the 3-D world (default: training/configs/world3d.toml)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes to these settings, like drawing_share=0.1 scenes.panorama=0",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder that `fetch-data` made (default: data)",
    )
    parser.add_argument(
        "--split",
        choices=["train", "held_out_identity", "held_out_concept"],
        default="train",
        help="which subjects: those for training, or held-out ones to validate on (default: train)",
    )
    parser.add_argument("--samples", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same samples (default: 0)")
    parser.add_argument(
        "--shard-size", type=int, help="samples a file (default: 2000, 250 of the 3-D world)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--size-px", type=int, help="side of a picture (default: 64, 128 of the 3-D world)"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="draw a contact sheet of some samples as well"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the shards; a second run goes on where the first stopped."""
    from tqdm import tqdm

    if args.world == "drawn":
        for name in ("settings", "set"):
            if getattr(args, name):
                raise ParameterError(f"--{name} is for --world 3d; leave it out, or add --world 3d")
    make = {"drawn": _make_drawn, "3d": _make_3d}[args.world](args)
    began, made = time.perf_counter(), 0
    with tqdm(total=args.samples, unit="sample", disable=None) as bar:

        def on_shard(record: dict[str, Any]) -> None:
            nonlocal made
            made += record["samples"]
            bar.update(record["samples"])

        manifest = make(on_shard)
    rate = made / max(time.perf_counter() - began, 1e-9)
    if args.sheet:
        from bootpig_rt.training.contact import write_contact_sheet

        write_contact_sheet(args.output, args.sheet, samples=min(16, manifest["samples"]))
    if args.json:
        summary = {key: manifest[key] for key in ("samples", "rejects")}
        summary |= {"folder": str(args.output), "shards": len(manifest["shards"])}
        print(json.dumps(summary | {"samples_per_s": round(rate, 2)}))
    else:
        rejects = ", ".join(f"{k} {v}" for k, v in manifest["rejects"].items()) or "none"
        print(
            f"{manifest['samples']} samples in {args.output}, {rate:.1f} a second in "
            f"{args.workers} processes; rejected draws: {rejects}"
        )
    return 0


def _make_drawn(args: argparse.Namespace) -> Make:
    """What makes samples of the drawn world, told of each shard."""
    from bootpig_rt.training.compose import WorldConfig
    from bootpig_rt.training.synthesize import SynthesisConfig, synthesize
    from bootpig_rt.training.world import load_subjects

    world = WorldConfig(size_px=64 if args.size_px is None else args.size_px)
    shard_size = 2000 if args.shard_size is None else args.shard_size
    config = SynthesisConfig(args.samples, args.seed, shard_size, world)
    subjects = load_subjects(args.data, args.split)
    return lambda on_shard: synthesize(
        args.output, subjects, config, num_workers=args.workers, on_shard=on_shard
    )


def _make_3d(args: argparse.Namespace) -> Make:
    """What makes samples of the 3-D world, told of each shard."""
    from bootpig_rt.training.world3d.config import load_world_config
    from bootpig_rt.training.world3d.identities import load_identities
    from bootpig_rt.training.world3d.synthesize import Synthesis3dConfig, synthesize_3d

    overrides = list(args.set)
    if args.size_px is not None:
        overrides.append(f"size_px={args.size_px}")
    world = load_world_config(args.settings, overrides)
    shard_size = 250 if args.shard_size is None else args.shard_size
    config = Synthesis3dConfig(args.samples, args.seed, shard_size, world)
    identities = load_identities(args.data, args.split, with_drawings=world.drawing_share > 0)
    return lambda on_shard: synthesize_3d(
        args.output, identities, config, num_workers=args.workers, on_shard=on_shard
    )
