"""`bootpig-rt export-triton`: a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bootpig_rt.cli.options import add_control_argument
from bootpig_rt.errors import EXIT_OK, ParameterError

NAME = "export-triton"
HELP = "write a model repository for NVIDIA Triton's Python backend"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "The repository holds the pair, a configuration, a Dockerfile and a README with a client.\n"
        "It needs no Triton to be written. One request of Triton is one of ours; the engine\n"
        "batches them between steps.\n\n"
        "examples:\n"
        "  bootpig-rt export-triton repository\n"
        "  bootpig-rt export-triton repository --model bundle --gpus 0,1 --stream"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to make")
    parser.add_argument(
        "--model", metavar="FOLDER", type=Path, help="pair or bundle; the one shipped by default"
    )
    parser.add_argument("--name", default="bootpig", help="of the model (default: bootpig)")
    parser.add_argument(
        "--gpus", default="", metavar="LIST", help="devices, such as 0,1 (default: the CPU)"
    )
    parser.add_argument(
        "--instances", type=int, default=1, metavar="N", help="on each device (default: 1)"
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="pictures drawn at once (default: 8)"
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=64,
        metavar="N",
        help="pictures that may wait to begin (default: 64)",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of ONNX Runtime (default: the cores)"
    )
    parser.add_argument(
        "--store", metavar="FOLDER", help="keep reference tables there, as Triton sees it"
    )
    parser.add_argument(
        "--trust", metavar="KEY", type=Path, help="Ed25519 public key, PEM, copied into it"
    )
    parser.add_argument(
        "--stream", action="store_true", help="decoupled: previews on the way, over gRPC streams"
    )
    add_control_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a json object")


def run(args: argparse.Namespace) -> int:
    """Write the repository and say how it is run."""
    from bootpig_rt.bundle.control import to_control_folders
    from bootpig_rt.bundle.shipped import packaged_model, take_packaged
    from bootpig_rt.serving.triton_repository import TritonOptions, export_repository

    kinds, controls = ((), args.control) if args.model else take_packaged(args.control)
    options = TritonOptions(
        name=args.name,
        gpus=_numbers(args.gpus),
        instances=args.instances,
        max_batch=args.max_batch,
        max_waiting=args.max_waiting,
        threads=args.threads,
        store=args.store,
        trust=args.trust,
        is_streaming=args.stream,
        controls=to_control_folders(controls),
    )
    model = args.model or packaged_model("full", kinds)
    size_bytes = export_repository(model, args.folder, options)
    if args.json:
        told = {"folder": str(args.folder), "model": options.name, "size_bytes": size_bytes}
        print(json.dumps(told))
    else:
        print(f"{args.folder}: model {options.name}, {size_bytes / 1e6:.1f} MB")
        print(f"tritonserver --model-repository={args.folder}   see {args.folder / 'README.md'}")
    return EXIT_OK


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ParameterError(f"--gpus is {text!r}, expected numbers such as 0,1") from None
