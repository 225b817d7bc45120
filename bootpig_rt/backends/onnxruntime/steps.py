"""One batch on its way through the steps of `denoise_step`, bound once.

Two buffers hold the state, latents and the solver's history, and take turns: an even step reads
the first and writes the second. Every other input stays where it is; the host writes the number of
the step and launches. So each of the two bindings could be recorded: all that it reads and writes
keeps its address as long as the run lives.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.derived import Derived
from bootpig_rt.backends.onnxruntime.sessions import Sessions, translated
from bootpig_rt.backends.onnxruntime.tables import (
    DeviceTable,
    JoinedTables,
    StreamedTables,
    join,
)
from bootpig_rt.backends.onnxruntime.values import empty, to_device
from bootpig_rt.backends.step_inputs import distinct, graph_name, step_inputs

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


@dataclass(frozen=True, eq=False)
class TextLayers:
    """Keys and values of distinct texts: `text_k_0`, ... -> [P, S, H * D]."""

    layers: dict[str, ort.OrtValue]


class Shared:
    """What runs of a backend share: tables side by side and projected texts, while they live."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        self.tables: Derived[JoinedTables] = Derived()
        self.texts: Derived[TextLayers] = Derived()


class OnnxRuntimeRun:
    """A bound batch. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        sessions: Of the bundle.
        batch: What the steps read.
        state: To go on from; None starts from the batch's noise.
        device: `cpu` or `cuda:N`.
        shared: What other runs made of the same tables and texts.
    """

    def __init__(
        self,
        sessions: Sessions,
        batch: DenoiseBatch,
        state: FloatArray | None,
        *,
        device: str,
        shared: Shared,
    ) -> None:
        """Upload what is on the host and bind all of it."""
        self._recordings = sessions.recordings
        self._device = device
        with self._recordings.turn, translated("uploading a batch"):
            self._upload(sessions, batch, state, shared)

    def _upload(
        self, sessions: Sessions, batch: DenoiseBatch, state: FloatArray | None, shared: Shared
    ) -> None:
        device = self._device
        tables = [table for table in batch.tables if isinstance(table, DeviceTable)]
        joined: JoinedTables | None = None
        entry_of_step = batch.entry_of_step
        if tables and len(tables) == len(batch.tables):
            once, _ = distinct(tables)
            joined = shared.tables.of(once, lambda: join(once, device))
            entries_of = {id(table): table.entries for table in once}
            entries = [entries_of[table] for table in joined.order]
            table_of_slot = [joined.order.index(id(table)) for table in tables]
        else:
            batch = replace(batch, entry_of_step=np.zeros_like(entry_of_step))
            # One entry of each, also of a table that is read at two entries at once.
            entries, table_of_slot = [1] * len(batch.tables), list(range(len(batch.tables)))
        laid_out = step_inputs(batch, entries, state, table_of_slot=table_of_slot)
        self._graph = graph_name(batch.merge, laid_out.slots)
        self._session = sessions.get(self._graph)
        known = {value.name: value for value in self._session.get_inputs()}
        graph_type = _TYPES[known["k_0"].type]
        self._streamed: StreamedTables | None = None
        self._joined = joined  # held for other runs, which may come while this one lives
        if joined is not None:
            table = joined.layers
        elif batch.tables:
            self._streamed = StreamedTables(batch.tables, entry_of_step, graph_type, device)
            table = self._streamed.layers
        else:
            table = _nothing(known, graph_type, device)
        text = self._text(sessions, batch, laid_out.text_of_row, graph_type, shared)
        first = laid_out.arrays.pop("state")
        self._step = to_device(np.zeros(1, np.int64), device)
        self._states = (to_device(first.copy(), device), empty(first.shape, np.float32, device))
        self._estimate = to_device(first[0].copy(), device)
        self._inputs: dict[str, ort.OrtValue] = {
            "step": self._step,
            **text,
            **{name: to_device(array, device) for name, array in laid_out.arrays.items()},
            **table,
        }
        self._current = 0
        self._bindings = tuple(self._bind(source) for source in range(2))

    def _text(
        self,
        sessions: Sessions,
        batch: DenoiseBatch,
        text_of_row: IntArray,
        graph_type: np.dtype[Any],
        shared: Shared,
    ) -> dict[str, ort.OrtValue]:
        """Keys and values of the rows' texts, `text_k_0`, ... -> [N, S, H * D].

        On a CPU texts are projected once, and rows picked from them. On a GPU one launch does both,
        in less time than hundreds of copies take.
        """
        given = batch.prompt_embeds
        states = given
        if isinstance(states, np.ndarray):
            states = to_device(states.astype(graph_type), self._device)

        def project(text_of_row: IntArray) -> dict[str, ort.OrtValue]:
            inputs = {"prompt_embeds": states, "text_of_row": text_of_row}
            return sessions.launch("text_kv", inputs)

        if self._device != "cpu":
            return project(text_of_row)
        every = np.arange(states.shape()[0], dtype=np.int64)
        self._texts = shared.texts.of([given], lambda: TextLayers(project(every)))
        return {
            name: to_device(value.numpy()[text_of_row], self._device)
            for name, value in self._texts.layers.items()
        }

    def step(self, index: int) -> None:
        """Do one step: write its number, launch, and let the buffers change places."""
        with self._recordings.turn, translated(f"running the graph {self._graph}"):
            if self._streamed is not None:
                self._streamed.load(index)
            self._step.update_inplace(np.array([index], dtype=np.int64))
            binding, options = self._bindings[self._current]
            self._session.run_with_iobinding(binding, options)
        self._current = 1 - self._current

    def state(self) -> FloatArray:
        """Current sample and history, float32 [1 + K, B, C, h, w]."""
        with self._recordings.turn:
            state: FloatArray = self._states[self._current].numpy().copy()
        return state

    def latents(self) -> FloatArray:
        """Current sample, float32 [B, C, h, w]."""
        latents: FloatArray = self.state()[0]
        return latents

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        with self._recordings.turn:
            estimate: FloatArray = self._estimate.numpy().copy()
        return estimate

    def _bind(self, source: int) -> tuple[Any, ort.RunOptions | None]:
        """Everything at its address, and the run options: a recording's, where steps are recorded.

        ONNX Runtime may run a step several times before it has its recording. That is harmless: a
        step writes nothing that it reads.
        """
        binding = self._session.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_input("state", self._states[source])
        binding.bind_ortvalue_output("next_state", self._states[1 - source])
        binding.bind_ortvalue_output("estimate", self._estimate)
        if not self._recordings.is_on:
            return binding, None
        number, options = self._recordings.begin()
        weakref.finalize(self, self._recordings.end, self._session, number)
        return binding, options


def _nothing(known: dict[str, Any], dtype: np.dtype[Any], device: str) -> dict[str, ort.OrtValue]:
    """A table of one reference with one token, for a batch in which no row reads any."""
    table = {}
    for name, value in known.items():
        if name[:2] in ("k_", "v_"):
            _, heads, _, size = value.shape
            table[name] = to_device(np.zeros((1, heads, 1, size), dtype), device)
    return table
