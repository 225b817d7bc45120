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
        "error is above 1e-4 within a step or 1e-3 end to end, 2 when the folder is unusable.\n\n"
        "example:\n  bootpig-rt verify-golden tests/golden/data"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of golden tensors")
    parser.add_argument("--backend", default="torch", help="what to compare (default: torch)")
    parser.add_argument("--json", action="store_true", help="print a json object per file")


def run(args: argparse.Namespace) -> int:
    """Print a line per file and return 0 when all are within the limits."""
    from bootpig_rt.export.golden import END_TO_END_LIMIT, STEP_LIMIT, verify_golden

    passed = True
    for number, report in enumerate(verify_golden(args.folder, backend=args.backend)):
        passed &= report.passed
        if number == 0 and not args.json:
            print(f"{'file':<20} {'within a step':>14} {'end to end':>14}")
            print(f"{'limit':<20} {STEP_LIMIT:>14.1e} {END_TO_END_LIMIT:>14.1e}")
        end = report.end_to_end_error
        if args.json:
            # NaN is no json: null, with "passed": false beside it.
            errors = {key: e if math.isfinite(e) else None for key, e in report.errors.items()}
            line = {
                "file": report.name,
                "backend": args.backend,
                "passed": report.passed,
                "errors": errors,
            }
            print(json.dumps(line), flush=True)
            continue
        verdict = "ok" if report.passed else "FAILED"
        end_text = "-" if end is None else f"{end:.1e}"
        print(f"{report.name:<20} {report.step_error:>14.1e} {end_text:>14}  {verdict}", flush=True)
    return EXIT_OK if passed else EXIT_FAILURE
