"""`bootpig-rt synthesize`: make shards of training samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NAME = "synthesize"
HELP = "make training samples: pictures, masks, references and captions, in shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the shards")
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
        help="which drawings: those for training, or held-out ones to validate on (default: train)",
    )
    parser.add_argument("--samples", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same samples (default: 0)")
    parser.add_argument(
        "--shard-size", type=int, default=2000, help="samples a file (default: 2000)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--size-px", type=int, default=64, help="side of a picture (default: 64)")
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the shards; a second run goes on where the first stopped."""
    from tqdm import tqdm

    from bootpig_rt.training.compose import WorldConfig
    from bootpig_rt.training.synthesize import SynthesisConfig, synthesize
    from bootpig_rt.training.world import load_subjects

    world = WorldConfig(size_px=args.size_px)
    config = SynthesisConfig(args.samples, args.seed, args.shard_size, world)
    subjects = load_subjects(args.data, args.split)
    with tqdm(total=args.samples, unit="sample", disable=None) as bar:

        def on_shard(record: dict[str, Any]) -> None:
            bar.update(record["samples"])

        manifest = synthesize(
            args.output, subjects, config, num_workers=args.workers, on_shard=on_shard
        )
    if args.json:
        summary = {key: manifest[key] for key in ("samples", "rejects")}
        print(json.dumps(summary | {"folder": str(args.output), "shards": len(manifest["shards"])}))
    else:
        rejects = ", ".join(f"{k} {v}" for k, v in manifest["rejects"].items()) or "none"
        print(f"{manifest['samples']} samples in {args.output}; rejected draws: {rejects}")
    return 0
