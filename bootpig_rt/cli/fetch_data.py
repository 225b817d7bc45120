"""`bootpig-rt fetch-data`: fetch the drawings that the small world is made of."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAME = "fetch-data"
HELP = "fetch openly licensed drawings and render them as subjects for training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data"), help="data folder (default: data)"
    )
    parser.add_argument(
        "--from-folder",
        type=Path,
        metavar="DIR",
        help="take the archives from DIR instead of fetching them with npm",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Fetch, check and render; a second run does only what is missing."""
    from tqdm import tqdm

    from bootpig_rt.training.fetch import fetch_data

    with tqdm(unit="drawing", disable=True if args.json else None) as bar:

        def on_progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        summary = fetch_data(
            args.output, from_folder=args.from_folder, workers=args.workers, on_progress=on_progress
        )
    if args.json:
        print(json.dumps(summary))
        return 0
    rejects = ", ".join(f"{k} {v}" for k, v in summary["rejects"].items()) or "none"
    splits = ", ".join(f"{k} {v}" for k, v in summary["splits"].items())
    print(
        f"{summary['identities']} drawings of {summary['concepts']} things in {summary['folder']} "
        f"({splits}); rejected: {rejects}"
    )
    print("The drawings' authors and licences are named in ATTRIBUTION.md.")
    return 0
