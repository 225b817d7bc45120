"""`bootpig-rt verify`: does a bundle compute on this machine what its pair computes in torch?"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig_rt.cli.build_engine import build_progress
from bootpig_rt.cli.bundle_text import bundle_folder, identity_lines, parity_lines
from bootpig_rt.cli.options import be_quiet_if_asked
from bootpig_rt.errors import EXIT_FAILURE, EXIT_OK, BundleError, CheckpointError, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.backends.base import Backend
    from bootpig_rt.backends.host_table import Precision
    from bootpig_rt.bundle.bundle import Bundle
    from bootpig_rt.bundle.manifest import Identity, VariantPrecision
    from bootpig_rt.export.gate import Place

NAME = "verify"
HELP = "compare a bundle with torch on this machine, after checking all its files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Exit code 1 when a number is over its limit, 2 when the bundle is damaged or cannot run\n"
        "here. Bundles for cpu, openvino and cuda hold their pair; for engines name it with\n"
        "--pair.\n\n"
        "examples:\n"
        "  bootpig-rt verify bundle\n"
        "  bootpig-rt verify bundle --backend openvino --precision bfloat16\n"
        "  bootpig-rt verify bundle --precision int8 --judge data --record\n"
        "  bootpig-rt verify bundle --pair pair --record"
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, help="the bundle; the one shipped by default"
    )
    parser.add_argument("--pair", metavar="DIR", type=Path, help="pair that it was built from")
    parser.add_argument(
        "--base-model", metavar="DIR", type=Path, help="with --pair, if it needs it"
    )
    parser.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        help="with --pair: a LoRA that the bundle was built with; give it again for more",
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="openvino, for a bundle that was built for cpu"
    )
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        help="of openvino: float32 (the default), bfloat16, or int8 where the bundle has it",
    )
    parser.add_argument(
        "--judge",
        metavar="DATA",
        type=Path,
        help="with another precision than float32: folder of fetch-data; draw subjects held out in "
        "both, and say how many points of identity are lost",
    )
    parser.add_argument(
        "--judge-work",
        metavar="DIR",
        type=Path,
        default=Path("verify-judge"),
        help="where judged pictures are kept, so that it may be interrupted (default: %(default)s)",
    )
    parser.add_argument("--trust", metavar="KEY", type=Path, help="Ed25519 public key, PEM")
    parser.add_argument("--steps", type=int, metavar="N", help="of the longest run")
    parser.add_argument(
        "--files-only", action="store_true", help="check the files and compute nothing"
    )
    parser.add_argument("--report", metavar="DIR", type=Path, help="write numbers and pictures")
    parser.add_argument(
        "--record", action="store_true", help="write the result into the bundle's manifest"
    )
    parser.add_argument("--sign", metavar="KEY", type=Path, help="with --record: private key, PEM")
    parser.add_argument(
        "--json", action="store_true", help="print a machine-readable report on stdout"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log lines")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when all is within the limits."""
    be_quiet_if_asked(args)
    from msgspec import to_builtins

    from bootpig_rt.bundle.bundle import open_bundle, record_parity

    if args.sign is not None and not args.record:
        raise ParameterError("--sign is given without --record; there is nothing to sign")
    if args.steps is not None and not 1 <= args.steps <= 1000:
        raise ParameterError(f"--steps is {args.steps}, expected 1..1000")
    bundle = open_bundle(bundle_folder(args.folder), trust=args.trust)
    manifest = bundle.manifest
    if args.files_only:
        if args.json:
            print(json.dumps({"bundle": str(bundle.folder), "files": len(manifest.files)}))
        elif not args.quiet:
            print(f"{bundle.folder}: {len(manifest.files)} files are as the manifest says")
        return EXIT_OK

    from bootpig_rt.backends.bundle_spec import bundle_spec
    from bootpig_rt.export.gate import compare_backend, place_of, record_reference
    from bootpig_rt.export.parity_report import write_report

    place = place_of(manifest.target, args.backend)
    precision = _precision(args, bundle, place)
    variant = precision if precision in ("bfloat16", "int8") else None
    if args.judge is not None and bundle.manifest.variant(precision) is None:
        raise ParameterError(
            f"got --judge for {precision}, expected --precision with one of the bundle's others: "
            f"{', '.join(one.precision for one in manifest.variants) or 'it has none'}"
        )
    if not place.is_target:
        _check_stand_in(bundle, place)
    torch_backend = _torch_backend(args, bundle)
    with build_progress(is_shown=not args.quiet, has_lines=not args.json) as progress:
        reference = record_reference(
            torch_backend,
            profile=manifest.profile,
            merges=manifest.merges,
            steps=args.steps,
            keeps_features=bundle_spec(bundle).keeps_features,
            takes_masks=bundle_spec(bundle).canvas != "none",
            takes_controls=bundle_spec(bundle).controls == torch_backend.spec.controls,
            progress=progress and (lambda what, share: progress(f"torch: {what}", share / 2)),
        )
        del torch_backend
        gate = compare_backend(
            bundle.folder,
            place,
            reference,
            precision,
            progress and (lambda what, share: progress(f"bundle: {what}", 0.5 + share / 2)),
        )
    if args.report is not None:
        write_report(args.report, gate.report, reference.recording, gate.recording)
    if args.record:
        bundle = record_parity(bundle, gate.report, variant=variant, key=args.sign)
    identity = None if args.judge is None else _judge(args, bundle, variant)
    if args.json:
        report = to_builtins(gate.report)
        report |= {} if identity is None else {"identity": to_builtins(identity)}
        print(json.dumps({"bundle": str(bundle.folder), **report}, indent=2))
    elif not args.quiet:
        print(f"{bundle.folder}: {len(manifest.files)} files are as the manifest says")
        print("\n".join([*parity_lines(gate.report), *identity_lines(identity)]))
    is_good = gate.report.status == "passed" and (identity is None or identity.passed)
    return EXIT_OK if is_good else EXIT_FAILURE


def _judge(args: argparse.Namespace, bundle: Bundle, variant: VariantPrecision | None) -> Identity:
    """What judges say of a variant; recorded where that was asked for."""
    from bootpig_rt.benchmarks.identity import judge_identity
    from bootpig_rt.benchmarks.settings import Settings, no_progress, progress_bar
    from bootpig_rt.bundle.bundle import record_identity

    assert variant is not None  # checked ahead of the gate
    settings = Settings(
        bundle.folder, data=args.judge, work=args.judge_work, threads=os.cpu_count() or 1
    )
    shown = contextlib.nullcontext(no_progress) if args.quiet else progress_bar("judges")
    with shown as progress:
        identity = judge_identity(bundle, variant, replace(settings, progress=progress))
    if args.record:
        record_identity(bundle, identity, variant=variant, key=args.sign)
    return identity


def _check_stand_in(bundle: Bundle, place: Place) -> None:
    """Engines have no stand-in; ONNX graphs for a GPU can be compared on a CPU.

    Raises:
        BundleError: The bundle cannot run here.
    """
    if bundle.manifest.runtime.name not in ("onnxruntime", "openvino"):
        reason = place.reason.partition(";")[0]
        raise BundleError(
            f"{bundle.folder} is for {bundle.manifest.target}, and {reason}; run this on the "
            "target machine, or check the files alone with --files-only",
            bundle.folder,
        )


def _precision(args: argparse.Namespace, bundle: Bundle, place: Place) -> Precision:
    """What is computed in: as asked for, or as the bundle says.

    Raises:
        ParameterError: The backend has no such choice; or the result is none to be recorded.
    """
    own: Precision = bundle.manifest.precision
    is_openvino = place.backend == "openvino"
    others = {"bfloat16", *(one.precision for one in bundle.manifest.variants)}
    others = others if is_openvino else set()
    if args.precision not in (None, own, *others):
        more = "".join(f" or {other}" for other in sorted(others))
        raise ParameterError(
            f"--precision is {args.precision!r}, expected {own}{more} for {place.backend}"
        )
    precision: Precision = args.precision or own
    is_own = bundle.manifest.runtime.name == place.backend or not place.is_target
    if args.record and not is_own and precision == own:
        raise ParameterError(
            f"got --record with --backend {args.backend}, expected the backend that the bundle was "
            "built for: its manifest says how near that one is to torch; leave one of them out"
        )
    return precision


def _torch_backend(args: argparse.Namespace, bundle: Bundle) -> Backend:
    """The pair of a bundle in torch: its own weights where it has them.

    Raises:
        CheckpointError: It has none, and no pair was named.
        BundleError: Another pair was named.
    """
    from bootpig_rt.backends import PairOptions, create_backend
    from bootpig_rt.bundle.lora import Lora

    holds_weights = any((bundle.folder / "base_unet").glob("*.safetensors"))
    if args.pair is None and not holds_weights:
        raise CheckpointError(
            f"{bundle.folder} holds engines and no weights for torch; name the pair with --pair DIR"
        )
    pair = bundle.folder if args.pair is None else args.pair
    loras = tuple(Lora.parse(text) for text in args.lora)
    if loras and args.pair is None:
        raise ParameterError(
            "got --lora without --pair, expected both: the weights of a bundle have its LoRAs in "
            "them already"
        )
    options = PairOptions(base_model=args.base_model, lora=loras)
    backend = create_backend("torch", pair, device="cpu", pair=options)
    wanted, got = bundle.manifest.pair, backend.spec.fingerprint
    if got == wanted.fingerprint:
        return backend
    if got != wanted.source_fingerprint:
        raise BundleError(
            f"{bundle.folder} was built from pair {wanted.fingerprint[:12]}, {pair} is pair "
            f"{got[:12]}; give the pair that it was built from, with its LoRAs, or build it again",
            bundle.folder,
        )
    if holds_weights:  # the same pair, with its weights as they were rounded for the bundle
        del backend
        backend = create_backend("torch", bundle.folder, device="cpu")
    return backend
