"""`bootpig-rt fetch-data`: drawings and models to train on, or DreamBench's photographs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bootpig_rt.errors import ParameterError

NAME = "fetch-data"
HELP = "fetch openly licensed drawings or 3-D models for training, or DreamBench for evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--set",
        choices=["drawings", "models-3d", "dreambench"],
        default="drawings",
        help="drawings: fetched with npm and rendered as subjects for training; models-3d: models, "
        "panoramas and textures, fetched with git, 330 MB; dreambench: 158 photographs and 25 "
        "prompts, for evaluation alone (default: drawings)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder (default: data for drawings, data/models for models-3d, dreambench)",
    )
    parser.add_argument(
        "--from-folder",
        type=Path,
        metavar="DIR",
        help="take the archives, or DreamBench or the models from clones, from DIR, without a "
        "network",
    )
    parser.add_argument(
        "--sprite-px",
        type=int,
        metavar="N",
        help="side of rendered drawings, 24 times a whole number; 192 for pictures of 128 px "
        "(default: 96)",
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
    for name, owner in (
        ("url", "dreambench"),
        ("size_px", "dreambench"),
        ("sprite_px", "drawings"),
    ):
        if getattr(args, name) is not None and args.set != owner:
            option = name.replace("_", "-")
            raise ParameterError(f"--{option} is for --set {owner}; leave it out")
    return {"dreambench": _dreambench, "models-3d": _models, "drawings": _drawings}[args.set](args)


def _drawings(args: argparse.Namespace) -> int:
    """Fetch, check and render."""
    from tqdm import tqdm

    from bootpig_rt.training.fetch import fetch_data
    from bootpig_rt.training.raster import SPRITE_PX

    with tqdm(unit="drawing", disable=True if args.json else None) as bar:

        def on_progress(stage: str, done: int, total: int) -> None:
            bar.set_description(stage)
            bar.total, bar.n = total, done
            bar.refresh()

        summary = fetch_data(
            args.output or Path("data"),
            from_folder=args.from_folder,
            workers=args.workers,
            sprite_px=SPRITE_PX if args.sprite_px is None else args.sprite_px,
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


def _models(args: argparse.Namespace) -> int:
    """Fetch and check models, panoramas and textures."""
    from tqdm import tqdm

    from bootpig_rt.training.world3d.fetch import fetch_models

    with tqdm(unit="source", disable=True if args.json else None) as bar:

        def on_progress(key: str, done: int, total: int) -> None:
            bar.set_description(key)
            bar.total, bar.n = total, done
            bar.refresh()

        found = fetch_models(
            args.output or Path("data/models"),
            from_folder=args.from_folder,
            on_progress=on_progress,
        )
    if args.json:
        print(json.dumps(asdict(found) | {"folder": str(found.folder)}))
        return 0
    print(
        f"{found.files} files of {found.sources} sources in {found.folder}, {found.fetched} "
        "sources of them fetched now"
    )
    print("The models' authors and licences are named in ATTRIBUTION.md.")
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
