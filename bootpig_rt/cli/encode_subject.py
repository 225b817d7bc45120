"""`bootpig-rt encode-subject`: reference images in, the file of a subject out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bootpig_rt.cli.options import (
    add_manner_arguments,
    add_model_arguments,
    add_reference_arguments,
    add_table_arguments,
    be_quiet_if_asked,
    call_progress,
    load_pipeline,
    table_options,
)
from bootpig_rt.errors import ParameterError

NAME = "encode-subject"
HELP = "encode reference images once, into a file or a store of subjects"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_reference_arguments(parser)
    parser.add_argument(
        "--reference-prompt",
        metavar="TEXT",
        help='what the references show, "a photo of a dog"',
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write, dog.subject")
    parser.add_argument("--name", metavar="NAME", help="keep it in the store under this name")
    parser.add_argument(
        "--full",
        action="store_true",
        help="keep the reference table in the file as well: large, and nothing is left to compute",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compute and write nothing; print the bytes that the reference table would take",
    )
    parser.add_argument("--noise-seed", type=int, default=0, help="of the reference noise")
    parser.add_argument("--steps", type=int, metavar="N", help="of the table, for exact schedules")
    parser.add_argument("--solver", metavar="NAME", help="of the table, for exact schedules")
    parser.add_argument("--reference-schedule", metavar="NAME", help="of the table")
    add_table_arguments(parser)
    add_model_arguments(parser)
    add_manner_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode, write, report."""
    from bootpig_rt.checks import check_prompt
    from bootpig_rt.images.background import load_remover
    from bootpig_rt.images.picture import load_image
    from bootpig_rt.reference.encode import sources_of
    from bootpig_rt.request import Request
    from bootpig_rt.storage.folder import StoreFolder, default_folder

    be_quiet_if_asked(args)
    tables = table_options(args)
    store = default_folder() if args.store is None else Path(args.store)
    if args.output is None and args.name is None and not args.dry_run:
        raise ParameterError("nowhere to keep the subject; give -o FILE, or --name with --store")
    folder = None if store is None else StoreFolder(store)
    if args.name is not None and folder is None:
        raise ParameterError("a name needs a store; give --store FOLDER")
    if args.name is not None and folder is not None:
        folder.subject_file(args.name)  # refuses a wrong name right away
    prompt = check_prompt(args.reference_prompt, "reference_prompt")
    references = [load_image(file) for file in sources_of(args.reference)]
    remover = None if args.remove_background is None else load_remover(args.remove_background)
    pipeline = load_pipeline(args, background_remover=remover, tables=tables)
    manner: dict[str, Any] = {
        "num_inference_steps": args.steps,
        "solver": args.solver,
        "reference_schedule": args.reference_schedule,
    }
    plan = pipeline.engine.planner.plan(Request(prompt=prompt, **manner))
    keep_table = args.full or store is not None
    planned: dict[str, Any] = {
        "table_bytes": pipeline.table_bytes(len(references), **manner),
        "dtype": pipeline.table_dtype,
        "schedule": plan.parameters.reference_schedule,
        "steps": plan.solver.num_steps,
        "num_references": len(references),
    }
    if args.dry_run and args.json:
        print(json.dumps(planned))
    elif args.dry_run or (keep_table and not args.json and not args.quiet):
        print(
            "reference table: {table_bytes} bytes in {dtype}, {schedule}, {steps} steps".format(
                **planned
            ),
            flush=True,  # ahead of the pass
        )
    if args.dry_run:
        return 0
    with call_progress(is_shown=not args.quiet) as on_event:
        subject = pipeline.encode_subject(
            references,
            prompt,
            noise_seed=args.noise_seed,
            keep_table=keep_table,
            on_event=on_event,
            **manner,
        )
    pipeline.store.flush()
    form = "full" if args.full else "light"
    files = []
    if args.output is not None:
        subject.save(args.output, form=form)
        files.append(Path(args.output))
    if args.name is not None and folder is not None:
        files.append(folder.save_subject(args.name, subject, form=form))
    summary = {
        "files": [str(file) for file in files],
        "file_bytes": files[0].stat().st_size,
        "form": form,
        "fingerprint": subject.fingerprint,
        "reference_prompt": subject.reference_prompt,
        "num_references": subject.num_references,
        "pair": subject.pair_fingerprint,
        "planned_table_bytes": planned["table_bytes"] if keep_table else 0,
        "table_bytes": sum(saved.size_bytes for saved in subject.tables),
        "store": pipeline.store.stats().to_dict(),
    }
    if args.json:
        print(json.dumps(summary, indent=2))
    elif not args.quiet:
        print(
            f"{files[0]}: {form} subject of {subject.num_references} references, "
            f"{summary['file_bytes']} bytes, {subject.fingerprint[:12]}"
        )
    return 0
