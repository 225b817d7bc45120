"""`bootpig-rt inspect`: what a bundle is, holds and was checked for. Loads no graph."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig_rt.cli.bundle_text import (
    all_parity_lines,
    bundle_folder,
    control_lines,
    lora_lines,
    size_text,
    takes,
)
from bootpig_rt.errors import EXIT_OK

if TYPE_CHECKING:
    from bootpig_rt.bundle.bundle import Bundle, TensorInfo

NAME = "inspect"
HELP = "show the graphs, sizes and manifest of a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = "example:\n  bootpig-rt inspect bundle --tensors"
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, help="the bundle; the one shipped by default"
    )
    parser.add_argument("--trust", metavar="KEY", type=Path, help="Ed25519 public key, PEM")
    parser.add_argument(
        "--tensors", action="store_true", help="list inputs and outputs of each graph"
    )
    parser.add_argument(
        "--layers", action="store_true", help="count operators of graphs, and layers of engines"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as json on stdout")


def run(args: argparse.Namespace) -> int:
    """Print what the manifest says; all files are checked first."""
    from bootpig_rt.bundle.bundle import open_bundle

    folder = bundle_folder(args.folder)
    bundle = open_bundle(folder, trust=args.trust)
    layers = (
        {g.name: _layers(bundle, g.name) for g in bundle.manifest.graphs} if args.layers else {}
    )
    if args.json:
        values = json.loads(bundle.manifest.to_json())
        if args.layers:
            values = {"manifest": values, "layers": layers}
        print(json.dumps(values, indent=2))
        return EXIT_OK
    print("\n".join(_lines(bundle, args.tensors, layers)))
    return EXIT_OK


def _lines(bundle: Bundle, with_tensors: bool, layers: dict[str, dict[str, Any]]) -> list[str]:
    manifest = bundle.manifest
    runtime, kernel = manifest.runtime, manifest.rsa_kernel_sha256
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items()))
    needs = f"{runtime.name} {runtime.version}"
    if runtime.minimum_version is not None:
        needs = f"{runtime.name} {runtime.minimum_version} or newer (built with {runtime.version})"
    size = size_text(manifest.size_bytes)
    lines = [
        f"bundle     {bundle.folder}, format {manifest.format}, {size} in "
        f"{len(manifest.files)} files, all as the manifest says",
        f"pair       {manifest.pair.name}, {manifest.pair.fingerprint[:12]}",
        *lora_lines(manifest),
        *control_lines(manifest),
        f"target     {manifest.target}, {manifest.precision}, opset {manifest.opset}",
        f"runtime    {needs}",
        takes(manifest.profile),
        f"merges     {', '.join(manifest.merges) or 'none: one reference only'}",
        f"solver     {manifest.solver.name}, {manifest.solver.steps} steps, by default",
        f"RSA        {'standard operators' if kernel is None else 'kernel ' + kernel[:12]}",
        f"built with {versions}",
        "",
        f"{'graph':<24} {'nodes':>6} {'size':>10}  file",
    ]
    for graph in manifest.graphs:
        size = size_text(graph.size_bytes)
        lines.append(f"{graph.name:<24} {graph.num_nodes:>6} {size:>10}  {graph.file}")
        if graph.file.endswith(".engine"):
            lines.append(f"    {_summary(bundle, graph.name)}")
        if with_tensors:
            lines += [f"    in   {_tensor(tensor)}" for tensor in graph.inputs]
            lines += [f"    out  {_tensor(tensor)}" for tensor in graph.outputs]
        lines += [f"    {key:<22} {value}" for key, value in layers.get(graph.name, {}).items()]
    return [*lines, "", *all_parity_lines(manifest)]


def _layers(bundle: Bundle, name: str) -> dict[str, Any]:
    """Operators of a graph by number, or the layer report of an engine."""
    path = bundle.graph_path(name)
    if path.suffix == ".onnx":
        from bootpig_rt.export.graph_info import read_operators

        return dict(read_operators(path))
    from bootpig_rt.export.tensorrt_layers import read_layers

    layers: dict[str, Any] = read_layers(bundle.folder, name)["layers"]
    return layers


def _summary(bundle: Bundle, name: str) -> str:
    """What became of the attentions of an engine."""
    from bootpig_rt.export.tensorrt_layers import describe_engine

    return describe_engine(bundle.folder, name)


def _tensor(tensor: TensorInfo) -> str:
    return f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
