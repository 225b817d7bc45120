"""`bootpig-rt plan`: what a picture will cost, and how many machines a load needs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bootpig_rt.errors import EXIT_OK, ParameterError

NAME = "plan"
HELP = "how many machines N pictures a minute need, by a measured cost model"

EXAMPLES = """\
The model is that of one kind of machine and one pair: those that FILE was measured on.

examples:
  bootpig-rt bench --suite scale --output scale.json
  bootpig-rt plan 6000 --from scale.json
  bootpig-rt plan 6000 --from scale.json --steps 8 --batch 4 --new-subjects 0.1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument("rate", type=float, metavar="N", help="pictures a minute")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="FILE",
        help="results of `bench --suite scale` on a machine of the fleet",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="(default: 25)")
    parser.add_argument(
        "--batch", type=int, default=4, metavar="N", help="pictures of a call (default: 4)"
    )
    parser.add_argument(
        "--references", type=int, default=1, metavar="N", help="of a subject (default: 1)"
    )
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="(default: 64)")
    parser.add_argument(
        "--reference-schedule", default="clean", metavar="NAME",
        help="without a window (default: clean)",
    )  # fmt: skip
    parser.add_argument(
        "--new-subjects", type=float, default=0.0, metavar="SHARE",
        help="of the pictures, those whose subject was never seen (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--utilisation", type=float, default=0.7, metavar="SHARE",
        help="of the time that a machine may be busy (default: 0.7)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Read the model, predict, print."""
    from bootpig_rt.benchmarks.capacity import CostModel, Load, plan
    from bootpig_rt.benchmarks.cost_model import Configuration
    from bootpig_rt.benchmarks.result import load_results
    from bootpig_rt.checks import MAX_STEPS, check_int

    picture = Configuration(
        steps=check_int("--steps", args.steps, 1, MAX_STEPS, "25 is usual"),
        batch=check_int("--batch", args.batch, 1, 1024, "4 is usual"),
        references=check_int("--references", args.references, 1, 1024, "1 is usual"),
        size_px=check_int("--size", args.size, 1, 8192, "64 is the packaged pair's"),
        entries=_entries(args.reference_schedule, args.steps),
    )
    load = Load(args.rate, picture, args.new_subjects, args.utilisation)
    model = CostModel.of(load_results(args.source))
    found = plan(model, load)
    if args.json:
        print(json.dumps({"pair": model.pair, "pictures_per_minute": args.rate, **found.to_dict()}))
        return EXIT_OK
    print(
        f"{picture.steps} steps, {picture.batch} at once, {picture.references} references, "
        f"{picture.size_px} px, pair {model.pair}"
    )
    print(
        f"{found.ms_a_picture:,.1f} ms a picture, +-{found.time_error:.0%}: a call takes "
        f"{found.ms_a_call:,.0f} ms, a new subject {found.ms_a_new_subject:,.0f} more"
    )
    if found.bytes_a_process is not None:
        size = found.bytes_a_process / 2**20
        print(f"{size:,.0f} MiB a process at most, +-{found.memory_error:.0%}")
    print(
        f"{found.machines:,} machines for {args.rate:,g} pictures a minute at "
        f"{args.utilisation:.0%} utilisation, {found.machines_at_worst:,} if the model is as wrong "
        "as it was at worst"
    )
    return EXIT_OK


def _entries(text: str, steps: int) -> int:
    import numpy as np

    from bootpig_rt.reference.schedule import WHOLE, ReferenceSchedule

    schedule = ReferenceSchedule.parse(text)
    if schedule.window != WHOLE:
        raise ParameterError(
            f"--reference-schedule is {text!r}: the model knows no steps without a reference; "
            "leave the window out"
        )
    return len(schedule.timesteps(np.arange(steps)))
