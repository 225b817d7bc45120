"""What a finished build says about itself: from files and options to a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bootpig_rt.backends.tensorrt.flavours import flavour_of
from bootpig_rt.bundle.bundle import Manifest, ParityReport, RuntimeInfo, Variant, list_files
from bootpig_rt.bundle.files import digest_files, split_pair_files
from bootpig_rt.bundle.manifest import PairInfo, SolverInfo, Target
from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.graph_info import read_graph
from bootpig_rt.export.targets import tool_versions
from bootpig_rt.export.tensorrt_layers import read_layers

if TYPE_CHECKING:
    from bootpig_rt.export.int8 import Int8Graph

INT8_SUFFIX = ".int8"
"""Between the name of a graph and `.xml` or `.bin`."""

MINIMUM_OPENVINO = "2026.4"
"""Oldest OpenVINO that bundles may be loaded with; the floor of the extra `openvino`."""

MINIMUM_ONNXRUNTIME = "1.23"
"""Oldest ONNX Runtime that bundles may be loaded with; the floor of the extras `cpu` and `gpu`."""


def describe_graphs(
    folder: Path,
    options: BuildOptions,
    config: PairConfig,
    fingerprint: str,
    parity: ParityReport,
    source_fingerprint: str | None = None,
) -> Manifest:
    """The manifest of a folder with a pair and its ONNX graphs.

    `fingerprint` is that of the pair in the folder, `source_fingerprint` that of the pair as it was
    given, if its files were written anew.

    Raises:
        CheckpointError: A graph is damaged.
    """
    files = {file.path: file for file in list_files(folder)}
    found = [read_graph(folder, file) for path, file in files.items() if _is_graph(path)]
    weights, others = split_pair_files(files.values())
    return Manifest(
        target=options.target,
        runtime=_runtime(options.target),
        pair=PairInfo(
            config.name,
            fingerprint,
            digest_files(weights),
            digest_files(others),
            source_fingerprint if source_fingerprint != fingerprint else None,
            config.loras,
        ),
        precision=options.precision,
        opset=max(opset for _, opset in found),
        profile=options.profile,
        merges=options.merges,
        solver=SolverInfo(config.default_solver, config.default_steps),
        rsa_kernel_sha256=None,
        tools=tool_versions(),
        graphs=tuple(info for info, _ in found),
        parity=parity,
        files=tuple(files.values()),
    )


def describe_engines(
    graphs: Path,
    engines: Path,
    options: BuildOptions,
    config: PairConfig,
    fingerprint: str,
    parity: ParityReport,
    source_fingerprint: str | None = None,
) -> Manifest:
    """The manifest of a folder with engines; interfaces are those of the graphs they came from.

    Beside `*.engine` lie `*.layers.json` and the pair's configurations; see `describe_graphs`.
    """
    source = describe_graphs(graphs, options, config, fingerprint, parity, source_fingerprint)
    files = {file.path: file for file in list_files(engines)}
    infos = []
    version, architecture, kernels = "", None, set()
    for graph in source.graphs:
        file = files[f"{graph.name}.engine"]
        report = read_layers(engines, graph.name)
        version, architecture = report["runtime_version"], report["architecture"]
        kernels.update(report["kernels"])
        infos.append(
            replace(
                graph,
                file=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
                num_nodes=report["layers"]["num_layers"],
            )
        )
    flavour = flavour_of(options.target)
    _, others = split_pair_files(files.values())
    return replace(
        source,
        runtime=RuntimeInfo(flavour.package, version, None, architecture),  # type: ignore[arg-type]
        pair=replace(source.pair, config_sha256=digest_files(others)),
        rsa_kernel_sha256=_digest_kernels(kernels),
        graphs=tuple(infos),
        files=tuple(files.values()),
    )


def describe_int8(folder: Path, manifest: Manifest, made: Sequence[Int8Graph]) -> Manifest:
    """A manifest with the int8 variant; its graphs have the interfaces of those they replace.

    Args:
        folder: Holds the graphs.
        manifest: Of the float32 graphs.
        made: What was quantised.
    """
    files = {file.path: file for file in list_files(folder)}
    own = {graph.name: graph for graph in manifest.graphs}
    graphs = tuple(
        replace(
            own[one.name],
            file=(file := files[f"{one.name}{INT8_SUFFIX}.xml"]).path,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
        )
        for one in made
    )
    parity = ParityReport("not run", "the build has not come to it")
    others = tuple(one for one in manifest.variants if one.precision != "int8")
    variants = (*others, Variant("int8", parity, graphs))
    return replace(manifest, variants=variants, files=tuple(files.values()))


def _runtime(target: Target) -> RuntimeInfo:
    """What runs graphs for a target."""
    if target == "openvino":
        from bootpig_rt.backends.openvino.backend import version

        return RuntimeInfo("openvino", version(), MINIMUM_OPENVINO)
    import onnxruntime

    return RuntimeInfo("onnxruntime", onnxruntime.__version__, MINIMUM_ONNXRUNTIME)


def _digest_kernels(kernels: set[str]) -> str | None:
    """One sha256 for the kernels of ours in all engines; None where there are none."""
    if not kernels:
        return None
    return hashlib.sha256("".join(f"{kernel}\n" for kernel in sorted(kernels)).encode()).hexdigest()


def _is_graph(path: str) -> bool:
    return "/" not in path and path.endswith(".onnx")
