"""`bootpig-rt tune`: choose cheaper settings from a pair's curve, or measure the curve."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.cli.options import add_manner_arguments, add_model_arguments, be_quiet_if_asked
from bootpig_rt.errors import EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.curve import Curve
    from bootpig_rt.tuning import TunedSettings

NAME = "tune"
HELP = "choose cheaper settings by what they cost and keep, or measure that for a pair"

EXAMPLES = """\
A curve lies beside the folder of its pair, FOLDER.curve.json; the shipped pair has one. To measure
takes up to an hour; interrupted, the same command goes on where it was.

examples:
  bootpig-rt tune --target-ms 150
  bootpig-rt tune --min-fidelity 0.98 --json
  bootpig-rt tune --list
  bootpig-rt tune --measure --data data --model my-bundle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--target-ms", type=float, metavar="MS", help="the most that a picture may take"
    )
    parser.add_argument(
        "--min-fidelity",
        type=float,
        metavar="X",
        help="the least that it must keep: 1 as the full setting, 0 as without its subject",
    )
    parser.add_argument(
        "--students", action="store_true", help="take few-step pairs of the curve into account"
    )
    parser.add_argument(
        "--curve", type=Path, metavar="FILE", help="the curve (default: that beside the pair)"
    )
    parser.add_argument("--list", action="store_true", help="show all points of the curve")
    group = parser.add_argument_group("measuring")
    group.add_argument("--measure", action="store_true", help="measure the curve and write it")
    group.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR",
        help="what `fetch-data` made: drawings for the judges (default: data)",
    )  # fmt: skip
    group.add_argument(
        "--student", type=Path, metavar="DIR",
        help="a pair that stage `distill` wrote (default for the shipped pair: the shipped one)",
    )  # fmt: skip
    group.add_argument(
        "--subjects", type=int, default=50, metavar="N",
        help="that the judges see pictures of, 5 to 50 (default: 50)",
    )  # fmt: skip
    group.add_argument(
        "--prompts", type=int, default=4, metavar="N",
        help="pictures of each subject, 1 to 8 (default: 4)",
    )  # fmt: skip
    group.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="points that begin with NAME, beside the full setting; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="of times, 10 or more (default: 20)"
    )
    group.add_argument(
        "--work", type=Path, default=Path("bench"), metavar="DIR",
        help="pictures and verdicts, kept between runs (default: bench)",
    )  # fmt: skip
    group.add_argument(
        "--smoke", action="store_true", help="small numbers, to see that all runs; no curve of it"
    )
    add_model_arguments(parser)
    add_manner_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, list or choose."""
    be_quiet_if_asked(args)
    if args.measure:
        return _measure(args)
    if args.list:
        return _list(args)
    return _choose(args)


def _choose(args: argparse.Namespace) -> int:
    from bootpig_rt.cli.options import load_pipeline
    from bootpig_rt.tuning import check_wishes

    check_wishes(args.target_ms, args.min_fidelity)
    with load_pipeline(args) as pipeline:
        tuned = pipeline.tune(
            target_ms=args.target_ms,
            min_fidelity=args.min_fidelity,
            curve=args.curve,
            students=args.students,
        )
    if args.json:
        print(json.dumps(_summary(tuned), indent=2))
    elif not args.quiet:
        print(tuned.describe())
        print(f"generate   {' '.join(options_of(tuned)) or 'needs no option'}")
    return EXIT_OK


def options_of(settings: TunedSettings) -> list[str]:
    """The options of `bootpig-rt generate` that mean the same."""
    names = {
        "num_inference_steps": "--steps",
        "image_guidance_scale": "--image-guidance",
        "text_guidance_scale": "--text-guidance",
    }
    words: list[str] = []
    for name in settings.keys():
        value = settings[name]
        text = f"{value[0]:g}-{value[1]:g}" if isinstance(value, tuple) else f"{value}"
        words += [names.get(name, f"--{name.replace('_', '-')}"), text]
    return words


def _summary(tuned: TunedSettings) -> dict[str, Any]:
    from msgspec import to_builtins

    return {
        "settings": dict(tuned),
        "expected_ms": round(tuned.expected_ms, 3),
        "full_ms": round(tuned.full_ms, 3),
        "is_student": tuned.is_student,
        "options": options_of(tuned),
        "point": to_builtins(tuned.point),
    }


def _list(args: argparse.Namespace) -> int:
    from msgspec import to_builtins

    from bootpig_rt.curve import load_curve

    curve = load_curve(args.curve or _curve_path(args))
    if args.json:
        print(json.dumps(to_builtins(curve), indent=2))
    else:
        print("\n".join(lines_of(curve)))
    return EXIT_OK


def lines_of(curve: Curve) -> list[str]:
    """A curve as a table."""
    head = (
        f"{curve.pair}: {curve.num_pictures} pictures a point, {curve.rounds} rounds, compared "
        f"with {curve.full}"
    )
    lines = [head, f"{'':24}{'work':>6}{'time':>6}{'fidelity':>10}{'psnr dB':>9}{'apart dB':>10}"]
    for point in curve.points:
        change = point.changes.get("psnr_db")
        lines.append(
            f"{point.name:24}{point.work:6.2f}{point.time.value:6.2f}{point.fidelity:10.3f}"
            f"{0.0 if change is None else change.value:+9.2f}{point.difference_db:10.1f}"
        )
    return lines


def _measure(args: argparse.Namespace) -> int:
    from bootpig_rt.benchmarks.curve import measure_curve
    from bootpig_rt.benchmarks.settings import Settings, progress_bar
    from bootpig_rt.bundle.bundle import is_bundle
    from bootpig_rt.bundle.shipped import few_step_model
    from bootpig_rt.checks import check_int
    from bootpig_rt.curve import save_curve

    if args.target_ms is not None or args.min_fidelity is not None or args.list:
        raise ParameterError("--measure chooses nothing; leave out the other options, then tune")
    folder = _folder(args)
    if not is_bundle(folder):
        raise ParameterError(
            f"{folder} is no bundle, whose steps can be timed; build one with bootpig-rt "
            f"build-engine --target cpu --pair {folder} -o BUNDLE"
        )
    student = args.student
    if student is None and args.model is None:
        student = few_step_model()
    least = 1 if args.smoke else 10
    rounds = 1 if args.smoke else args.rounds
    threads = 2 if args.threads is None else args.threads
    settings = Settings(
        pair=folder,
        rounds=check_int("--rounds", rounds, least, 10_000, "fewer support no interval"),
        threads=check_int("--threads", threads, 1, 1024, "2 is usual"),
        is_smoke=args.smoke,
        data=args.data,
        work=args.work,
        student=student,
        subjects=check_int("--subjects", args.subjects, 5, 50, "fewer support no interval"),
        prompts=check_int("--prompts", args.prompts, 1, 8, "4 is usual"),
        only=tuple(args.only),
    )
    with progress_bar("tune") as progress:
        curve = measure_curve(_with_progress(settings, progress, is_shown=not args.quiet))
    path = args.curve or _curve_path(args)
    if not args.smoke:
        save_curve(curve, path)
    if args.json:
        from msgspec import to_builtins

        print(json.dumps(to_builtins(curve), indent=2))
    elif not args.quiet:
        print("\n".join(lines_of(curve)))
        print("a smoke run: nothing was written" if args.smoke else f"curve: {path}")
    return EXIT_OK


def _with_progress(settings: Any, progress: Any, *, is_shown: bool) -> Any:
    from dataclasses import replace

    return replace(settings, progress=progress) if is_shown else settings


def _folder(args: argparse.Namespace) -> Path:
    from bootpig_rt.bundle.shipped import default_model

    return default_model() if args.model is None else Path(args.model)


def _curve_path(args: argparse.Namespace) -> Path:
    from bootpig_rt.curve import curve_path

    return curve_path(_folder(args))
