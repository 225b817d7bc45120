"""`bootpig-rt fetch-data`: fetch the drawings of the small world, or DreamBench's photographs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bootpig_rt.errors import ParameterError

NAME = "fetch-data"
HELP = "fetch openly licensed drawings for training, or DreamBench's photographs for evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--set",
        choices=["drawings", "dreambench"],
        default="drawings",
        help="drawings: fetched with npm and rendered as subjects for training; dreambench: 158 "
        "photographs and 25 prompts, for evaluation alone (default: drawings)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder (default: data for drawings, dreambench for that set)",
    )
    parser.add_argument(
        "--from-folder",
        type=Path,
        metavar="DIR",
        help="take the archives, or DreamBench from a clone, from DIR, without a network",
    )
    parser.add_argument(
        "--url", metavar="URL", help="a mirror of DreamBench's repository at the pinned commit"
    )
    parser.add_argument(
        "--size-px",
        type=int,
        metavar="N",
        help="longer side of DreamBench's photographs; 0 as published (default: 512)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes, or files fetched at once (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Fetch and check; a second run does only what is missing."""
    if args.set == "dreambench":
        return _dreambench(args)
    for name in ("url", "size_px"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise ParameterError(f"--{option} is for --set dreambench; leave it out")
    return _drawings(args)


def _drawings(args: argparse.Namespace) -> int:
    """Fetch, check and render."""
    from tqdm import tqdm

    from bootpig_rt.training.fetch import fetch_data

    with tqdm(unit="drawing", disable=True if args.json else None) as bar:

        def on_progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        summary = fetch_data(
            args.output or Path("data"),
            from_folder=args.from_folder,
            workers=args.workers,
            on_progress=on_progress,
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


def _dreambench(args: argparse.Namespace) -> int:
    """Fetch photographs, prompts and licences."""
    from tqdm import tqdm

    from bootpig_rt.training.fetch_dreambench import SIZE_PX, fetch_dreambench

    url = args.url
    if args.from_folder is not None:
        if url is not None:
            raise ParameterError("got --url and --from-folder, expected one of them at most")
        url = args.from_folder.resolve().as_uri()
    with tqdm(unit="file", disable=True if args.json else None) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        found = fetch_dreambench(
            args.output or Path("dreambench"),
            url=url,
            size_px=SIZE_PX if args.size_px is None else args.size_px,
            workers=args.workers,
            on_progress=on_progress,
        )
    if args.json:
        print(json.dumps(asdict(found)))
        return 0
    print(
        f"{found.photographs} photographs of DreamBench in {found.folder}, {found.fetched} files "
        f"of them fetched now, from commit {found.commit[:12]}"
    )
    print("For evaluation alone. Licences: dataset/references_and_licenses.txt and LICENSE.md.")
    return 0
