"""Options and manners that the drawing commands share. Light: argparse and tqdm."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.errors import ParameterError, StorageError

if TYPE_CHECKING:
    from bootpig_rt.engine.events import Event, OnEvent
    from bootpig_rt.images.content_credentials import ContentCredentials
    from bootpig_rt.pipeline import Pipeline
    from bootpig_rt.reference.table_options import TableOptions


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which pair runs, with what and where."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="FOLDER", help="pair to run; the one shipped by default")
    group.add_argument(
        "--fast",
        action="store_true",
        help="the shipped pair's student: a few steps of one row each",
    )
    group.add_argument(
        "--base-model",
        metavar="FOLDER",
        help="Stable Diffusion folder, for a pair that holds the two U-Nets alone",
    )
    add_lora_argument(group)
    add_control_argument(group)
    group.add_argument(
        "--decoder",
        metavar="NAME",
        default="full",
        help="of latents to pictures: full, or tiny where the pair has a tiny_vae (default: full)",
    )
    group.add_argument(
        "--backend",
        default="auto",
        help="auto, onnxruntime, openvino, tensorrt or torch (default: auto)",
    )
    group.add_argument(
        "--trust",
        metavar="KEY",
        help="Ed25519 public key, PEM: run only a bundle that was signed with its private key",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of ONNX Runtime or OpenVINO (default: one for each core)",
    )
    group.add_argument(
        "--precision",
        metavar="TYPE",
        help="of openvino: auto, float32, bfloat16 or int8; of torch: float32, float16 or bfloat16",
    )


def add_lora_argument(parser: argparse._ActionsContainer) -> None:
    """Which LoRAs are fused into the pair."""
    parser.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        help="LoRA of the base model, fused into the weights as strongly as SCALE says (default: "
        "1); give it again for more. What runs it needs torch; a bundle built with it does not",
    )


def add_control_argument(parser: argparse._ActionsContainer) -> None:
    """Which ControlNets are loaded beside the pair."""
    parser.add_argument(
        "--control",
        metavar="KIND=DIR",
        action="append",
        default=[],
        help="depth: that of the shipped pair. KIND=DIR: a ControlNet of the base model, in "
        "diffusers' layout, beside those that lie in the pair as controlnet_KIND; give it again "
        "for more. What runs it needs torch; a bundle built with it does not",
    )


def add_reference_arguments(parser: argparse.ArgumentParser) -> None:
    """Pictures of the subject, and how they are cut out."""
    parser.add_argument(
        "--reference",
        metavar="FILE",
        action="append",
        default=[],
        help="picture of the subject, best cut out or on white; give it again for more",
    )
    parser.add_argument(
        "--remove-background",
        metavar="HOW",
        help="cut the subject out of references without transparency: grabcut, or an ONNX file",
    )


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """How reference tables are kept, and where."""
    group = parser.add_argument_group("reference tables")
    group.add_argument(
        "--store",
        metavar="FOLDER",
        help="keep tables and subjects here between runs; default: $BOOTPIG_RT_STORE, if it is set",
    )
    group.add_argument(
        "--store-bytes",
        type=int,
        metavar="BYTES",
        help="disk space for the tables of the store; the least recently used ones are removed "
        "(default: 16 GiB)",
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


def table_options(args: argparse.Namespace) -> TableOptions:
    """What `add_table_arguments` read."""
    from bootpig_rt.reference.table_options import TableOptions

    given: dict[str, Any] = {
        "dtype": args.table_dtype,
        "budget_bytes": args.table_budget,
        "rows_per_launch": args.reference_rows,
        "folder": args.store,
        "folder_bytes": args.store_bytes,
    }
    return TableOptions(**{name: value for name, value in given.items() if value is not None})


def add_manner_arguments(parser: argparse.ArgumentParser) -> None:
    """What is printed."""
    parser.add_argument(
        "--json", action="store_true", help="print a machine-readable summary on stdout"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar, no log lines, no summary"
    )


def add_credentials_arguments(parser: argparse.ArgumentParser) -> None:
    """What pictures are signed with."""
    group = parser.add_argument_group("content credentials (C2PA)")
    group.add_argument(
        "--credentials-certificate",
        metavar="FILE",
        help="sign pictures: PEM with the signer's certificate, then those that lead to its root",
    )
    group.add_argument(
        "--credentials-key", metavar="FILE", help="PEM with the private key of that certificate"
    )


def load_credentials(args: argparse.Namespace) -> ContentCredentials | None:
    """What `add_credentials_arguments` read; who asks for signed pictures gets no others.

    Raises:
        ParameterError: One file without the other.
        CredentialsError, BackendUnavailable: They cannot be used.
    """
    files = (args.credentials_certificate, args.credentials_key)
    if files == (None, None):
        return None
    if None in files:
        raise ParameterError(
            "got one of --credentials-certificate and --credentials-key, expected both or none"
        )
    from bootpig_rt.images.content_credentials import ContentCredentials

    return ContentCredentials.load(*files, is_required=True)


def load_pipeline(args: argparse.Namespace, **options: Any) -> Pipeline:
    """The pipeline that the model options name.

    Raises:
        ParameterError: `--threads` or `--precision` with a backend that has no such option.
    """
    from bootpig_rt.backends import PairOptions, backend_settings
    from bootpig_rt.pipeline import Pipeline

    return Pipeline(
        args.model,
        backend=backend_settings(args.backend, threads=args.threads, precision=args.precision),
        device=args.device,
        variant="fast" if args.fast else "full",
        pair=PairOptions(
            lora=args.lora,
            controls=args.control,
            decoder=args.decoder,
            base_model=args.base_model,
            trust=args.trust,
        ),
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
def call_progress(*, is_shown: bool) -> Iterator[OnEvent | None]:
    """One bar on stderr over the reference passes and the steps of a call.

    Yields:
        A callback for the argument `on_event` of `Pipeline`; None unless the bar is wanted and
        stderr is a terminal.
    """
    if not is_shown or not sys.stderr.isatty():
        yield None
        return
    from bootpig_rt.engine.events import DoneEvent, StepEvent

    bar = _StageBar()

    def show(event: Event) -> None:
        if not isinstance(event, DoneEvent):
            stage = "step" if isinstance(event, StepEvent) else "reference"
            bar.show(stage, event.done, event.total)

    try:
        yield show
    finally:
        bar.close()


class _StageBar:
    """A progress bar on stderr that begins anew with each stage."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._stage = ""
        self._bar: Any = None

    def show(self, stage: str, done: int, total: int) -> None:
        """Move on; a stage that starts over is that of the next subject."""
        from tqdm import tqdm

        if self._bar is None or stage != self._stage or done <= self._bar.n:
            self.close()
            self._stage = stage
            self._bar = tqdm(desc=stage, total=total, leave=False, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
