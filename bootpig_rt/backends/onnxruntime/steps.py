"""One batch on its way through the steps of `denoise_step`, bound once.

Two buffers hold the state, latents and the solver's history, and take turns: an even step reads
the first and writes the second. Every other input stays where it is; the host writes the number of
the step and launches. So each of the two bindings could be recorded: all that it reads and writes
keeps its address as long as the run lives.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.base import DenoiseBatch, FloatArray
from bootpig_rt.backends.onnxruntime.sessions import ORT_ERRORS, Sessions, run_error
from bootpig_rt.backends.onnxruntime.tables import (
    DeviceTable,
    StreamedTables,
    join,
)
from bootpig_rt.backends.onnxruntime.values import empty, to_device
from bootpig_rt.backends.step_inputs import distinct, graph_name, step_inputs

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


class OnnxRuntimeRun:
    """A bound batch. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        sessions: Of the bundle.
        batch: What the steps read.
        state: To go on from; None starts from the batch's noise.
        device: `cpu` or `cuda:N`.
    """

    def __init__(
        self, sessions: Sessions, batch: DenoiseBatch, state: FloatArray | None, *, device: str
    ) -> None:
        """Upload what is on the host and bind all of it."""
        self._recordings = sessions.recordings
        with self._recordings.turn:
            self._upload(sessions, batch, state, device)

    def _upload(
        self, sessions: Sessions, batch: DenoiseBatch, state: FloatArray | None, device: str
    ) -> None:
        streamed: StreamedTables | None = None
        if all(isinstance(table, DeviceTable) for table in batch.tables):
            tables, table_of_slot = distinct(batch.tables)
            entries = [table.entries for table in tables]
        else:
            entry_of_step = batch.entry_of_step
            batch = replace(batch, entry_of_step=np.zeros_like(entry_of_step))
            # One entry of each, also of a table that is read at two entries at once.
            entries, table_of_slot = [1] * len(batch.tables), list(range(len(batch.tables)))
        laid_out = step_inputs(batch, entries, state, table_of_slot=table_of_slot)
        self._graph = graph_name(batch.merge, laid_out.slots)
        self._session = sessions.get(self._graph)
        known = {value.name: value for value in self._session.get_inputs()}
        graph_type = _TYPES[known["k_0"].type]
        if not batch.tables:
            table = _nothing(known, graph_type, device)
        elif all(isinstance(one, DeviceTable) for one in batch.tables):
            table = join(tables, device)
        else:
            streamed = StreamedTables(batch.tables, entry_of_step, graph_type, device)
            table = streamed.layers
        self._streamed = streamed
        texts = batch.prompt_embeds
        if isinstance(texts, np.ndarray):
            texts = to_device(texts.astype(graph_type), device)
        of_text = {"prompt_embeds": texts, "text_of_row": laid_out.text_of_row}
        text_kv = sessions.launch("text_kv", of_text)
        first = laid_out.arrays.pop("state")
        self._step = to_device(np.zeros(1, np.int64), device)
        self._states = (to_device(first.copy(), device), empty(first.shape, np.float32, device))
        self._estimate = to_device(first[0].copy(), device)
        self._inputs: dict[str, ort.OrtValue] = {
            "step": self._step,
            **text_kv,
            **{name: to_device(array, device) for name, array in laid_out.arrays.items()},
            **table,
        }
        self._current = 0
        self._bindings = tuple(self._bind(source) for source in range(2))

    def step(self, index: int) -> None:
        """Do one step: write its number, launch, and let the buffers change places."""
        with self._recordings.turn:
            if self._streamed is not None:
                self._streamed.load(index)
            self._step.update_inplace(np.array([index], dtype=np.int64))
            binding, options = self._bindings[self._current]
            try:
                self._session.run_with_iobinding(binding, options)
            except ORT_ERRORS as error:
                raise run_error(self._graph, error) from error
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
        recording = self._recordings.begin()
        if recording is None:
            return binding, None
        number, options = recording
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
