"""A bundle of ONNX graphs in OpenVINO, on a CPU. No torch, no ONNX Runtime.

The host is the device: all arrays are numpy's, and models read and write them where they lie. The
usual shapes have a model each (`buckets.py`), all others share one; compiled models are kept in
files (`cache.py`). Pictures go through the autoencoder one by one, and by default through the steps
(`parts.py`), so that they do not depend on their company to the last bit.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from bootpig_rt.backends.base import (
    Decoder,
    DenoiseBatch,
    FloatArray,
    IntArray,
    PairSpec,
    PassProgress,
    ReferencePass,
)
from bootpig_rt.backends.bundle_spec import DECODER_GRAPHS, bundle_spec, self_attention_shapes
from bootpig_rt.backends.host_table import HostTable, Precision, TableDtype
from bootpig_rt.backends.openvino.buckets import one_row
from bootpig_rt.backends.openvino.cache import BlobCache, cache_folders
from bootpig_rt.backends.openvino.launch import Launch
from bootpig_rt.backends.openvino.models import OV_ERRORS, GraphFile, Models, Shapes, failed
from bootpig_rt.backends.openvino.precision import (
    HINT,
    HINTS,
    check_precision,
    float32_graphs,
    processor,
    rest_of,
)
from bootpig_rt.backends.openvino.steps import OpenVINORun, Shared
from bootpig_rt.backends.openvino.tables import Table, TableWriter, download, upload
from bootpig_rt.backends.options import OpenVINOOptions
from bootpig_rt.backends.pass_inputs import pass_launches
from bootpig_rt.backends.tiles import in_tiles
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import BackendUnavailable

_MOST_KEPT_BYTES = 1 << 30
"""Weights of a pair whose compiled models are kept in files: each file holds them once more."""
_MOST_BESIDE_BYTES = 256 << 20
"""Weights of a pair whose batches run in several launches at once, unless options say otherwise.

One core draws a picture of a small pair in less than twice the time of two. The products of a large
one keep all cores busy, and models that are compiled once more would take its memory.
"""
_MOST_STREAMS = 8


def load(
    bundle: Bundle, device: str, base_model: None, options: OpenVINOOptions
) -> OpenVINOBackend:
    """Load the graphs of a bundle; see `bootpig_rt.backends.create_backend`.

    Args:
        bundle: Whose files were all checked. One for ONNX Runtime on a CPU does as well: it holds
            standard operators.
        device: `auto` or `cpu`.
        base_model: None; a bundle holds all parts.
        options: Precision, threads, buckets, cache.

    Raises:
        BackendUnavailable: Another device was asked for, or a precision that is not there.
        BundleError: The bundle is damaged, or was built for something else.
    """
    if device not in ("auto", "cpu"):
        raise BackendUnavailable(
            f"device is {device}, but the backend openvino runs on CPUs; choose cpu, or the "
            "backend torch or tensorrt"
        )
    if bundle.manifest.target != "cpu":
        bundle.check_runtime("openvino", version())
    if options.precision == "auto":
        from bootpig_rt.backends.openvino.auto import quickest

        backend = quickest(bundle, options)
    else:
        backend = OpenVINOBackend(bundle, options)
    backend.prepare()
    return backend


def version() -> str:
    """Of OpenVINO, as its package says."""
    return str(ov.__version__).partition("-")[0]


class OpenVINOBackend:
    """A loaded bundle. Implements `bootpig_rt.backends.base.Backend`.

    Args:
        bundle: Whose files were all checked.
        options: Precision, threads, buckets, cache. `auto` is float32 here: `auto.py` chooses.

    Attributes:
        models: Compiled when they are first needed.
        beside: The same for several launches at once, which share the threads.
        float32_graphs: That stay so in a narrower precision.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, bundle: Bundle, options: OpenVINOOptions) -> None:
        """Read what the bundle says of itself; nothing is compiled yet."""
        self.options = options
        core = ov.Core()
        check_precision(core, bundle, options.precision)
        asked: Any = "float32" if options.precision == "auto" else options.precision
        precision: Precision = asked
        rest: Any = rest_of(precision)
        wide = float32_graphs(bundle, options, precision)
        facts = {
            "openvino": str(ov.__version__),
            "processor": processor(core),
            "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "pair": bundle.manifest.pair.fingerprint,
        }

        def models(streams: int) -> Models:
            return Models(
                core,
                lambda name: _graph_file(bundle, name, precision),
                config=lambda name: {
                    HINT: HINTS["float32" if name in wide else rest],
                    "INFERENCE_NUM_THREADS": options.threads,
                    "NUM_STREAMS": streams,
                },
                narrow=ov.Type.bf16 if rest == "bfloat16" else None,
                cache=_cache(bundle, options, facts),
                most=options.models_kept,
            )

        self.float32_graphs = wide if rest != "float32" else ()
        self.models = models(1)
        streams = streams_of(bundle, options)
        self.beside = models(streams) if streams > 1 else self.models
        spec = bundle_spec(bundle)
        self._unet = read_json(bundle.folder / "base_unet" / "config.json")
        side = spec.config.sample_size_px // spec.vae_scale_factor
        self._native: TableDtype = rest
        self.spec: PairSpec = replace(
            spec,
            runtime=f"openvino {version()}",
            precision=precision,
            table_dtype=rest,
        )
        self._size_px = (spec.config.sample_size_px,) * 2
        self._shared = Shared(
            self.models,
            self.beside,
            native=self._native,
            sizes=tuple(sorted(set(options.buckets))),
            size=(side, side),
            layers=spec.reference_shapes,
            unet=self._unet,
        )

    def prepare(self) -> None:
        """Begin to load what every picture needs."""
        self.models.begin(self._first_needed(self.spec))

    def encode_text(self, ids: IntArray) -> FloatArray:
        """Token ids int64 [N, S] -> text states float32 [N, S, E]."""
        return self._by_row("text_encoder", "ids", np.asarray(ids, np.int64), "prompt_embeds", ())

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w]."""
        run = partial(self._by_row, "vae_encoder", "pixels", output="latents", size=self._size_px)
        return in_tiles(run, pixels, reads=self.spec.vae_scale_factor, makes=1)

    def decode(self, latents: FloatArray, *, decoder: Decoder = "full") -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""
        graph, size = DECODER_GRAPHS[decoder], self._shared.size
        run = partial(self._by_row, graph, "latents", output="pixels", size=size)
        return in_tiles(run, latents, reads=1, makes=self.spec.vae_scale_factor)

    def reference_kv(
        self,
        latents: FloatArray,
        timesteps: IntArray,
        prompt_embeds: FloatArray,
        *,
        dtype: TableDtype = "float32",
        rows_per_launch: int = 16,
        progress: PassProgress | None = None,
    ) -> ReferencePass:
        """Run the Reference U-Net over all entries and references in batches."""
        entries, references, _, height, width = latents.shape
        total = entries * references
        states = np.asarray(prompt_embeds, np.float32)
        try:
            writer = TableWriter(
                self_attention_shapes(self._unet, height, width),
                entries=entries,
                references=references,
                dtype=dtype,
                native=self._native,
            )
            for launch in pass_launches(latents, timesteps, rows_per_launch):
                inputs = {**launch.inputs, "prompt_embeds": states[launch.references]}
                room = writer.room(launch.rows)
                shapes = self._one_row(inputs, self._shared.size)
                model = self.models.get("reference_kv", shapes)
                Launch(model, inputs, room).run()
                writer.take(launch.rows, room)
                if progress is not None:
                    progress(launch.rows.stop, total)
        except OV_ERRORS as error:
            raise failed("reading references", error) from error
        table = writer.finish()
        return ReferencePass(table, table.nbytes, total)

    def download_table(self, data: Table | HostTable) -> HostTable:
        """A table as arrays of the host, in the same type."""
        return download(data)

    def upload_table(self, table: HostTable, *, is_resident: bool) -> Table | HostTable:
        """A table of the host as `data` of a batch."""
        return upload(table, self._native, is_resident=is_resident)

    def download_states(self, prompt_embeds: FloatArray) -> FloatArray:
        """Text states of `encode_text`, which are numpy's already."""
        return np.asarray(prompt_embeds, np.float32)

    def start(self, batch: DenoiseBatch) -> OpenVINORun:
        """Lay out a batch and bind it."""
        return OpenVINORun(self._shared, batch)

    def _by_row(
        self, graph: str, name: str, values: Any, output: str, size: tuple[int, ...]
    ) -> FloatArray:
        """Run a graph over rows one by one; all are handed over before the first is waited for."""
        rows = [np.ascontiguousarray(values[i : i + 1]) for i in range(len(values))]
        shapes = self._one_row({name: rows[0]}, size)
        try:
            model = (self.beside if len(rows) > 1 else self.models).get(graph, shapes)
            launches = [Launch(model, {name: row}) for row in rows]
            for launch in launches:
                launch.start()
            for launch in launches:
                launch.wait()
            return np.concatenate([launch.output(output) for launch in launches])
        except OV_ERRORS as error:
            raise failed(f"running the graph {graph}", error) from error

    def _first_needed(self, spec: PairSpec) -> list[tuple[str, Shapes]]:
        """What every picture needs, in the order of a request. The steps' shapes come with it."""
        text, side = spec.text_shape, self._shared.size
        channels = spec.latent_channels
        if not self.options.buckets:
            return [
                (name, ()) for name in ("vae_encoder", "text_encoder", "text_kv", "vae_decoder")
            ]
        return [
            ("vae_encoder", (("pixels", (1, 3, *self._size_px)),)),
            # What is told sizes reads more numbers than its states have rows.
            (
                "text_encoder",
                () if text is None or spec.reads_sizes else (("ids", (1, text[0])),),
            ),
            ("text_kv", ()),
            ("vae_decoder", (("latents", (1, channels, *side)),)),
        ]

    def _one_row(self, inputs: dict[str, Any], size: tuple[int, ...]) -> Shapes:
        """Shapes of a launch of one row of the usual size; empty for the model of free shapes."""
        return one_row(inputs, size) if self.options.buckets else ()


def _graph_file(bundle: Bundle, name: str, precision: str) -> GraphFile:
    """A graph of a bundle, hashed once more: OpenVINO reads it and its weights from the folder."""
    info = bundle.graph_in(name, precision)
    bundle.check_unchanged(info)
    return GraphFile(bundle.folder / info.file, info.sha256)


def _cache(bundle: Bundle, options: OpenVINOOptions, facts: dict[str, Any]) -> BlobCache | None:
    """Where compiled models are kept; None where a pair is so large that they are not."""
    if not options.cache or weights_bytes(bundle) > _MOST_KEPT_BYTES:
        return None
    folder = None if options.cache_folder is None else Path(options.cache_folder)
    return BlobCache(cache_folders(bundle, folder), facts)


def weights_bytes(bundle: Bundle) -> int:
    """Of all parts of a pair, as they are stored."""
    files = bundle.manifest.files
    return sum(file.size_bytes for file in files if file.path.endswith(".safetensors"))


def streams_of(bundle: Bundle, options: OpenVINOOptions) -> int:
    """How many launches of a batch run at once."""
    if options.streams:
        return options.streams
    if options.models_kept or weights_bytes(bundle) > _MOST_BESIDE_BYTES:
        return 1
    return min(options.threads or os.cpu_count() or 1, _MOST_STREAMS)
