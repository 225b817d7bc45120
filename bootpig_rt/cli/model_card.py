"""`bootpig-rt model-card`: the card of a trained pair, with its licences and its bias panel."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAME = "model-card"
HELP = "write a pair's model card anew: state licences, draw the panel of people and professions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "`train` writes README.md beside each pair, and `evaluate` adds its scores; this\n"
        "command adds what neither can know. What was added stays in card.json, and the card is\n"
        "written from it. A bundle's files are sealed: give the pair that it was built from.\n\n"
        "examples:\n"
        "  bootpig-rt model-card runs/pair/result --base-licence 'CreativeML Open RAIL++-M'\n"
        "  bootpig-rt model-card runs/pair/result --panel --device cuda"
    )
    parser.add_argument("pair", type=Path, metavar="PAIR", help="folder of a pair, no bundle")
    for owner, what in (("pair", "the pair"), ("base", "its base"), ("data", "its data")):
        parser.add_argument(f"--{owner}-licence", metavar="NAME", help=f"licence of {what}")
    parser.add_argument(
        "--panel",
        action="store_true",
        help="draw 72 pictures of people and professions, for a look at the model's bias; a pair "
        "whose vocabulary has no people gets a line that says so",
    )
    parser.add_argument("--backend", default="auto", help="runtime that draws (default: auto)")
    parser.add_argument("--device", default="auto", help="device that draws (default: auto)")
    parser.add_argument("--json", action="store_true", help="print what was added as JSON")


def run(args: argparse.Namespace) -> int:
    """Add what is given, and write the card."""
    from tqdm import tqdm

    from bootpig_rt.training.bias_panel import COLUMNS, WORDS, draw_panel
    from bootpig_rt.training.model_card import add_fact, read_facts, write_card

    owners = ("pair", "base", "data")
    given = {owner: getattr(args, f"{owner}_licence") for owner in owners}
    stated = {owner: name for owner, name in given.items() if name is not None}
    path = write_card(args.pair)
    if stated:
        add_fact(args.pair, "licences", stated)
    if args.panel:
        total = len(WORDS) * COLUMNS
        with tqdm(total=total, unit="picture", disable=True if args.json else None) as bar:
            draw_panel(
                args.pair, backend=args.backend, device=args.device, on_picture=lambda: bar.update()
            )
    if args.json:
        print(json.dumps({"card": str(path), **read_facts(args.pair)}))
    else:
        print(path)
    return 0
