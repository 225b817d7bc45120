"""`bootpig-rt plan-fleet`: how many replicas a load takes, from step times that were measured."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from bootpig_rt.cli.options import add_model_arguments, load_pipeline
from bootpig_rt.errors import EXIT_OK, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.serving.fleet_model import IngressFigures, ReplicaFigures

NAME = "plan-fleet"
HELP = "how many replicas a load takes, from step times of this machine or given ones"

_GIB = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Without --step-ms the model is drawn with on this machine for some seconds, which should\n"
        "do nothing else meanwhile. What came out can be given to later runs.\n\n"
        "examples:\n"
        "  bootpig-rt plan-fleet --rate 5\n"
        "  bootpig-rt plan-fleet --rate 300 --latency 1 --subjects 5000 --picture-px 512 \\\n"
        "      --step-ms 1=7.9,4=26,8=50 --picture-ms 12 --pass-ms 66 --table-mib 1116"
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--rate", type=float, required=True, metavar="N", help="pictures a second, at random"
    )
    load.add_argument(
        "--steps", type=int, metavar="N", help="of a picture (default: the pair's, or 25)"
    )
    load.add_argument(
        "--latency",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="in which 95 of 100 are drawn (default: 2)",
    )
    load.add_argument(
        "--subjects",
        type=int,
        default=1000,
        metavar="N",
        help="that are drawn in turn at any time (default: 1000)",
    )
    load.add_argument(
        "--pictures-per-subject",
        type=float,
        default=20.0,
        metavar="N",
        help="before nobody asks for it any more (default: 20)",
    )
    figures = parser.add_argument_group("figures of a replica, in place of measuring")
    figures.add_argument("--step-ms", metavar="LIST", help="by pictures of a step: 1=7.9,4=26,8=50")
    figures.add_argument(
        "--picture-ms", type=float, default=0.0, metavar="MS", help="beside its steps (default: 0)"
    )
    figures.add_argument(
        "--pass-ms", type=float, default=0.0, metavar="MS", help="of a table (default: 0)"
    )
    figures.add_argument(
        "--table-mib", type=float, default=0.0, metavar="MIB", help="of a table (default: 0)"
    )
    figures.add_argument(
        "--picture-px", type=int, default=512, metavar="PX", help="side (default: 512)"
    )
    parser.add_argument(
        "--format", default="png", help="of the answers: png, jpeg or webp (default: png)"
    )
    machine = parser.add_argument_group("replicas")
    machine.add_argument(
        "--tables-gib",
        type=float,
        default=1.0,
        metavar="GIB",
        help="room for tables on a device (default: 1)",
    )
    machine.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="measured up to (default: 8)"
    )
    machine.add_argument(
        "--references", type=int, default=1, metavar="N", help="of a subject (default: 1)"
    )
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a json object")


def run(args: argparse.Namespace) -> int:
    """Measure or read, plan, report."""
    from bootpig_rt.serving.fleet_model import Workload
    from bootpig_rt.serving.fleet_plan import plan_fleet

    steps, figures, ingress = _given(args) if args.step_ms else _measured(args)
    load = Workload(
        rate_per_s=args.rate,
        steps=steps,
        latency_s=args.latency,
        subjects=args.subjects,
        pictures_per_subject=args.pictures_per_subject,
    )
    plan = plan_fleet(load, figures, ingress)
    times = {size: round(1e3 * step_s, 3) for size, step_s in sorted(figures.step_s.items())}
    if args.json:
        measured = {
            "steps": steps,
            "step_ms": times,
            "picture_ms": round(1e3 * figures.picture_s, 3),
            "pass_ms": round(1e3 * figures.pass_s, 3),
            "table_bytes": figures.table_bytes,
            "request_cpu_ms": 1e3 * ingress.request_s,
            "encode_ms": round(1e3 * ingress.encode_s, 3),
            "choice_ms": round(1e3 * ingress.choice_s, 3),
        }
        print(json.dumps({"plan": plan.to_dict(), "figures": measured}, indent=2))
        return EXIT_OK
    print(
        f"a step of {', '.join(f'{size}: {ms:g} ms' for size, ms in times.items())}; "
        f"{1e3 * figures.picture_s:.3g} ms beside the steps; a table: "
        f"{1e3 * figures.pass_s:.3g} ms, {figures.table_bytes / (1 << 20):.4g} MiB"
    )
    print(
        f"{plan.replicas} replicas: {plan.utilisation:.0%} busy, {plan.batch:.1f} pictures a "
        f"step, {plan.latency_mean_s:.2f} s a picture, {plan.latency_p95_s:.2f} s for 95 of 100"
    )
    print(
        f"full batches alone would take {plan.at_least}; without routing by subject "
        f"{plan.at_least_anywhere}: tables found {plan.hit_ratio:.0%} against "
        f"{plan.hit_ratio_anywhere:.0%}, room for {plan.tables} on each"
    )
    print(
        f"ingress: {plan.ingress_cores:.1f} cores, {plan.answers_bytes_per_s / 1e6:.1f} MB/s of "
        "answers"
    )
    return EXIT_OK


def _measured(args: argparse.Namespace) -> tuple[int, ReplicaFigures, IngressFigures]:
    from bootpig_rt.request import Request
    from bootpig_rt.serving.fleet_measure import measure_ingress, measure_replica

    with load_pipeline(args, max_batch=args.max_batch) as pipeline:
        steps = args.steps or pipeline.spec.config.default_steps
        replica = measure_replica(
            pipeline,
            steps=steps,
            references=args.references,
            tables_bytes=int(args.tables_gib * _GIB),
            max_batch=min(args.max_batch, pipeline.max_batch),
        )
        drawn = pipeline.generate([Request(prompt="a disc", num_inference_steps=min(steps, 8))])
        ingress = measure_ingress(drawn.images[0], args.format)
    return steps, replica, ingress


def _given(args: argparse.Namespace) -> tuple[int, ReplicaFigures, IngressFigures]:
    from PIL import Image

    from bootpig_rt.serving.fleet_measure import measure_ingress
    from bootpig_rt.serving.fleet_model import ReplicaFigures

    side = args.picture_px
    if not 8 <= side <= 4096:
        raise ParameterError(f"--picture-px is {side}, expected 8..4096")
    # As hard to compress as a picture: smooth, with grain.
    image = Image.effect_noise((side, side), 6).convert("RGB")
    replica = ReplicaFigures(
        step_s=_step_times(args.step_ms),
        picture_s=args.picture_ms / 1e3,
        pass_s=args.pass_ms / 1e3,
        table_bytes=int(args.table_mib * (1 << 20)),
        tables_bytes=int(args.tables_gib * _GIB),
    )
    return args.steps or 25, replica, measure_ingress(image, args.format)


def _step_times(text: str) -> dict[int, float]:
    times: dict[int, Any] = {}
    for part in text.split(","):
        size, equals, ms = part.partition("=")
        try:
            times[int(size)] = float(ms) / 1e3
        except ValueError:
            equals = ""
        if not equals:
            raise ParameterError(f"--step-ms is {text!r}, expected such as 1=7.9,4=26,8=50")
    return times
