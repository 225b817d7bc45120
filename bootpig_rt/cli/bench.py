"""`bootpig-rt bench`: measure, compare with an earlier run, and make pages of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.benchmarks.result import SuiteResult

NAME = "bench"
HELP = "measure speed and quality beside named baselines, on a CPU or a GPU; gate a release"

EXAMPLES = """\
Interrupted, the same command goes on where it was.

examples:
  bootpig-rt bench --suite baselines
  bootpig-rt bench --suite baselines --suite kernels --device cuda -o gpu.json
  bootpig-rt bench --suite baselines --against runs.json --max-regression 5%
  bootpig-rt bench --suite full-size --rounds 10 -o full-size.json
  bootpig-rt bench --suite serving --rounds 10 -o serving.json
  bootpig-rt bench --suite serving --url http://127.0.0.1:8000     # a service that runs already
  bootpig-rt bench --from runs.json --report pages     # pages of an earlier run
"""

_SUITES = (
    "baselines", "full-size", "full-size-512", "shares", "reference", "quality", "inpaint",
    "control", "latency", "kernels", "builds", "serving", "soak",
)  # fmt: skip
_ROUNDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--suite", action="append", choices=_SUITES, metavar="NAME", default=[],
        help=f"{', '.join(_SUITES)}; may be repeated (default: baselines)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what draws (default: cpu)"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR",
        help="the pair (default: the packaged one; on cuda one of Stable Diffusion 2.1's size with "
        "random weights, made in the work folder)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"of all ways, 10 or more (default: {_ROUNDS})"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="pinned (default: 2)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="rows that begin with NAME, and what they are compared with; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", default="", metavar="NAME",
        help="the row that suites baselines and full-size divide by (default: the strongest "
        "published way)",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="one round and small numbers, to see that all runs"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR",
        help="what `fetch-data` made, for suites that judge pictures (default: data)",
    )  # fmt: skip
    parser.add_argument(
        "--student", type=Path, metavar="DIR",
        help="a pair that stage `distill` wrote, for suite quality (default for the packaged pair: "
        "the packaged student)",
    )  # fmt: skip
    parser.add_argument(
        "--url", default="", metavar="URL",
        help="suite serving measures the service there, in place of servers that it starts; "
        "BOOTPIG_RT_API_KEY has its key; it is offered up to ten times what it can do",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=int, default=30, metavar="N", help="of suite soak (default: 30)"
    )
    parser.add_argument(
        "--references", type=int, action="append", default=[], metavar="N",
        help="of suite baselines on a GPU; may be repeated (default: 1 and 4)",
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
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write Markdown pages with plots"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE",
        help="compare the ratios with those of an earlier run; exit code 1 if one is worse or gone",
    )  # fmt: skip
    parser.add_argument(
        "--max-regression", default="5%", metavar="SHARE",
        help="how much worse a ratio may be, 5%% or 0.05 (default: 5%%)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure or read, then print, keep, compare and report."""
    if args.source is not None and args.suite:
        raise ParameterError("--from measures nothing; leave out --suite")
    if args.url and args.suite != ["serving"]:
        raise ParameterError("--url is for --suite serving alone")
    limit = _share(args.max_regression)
    results = _results(args)
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(results), indent=1).decode())
    else:
        from bootpig_rt.benchmarks.tables import text

        print("\n".join(line for result in results for line in text(result)))
    if args.report is not None:
        from bootpig_rt.benchmarks.pages import write_pages

        for page in write_pages(results, args.report):
            print(f"page: {page}", file=sys.stderr)
    wrong = [f"{each.suite}: {what}" for each in results for what in each.wrong()]
    if wrong:
        print(
            f"error: {len(wrong)} are wrong, so their times mean nothing: {'; '.join(wrong)}",
            file=sys.stderr,
        )
    passes = args.against is None or _compare(results, args, limit)
    return EXIT_OK if passes and not wrong else EXIT_FAILURE


def _results(args: argparse.Namespace) -> list[SuiteResult]:
    """Results of an earlier run, or of the suites that are asked for, saved after each of them."""
    from bootpig_rt.benchmarks.result import LEAST_ROUNDS, load_results, save_results

    if args.source is not None:
        found = [result for path in args.source for result in load_results(path)]
        if args.output is not None:
            save_results(found, args.output)
        return found
    from dataclasses import replace

    from bootpig_rt.benchmarks.pairs import default_pair
    from bootpig_rt.benchmarks.settings import Settings, progress_bar
    from bootpig_rt.benchmarks.suites import ON_CUDA, run_suite
    from bootpig_rt.bundle.shipped import few_step_model
    from bootpig_rt.checks import check_int

    names = list(dict.fromkeys(args.suite or ["baselines"]))
    student = args.student
    if student is None and args.model is None and "quality" in names:
        student = few_step_model()
    others = [name for name in names if name not in ON_CUDA]
    if args.device == "cuda" and others:
        raise ParameterError(
            f"suite {others[0]} is of the packaged pair on a CPU, expected one of "
            f"{', '.join(ON_CUDA)} with --device cuda"
        )
    rounds = args.rounds if args.rounds is not None else (1 if args.smoke else _ROUNDS)
    least = 1 if args.smoke else LEAST_ROUNDS
    settings = Settings(
        pair=args.model or default_pair(args.device, args.work, is_smoke=args.smoke),
        device=args.device,
        rounds=check_int("--rounds", rounds, least, 10_000, "fewer support no interval"),
        threads=check_int("--threads", args.threads, 1, 1024, "2 is usual"),
        is_smoke=args.smoke,
        data=args.data,
        work=args.work,
        student=student,
        only=tuple(args.only),
        url=args.url,
        minutes=check_int("--minutes", args.minutes, 1, 10_000, "30 is usual"),
        baseline=args.baseline,
        references=tuple(
            check_int("--references", count, 1, 16, "1 is usual") for count in args.references
        ),
    )
    results: list[SuiteResult] = []
    for name in names:
        baseline = args.baseline or _baseline_of(args.against, name, args.device)
        with progress_bar(name) as progress:
            asked = replace(settings, progress=progress, baseline=baseline)
            results.append(run_suite(name, asked))
        # After each suite: what interrupts a long run costs the suite that runs, no more.
        if args.output is not None:
            save_results(results, args.output)
    return results


_TO_THE_STRONGEST = ("baselines", "full-size", "full-size-512")
"""Suites whose ratios are to the published way that is the strongest on the machine."""


def _baseline_of(against: Path | None, suite: str, device: str) -> str:
    """What the earlier run's ratios of a suite are to; empty where there is none."""
    if against is None or suite not in _TO_THE_STRONGEST:
        return ""
    from bootpig_rt.benchmarks.result import load_results

    for result in load_results(against):
        if result.suite == suite and result.device == device:
            names = [row.ratio.to for row in result.rows if row.ratio is not None]
            return names[0] if names else ""
    return ""


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
