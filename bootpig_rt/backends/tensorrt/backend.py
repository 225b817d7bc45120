"""A bundle of TensorRT engines, in either TensorRT, without torch.

Addresses are bound once for a batch, a table once however many pictures read it at whatever steps.
All engines share one block of scratch memory, because they run one after another on one stream. A
step is one CUDA graph: the engine, which does guidance and solver as well, and a copy that makes
its result the state of the next step. The step's number lies on the device, and so do the features
of the deep blocks: `denoise_step` writes them where `shallow_step` reads them.
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
from bootpig_rt.backends.bundle_spec import DECODER_GRAPHS, bundle_spec
from bootpig_rt.backends.cuda.memory import Cuda, CudaGraph, DeviceArray
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.host_table import HostTable, TableDtype
from bootpig_rt.backends.options import TensorRTOptions
from bootpig_rt.backends.pass_inputs import pass_launches
from bootpig_rt.backends.step_inputs import StepInputs, graph_name, room_for_features, step_inputs
from bootpig_rt.backends.tensorrt.engine import Engine, Launch, arena_bytes
from bootpig_rt.backends.tensorrt.flavours import Flavour, flavour_of
from bootpig_rt.backends.tensorrt.tables import (
    Table,
    TableWindow,
    download_table,
    finish_table,
    upload_table,
)
from bootpig_rt.backends.tiles import in_tiles
from bootpig_rt.bundle.bundle import Bundle
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
                self._run(engine, {"ids": ids[start : start + most]})["prompt_embeds"]
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
            states = self._upload(engine, {"prompt_embeds": prompt_embeds})["prompt_embeds"]
            for launch in pass_launches(latents, timesteps, most):
                texts = self._texts_of_rows(states, launch.references)
                piece = self._run(engine, {**launch.inputs, "prompt_embeds": texts})
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
            merge = name.removeprefix("denoise_step_")
            fix = f"--merge {merge}" if merge != name else "this version"
            raise BundleError(
                f"the bundle has no engine {name}, only {', '.join(self._engines)}; "
                f"build it again with {fix}"
            )
        return self._engines[name]

    def _run(
        self, engine: Engine, inputs: Mapping[str, np.ndarray[Any, Any] | DeviceArray]
    ) -> dict[str, DeviceArray]:
        """Upload, launch once, and return the outputs on the device."""
        launch = Launch(engine, self._arena, self._cuda, inputs=self._upload(engine, inputs))
        launch.run()
        self._cuda.wait()
        return launch.outputs

    def _upload(
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
                made = self._run(engine, {name: values[start : start + most]})[output]
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


class TensorRTRun:
    """One batch on its way through the steps. Implements `bootpig_rt.backends.base.DenoiseRun`."""

    def __init__(self, backend: TensorRTBackend, batch: DenoiseBatch) -> None:
        """Upload, bind every address once, and record the step where that is possible."""
        self._backend = backend
        self._cuda = backend._cuda
        self._window: TableWindow | None = None
        self._entries: list[list[int]] = batch.entry_of_step.T.tolist()
        streams = any(not table.is_resident for table in batch.tables)
        laid_out: StepInputs = step_inputs(batch, streams=streams)
        tables: list[Table] = laid_out.tables
        self._joined = None if streams or not tables else backend.joined(tables)
        engine = backend.engine(graph_name(batch.merge, laid_out.slots))
        with backend._lock:
            self._cuda.activate()
            numbers = np.arange(laid_out.num_steps, dtype=np.int64)
            self._numbers = self._cuda.upload(numbers)
            texts = {
                "prompt_embeds": batch.prompt_embeds,
                "text_of_row": laid_out.text_of_row,
            }
            arrays: dict[str, Any] = {
                "step": np.zeros(1, np.int64),
                **laid_out.arrays,
                **backend._run(backend.engine("text_kv"), texts),
            }
            inputs = backend._upload(engine, arrays)
            inputs |= self._table(engine, tables, streams)
            self._step, self._state = inputs["step"], inputs["state"]
            deep = Launch(engine, backend._arena, self._cuda, inputs=inputs)
            self._launches = {True: deep}
            self._deep_steps = batch.deep_steps
            if batch.deep_steps is not None and not batch.deep_steps.all():
                inputs["features"] = deep.outputs["features"]
                shallow = backend.engine(graph_name(batch.merge, laid_out.slots, is_deep=False))
                self._launches[False] = Launch(shallow, backend._arena, self._cuda, inputs=inputs)
            self._last = deep
            # The first launch also finishes kernels, so it is done on a state that is put back.
            first = self._cuda.download(self._state)
            self._graphs: dict[bool, CudaGraph] = {}
            for is_deep, launch in self._launches.items():
                once = partial(self._once, launch)
                once()
                if launch.is_recordable():
                    self._graphs[is_deep] = self._cuda.capture(once)
            self._cuda.copy_in(first, self._state)
            if batch.deep_steps is not None:
                self._features = deep.outputs["features"]
                room, self._rows = room_for_features(
                    batch,
                    laid_out,
                    channels=self._features.shape[1],
                    dtype=self._features.dtype,
                )
                self._cuda.copy_in(room, self._features)

    def step(self, index: int) -> None:
        """Do one step: set its number on the device, then one launch."""
        with self._backend._lock:
            self._cuda.activate()
            if self._window is not None:
                self._window.show(self._entries[index])
            size = self._numbers.dtype.itemsize
            self._cuda.copy(self._numbers.address + index * size, self._step.address, size)
            is_deep = self._deep_steps is None or bool(self._deep_steps[index])
            self._last = self._launches[is_deep]
            if is_deep in self._graphs:
                self._graphs[is_deep].launch()
            else:
                self._once(self._last)
            if self._window is not None and index + 1 < len(self._entries):
                self._window.fetch(self._entries[index + 1])  # while the step runs

    def state(self) -> FloatArray:
        """Current sample and history, float32 [1 + K, B, C, h, w]."""
        return self._download(self._state)

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]."""
        return self._download(self._last.outputs["estimate"])

    def features(self) -> tuple[np.ndarray[Any, Any] | None, ...]:
        """What the deep blocks gave last, of each picture [rows, C', h, w], on the host."""
        if self._deep_steps is None:
            return (None,) * int(self._state.shape[1])
        with self._backend._lock:
            self._cuda.activate()
            found = self._cuda.download(self._features)
        return tuple(found[rows] for rows in self._rows)

    def _once(self, launch: Launch) -> None:
        """The engine, then its result becomes the state that the next step reads."""
        launch.run()
        following = launch.outputs["next_state"]
        self._cuda.copy(following.address, self._state.address, following.nbytes)

    def _table(
        self, engine: Engine, tables: Sequence[Table], streams: bool
    ) -> dict[str, DeviceArray]:
        """The tables of all subjects in a row; a table alone is bound where it lies.

        A batch without references still binds a table, of one pass that no row reads.
        """
        specs = [spec for spec in engine.specs if spec.is_input and spec.name[:2] in ("k_", "v_")]
        if not tables:
            return {spec.name: self._cuda.empty((1, *spec.least[1:]), spec.dtype) for spec in specs}
        if streams:
            shapes = {
                f"{kind}_{index}": shape[2:]
                for table in tables[:1]
                for index, shape in enumerate(_layer_shapes(table))
                for kind in "kv"
            }
            self._window = TableWindow(self._cuda, tables, specs[0].dtype, shapes)
            self._window.show(self._entries[0])
            return self._window.arrays
        assert self._joined is not None
        return {spec.name: self._joined.arrays[spec.name] for spec in specs}

    def _download(self, array: DeviceArray) -> FloatArray:
        with self._backend._lock:
            self._cuda.activate()
            return self._cuda.download(array).astype(np.float32)


def _layer_shapes(table: Table) -> list[tuple[int, ...]]:
    """[E, R, H, M, D] of the keys of each layer."""
    if table.host is not None:
        return list(table.host.shapes())
    keys = [layer for name, layer in table.layers.items() if name.startswith("k_")]
    return [(table.entries, table.references, *key.shape[1:]) for key in keys]
