"""The options of `bootpig-rt evaluate --suite dreambench`, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from bootpig_rt.errors import ParameterError

_OWN = (
    "clip",
    "dino",
    "dino_view",
    "efficientnet",
    "references",
    "remove_background",
    "masked",
    "subjects",
    "prompts",
    "seed",
    "part",
    "collect",
    "score_only",
    "oracle_only",
)
_NOT_FOR_IT = ("prepare", "renderer")
_OF_DRAWING = ("subjects", "prompts", "seeds", "seed", "references", "model", "steps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the suite's own options."""
    group = parser.add_argument_group(
        "dreambench",
        "a stopped run goes on when it is started again; a folder with pictures of other settings "
        "is refused",
    )
    group.add_argument(
        "--clip", type=Path, metavar="DIR", help="CLIP ViT-B/32 as the hub has it: CLIP-T, CLIP-I"
    )
    group.add_argument("--dino", type=Path, metavar="DIR", help="DINO ViT-S/16 likewise: DINO")
    group.add_argument(
        "--dino-view",
        choices=["crop", "whole"],
        help="crop: the middle 224 px of 256, as DINO's authors evaluate; whole: 224 px "
        "(default: crop)",
    )
    group.add_argument(
        "--efficientnet",
        action="store_true",
        help="score with EfficientNet-Lite0 too, on a scale of its own; needs no folder",
    )
    group.add_argument(
        "--references",
        choices=["first", "all"],
        help="photographs given to the pair: the first, or all up to its most (default: all)",
    )
    group.add_argument(
        "--remove-background",
        metavar="HOW",
        help="cut the subject out of photographs: grabcut, or an ONNX file",
    )
    group.add_argument(
        "--masked",
        action="store_true",
        help="score subjects alone too, on white: MDINO, MCLIP-I; needs --remove-background",
    )
    group.add_argument(
        "--subjects", metavar="NAMES", help="only these, as dog,teapot (default: all 30)"
    )
    group.add_argument(
        "--prompts", type=int, metavar="N", help="only the first N of each subject (default: 25)"
    )
    group.add_argument("--seed", type=int, help="of the whole suite (default: 0)")
    group.add_argument(
        "--part", metavar="K/N", help="draw the Kth of N parts and stop; --score-only scores all"
    )
    group.add_argument(
        "--collect",
        type=Path,
        metavar="DIR",
        action="append",
        help="copy the pictures of another machine's folder here first; give it again for more",
    )
    group.add_argument(
        "--score-only", action="store_true", help="score what was drawn; needs no pair"
    )
    group.add_argument(
        "--oracle-only",
        action="store_true",
        help="score the photographs alone, and exit with 1 if not as published",
    )


def check_suite(args: argparse.Namespace) -> None:
    """Refuse options of one suite that are given with another.

    Raises:
        ParameterError: Names the option.
    """
    is_own = args.suite == "dreambench"
    for name in _NOT_FOR_IT if is_own else _OWN:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            which = "is not for" if is_own else "is for"
            raise ParameterError(f"{option} {which} --suite dreambench; leave it out")
    if not is_own:
        return
    stages = [f"--{n}" for n in ("part", "score-only", "oracle-only") if _given(args, n)]
    if len(stages) > 1:
        raise ParameterError(f"got {' and '.join(stages)}, expected one of them at most")
    kept = [f"--{n}" for n in _OF_DRAWING if args.score_only and _given(args, n)]
    if kept:
        raise ParameterError(
            f"{kept[0]} is known from the folder's settings.json; leave it out with --score-only"
        )
    if args.masked and not args.remove_background:
        raise ParameterError(
            "--masked needs to know where subjects are; give --remove-background grabcut or an "
            "ONNX file"
        )
    if not args.part and not (args.clip or args.dino or args.efficientnet):
        raise ParameterError(
            "nothing to score with; give --clip and --dino, folders as the hub has them, or "
            "--efficientnet, or only draw with --part 1/1"
        )


def _given(args: argparse.Namespace, option: str) -> bool:
    return getattr(args, option.replace("-", "_")) not in (None, False)
