"""`bootpig-rt bench-gpu`: kernels, steps and pictures on a CUDA GPU, next to their targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK

NAME = "bench-gpu"
HELP = (
    "measure kernels, steps and pictures on this GPU against stock libraries and the published way"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Needs no files: weights are random and made on the device. Results are compared before\n"
        "anything is timed. The JSON file is written after each part.\n\n"
        "examples:\n"
        "  bootpig-rt bench-gpu --output gpu.json --markdown gpu.md\n"
        "  bootpig-rt bench-gpu --only kernel --minutes 3\n"
        "  bootpig-rt bench-gpu --only picture --cases r1-b1 --ways published,sdpa,shared_rows\n"
        "  bootpig-rt bench-gpu --rehearse"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run all paths on the CPU at toy size; its times mean nothing",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="JSON file to write")
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, help="ablation table to write, in Markdown"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON, not the tables")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="time budget; what does not fit is left out and says so (default: 9)",
    )
    parser.add_argument(
        "--only",
        metavar="PARTS",
        default="kernel,picture",
        help="kernel, picture or both with a comma (default: both)",
    )
    parser.add_argument(
        "--cases",
        metavar="NAMES",
        help="pictures to draw: r1-b1 is one reference and a batch of one (default: all)",
    )
    parser.add_argument(
        "--ways",
        metavar="NAMES",
        help="rungs of the ablation to draw, such as published,shared_rows (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, write."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr
    from bootpig_rt.benchmarks.gpu.ablation_markdown import write_markdown
    from bootpig_rt.benchmarks.gpu.ladder import check_names
    from bootpig_rt.benchmarks.gpu.plan import make_plan
    from bootpig_rt.benchmarks.gpu.run import failures, run_plan
    from bootpig_rt.benchmarks.gpu.table import text_of

    ways = _names(args.ways)
    check_names(ways)
    plan = make_plan(
        rehearse=args.rehearse,
        minutes=args.minutes,
        parts=_names(args.only),
        ways=ways,
        cases=_names(args.cases),
        progress=_show_progress if sys.stderr.isatty() else None,
    )
    try:
        report, targets = run_plan(plan, args.output)
    finally:
        _end_progress()
    if args.markdown is not None:
        if args.output is not None:
            write_markdown(args.output, args.markdown)
        else:
            with tempfile.TemporaryDirectory() as folder:
                report.save(Path(folder) / "report.json")
                write_markdown(Path(folder) / "report.json", args.markdown)
    if args.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        print(text_of(report, targets))
    wrong = failures(report)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return EXIT_FAILURE if wrong else EXIT_OK


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",")) if given is not None else ()


_LINE = 100


def _show_progress(what: str) -> None:
    print(f"\r{what[:_LINE]:{_LINE}}", end="", file=sys.stderr, flush=True)


def _end_progress() -> None:
    if sys.stderr.isatty():
        print(f"\r{'':{_LINE}}\r", end="", file=sys.stderr, flush=True)
