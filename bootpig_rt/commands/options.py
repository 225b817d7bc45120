"""Options and manners that the drawing commands share. Light: argparse and tqdm."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import ParameterError, StorageError

if TYPE_CHECKING:
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.sampler import StepEvent


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which pair runs, with what and where."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="FOLDER", help="pair to run; the one shipped by default")
    group.add_argument(
        "--base-model",
        metavar="FOLDER",
        help="Stable Diffusion folder, for a pair that holds the two U-Nets alone",
    )
    group.add_argument(
        "--backend", default="auto", help="auto, onnxruntime, tensorrt or torch (default: auto)"
    )
    group.add_argument(
        "--trust",
        metavar="KEY",
        help="Ed25519 public key, PEM: run only a bundle that was signed with its private key",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """How reference tables are kept, and where."""
    group = parser.add_argument_group("reference tables")
    group.add_argument(
        "--store",
        metavar="FOLDER",
        help="keep tables and subjects here between runs; default: $BOOTPIG_RT_STORE, if it is set",
    )
    group.add_argument(
        "--table-dtype",
        metavar="TYPE",
        help="float32, float16, bfloat16, float8 or int8; default: as the backend computes",
    )
    group.add_argument(
        "--table-budget",
        type=int,
        metavar="BYTES",
        help="device memory for tables; a larger one is streamed step by step",
    )
    group.add_argument(
        "--reference-rows",
        type=int,
        default=16,
        metavar="N",
        help="rows of the reference pass that run at once: bounds its memory (default: 16)",
    )


def table_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_table_arguments` read, as arguments of `Pipeline`."""
    from bootpig_rt.config import check_name
    from bootpig_rt.store_folder import default_folder
    from bootpig_rt.table_storage import TABLE_DTYPES

    if args.table_dtype is not None:
        check_name("table_dtype", args.table_dtype, TABLE_DTYPES)
    return {
        "table_dtype": args.table_dtype,
        "table_budget_bytes": args.table_budget,
        "reference_rows": args.reference_rows,
        "store_folder": args.store if args.store is not None else default_folder(),
    }


def add_manner_arguments(parser: argparse.ArgumentParser) -> None:
    """What is printed."""
    parser.add_argument(
        "--json", action="store_true", help="print a machine-readable summary on stdout"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, no log lines, no summary"
    )


def load_pipeline(args: argparse.Namespace, **options: Any) -> Pipeline:
    """The pipeline that the model options name."""
    from bootpig_rt.pipeline import Pipeline

    return Pipeline(
        args.model,
        base_model=args.base_model,
        backend=args.backend,
        device=args.device,
        trust=args.trust,
        **options,
    )


def be_quiet_if_asked(args: argparse.Namespace) -> None:
    """With `--quiet` only warnings are logged."""
    if args.quiet:
        logging.getLogger("bootpig_rt").setLevel(logging.WARNING)


def check_output(path: str) -> Path:
    """Refuse a path that cannot become a PNG, before any work is done.

    Raises:
        ParameterError: Another ending than .png.
        StorageError: No such folder, it cannot be written to, or the path is a folder.
    """
    output = Path(path)
    if output.suffix.lower() != ".png":
        raise ParameterError(f"output is {path!r}, expected a name that ends in .png")
    if output.is_dir():
        raise StorageError(f"cannot write {path!r}: it is a folder; give a file name")
    if not output.parent.is_dir():
        raise StorageError(
            f"cannot write {path!r}: no folder {str(output.parent)!r}; make it first"
        )
    if not os.access(output.parent, os.W_OK):
        raise StorageError(
            f"cannot write {path!r}: folder {str(output.parent)!r} is read-only; choose another"
        )
    return output


@contextmanager
def step_progress(*, is_shown: bool) -> Iterator[Callable[[StepEvent], None] | None]:
    """A progress bar on stderr as a callback for `Pipeline`; None unless stderr is a terminal."""
    if not is_shown or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bars: list[Any] = []

    def advance(event: StepEvent) -> None:
        if not bars:
            bars.append(tqdm(total=event.total, unit="step", leave=False, file=sys.stderr))
        bars[0].update()

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()
