"""`bootpig-rt demo`: a sheet of subjects that the shipped pair never saw in training."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig_rt.cli.options import (
    add_manner_arguments,
    add_model_arguments,
    be_quiet_if_asked,
    call_progress,
    check_output,
    load_pipeline,
)
from bootpig_rt.errors import ConfigError, ParameterError

NAME = "demo"
HELP = "draw a sheet of subjects never seen in training, each in several scenes"

SCENES = (
    "in the middle of a sandy beach",
    "in the middle of a snowy field",
    "in the middle of a city street at night",
    "in the middle of the bottom of the sea",
)
"""Ends of the prompts: "a photo of a dog, in the middle of a sandy beach"."""


@dataclass(frozen=True)
class SampleSubject:
    """A line of `subjects.json`.

    Attributes:
        file: The drawing.
        prompt_class: Reference prompt and beginning of each prompt, "a photo of a dog".
        caption: A few words for the sheet.
    """

    file: Path
    prompt_class: str
    caption: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="demo.png", help="default: demo.png"
    )
    parser.add_argument("--rows", type=int, default=5, metavar="N", help="subjects (default: 5)")
    parser.add_argument("--steps", type=int, metavar="N", help="default: that of the pair")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--subjects", metavar="FOLDER", help="drawings and subjects.json; those shipped by default"
    )
    add_model_arguments(parser)
    add_manner_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the sheet and say where it is."""
    be_quiet_if_asked(args)
    output = check_output(args.output)
    if args.rows < 1:
        raise ParameterError(f"--rows is {args.rows}, expected at least 1")
    samples = read_subjects(args.subjects)[: args.rows]

    from bootpig_rt.checks import check_seed
    from bootpig_rt.images.picture import SheetRow, label_sheet, save_png
    from bootpig_rt.request import Request

    seed = check_seed(args.seed)
    start = time.perf_counter()
    pipeline = load_pipeline(args)
    with call_progress(is_shown=not args.quiet) as on_event:
        subjects = [
            pipeline.encode_subject(s.file, s.prompt_class, on_event=on_event) for s in samples
        ]
        requests = [
            Request(
                prompt=f"{sample.prompt_class}, {scene}",
                subject=subject,
                num_inference_steps=args.steps,
                seed=seed + column,
            )
            for sample, subject in zip(samples, subjects, strict=True)
            for column, scene in enumerate(SCENES)
        ]
        result = pipeline.generate(requests, on_event=on_event)
    rows = [
        SheetRow(
            references=subject.reference_images(),
            pictures=result.images[index * len(SCENES) : (index + 1) * len(SCENES)],
            caption=sample.caption,
        )
        for index, (sample, subject) in enumerate(zip(samples, subjects, strict=True))
    ]
    sheet = label_sheet(rows, [f"..., {scene}" for scene in SCENES])
    pictures = [parameters.to_dict() for parameters in result.parameters]
    save_png(sheet, output, {"pictures": pictures})
    seconds = time.perf_counter() - start
    if args.json:
        timings = {"total_s": round(seconds, 3), **result.timings.to_dict()}
        print(
            json.dumps({"output": str(output), "pictures": pictures, "timings": timings}, indent=2)
        )
    elif not args.quiet:
        claim = ", never seen in training," if args.subjects is None and args.model is None else ""
        print(
            f"{output.resolve()}: {len(rows)} subjects{claim} in {len(SCENES)} scenes, "
            f"{seconds:.1f} s"
        )
    return 0


def read_subjects(folder: str | None) -> list[SampleSubject]:
    """Sample subjects of a folder, those inside the package by default.

    Raises:
        ConfigError: No `subjects.json`, or one that does not list drawings.
    """
    root = Path(__file__).parents[1] / "assets" / "subjects" if folder is None else Path(folder)
    listing = root / "subjects.json"
    try:
        entries: Any = json.loads(listing.read_text(encoding="utf-8"))
        subjects = [
            SampleSubject(
                file=root / entry["file"],
                prompt_class=entry["prompt_class"],
                caption=", ".join(str(entry[key]) for key in ("noun", "style") if key in entry),
            )
            for entry in entries
        ]
    except OSError as error:
        raise ConfigError(
            f"cannot read {str(listing)!r} ({error.strerror}), expected the list of sample "
            "subjects; name a folder with --subjects, or install the package again"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{str(listing)!r} is not a list of objects with file and prompt_class "
            f"({type(error).__name__}: {error}); repair it"
        ) from error
    if not subjects:
        raise ConfigError(f"{str(listing)!r} lists no subject, expected at least one")
    return subjects
