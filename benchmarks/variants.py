"""A bundle whose step has weights in another type: a copy of it with that one graph replaced."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import onnxruntime as ort

from bootpig_rt.benchmarks.bare_unet import quiet_export
from bootpig_rt.bundle.bundle import ParityReport, list_files, open_bundle, write_manifest

Weights: TypeAlias = Literal["int8", "float16"]

_STEP = "denoise_step"


def step_variant(folder: Path, weights: Weights, work: Path) -> Path:
    """The bundle with other weights in the step for one reference.

    `int8`: weights of matrix products, one scale a column, which are multiplied in int8 with
    activations that are quantised while it runs; convolutions stay as they are. `float16`: all
    weights and activations, where ONNX Runtime has kernels for them on a CPU.

    The copy has a fingerprint of its own: nothing that is kept by fingerprint is mixed up.

    Args:
        folder: A bundle for a CPU.
        weights: See above.
        work: Where the copy is kept between runs.
    """
    source = open_bundle(folder)
    old = source.graph(_STEP)
    copy = work / "variants" / f"{weights}-{old.sha256[:16]}"
    if (copy / "manifest.json").is_file():
        return copy
    part = copy.with_name(f"{copy.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("manifest.*"))
    with quiet_export():
        _convert(folder, source.read_graph(_STEP), part / old.file, weights)
    files = list_files(part)
    new = next(each for each in files if each.path == old.file)
    pair, manifest = source.manifest.pair, source.manifest
    fingerprint = hashlib.sha256(f"{pair.fingerprint} {weights} {new.sha256}".encode()).hexdigest()
    changed = replace(old, sha256=new.sha256, size_bytes=new.size_bytes)
    write_manifest(
        part,
        replace(
            manifest,
            pair=replace(pair, fingerprint=fingerprint),
            graphs=tuple(changed if each is old else each for each in manifest.graphs),
            files=files,
            parity=ParityReport("not run", reason=f"the step has {weights} weights: a trial"),
        ),
    )
    part.rename(copy)
    return copy


def _convert(folder: Path, graph: bytes, path: Path, weights: Weights) -> None:
    """Write the graph to `path` with its weights inside, in another type."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Stored weights are float16 behind a cast, and functions are called: ONNX Runtime folds both.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    plain = path.with_suffix(".plain.onnx")
    options.optimized_model_filepath = str(plain)
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    if weights == "int8":
        quantize_dynamic(
            plain, path, op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
    else:
        OnnxModel.save(convert_float_to_float16(str(plain), keep_io_types=True), str(path))
    plain.unlink()
