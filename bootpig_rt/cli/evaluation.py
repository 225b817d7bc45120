"""What the suites of `bootpig-rt evaluate` share: how is drawn, and where a report goes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bootpig_rt.files.atomic import atomic_write_text

if TYPE_CHECKING:
    from bootpig_rt.request import PictureParameters, Request

Row = tuple[str, str]


def settings_of(args: argparse.Namespace) -> Request:
    """A request with the steps, merge, schedule and scales that the options name."""
    from bootpig_rt.request import Request

    return Request(
        prompt="any",
        num_inference_steps=args.steps,
        merge=args.merge,
        reference_schedule=args.reference_schedule,
        image_guidance_scale=args.image_guidance,
        text_guidance_scale=args.text_guidance,
    )


def told(made: PictureParameters) -> dict[str, object]:
    """What a report says of the pair and of how it drew."""
    return {
        "name": made.model,
        "fingerprint": made.model_fingerprint,
        "steps": made.num_inference_steps,
        "solver": made.solver,
        "merge": made.merge,
        "reference_schedule": made.reference_schedule,
        "image_guidance_scale": made.image_guidance_scale,
        "text_guidance_scale": made.text_guidance_scale,
    }


def write_report(
    args: argparse.Namespace,
    report: dict[str, Any],
    *,
    text_table: Callable[[dict[str, Any]], str],
    rows: Callable[[dict[str, Any]], list[Row]],
    num_sheets: int,
) -> None:
    """Write `report.json` and `report.txt`, add a pair's scores to its card, and print.

    Args:
        args: Of the command.
        report: For JSON; its `pair` is what `told` says, or the renderer.
        text_table: A report as lines of text.
        rows: A report as rows of a model card.
        num_sheets: That were written.

    Raises:
        StorageError: A file cannot be written.
    """
    from bootpig_rt.training.model_card import add_scores

    table = text_table(report)
    atomic_write_text(args.output / "report.json", json.dumps(report, indent=1) + "\n")
    atomic_write_text(args.output / "report.txt", table + "\n")
    if args.model is not None and not args.renderer:
        manner = ", ".join(f"{key} {report['pair'][key]}" for key in ("steps", "solver"))
        add_scores(args.model, f"Suite {args.suite} ({manner})", rows(report))
    if args.json:
        print(json.dumps(report))
    else:
        print(table)
        print(f"report and {num_sheets} sheets are in {args.output}")
