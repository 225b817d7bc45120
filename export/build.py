"""`build_engine`: from a pair to a bundle that was checked against torch.

The main path, top to bottom: lock, checks, weights, torch's side of the gate, graphs, the gate,
engines, manifest, publication.
Everything is made in a hidden folder beside the bundle, and takes its place at the end. What a
graph is, `onnx_export.py` knows; what an engine is, `tensorrt_builder.py`; what goes into the
manifest, `describe.py`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from bootpig_rt.backends.host_memory import return_freed_memory
from bootpig_rt.bundle.bundle import Bundle, ParityReport, write_manifest
from bootpig_rt.bundle.control import CONTROL_PREFIX, CONTROL_WEIGHTS, ControlFolder, all_controls
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.bundle.manifest import ControlInfo
from bootpig_rt.bundle.pair_config import TINY_VAE
from bootpig_rt.bundle.signing import check_private_key
from bootpig_rt.bundle.text_parts import TEXT_ENCODER_2, TOKENIZER_2
from bootpig_rt.errors import (
    BootPIGError,
    ParityError,
    StorageError,
    describe_os_error,
)
from bootpig_rt.export.build_key import build_key
from bootpig_rt.export.build_options import BuildOptions, graph_names
from bootpig_rt.export.build_output import Order, check_free_space, check_output, publish
from bootpig_rt.export.build_track import BuildProgress, Track
from bootpig_rt.export.describe import describe_engines, describe_graphs
from bootpig_rt.export.parity import at_reduced_size
from bootpig_rt.export.targets import require_buildable, require_int8
from bootpig_rt.export.tensorrt_layers import describe_engine
from bootpig_rt.export.work_folder import WorkFolder, link_or_copy, work_folder

if TYPE_CHECKING:
    from bootpig_rt.bundle.manifest import Manifest
    from bootpig_rt.export.gate import GateRun, Reference
    from bootpig_rt.models.load import Pair

logger = logging.getLogger(__name__)

PARITY_SUFFIX = ".parity-report"
"""What is appended to a bundle's name for the folder that a failed gate leaves."""


GRAPHS, ENGINES = "graphs", "engines"
_RUNTIME_PARTS = (
    "base_unet",
    "vae",
    "text_encoder",
    "tokenizer",
    TEXT_ENCODER_2,
    TOKENIZER_2,
    "scheduler",
    TINY_VAE,
)


@dataclass(frozen=True)
class BuildResult:
    """A finished bundle.

    Attributes:
        bundle: In its place.
        resumed: Graphs and engines that an earlier build had finished.
    """

    bundle: Bundle
    resumed: int


def build_engine(
    pair_folder: Path,
    output: Path,
    options: BuildOptions,
    *,
    base_model: Path | None = None,
    key: Path | None = None,
    overwrite: bool = False,
    loras: tuple[Lora, ...] = (),
    controls: tuple[ControlFolder, ...] = (),
    progress: BuildProgress | None = None,
) -> BuildResult:
    """Build a bundle: all of it, or nothing in `output`.

    Whatever ends a build early, the graphs and engines that were finished stay in a hidden folder
    beside `output`, and the same call goes on from them; see `work_folder`.

    Args:
        pair_folder: The pair, in either layout.
        output: The bundle. May be `pair_folder` itself: its weights are then used where they are.
        options: What to build.
        base_model: The Stable Diffusion folder of a pair in the published layout.
        key: Private key, PEM, to sign the manifest with.
        overwrite: Replace a folder that is a bundle.
        loras: Fused into the weights, which are then written anew.
        controls: ControlNets that the bundle holds too, beside those that lie in `pair_folder`.
        progress: Told what is being done; called from the thread that builds.

    Raises:
        ParameterError: The output may not be written, or the key is none.
        BackendUnavailable: The target cannot be built here; says what is missing.
        CheckpointError: The pair or a LoRA cannot be used.
        ParityError: The new graphs differ from torch; a report was left beside the output.
        StorageError: Disk full, read-only folder, or another build holds the output.
    """
    has_tiny = ((base_model or pair_folder) / TINY_VAE).is_dir()
    kinds = tuple(one.kind for one in all_controls(pair_folder, controls))
    options = replace(options, tiny_decoder=has_tiny, controls=kinds)
    options = options.for_output(pair_folder, output)
    order = Order(pair_folder, output, base_model, options, key, overwrite, loras, controls)
    check_output(pair_folder, output, options, overwrite=overwrite)
    if key is not None:
        check_private_key(key)
    require_buildable(options.target)
    if options.int8:
        require_int8()
    track = Track(options, progress)
    try:
        with work_folder(output) as work:
            # Once more: what was just said could have changed before the folder was ours.
            check_output(pair_folder, output, options, overwrite=overwrite)
            result = _build(order, work, track)
    except BootPIGError:
        raise
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        storage_error = StorageError(f"cannot build {str(output)!r}: {reason}")
        storage_error.errno = error.errno
        raise storage_error from error
    track.end()
    return result


def _build(order: Order, work: WorkFolder, track: Track) -> BuildResult:
    from torch import nn

    from bootpig_rt.backends.torch.backend import TorchBackend
    from bootpig_rt.export.gate import (
        compare_backend,
        compare_variants,
        place_of,
        record_reference,
    )

    options, graphs = order.options, work.path / GRAPHS
    with track.part("load", "loading the pair"):
        pair, source_fingerprint = _load_and_stage(order, work)
    place = place_of(options.target)
    is_checked_later = options.is_engine and not place.is_target
    # Graphs take any size, and what is compared is arithmetic: a machine that is not the target
    # need not have the memory for large pictures.
    profile = at_reduced_size(options.profile) if is_checked_later else options.profile
    with track.part("torch", "running the pair in torch") as tell:
        reference = record_reference(
            TorchBackend(pair, "cpu"),
            profile=profile,
            merges=options.merges,
            keeps_features=True,
            takes_masks=True,
            takes_controls=True,
            progress=tell,
        )
    config = pair.config
    controls = tuple(ControlInfo(one.kind, one.fingerprint) for one in pair.controls)
    if options.precision == "float16":  # in its place: two copies would not fit
        for module in pair.modules:
            if module is not pair.vae or not pair.keeps_vae_wide:
                nn.Module.half(module)
        return_freed_memory()
    resumed = _export(order, pair, work, track)
    _release(pair)  # it would not fit beside the new backend's copy
    del pair
    return_freed_memory()

    not_run = ParityReport("not run", "the build has not come to it")
    # The graphs of engines are a bundle for a CPU on the way.
    on_way = replace(options, target="cpu", profile=profile) if options.is_engine else options
    fingerprint = reference.fingerprint
    manifest = describe_graphs(graphs, on_way, config, fingerprint, not_run, source_fingerprint)
    manifest = structs.replace(manifest, controls=controls)
    write_manifest(graphs, manifest)
    on_graphs = place_of("cpu") if place.is_target and options.is_engine else place
    with track.part("compare", "comparing the graphs with torch") as tell:
        gate = compare_backend(graphs, on_graphs, reference, options.precision, tell)
    _require_parity(order, reference, gate)
    if not options.is_engine:
        report = gate.report if place.is_target else _as_not_run(gate.report)
        finished = graphs
        if options.target == "openvino":
            with track.part("compare", "comparing other precisions with torch") as tell:
                variants = compare_variants(graphs, place, reference, tell)
            manifest = structs.replace(manifest, variants=variants)
        if options.int8:
            manifest, more = _build_int8(order, work, track, manifest, reference)
            resumed += more
    else:
        resumed += _build_engines(order, work, track)
        finished = work.path / ENGINES
        report = _as_not_run(gate.report)
        if reference.plan.side_px < options.profile.resolution_px[0]:
            remark = f"they were compared at {reference.plan.side_px} px, which takes less memory"
            report = _with_remark(report, remark)
        manifest = describe_engines(
            graphs, finished, options, config, fingerprint, report, source_fingerprint
        )
        manifest = structs.replace(manifest, controls=controls)
        if place.is_target:
            write_manifest(finished, manifest)
            with track.part("compare", "comparing the engines with torch") as tell:
                gate = compare_backend(finished, place, reference, options.precision, tell)
            _require_parity(order, reference, gate)
            report = gate.report
        layers = (f"{name}: {describe_engine(finished, name)}" for name in graph_names(options))
        report = _with_remark(report, "; ".join(layers))
    write_manifest(finished, structs.replace(manifest, parity=report), key=order.key)
    return BuildResult(publish(order, finished, work), resumed)


def _load_and_stage(order: Order, work: WorkFolder) -> tuple[Pair, str]:
    """Put the pair into the work folder, linked where graphs can point into its files.

    Returns:
        The pair that lies there now, and the fingerprint of the one that was given.
    """
    from bootpig_rt.export.stage_pair import (
        are_stored_as,
        check_in_place,
        link_pair,
        pair_files,
        stored_type,
        write_pair,
    )
    from bootpig_rt.models.load import load_pair

    options, graphs = order.options, work.path / GRAPHS
    pair = load_pair(
        order.pair_folder,
        base_model=order.base_model,
        loras=order.loras,
        controls=order.controls,
    )
    fingerprint = pair.fingerprint
    is_single = all((one.path / CONTROL_WEIGHTS).is_file() for one in order.controls)
    is_written_anew = order.base_model is not None or order.loras or not is_single
    files = None if is_written_anew else pair_files(order.pair_folder)
    stored_as = options.stored_as
    if files is not None and stored_as is not None:
        files = files if are_stored_as(order.pair_folder, files, stored_as) else None
    if order.is_in_place:
        check_in_place(order.pair_folder, files, order.controls)
    check_free_space(order, pair.config)
    work.resume(build_key(options, fingerprint))
    if files is not None:
        link_pair(order.pair_folder, files, graphs, order.controls)
        return pair, fingerprint
    is_exact = options.is_engine and options.precision == "float32"
    dtype = stored_type(pair, stored_as or options.weights, is_exact=is_exact)
    write_pair(pair, graphs, dtype=dtype)
    _release(pair)
    return load_pair(graphs), fingerprint  # the graphs point into it, so that is the pair from here


def _release(pair: Pair) -> None:
    """Give back the memory of the weights, whoever still knows the tensors: the exporter does."""
    for module in pair.modules:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.new_empty(0)


def _export(order: Order, pair: Pair, work: WorkFolder, track: Track) -> int:
    """Write the graphs that are not there yet; returns how many were."""
    from bootpig_rt.export.onnx_export import export_graph

    folder, resumed = work.path / GRAPHS, 0
    vae: Any = pair.vae
    dialect = order.options.dialect(2 ** (len(vae.config.block_out_channels) - 1))
    for name in graph_names(order.options):
        file = f"{GRAPHS}/{name}.onnx"
        with track.part("graph", f"exporting {name}"):
            if work.finished(file) is not None:
                resumed += 1
                continue
            export_graph(name, pair, folder, precision=order.options.precision, dialect=dialect)
            work.finish(file, {})
    if resumed:
        logger.info("%d graphs were finished by an earlier build", resumed)
    return resumed


def _build_engines(order: Order, work: WorkFolder, track: Track) -> int:
    """Build the engines that are not there yet; returns how many were."""
    from bootpig_rt.export.tensorrt_builder import build_trt_engine

    graphs, engines, resumed = work.path / GRAPHS, work.path / ENGINES, 0
    return_freed_memory()  # the gate had the graphs loaded
    engines.mkdir(exist_ok=True)
    of_controls = [f"{CONTROL_PREFIX}{kind}" for kind in order.options.controls]
    for part in (*_RUNTIME_PARTS, *of_controls):
        if not (graphs / part).is_dir():
            continue
        (engines / part).mkdir(exist_ok=True)
        for path in (graphs / part).iterdir():
            if path.suffix != ".safetensors":
                link_or_copy(path, engines / part / path.name)
    link_or_copy(graphs / "pair.json", engines / "pair.json")
    for name in graph_names(order.options):
        file = f"{ENGINES}/{name}.engine"
        with track.part("engine", f"building {name}") as tell:
            layers = work.finished(file)
            if layers is not None:
                resumed += 1
            else:
                report = build_trt_engine(
                    graphs / f"{name}.onnx",
                    work.path / file,
                    sm=order.options.target,
                    profile=order.options.profile,
                    plugin=order.options.plugin,
                    progress=tell,
                )
                layers = report.to_dict()
                work.finish(file, layers)
            text = json.dumps(layers, indent=1) + "\n"
            (engines / f"{name}.layers.json").write_text(text, encoding="utf-8")
    return resumed


def _build_int8(
    order: Order,
    work: WorkFolder,
    track: Track,
    manifest: Manifest,
    reference: Reference,
) -> tuple[Manifest, int]:
    """Quantise the step graphs and compare them; returns how many were there already as well."""
    from bootpig_rt.backends.bundle_spec import bundle_spec
    from bootpig_rt.export.calibration import CalibrationOptions
    from bootpig_rt.export.describe import describe_int8
    from bootpig_rt.export.gate import compare_backend, place_of
    from bootpig_rt.export.int8 import build_int8

    options, graphs = order.options, work.path / GRAPHS
    names = [name for name in graph_names(options) if name.startswith("denoise_step")]
    with track.part("int8", "quantising") as tell:
        made = build_int8(
            work,
            GRAPHS,
            bundle_spec(Bundle(graphs, manifest)),
            names,
            merges=options.merges,
            options=CalibrationOptions(Path(options.calibration) if options.calibration else None),
            limit=options.int8_limit,
            steps=max(case.steps for case in reference.plan.cases),
            side_px=reference.plan.side_px,
            told=tell,
        )
    manifest = describe_int8(graphs, manifest, made)
    write_manifest(graphs, manifest)
    with track.part("compare", "comparing int8 with torch") as tell:
        gate = compare_backend(graphs, place_of("openvino"), reference, "int8", tell)
    _require_parity(order, reference, gate, "int8")
    lines = "; ".join(one.choice.describe(one.name) for one in made)
    variant = manifest.variant("int8")
    assert variant is not None
    told = structs.replace(variant, parity=_with_remark(gate.report, lines))
    others = tuple(one for one in manifest.variants if one.precision != "int8")
    manifest = structs.replace(manifest, variants=(*others, told))
    return manifest, sum(one.resumed for one in made)


def _require_parity(order: Order, reference: Reference, gate: GateRun, precision: str = "") -> None:
    """End the build if the gate failed, and leave a report beside the output.

    `precision` is that of the graphs, where it is not the build's own.

    Raises:
        ParityError: Names the worst result and the report.
    """
    from bootpig_rt.export.gate import describe_worst
    from bootpig_rt.export.parity_report import write_report

    if gate.report.status == "passed":
        return
    precision = precision or order.options.precision
    folder = order.output.with_name(f"{order.output.name}{PARITY_SUFFIX}")
    write_report(folder, gate.report, reference.recording, gate.recording)
    fix = "build with --precision float32"
    if order.options.precision == "float32" and precision != "int8":
        fix = "report it with the numbers in that folder"
    raise ParityError(
        f"the {precision} graphs in {gate.report.backend} differ from torch: "
        f"{describe_worst(gate.report.results)}; no bundle was made, see {folder}; {fix}"
    )


def _as_not_run(report: ParityReport) -> ParityReport:
    return structs.replace(report, status="not run")


def _with_remark(report: ParityReport, remark: str) -> ParityReport:
    return structs.replace(
        report, reason="; ".join(part for part in (report.reason, remark) if part)
    )
