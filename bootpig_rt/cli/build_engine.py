"""`bootpig-rt build-engine`: from a pair to a bundle that was checked against torch."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.cli.bundle_text import all_parity_lines, size_text, takes
from bootpig_rt.cli.options import add_control_argument, add_lora_argument, be_quiet_if_asked
from bootpig_rt.errors import EXIT_OK, CheckpointError, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.bundle.control import ControlFolder
    from bootpig_rt.bundle.pair_config import PairConfig
    from bootpig_rt.export.build_options import BuildOptions
    from bootpig_rt.export.estimate import Estimate

NAME = "build-engine"
HELP = "turn a pair into a bundle of graphs or engines for one target, checked against torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "targets:\n"
        "  cpu      ONNX Runtime on a CPU (the default)\n"
        "  openvino OpenVINO on a CPU; also compared in bfloat16 where the processor has it\n"
        "  cuda     ONNX Runtime on an NVIDIA GPU\n"
        "  sm_75, sm_80, sm_86, sm_89, sm_120\n"
        "           TensorRT-RTX for GPUs of that architecture; needs no GPU to build\n"
        "  local    TensorRT for the GPU of this machine\n\n"
        "A build is whole or leaves no bundle. When it is interrupted or killed, its finished\n"
        "graphs and engines stay in the hidden folder .NAME.building beside the output: the\n"
        "same command goes on from them, and removing the folder forgets them. After a failed\n"
        "comparison with torch nothing stays but a report, in NAME.parity-report.\n\n"
        "Weights are linked into the bundle where graphs can point into the pair's own files.\n"
        "Where they must be written anew, as for the authors' checkpoints, they are stored in\n"
        "float16, half the size; the bundle is compared with torch on these same weights.\n"
        "For openvino they are in float32, for its models share weights in that type alone:\n"
        "twice the disk of a float16 pair, less memory, in bfloat16 less than half.\n"
        "With --lora they are written anew too, and the bundle is a pair of its own.\n\n"
        "With -o naming the pair's own folder the pair becomes the bundle, in its place.\n\n"
        "examples:\n"
        "  bootpig-rt build-engine -o bundle\n"
        "  bootpig-rt build-engine --pair pair -o bundle --target sm_89 --resolution 512\n"
        "  bootpig-rt build-engine --pair pair -o bundle --lora style.safetensors:0.8\n"
        "  bootpig-rt build-engine --pair pair -o bundle --dry-run"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="the bundle to make"
    )
    parser.add_argument(
        "--pair", metavar="DIR", type=Path, help="pair to build; the one shipped by default"
    )
    parser.add_argument(
        "--base-model",
        metavar="MODEL",
        help="Stable Diffusion folder, for a pair that holds the two U-Nets alone",
    )
    add_lora_argument(parser)
    add_control_argument(parser)
    parser.add_argument("--target", default="cpu", help="see below (default: cpu)")
    group = parser.add_argument_group("what it must take")
    group.add_argument(
        "--resolution",
        metavar="PX",
        help="side of pictures: 512, a range 256:768, or least:usual:most 256:512:768",
    )
    group.add_argument("--max-batch", type=int, metavar="N", help="pictures drawn at once")
    group.add_argument("--max-references", type=int, metavar="N", help="references of one subject")
    group.add_argument("--steps", type=int, metavar="N", help="most steps of the solver")
    group.add_argument(
        "--merge",
        action="append",
        metavar="NAME",
        help="way to combine several references: argmax, softmax, mean or concat; may be repeated",
    )
    group.add_argument(
        "--precision",
        help="float32 or float16 (default: float32 for cpu and openvino, else float16); int8, for "
        "openvino: graphs in 8 bits beside those in float32",
    )
    group.add_argument(
        "--calibration",
        metavar="DIR",
        type=Path,
        help="with int8: pictures of subjects to take ranges from, each named for what it shows, "
        "red_car.png; default: the drawings inside the package",
    )
    group.add_argument(
        "--int8-limit",
        metavar="SHARE",
        type=float,
        help="with int8: how far a step may be from float32; what hurts more stays wide "
        "(default: 0.02)",
    )
    group.add_argument(
        "--weights",
        default="auto",
        help="on disk: float16, float32, as-is, or auto, see below (default: auto)",
    )
    group.add_argument(
        "--no-plugin",
        action="store_true",
        help="for local: leave the reference attention to TensorRT, without our kernel",
    )
    group = parser.add_argument_group("how")
    group.add_argument("--sign", metavar="KEY", type=Path, help="Ed25519 private key, PEM")
    group.add_argument("--overwrite", action="store_true", help="replace a bundle of that name")
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be built, and build nothing"
    )
    group.add_argument(
        "--reference-schedule",
        metavar="NAME",
        help="of --dry-run's table, such as exact or stride:4; default: the pair's own",
    )
    group.add_argument(
        "--table-dtype",
        metavar="TYPE",
        help="of --dry-run's table: float32, float16, bfloat16, float8 or int8. Engines hold "
        "tables in their own precision",
    )
    group.add_argument(
        "--json", action="store_true", help="print a machine-readable summary on stdout"
    )
    group.add_argument("--quiet", action="store_true", help="no progress, no log lines")


def run(args: argparse.Namespace) -> int:
    """Build the bundle and say where it is, or say what would be built."""
    be_quiet_if_asked(args)
    from bootpig_rt.bundle.control import all_controls, to_control_folders
    from bootpig_rt.bundle.lora import Lora
    from bootpig_rt.bundle.shipped import packaged_model, take_packaged

    kinds, named = ((), args.control) if args.pair else take_packaged(args.control)
    pair = args.pair or packaged_model("full", kinds)
    if not pair.is_dir():
        raise CheckpointError(f"pair {pair} is no folder; check --pair", pair)
    base_model = None if args.base_model is None else _base_model(args.base_model)
    loras = tuple(Lora.parse(text) for text in args.lora)
    controls = to_control_folders(named)
    config = _config(pair, base_model)
    options = _options(args, config, pair, base_model)
    if args.dry_run:
        return _dry_run(args, options, config, pair, base_model, all_controls(pair, controls))
    if args.reference_schedule is not None or args.table_dtype is not None:
        raise ParameterError(
            "got a reference schedule or a table type for a build, expected them with --dry-run "
            "alone; a bundle takes any of them when it draws"
        )

    from bootpig_rt.export.build import build_engine

    start = time.perf_counter()
    with (
        sigterm_as_interrupt(),
        build_progress(is_shown=not args.quiet, has_lines=not args.json) as progress,
    ):
        result = build_engine(
            pair,
            args.output,
            options,
            base_model=base_model,
            key=args.sign,
            overwrite=args.overwrite,
            loras=loras,
            controls=controls,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    manifest = result.bundle.manifest
    if args.json:
        summary = {
            "output": str(result.bundle.folder),
            "seconds": round(seconds, 1),
            "resumed": result.resumed,
            "manifest": json.loads(manifest.to_json()),
        }
        print(json.dumps(summary, indent=2))
    elif not args.quiet:
        size = manifest.size_bytes / 1e6
        print(
            f"{result.bundle.folder}: {manifest.pair.name} for {manifest.target}, "
            f"{len(manifest.graphs)} graphs, {size:.1f} MB, {seconds:.0f} s"
        )
        print("\n".join(all_parity_lines(manifest)))
    return EXIT_OK


def _base_model(name: str) -> Path:
    from bootpig_rt.models.hub import base_model_folder

    return base_model_folder(name)


def _config(pair: Path, base_model: Path | None) -> PairConfig:
    """Settings of a pair in either layout, from its configurations alone."""
    from bootpig_rt.bundle.pair_config import (
        published_pair_config,
        read_pair_config,
        trained_size_px,
    )

    if (pair / "pair.json").is_file():
        return read_pair_config(pair / "pair.json")
    rest = pair if base_model is None else base_model
    if not (rest / "vae" / "config.json").is_file():
        raise CheckpointError(
            f"{rest} has no vae folder; give --base-model, the Stable Diffusion folder that the "
            "pair was trained from",
            rest,
        )
    return published_pair_config(trained_size_px(pair / "base_unet", rest / "vae"))


def _options(
    args: argparse.Namespace, config: PairConfig, pair: Path, base_model: Path | None
) -> BuildOptions:
    from bootpig_rt.export.build_options import build_options, size_multiple_px

    return build_options(
        config,
        size_multiple_px=size_multiple_px(pair, base_model or pair),
        target=args.target,
        precision=args.precision,
        resolution=args.resolution,
        max_batch=args.max_batch,
        max_references=args.max_references,
        max_steps=args.steps,
        merges=tuple(args.merge or ()),
        plugin=not args.no_plugin,
        weights=args.weights,
        calibration=args.calibration,
        int8_limit=args.int8_limit,
    )


def _dry_run(
    args: argparse.Namespace,
    options: BuildOptions,
    config: PairConfig,
    pair: Path,
    base_model: Path | None,
    controls: tuple[ControlFolder, ...],
) -> int:
    from bootpig_rt.bundle.pair_config import TINY_VAE
    from bootpig_rt.export.build_options import graph_names
    from bootpig_rt.export.build_output import check_output
    from bootpig_rt.export.estimate import FORMULA, estimate
    from bootpig_rt.export.targets import target_status

    check_output(pair, args.output, options, overwrite=args.overwrite)
    options = replace(
        options.for_output(pair, args.output),
        tiny_decoder=((base_model or pair) / TINY_VAE).is_dir(),
        controls=tuple(control.kind for control in controls),
    )
    names = graph_names(options)
    sizes = estimate(
        pair,
        base_model or pair,
        config,
        options,
        num_graphs=len(names),
        is_written_anew=bool(args.lora),
        controls=controls,
        reference_schedule=args.reference_schedule,
        table_dtype=args.table_dtype,
    )
    status = target_status(options.target)
    if args.json:
        summary = {
            "pair": str(pair),
            "output": str(args.output),
            "options": options.to_dict(),
            "graphs": names,
            "estimate": sizes.to_dict(),
            "formula": FORMULA,
            "target": status.to_dict(),
        }
        print(json.dumps(summary, indent=2))
        return EXIT_OK
    print(f"pair       {config.name}, {sizes.parameters / 1e6:.1f} M parameters, {pair}")
    precisions = f"{options.precision}{' and int8' if options.int8 else ''}"
    print(f"target     {options.target}, {precisions}")
    print(takes(options.profile))
    print(f"graphs     {', '.join(names)}")
    print("\n".join(_size_lines(sizes)))
    print(f"           {FORMULA}")
    if not status.can_build:
        print(f"missing    {', '.join(status.missing_to_build)}; {'; '.join(status.install)}")
    print("nothing was built (--dry-run)")
    return EXIT_OK


def _size_lines(sizes: Estimate) -> list[str]:
    entries = "1 entry" if sizes.table_entries == 1 else f"{sizes.table_entries} entries"
    done, more = size_text(sizes.disk_bytes), size_text(sizes.free_bytes)
    lines = [f"disk       {done} when done, {more} more than now"]
    for name, memory in (("a usual picture", sizes.usual), ("the largest batch", sizes.largest)):
        parts = {
            "weights": memory.weights_bytes,
            f"table of {entries} in {sizes.table_dtype}": memory.table_bytes,
            "text": memory.text_bytes,
            "attention": memory.attention_bytes,
            "decoder": memory.picture_bytes,
        }
        shown = ", ".join(f"{part} {size_text(size)}" for part, size in parts.items())
        lines.append(f"memory     {size_text(memory.total_bytes)} for {name}: {shown}")
    tables = "; ".join(
        f"{table.dtype} {size_text(table.whole_bytes)}, {size_text(table.step_bytes)} a step"
        for table in sizes.tables
    )
    lines.append(f"tables     of a reference, whole on device, host or disk, or streamed: {tables}")
    return lines


@contextmanager
def build_progress(
    *, is_shown: bool, has_lines: bool = True
) -> Iterator[Callable[[str, float], None] | None]:
    """Shows on stderr what is being done; None if nothing is to be shown.

    A terminal gets a bar with the time left, anything else a line for each part, such as a graph.

    Args:
        is_shown: Whether to show anything.
        has_lines: Whether to show lines where there is no terminal.
    """
    if not is_shown or not (has_lines or sys.stderr.isatty()):
        yield None
        return
    if not sys.stderr.isatty():
        yield _PartLines().show
        return
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    bar: Any = tqdm(total=1000, bar_format=form, leave=False, file=sys.stderr)

    def show(what: str, share: float) -> None:
        bar.set_description_str(f"{what:<44.44}", refresh=False)
        bar.update(max(0, round(1000 * share) - bar.n))
        bar.refresh()

    try:
        yield show
    finally:
        bar.close()


class _PartLines:
    """A line when a part begins; what is told within a part stands behind a colon."""

    def __init__(self) -> None:
        self._part = ""

    def show(self, what: str, share: float) -> None:
        part = what.partition(":")[0]
        if part != self._part:
            self._part = part
            print(f"{100 * share:3.0f}% {part}", file=sys.stderr, flush=True)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill ends the block as Ctrl-C does: by KeyboardInterrupt, which cleans up."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
