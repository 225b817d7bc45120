"""`bootpig-rt evaluate --suite dreambench`: draw DreamBench's pictures, in parts, and score them.

No command of its own: `evaluate` hands over. Its options are in `dreambench_options.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.cli.bars import Bars
from bootpig_rt.cli.evaluation import settings_of
from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from bootpig_rt.training.evaluation.dreambench.cutting import Cutter
    from bootpig_rt.training.evaluation.dreambench.data import DreamBench
    from bootpig_rt.training.evaluation.dreambench.measure import Judges
    from bootpig_rt.training.evaluation.dreambench.report import Report
    from bootpig_rt.training.evaluation.dreambench.settings import DrawSettings


def run(args: argparse.Namespace) -> int:
    """Draw what is missing, score, and write the report."""
    from bootpig_rt.training.evaluation.dreambench.collect import collect

    if args.oracle_only:
        return _oracle(args)
    if args.collect:
        count = collect(args.output, args.collect)
        _say(args, f"copied {count} pictures into {args.output}")
    if args.score_only:
        return _score(args, _judges(args))
    # What scores is loaded before hours of drawing, not after.
    judges = None if args.part else _judges(args)
    _draw(args)
    return EXIT_OK if judges is None else _score(args, judges)


def _bench(args: argparse.Namespace, settings: DrawSettings | None = None) -> DreamBench:
    """The benchmark, or the part of it that the options or the settings name."""
    from bootpig_rt.checks import check_int
    from bootpig_rt.training.evaluation.dreambench.data import NUM_PROMPTS, load_dreambench

    folder = args.data or Path("dreambench")
    if settings is not None:
        bench = load_dreambench(folder, names=settings.subjects, num_prompts=settings.num_prompts)
        if bench.digest != settings.data_digest:
            raise ConfigError(
                f"the pictures in {args.output} were drawn from other photographs or prompts than "
                f"those in {folder}; give the folder that they were drawn from with --data"
            )
        return bench
    names = None
    if args.subjects:
        names = [name.strip() for name in args.subjects.split(",") if name.strip()]
    asked = NUM_PROMPTS if args.prompts is None else args.prompts
    count = check_int("--prompts", asked, 1, NUM_PROMPTS, "leave it out for all")
    return load_dreambench(folder, names=names, num_prompts=count)


def _cutter(args: argparse.Namespace) -> Cutter | None:
    from bootpig_rt.training.evaluation.dreambench.cutting import Cutter

    return Cutter(args.remove_background) if args.remove_background else None


def _draw(args: argparse.Namespace) -> None:
    """Draw the part, or all, as far as it is not there yet."""
    from bootpig_rt.checks import check_int, check_seed
    from bootpig_rt.errors import StorageError, describe_os_error
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.training.evaluation.dreambench.data import PICTURES_PER_PROMPT
    from bootpig_rt.training.evaluation.dreambench.drawing import draw, make_drawer
    from bootpig_rt.training.evaluation.dreambench.settings import keep_settings
    from bootpig_rt.training.evaluation.dreambench.shots import Part, all_shots, shots_of_part

    part = Part.parse(args.part or "1/1")
    seeds = PICTURES_PER_PROMPT if args.seeds is None else args.seeds
    per_prompt = check_int("--seeds", seeds, 1, 64, "4 is the protocol's")
    seed = check_seed(args.seed or 0, "--seed")
    bench = _bench(args)
    cutter = _cutter(args)
    request = settings_of(args)
    shots = shots_of_part(all_shots(bench, per_prompt), part)
    totals = {"references": len(bench.subjects), "pictures": len(shots)}
    with (
        Bars(totals, is_shown=not args.json) as bars,
        Pipeline(
            args.model,
            backend=args.backend,
            device=args.device,
            background_remover=cutter,
            max_batch=args.batch,
        ) as pipeline,
    ):
        drawer = make_drawer(
            pipeline,
            bench,
            request,
            per_prompt=per_prompt,
            seed=seed,
            references=args.references or "all",
            cutter=cutter,
            on_progress=bars,
        )
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {args.output}: {describe_os_error(error)}") from error
        keep_settings(args.output, drawer.settings)
        drawn = draw(drawer, bench, shots, args.output, part=part, on_progress=bars)
    if args.part and args.json:
        print(json.dumps({"part": str(part), "pictures": len(shots), "drawn": drawn}))
    elif args.part:
        print(f"part {part}: {len(shots)} pictures in {args.output}, {drawn} of them drawn now")


def _judges(args: argparse.Namespace) -> Judges:
    """All that scores, ready."""
    from bootpig_rt.training.evaluation.dreambench.cutting import KeptMasks
    from bootpig_rt.training.evaluation.dreambench.encoders import (
        ClipEncoder,
        DinoEncoder,
        EfficientNetEncoder,
        ImageEncoder,
        encoder_device,
    )
    from bootpig_rt.training.evaluation.dreambench.measure import Judges

    device = encoder_device(args.device)
    encoders: list[ImageEncoder] = []
    if args.dino:
        encoders.append(DinoEncoder(args.dino, view=args.dino_view or "crop", device=device))
    if args.clip:
        encoders.append(ClipEncoder(args.clip, device=device))
    if args.efficientnet:
        encoders.append(EfficientNetEncoder())
    cutter = _cutter(args)
    masks = None if cutter is None else KeptMasks(cutter, args.output / "masks")
    return Judges(tuple(encoders), masks, is_masked=args.masked)


def _score(args: argparse.Namespace, judges: Judges) -> int:
    """Score all pictures of the output folder and write the report."""
    from bootpig_rt.files.atomic import atomic_write_text
    from bootpig_rt.training.evaluation.dreambench.drawing import missing_shots, read_runs
    from bootpig_rt.training.evaluation.dreambench.features import FeatureStore
    from bootpig_rt.training.evaluation.dreambench.measure import measure_pictures
    from bootpig_rt.training.evaluation.dreambench.page import (
        markdown_page,
        pictures_csv,
        subjects_csv,
        text_table,
    )
    from bootpig_rt.training.evaluation.dreambench.published import load_published
    from bootpig_rt.training.evaluation.dreambench.report import make_report
    from bootpig_rt.training.evaluation.dreambench.settings import read_settings
    from bootpig_rt.training.evaluation.dreambench.sheets import save_sheets
    from bootpig_rt.training.evaluation.dreambench.shots import all_shots, picture_path
    from bootpig_rt.training.model_card import add_scores, dreambench_rows

    output: Path = args.output
    settings = read_settings(output)
    if settings is None:
        raise ConfigError(
            f"{output} has no settings.json: nothing was drawn there; draw first, or give --collect"
        )
    bench = _bench(args, settings)
    shots = all_shots(bench, settings.per_prompt)
    missing = missing_shots(bench, shots, output)
    if missing:
        first = picture_path(output, bench, missing[0])
        raise ConfigError(
            f"{len(missing)} of {len(shots)} pictures are missing, the first is {first}; run the "
            "parts that draw them, or copy them here with --collect"
        )
    totals = _totals(bench, judges, num_pictures=len(shots))
    with Bars(totals, is_shown=not args.json) as bars:
        store = FeatureStore(output / "features", bars)
        measured = measure_pictures(bench, output, settings, judges, store)
        abouts = [encoder.about for encoder in judges.encoders]
        report = make_report(bench, settings, read_runs(output), abouts, measured)
        sheets = save_sheets(bench, output, settings.per_prompt, bars)
    table = text_table(report)
    atomic_write_text(output / "report.json", json.dumps(report, indent=1) + "\n")
    atomic_write_text(output / "report.txt", table + "\n")
    atomic_write_text(output / "report.md", markdown_page(report, load_published(), sheets))
    atomic_write_text(output / "subjects.csv", subjects_csv(report, bench))
    pictures = pictures_csv(bench, measured, settings.per_prompt)
    atomic_write_text(output / "pictures.csv", pictures)
    if args.model is not None:
        add_scores(args.model, "DreamBench", dreambench_rows(report))
    _warn(report)
    _show(args, report, table)
    _say(args, f"report.md, report.json, two CSV files and {len(sheets)} sheets are in {output}")
    return EXIT_OK


def _oracle(args: argparse.Namespace) -> int:
    """Score the photographs alone."""
    from bootpig_rt.training.evaluation.dreambench.features import FeatureStore
    from bootpig_rt.training.evaluation.dreambench.measure import measure_photographs
    from bootpig_rt.training.evaluation.dreambench.page import text_table
    from bootpig_rt.training.evaluation.dreambench.report import (
        is_oracle_right,
        make_oracle_report,
    )

    bench = _bench(args)
    judges = _judges(args)
    with Bars(_totals(bench, judges, num_pictures=0), is_shown=not args.json) as bars:
        store = FeatureStore(args.output / "features", bars)
        photographs = measure_photographs(bench, judges, store)
    report = make_oracle_report(bench, [each.about for each in judges.encoders], photographs)
    _warn(report)
    _show(args, report, text_table(report))
    return EXIT_OK if is_oracle_right(report) else EXIT_FAILURE


def _totals(bench: DreamBench, judges: Judges, *, num_pictures: int) -> dict[str, int]:
    """Pictures and photographs of each bar."""
    count = num_pictures + sum(len(subject.photographs) for subject in bench.subjects)
    totals = {way.name: count for way in judges.ways}
    return totals | {"copying": num_pictures, "sheets": len(bench.subjects)}


def _warn(report: Report) -> None:
    """An encoder on another scale is too easily missed in a table."""
    import logging

    for check in report["oracle"]:
        if not check["is_right"]:
            logging.getLogger("bootpig_rt").warning("%s", check["text"])
    for encoder in report["encoders"]:
        if encoder["name"] != "efficientnet" and not encoder["is_of_protocol"]:
            logging.getLogger("bootpig_rt").warning(
                "%s is not of the protocol: its scores are on another scale than published ones",
                encoder["text"],
            )


def _show(args: argparse.Namespace, report: Report, table: str) -> None:
    print(json.dumps(report) if args.json else table)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text)
