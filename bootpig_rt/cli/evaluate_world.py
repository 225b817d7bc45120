"""`bootpig-rt evaluate --suite world`: held-out models, nouns and drawings of the 3-D world.

No command of its own: `evaluate` hands over, with its options.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bootpig_rt.cli.evaluation import settings_of, told, write_report
from bootpig_rt.errors import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Draw, judge, and write `report.json`, `report.txt` and sheets."""
    from dataclasses import replace

    from tqdm import tqdm

    from bootpig_rt.bundle.pair_config import read_pair_config
    from bootpig_rt.bundle.shipped import default_model
    from bootpig_rt.checks import check_int
    from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
    from bootpig_rt.training.evaluation.generators import Generator
    from bootpig_rt.training.evaluation.world.evaluate import (
        WorldGenerator,
        WorldRenderer,
        evaluate_world,
        save_sheets,
        text_table,
        world_rows,
    )
    from bootpig_rt.training.evaluation.world.judges import WorldJudges
    from bootpig_rt.training.evaluation.world.suite import (
        WORLD_SUITES,
        choose_world_subjects,
        world_digest,
        world_shots,
    )
    from bootpig_rt.training.world3d.identities import load_identities
    from bootpig_rt.training.world3d.studio import Studio

    data = args.data or Path("data")
    config = WORLD_SUITES[args.suite]
    if args.seeds is not None:
        config = replace(config, seeds=check_int("--seeds", args.seeds, 1, 64, "2 is usual"))
    model = default_model() if args.model is None else args.model
    size_px = read_pair_config(model / "pair.json").sample_size_px
    studio, closeup = Studio(data, size_px), Studio(data, 2 * size_px)
    subjects = choose_world_subjects(data, studio, config)
    judges = WorldJudges(
        subjects,
        config,
        studio,
        training=load_identities(data, "train", with_drawings=True),
        network=load_efficientnet(),
        cache=args.output / "judges",
        digest=world_digest(subjects, config, size_px),
    )
    if args.prepare:
        print(f"judges are ready in {args.output / 'judges'}")
        return EXIT_OK
    about: dict[str, object] = {"name": "renderer"}
    generator: Generator = WorldRenderer(subjects, config, studio)
    if not args.renderer:
        from bootpig_rt.pipeline import Pipeline

        pipeline = Pipeline(
            args.model, backend=args.backend, device=args.device, max_batch=args.batch
        )
        drawer = WorldGenerator(pipeline, subjects, config, closeup, settings=settings_of(args))
        about, generator = told(drawer.plan.parameters), drawer
    total = sum(map(len, world_shots(subjects, config).values()))
    with tqdm(total=total, unit="picture", disable=True if args.json else None) as bar:

        def on_progress(stage: str, done: int) -> None:
            bar.set_description(stage)
            bar.update(done)

        report, arms = evaluate_world(
            generator,
            judges,
            subjects,
            config,
            studio,
            closeup,
            output=args.output,
            resume=args.resume,
            on_progress=on_progress,
        )
    report = {"pair": about} | report
    sheets = save_sheets(arms, subjects, closeup, args.output / "sheets")
    write_report(args, report, text_table=text_table, rows=world_rows, num_sheets=len(sheets))
    return EXIT_OK
