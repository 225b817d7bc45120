"""`bootpig-rt provenance`: what a picture file says of how it was made."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bootpig_rt.errors import EXIT_OK, ImageError

NAME = "provenance"
HELP = "show whether a picture says that it is generated, and from what"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = "example:\n  bootpig-rt provenance out.png"
    parser.add_argument("file", metavar="FILE", help="a PNG, JPEG or WebP file")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Read the marks and print them."""
    from bootpig_rt.images.read_marks import is_marked_generated, read_parameters

    is_generated = is_marked_generated(args.file)
    parameters: dict[str, Any] | None
    try:
        parameters = read_parameters(args.file)
    except ImageError:  # most pictures hold none
        parameters = None
    if args.json:
        print(json.dumps({"is_generated": is_generated, "parameters": parameters}, indent=2))
        return EXIT_OK
    print("generated: " + ("yes, it says so" if is_generated else "it does not say"))
    for name, value in (parameters or {}).items():
        print(f"{name}: {json.dumps(value)}")  # escaped: the file may be anybody's
    return EXIT_OK
