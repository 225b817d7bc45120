"""`bootpig-rt verify-golden`: does this backend compute what the published pipeline computed?"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK

NAME = "verify-golden"
HELP = "compare a backend with tensors recorded from the published pipeline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "DIR holds base_unet/, ref_unet/ and the recordings (*.safetensors). Exit code 1 when an\n"
        "error is above 1e-4 within a step, from the recorded latents, or 1e-3 end to end, 2 when\n"
        "the folder is unusable.\n\n"
        "'of rounding' is how far the end moves when outputs change in their last digits; where\n"
        "that is more than the limit, it is the limit. 'flips' are tokens that would choose\n"
        "another reference than the recording, because two norms nearly tie: how many of all\n"
        "choices, and their largest distance, at most 1e-2.\n\n"
        "example:\n  bootpig-rt verify-golden tests/golden/data"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of golden tensors")
    parser.add_argument("--backend", default="torch", help="what to compare (default: torch)")
    parser.add_argument("--json", action="store_true", help="print a json object per file")


def run(args: argparse.Namespace) -> int:
    """Print a line per file and return 0 when all are within the limits."""
    from bootpig_rt.export.golden import END_TO_END_LIMIT, verify_golden
    from bootpig_rt.export.golden_step import STEP_LIMIT, TIE_LIMIT

    passed = True
    for number, report in enumerate(verify_golden(args.folder, backend=args.backend)):
        passed &= report.passed
        if args.json:
            # NaN is no json: null, with "passed": false beside it.
            errors = {key: e if math.isfinite(e) else None for key, e in report.errors.items()}
            line = {
                "file": report.name,
                "backend": args.backend,
                "passed": report.passed,
                "errors": errors,
                "rounding": report.rounding if math.isfinite(report.rounding) else None,
                "flips": report.flips,
                "flip_distance": report.flip_distance,
                "choices": report.choices,
            }
            print(json.dumps(line), flush=True)
            continue
        if number == 0:
            _print("file", "within a step", "end to end", "of rounding", "flips")
            _print("limit", f"{STEP_LIMIT:.1e}", f"{END_TO_END_LIMIT:.1e}", "-", f"{TIE_LIMIT:.1e}")
        end = report.end_to_end_error
        flips = f"{report.flips} of {report.choices}" if report.choices else "-"
        _print(
            report.name,
            f"{report.step_error:.1e}",
            "-" if end is None else f"{end:.1e}",
            "-" if end is None else f"{report.rounding:.1e}",
            flips + (f", {report.flip_distance:.1e}" if report.flips else ""),
            "ok" if report.passed else "FAILED",
        )
    return EXIT_OK if passed else EXIT_FAILURE


def _print(name: str, step: str, end: str, rounding: str, flips: str, verdict: str = "") -> None:
    line = f"{name:<20} {step:>14} {end:>12} {rounding:>12} {flips:>20}  {verdict}"
    print(line.rstrip(), flush=True)
