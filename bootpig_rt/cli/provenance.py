"""`bootpig-rt provenance`: what a picture file says of how it was made."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import EXIT_OK, BackendUnavailable, ImageError

if TYPE_CHECKING:
    from bootpig_rt.images.credentials_report import CredentialsReport

NAME = "provenance"
HELP = (
    "show whether a picture says that it is generated, who signed that, and what it was made from"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = "example:\n  bootpig-rt provenance out.png"
    parser.add_argument("file", metavar="FILE", help="a PNG, JPEG or WebP file")
    parser.add_argument(
        "--trust-anchors",
        metavar="FILE",
        help="PEM with root certificates: signatures that lead to one of them are trusted",
    )
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
    credentials, told = _credentials(args.file, args.trust_anchors)
    if args.json:
        values = {
            "is_generated": is_generated,
            "credentials": None if credentials is None else asdict(credentials),
            "parameters": parameters,
        }
        print(json.dumps(values, indent=2))
        return EXIT_OK
    print("generated: " + ("yes, it says so" if is_generated else "it does not say"))
    print(f"credentials: {told}")
    # All values escaped: the file may be anybody's.
    for name, value in (parameters or {}).items():
        print(f"{json.dumps(name)[1:-1]}: {json.dumps(value)}")
    return EXIT_OK


def _credentials(file: str, anchors: str | None) -> tuple[CredentialsReport | None, str]:
    """What the picture's manifest says, and that in a few words."""
    from bootpig_rt.images.content_credentials import read_credentials

    try:
        report = read_credentials(Path(file).read_bytes(), trust_anchors=anchors)
    except BackendUnavailable as error:
        return None, f"not read; {error}"
    if report is None:
        return None, "none"
    meaning = {
        "Trusted": "unchanged, and signed by somebody whom your trust anchors vouch for",
        "Valid": "unchanged, signed by somebody whom no given list vouches for",
    }.get(report.state, "changed or wrongly signed: believe nothing of it")
    return report, f"{meaning}; the certificate names {json.dumps(report.signer)}"
