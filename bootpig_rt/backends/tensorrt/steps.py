"""One batch on its way through the steps of TensorRT engines, bound once.

A step is one CUDA graph: the engine, which does guidance and solver as well, and a copy that makes
its result the state of the next step. The step's number lies on the device, and so do the features
of the deep blocks: `denoise_step` writes them where `shallow_step` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bootpig_rt.backends.base import (
    DenoiseBatch,
    FloatArray,
)
from bootpig_rt.backends.control_inputs import step_graph_name
from bootpig_rt.backends.cuda.memory import CudaGraph, DeviceArray
from bootpig_rt.backends.step_inputs import StepInputs, graph_name, room_for_features, step_inputs
from bootpig_rt.backends.tensorrt.controls import Controls
from bootpig_rt.backends.tensorrt.engine import Engine, Launch
from bootpig_rt.backends.tensorrt.tables import (
    Table,
    TableWindow,
)

if TYPE_CHECKING:
    from bootpig_rt.backends.tensorrt.backend import TensorRTBackend


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
        name_of = step_graph_name if batch.controls else graph_name
        engine = backend.engine(name_of(batch.merge, laid_out.slots))
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
                **backend.run(backend.engine("text_kv"), texts),
            }
            inputs = backend.upload(engine, arrays)
            inputs |= self._table(engine, tables, streams)
            self._step, self._state = inputs["step"], inputs["state"]
            self._controls: Controls | None = None
            if batch.controls:
                self._controls = Controls(backend, batch, laid_out.order, inputs)
                inputs |= self._controls.residuals
            deep = backend.launch(engine, inputs)
            self._launches = {True: deep}
            self._deep_steps = batch.deep_steps
            if batch.deep_steps is not None and not batch.deep_steps.all():
                inputs["features"] = deep.outputs["features"]
                shallow = backend.engine(graph_name(batch.merge, laid_out.slots, is_deep=False))
                self._launches[False] = backend.launch(shallow, inputs)
            self._last = deep
            # The first launch also finishes kernels, so it is done on a state that is put back.
            first = self._cuda.download(self._state)
            self._graphs: dict[bool, CudaGraph] = {}
            for is_deep, launch in self._launches.items():
                once = partial(self._once, launch)
                once()
                ahead = [] if self._controls is None else self._controls.launches
                if all(one.is_recordable() for one in (*ahead, launch)):
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
        for control in () if self._controls is None else self._controls.launches:
            control.run()
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
