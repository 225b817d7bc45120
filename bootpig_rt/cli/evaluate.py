"""`bootpig-rt evaluate`: measure a pair on subjects it has never seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from bootpig_rt.cli import dreambench_options, evaluate_dreambench, evaluate_world
from bootpig_rt.cli.evaluation import settings_of, told, write_report

NAME = "evaluate"
HELP = "measure a pair: identity, fidelity, scenes and controls, on subjects never seen in training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--suite",
        choices=["small", "tuning", "tiny", "world", "world-tiny", "dreambench"],
        default="small",
        help="small: 50 drawings, 8 prompts; tuning: 30 other ones, to choose settings by; tiny: a "
        "trial of a minute; world: 48 models and drawings of the 3-D world among look-alikes, and "
        "world-tiny: a trial of it; dreambench: photographs, as in papers (default: small)",
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="folder of the pair (default: the packaged one)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder that `fetch-data` made (default: data, or dreambench for that suite)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder for report, sheets and pictures (default: evaluation)",
    )
    parser.add_argument("--image-guidance", type=float, help="s_image (default: the pair's own)")
    parser.add_argument("--text-guidance", type=float, help="s_text (default: the pair's own)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the pair's own)")
    parser.add_argument("--merge", help="of several references (default: the pair's own)")
    parser.add_argument("--reference-schedule", help="exact, clean, anchor:T and others")
    parser.add_argument(
        "--seeds", type=int, help="pictures of a prompt (default: 2, of dreambench 4)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures at once (default: 8)")
    parser.add_argument("--backend", default="auto", help="runtime that draws (default: auto)")
    parser.add_argument("--device", default="auto", help="device that draws (default: auto)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the pictures that an earlier run drew"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="make the judges and stop; needs no pair"
    )
    parser.add_argument(
        "--renderer",
        action="store_true",
        help="let the renderer draw in place of a pair: a check of the judges",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    dreambench_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draw, judge, and write `report.json`, `report.txt` and sheets."""
    from bootpig_rt.files.held import held

    dreambench_options.check_suite(args)
    if args.suite == "dreambench":  # its parts may be drawn side by side
        return evaluate_dreambench.run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    with held(args.output, "evaluation"):
        return evaluate_world.run(args) if args.suite.startswith("world") else _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import numpy as np
    from tqdm import tqdm

    from bootpig_rt.bundle.pair_config import read_pair_config
    from bootpig_rt.bundle.shipped import default_model
    from bootpig_rt.checks import check_int
    from bootpig_rt.training.evaluation.evaluate import build_judges, evaluate, planned_shots
    from bootpig_rt.training.evaluation.generators import Generator, PipelineGenerator
    from bootpig_rt.training.evaluation.render import RendererGenerator
    from bootpig_rt.training.evaluation.suite import SUITES, choose_subjects
    from bootpig_rt.training.evaluation.table import save_sheets, text_table
    from bootpig_rt.training.model_card import small_rows
    from bootpig_rt.training.splits import load_splits
    from bootpig_rt.training.sprites import load_sprites

    seeds = check_int("--seeds", 2 if args.seeds is None else args.seeds, 1, 64, "2 is usual")
    config = replace(SUITES[args.suite], seeds=seeds)
    sprites = load_sprites(args.data or Path("data"))
    subjects = choose_subjects(sprites, load_splits(), config)
    about: dict[str, object] = {"name": "renderer"}
    model = default_model() if args.model is None else args.model
    size_px = read_pair_config(model / "pair.json").sample_size_px
    generator: Generator | None = None
    if args.renderer:
        generator = RendererGenerator(subjects, config, size_px=size_px, blur_px=0.8, noise=6.0)
    elif not args.prepare:
        from bootpig_rt.pipeline import Pipeline

        pipeline = Pipeline(
            args.model, backend=args.backend, device=args.device, max_batch=args.batch
        )
        drawer = PipelineGenerator(pipeline, subjects, config, settings=settings_of(args))
        size_px, generator = pipeline.spec.config.sample_size_px, drawer
        about = told(drawer.plan.parameters)
    training = np.stack([sprite.rgba for sprite in sprites if sprite.split == "train"])
    judges = build_judges(subjects, config, training, size_px=size_px, cache=args.output / "judges")
    if generator is None:
        print(f"judges are ready in {args.output / 'judges'}")
        return 0
    total_pictures = sum(map(len, planned_shots(subjects, config).values()))
    with tqdm(total=total_pictures, unit="picture", disable=True if args.json else None) as bar:

        def on_progress(stage: str, done: int) -> None:
            bar.set_description(stage)
            bar.update(done)

        evaluation = evaluate(
            generator,
            judges,
            subjects,
            config,
            size_px=size_px,
            output=args.output,
            resume=args.resume,
            on_progress=on_progress,
        )
    report = {"pair": about} | evaluation.report
    sheets = save_sheets(evaluation, subjects, config, args.output / "sheets")
    write_report(args, report, text_table=text_table, rows=small_rows, num_sheets=len(sheets))
    return 0
