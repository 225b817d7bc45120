"""`bootpig-rt bench`: measure, compare with an earlier run, and make a page of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.benchmarks.result import SuiteResult

NAME = "bench"
HELP = "measure speed, quality and scale beside named baselines; gate a release; make a report"

EXAMPLES = """\
examples:
  bootpig-rt bench --suite baselines
  bootpig-rt bench --suite baselines --suite reference --output runs.json --report page
  bootpig-rt bench --suite baselines --against runs.json --max-regression 5%
  bootpig-rt bench --from runs.json --report page      # a page of an earlier run
"""

_STUDENT = Path("runs/distill/result")
_SUITES = ("latency", "baselines", "reference", "scale", "quality", "kernels", "builds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--suite", action="append", choices=_SUITES, metavar="NAME", default=[],
        help=f"{', '.join(_SUITES)}; may be repeated (default: baselines)",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="DIR", help="the pair (default: packaged)")
    parser.add_argument("--rounds", type=int, metavar="N", help="of all ways (default: 20)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="pinned (default: 2)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="rows that begin with NAME, and what they are compared with; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="few rounds and small numbers, to see that all runs"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR",
        help="what `fetch-data` made, for suites that judge pictures (default: data)",
    )  # fmt: skip
    parser.add_argument(
        "--student", type=Path, metavar="DIR",
        help="a pair that stage `distill` wrote, for suite quality (default: runs/distill/result "
        "where there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=Path, default=Path("bench"), metavar="DIR",
        help="graphs and pictures of the suites, kept between runs (default: bench)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="write results as JSON, after each suite",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", action="append",
        help="take the results of an earlier run, and measure nothing; may be repeated",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page with plots")
    parser.add_argument(
        "--against", type=Path, metavar="FILE",
        help="compare the ratios with those of an earlier run; exit code 1 if one is worse or gone",
    )  # fmt: skip
    parser.add_argument(
        "--max-regression", default="5%", metavar="SHARE",
        help="how much worse a ratio may be, 5%% or 0.05 (default: 5%%)",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=Path, metavar="DIR",
        help="trace a picture: Chrome traces and a table of operators for each runtime",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure or read, then print, keep, compare and report."""
    if args.source is not None and (args.suite or args.profile):
        raise ParameterError("--from measures nothing; leave out --suite and --profile")
    limit = _share(args.max_regression)
    results = _results(args)
    if args.json:
        print(json.dumps([result.to_dict() for result in results], indent=1))
    else:
        from bootpig_rt.benchmarks.table import lines

        print("\n".join(line for result in results for line in lines(result)))
    if args.report is not None:
        from bootpig_rt.benchmarks.report.page import write_report

        path = write_report(results, args.report, pair=args.model)
        if not args.json:
            print(f"report: {path}")
    is_right = _report_wrong(results)
    if args.against is not None:
        passes = _compare(results, args, limit)
        return EXIT_OK if passes and is_right else EXIT_FAILURE
    return EXIT_OK if is_right else EXIT_FAILURE


def _report_wrong(results: list[SuiteResult]) -> bool:
    """Are all checks right? Those that are not are named on stderr."""
    wrong = [f"{each.suite}: {c.name}" for each in results for c in each.checks if not c.is_ok]
    if wrong:
        print(
            f"error: {len(wrong)} checks are wrong, so these times mean nothing: "
            f"{'; '.join(wrong)}",
            file=sys.stderr,
        )
    return not wrong


def _results(args: argparse.Namespace) -> list[SuiteResult]:
    """Results of an earlier run, or of the suites that are asked for, saved after each of them."""
    from bootpig_rt.benchmarks.result import load_results, save_results

    if args.source is not None:
        found = [result for path in args.source for result in load_results(path)]
        if args.output is not None:
            save_results(found, args.output)
        return found
    from dataclasses import replace

    from bootpig_rt.benchmarks.machine import Watch
    from bootpig_rt.benchmarks.progress import bar
    from bootpig_rt.benchmarks.settings import Settings
    from bootpig_rt.benchmarks.suites import load_suite
    from bootpig_rt.checks import check_int
    from bootpig_rt.pipeline import default_model

    rounds = args.rounds if args.rounds is not None else (1 if args.smoke else 20)
    settings = Settings(
        pair=args.model or default_model(),
        rounds=check_int("rounds", rounds, 1, 10_000, "20 is usual"),
        threads=check_int("threads", args.threads, 1, 1024, "2 is usual"),
        is_smoke=args.smoke,
        data=args.data,
        work=args.work,
        student=args.student or (_STUDENT if _STUDENT.is_dir() else None),
        only=tuple(args.only),
    )
    names = list(dict.fromkeys(args.suite or ([] if args.profile else ["baselines"])))
    results: list[SuiteResult] = []
    for name in [*names, *(["profile"] if args.profile is not None else [])]:
        watch = Watch(settings.threads)
        with bar(name) as progress:
            shown = replace(settings, progress=progress)
            if name == "profile":
                from bootpig_rt.benchmarks.profile import profile_picture

                result = profile_picture(shown, args.profile)
            else:
                result = load_suite(name).run(shown)
        results.append(result.measured_on(watch))
        # After each suite: what interrupts a long run costs the suite that runs, no more.
        if args.output is not None:
            save_results(results, args.output)
    return results


def _compare(results: list[SuiteResult], args: argparse.Namespace, limit: float) -> bool:
    """Does no ratio fall too far, and is none gone?"""
    from bootpig_rt.benchmarks.gate import compare
    from bootpig_rt.benchmarks.result import load_results

    verdicts = compare(
        load_results(args.against), results, max_regression=limit, only=tuple(args.only)
    )
    states = [verdict.state for verdict in verdicts]
    if args.json:
        for verdict in verdicts:
            if verdict.fails:
                print(verdict, file=sys.stderr)
    else:
        print("\n".join(map(str, verdicts)))
        print(
            f"{len(verdicts)} ratios compared with {args.against}, "
            f"{states.count('worse')} worse by over {limit:.0%}, {states.count('gone')} gone"
        )
    if "blind" in states:
        print(
            f"warning: {states.count('blind')} of {len(verdicts)} ratios scatter too much to see a "
            f"fall of {limit:.0%}; take more --rounds, on a quieter machine",
            file=sys.stderr,
        )
    return not any(verdict.fails for verdict in verdicts)


def _share(text: str) -> float:
    """5% or 0.05 as a number."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ParameterError(f"--max-regression is {text!r}, expected a share such as 5% or 0.05")
    return value
