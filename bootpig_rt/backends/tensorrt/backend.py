"""A bundle of TensorRT engines, in either TensorRT, without torch.

Addresses are bound once for a batch, a table once however many pictures read it at whatever steps.
All engines share one block of scratch memory, because they run one after another on one stream.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bootpig_rt.backends.base import (
    Decoder,
    DenoiseBatch,
    FloatArray,
    IntArray,
    PairSpec,
    PassProgress,
    ReferencePass,
)
from bootpig_rt.backends.bundle_spec import DECODER_GRAPHS, bundle_spec, residual_shapes
from bootpig_rt.backends.cuda.memory import Cuda, DeviceArray
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.host_table import HostTable, TableDtype
from bootpig_rt.backends.options import TensorRTOptions
from bootpig_rt.backends.pass_inputs import pass_launches
from bootpig_rt.backends.tensorrt.engine import Engine, Launch, arena_bytes
from bootpig_rt.backends.tensorrt.flavours import Flavour, flavour_of
from bootpig_rt.backends.tensorrt.steps import TensorRTRun
from bootpig_rt.backends.tensorrt.tables import (
    Table,
    download_table,
    finish_table,
    upload_table,
)
from bootpig_rt.backends.tiles import in_tiles
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import BackendUnavailable, BundleError


def load(
    bundle: Bundle, device: str, base_model: None, options: TensorRTOptions
) -> TensorRTBackend:
    """Load the engines of a bundle; see `bootpig_rt.backends.create_backend`.

    Raises:
        BackendUnavailable: The TensorRT of the bundle, `cuda-python` or the GPU is missing.
        BundleError: The bundle is damaged, or was built for something else.
    """
    return TensorRTBackend(bundle, device)


def device_index(device: str) -> int:
    """Number of the CUDA device that a name means.

    Raises:
        BackendUnavailable: The name means another kind of device.
    """
    if device == "cpu":
        raise BackendUnavailable(
            "TensorRT engines run on NVIDIA GPUs only, device is cpu; choose cuda, or a bundle "
            "built with --target cpu"
        )
    return int(device.partition(":")[2] or 0)


class TensorRTBackend:
    """A loaded bundle. Implements `bootpig_rt.backends.base.Backend`.

    Args:
        bundle: Whose files were all checked.
        device: `auto`, `cuda` or `cuda:N`.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, device: str) -> None:
        """Look for package and GPU, then open the engines, each hashed once more."""
        manifest = bundle.manifest
        self._flavour: Flavour = flavour_of(manifest.target)
        trt = self._flavour.load()
        self._cuda = Cuda(device_index(device))
        architecture = self._cuda.architecture()
        bundle.check_runtime(self._flavour.package, str(trt.__version__), architecture)
        self.device = f"cuda:{self._cuda.index}"
        spec = bundle_spec(bundle)
        runtime_name = f"{self._flavour.package} {trt.__version__}"
        self.spec: PairSpec = replace(spec, resident_dtype=spec.precision, runtime=runtime_name)
        self._tables: Derived[Layers] = Derived()
        self.hints: Derived[Layers] = Derived()
        self._unet = read_json(bundle.folder / "base_unet" / "config.json")
        # One stream and one scratch memory: launches of several threads take turns.
        self._lock = threading.RLock()
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._runtime = runtime
        self._engines = {
            graph.name: Engine(
                graph.name,
                bundle.read_graph(graph.name),
                trt=trt,
                flavour=self._flavour,
                runtime=runtime,
            )
            for graph in manifest.graphs
        }
        scratch = [engine.scratch_bytes for engine in self._engines.values()]
        self._arena = self._cuda.empty((arena_bytes(scratch),), np.uint8)

    def encode_text(self, ids: IntArray) -> DeviceArray:
        """Token ids int64 [N, S] -> text states [N, S, E] on the device."""
        engine = self.engine("text_encoder")
        most = engine.spec("ids").most[0]
        with self._lock:
            self._cuda.activate()
            pieces = [
                self.run(engine, {"ids": ids[start : start + most]})["prompt_embeds"]
                for start in range(0, len(ids), most)
            ]
            return self._join(pieces)

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w]."""
        run = partial(self._by_rows, "vae_encoder", "pixels", output="latents")
        return in_tiles(run, pixels, reads=self.spec.vae_scale_factor, makes=1)

    def decode(self, latents: FloatArray, *, decoder: Decoder = "full") -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""
        run = partial(self._by_rows, DECODER_GRAPHS[decoder], "latents", output="pixels")
        return in_tiles(run, latents, reads=1, makes=self.spec.vae_scale_factor)

    def reference_kv(
        self,
        latents: FloatArray,
        timesteps: IntArray,
        prompt_embeds: DeviceArray | FloatArray,
        *,
        dtype: TableDtype = "float32",
        rows_per_launch: int = 16,
        progress: PassProgress | None = None,
    ) -> ReferencePass:
        """Run the Reference U-Net over all entries and references in batches.

        See `bootpig_rt.backends.tensorrt.tables` for what `dtype` means here.
        """
        entries, references = latents.shape[:2]
        total = entries * references
        engine = self.engine("reference_kv")
        most = min(rows_per_launch, engine.spec("latents").most[0])
        layers: dict[str, DeviceArray] = {}
        with self._lock:
            self._cuda.activate()
            states = self.upload(engine, {"prompt_embeds": prompt_embeds})["prompt_embeds"]
            for launch in pass_launches(latents, timesteps, most):
                texts = self._texts_of_rows(states, launch.references)
                piece = self.run(engine, {**launch.inputs, "prompt_embeds": texts})
                for name, part in piece.items():
                    if name not in layers:
                        shape = (total, *part.shape[1:])
                        layers[name] = self._cuda.empty(shape, part.dtype)
                    whole = layers[name]
                    offset = whole.address + launch.rows.start * whole.row_bytes
                    self._cuda.copy(part.address, offset, part.nbytes)
                self._cuda.wait()
                if progress is not None:
                    progress(launch.rows.stop, total)
            table = finish_table(
                self._cuda, layers, entries=entries, references=references, dtype=dtype
            )
        return ReferencePass(table, table.size_bytes, total)

    def download_table(self, data: Table) -> HostTable:
        """A table as arrays of the host, in the type it was asked for."""
        with self._lock:
            self._cuda.activate()
            return download_table(self._cuda, data)

    def upload_table(self, table: HostTable, *, is_resident: bool) -> Table:
        """A table of the host on the device, or to be streamed from where it is."""
        with self._lock:
            self._cuda.activate()
            return upload_table(self._cuda, table, self._table_type(), is_resident=is_resident)

    def download_states(self, prompt_embeds: DeviceArray) -> FloatArray:
        """Text states as float32 of numpy."""
        with self._lock:
            self._cuda.activate()
            return self._cuda.download(prompt_embeds).astype(np.float32)

    def _table_type(self) -> str:
        return self.engine("reference_kv").spec("k_0").dtype

    def start(self, batch: DenoiseBatch) -> TensorRTRun:
        """Upload a batch, bind it and record its step."""
        return TensorRTRun(self, batch)

    def engine(self, name: str) -> Engine:
        """The engine of a graph.

        Raises:
            BundleError: The bundle was built without it.
        """
        if name not in self._engines:
            merge = name.removeprefix("denoise_step_").removeprefix("controlled_step_")
            fix = f"--merge {merge}" if merge != name else "this version"
            raise BundleError(
                f"the bundle has no engine {name}, only {', '.join(self._engines)}; "
                f"build it again with {fix}"
            )
        return self._engines[name]

    def run(
        self, engine: Engine, inputs: Mapping[str, np.ndarray[Any, Any] | DeviceArray]
    ) -> dict[str, DeviceArray]:
        """Upload, launch once, and return the outputs on the device."""
        launch = self.launch(engine, self.upload(engine, inputs))
        launch.run()
        self._cuda.wait()
        return launch.outputs

    def launch(self, engine: Engine, inputs: Mapping[str, DeviceArray]) -> Launch:
        """An engine bound to arrays of the device."""
        return Launch(engine, self._arena, self._cuda, inputs=inputs)

    def zeros(self, engine: Engine, name: str, shape: tuple[int, ...]) -> DeviceArray:
        """Zeros for an input of an engine."""
        return self._cuda.upload(np.zeros(shape, np.float32), engine.spec(name).dtype)

    def residual_shapes(self, rows: int, height: int, width: int) -> list[tuple[int, ...]]:
        """Of what a control adds, for rows of some size of latents."""
        return [(rows, *shape) for shape in residual_shapes(self._unet, height, width)]

    def upload(
        self, engine: Engine, inputs: Mapping[str, np.ndarray[Any, Any] | DeviceArray]
    ) -> dict[str, DeviceArray]:
        """Host arrays -> device, in the types that the engine reads."""
        known = {spec.name: spec.dtype for spec in engine.specs if spec.is_input}
        return {
            name: value if isinstance(value, DeviceArray) else self._cuda.upload(value, known[name])
            for name, value in inputs.items()
            if name in known
        }

    def _by_rows(self, graph: str, name: str, values: FloatArray, output: str) -> FloatArray:
        """Run a graph over rows that do not depend on each other."""
        engine = self.engine(graph)
        most = engine.spec(name).most[0]
        pieces = []
        with self._lock:
            self._cuda.activate()
            for start in range(0, len(values), most):
                made = self.run(engine, {name: values[start : start + most]})[output]
                pieces.append(self._cuda.download(made).astype(np.float32))
        return np.concatenate(pieces)

    def _texts_of_rows(self, prompt_embeds: DeviceArray, references: IntArray) -> DeviceArray:
        """Text states [R, S, E] -> those of some references [N], one after another."""
        shape = (len(references), *prompt_embeds.shape[1:])
        texts = self._cuda.empty(shape, prompt_embeds.dtype)
        size = texts.row_bytes
        for number, reference in enumerate(references.tolist()):
            source = prompt_embeds.address + reference * size
            self._cuda.copy(source, texts.address + number * size, size)
        return texts

    def joined(self, tables: Sequence[Table]) -> Layers:
        """Resident tables, each another, in a row; a table alone is not copied.

        Kept while the tables live: pictures of the same subjects come and go without copies.
        """

        def join() -> Layers:
            with self._lock:
                self._cuda.activate()
                layers = {
                    name: self._join([table.layers[name] for table in tables])
                    for name in tables[0].layers
                }
            return Layers(layers)

        return self._tables.of(tables, join)

    def _join(self, arrays: list[DeviceArray]) -> DeviceArray:
        """Arrays one after another along the first axis; one array is not copied."""
        if len(arrays) == 1:
            return arrays[0]
        rows = sum(array.shape[0] for array in arrays)
        whole = self._cuda.empty((rows, *arrays[0].shape[1:]), arrays[0].dtype)
        address = whole.address
        for array in arrays:
            self._cuda.copy(array.address, address, array.nbytes)
            address += array.nbytes
        self._cuda.wait()
        return whole
