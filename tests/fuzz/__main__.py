"""Give the code that reads what strangers send a great many inputs: `make fuzz`.

    PYTHONPATH=. python -m tests.fuzz --inputs 100000
    PYTHONPATH=. python -m tests.fuzz --replay picture .fuzz/found/picture-19-7.input

Inputs are drawn by seed, kind and number, so a run can be repeated; one that was interrupted goes
on where it was. The exit code is 1 where anything was found.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from bootpig_rt.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK
from tests.fuzz.asking import documented_codes, judged, sent
from tests.fuzz.campaign import Campaign, Plan
from tests.fuzz.checks import Checks
from tests.fuzz.kinds import KINDS
from tests.fuzz.results import Finding, Piece, joined
from tests.fuzz.service import faults_told, kept_subject, running_service
from tests.fuzz.worker import check_input, prepare_process


def main() -> int:
    """Run, or replay one input."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=19, help="draws the inputs")
    parser.add_argument("--work", type=Path, default=Path(".fuzz"), help="holds what was done")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "FILE"), help="read one input again")
    args = parser.parse_args()
    work = args.work.resolve()
    if args.replay is not None:
        return replay(args.replay[0], Path(args.replay[1]).read_bytes(), work)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(args.inputs, tuple(args.kinds), args.seed, work, args.jobs)
    total = sum(end - begin for _, begin, end in plan.pieces())
    with tqdm(total=total, unit="input", disable=None) as bar:
        try:
            pieces = Campaign(plan, lambda piece: bar.update(piece.end - piece.begin)).run()
        except KeyboardInterrupt:
            bar.write("interrupted; the same command goes on")
            return EXIT_INTERRUPTED
    return report(pieces)


def report(pieces: list[Piece]) -> int:
    """Print a table, as the docs have it, and what was found."""
    by_kind = defaultdict(list)
    for piece in pieces:
        by_kind[piece.kind].append(piece)
    print("| inputs | number | of which read | refused | most memory of one | growth | time |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for kind, many in by_kind.items():
        one = joined(many)
        number = sum(one.outcomes.values())
        read = sum(n for name, n in one.outcomes.items() if name.startswith(("read", "20")))
        print(
            f"| {KINDS[kind].told} | {number:,} | {read:,} | {number - read:,} | "
            f"{one.peak_mib:.0f} MiB | {max(0.0, one.growth_mib):.1f} MiB | {one.seconds:.0f} s |"
        )
        found += [(kind, finding) for finding in one.findings]
    print()
    for kind, many in by_kind.items():
        outcomes = sorted(joined(many).outcomes.items(), key=lambda pair: -pair[1])
        print(f"{kind}: " + ", ".join(f"{name} {number:,}" for name, number in outcomes))
    same: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for kind, finding in found:
        same[kind, finding.what.partition("(")[0]].append(finding)
    for (kind, _), findings in same.items():
        print(f"FOUND in {len(findings)} of {kind}: {findings[0].what}")
        for file in [one.file for one in findings if one.file][:3]:
            print(f"  PYTHONPATH=. python -m tests.fuzz --replay {kind} {file}")
    print(f"{len(found)} findings")
    return EXIT_FAILURE if found else EXIT_OK


def replay(kind: str, data: bytes, work: Path) -> int:
    """Read one input again, and say what comes of it."""
    if kind == "request":
        with TemporaryDirectory() as folder, running_service(Path(folder)) as service:
            service.subject = kept_subject(service)
            answer = sent(service, data)
        wrong = judged(answer, data, documented_codes())
        print(f"{answer.status} {answer.code or ''}", *faults_told(service.lines), sep="\n")
    else:
        prepare_process()
        with TemporaryDirectory() as folder:
            checks = Checks(Path(folder), work / "made")
            outcome, wrong = check_input(checks, kind, data)
            checks.close()
        print(outcome)
    print("nothing wrong" if wrong is None else wrong)
    return EXIT_OK if wrong is None else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
