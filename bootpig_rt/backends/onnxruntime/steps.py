"""One batch on its way through the steps of `denoise_step`, bound once.

Two buffers hold the state, latents and the solver's history, and take turns: an even step reads
the first and writes the second. Every other input stays where it is; the host writes the number of
the step and launches. Where steps leave out the deep blocks of the U-Net, a third buffer holds the
features that those gave: `denoise_step` writes it, `shallow_step` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.bundle_spec import residual_shapes
from bootpig_rt.backends.control_inputs import step_graph_name
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.host_table import HostTable
from bootpig_rt.backends.onnxruntime.controls import Controls
from bootpig_rt.backends.onnxruntime.sessions import (
    LAUNCH_ERRORS,
    Sessions,
    empty,
    failed,
    to_device,
)
from bootpig_rt.backends.onnxruntime.tables import DeviceTable, StreamedTables, join
from bootpig_rt.backends.step_inputs import graph_name, room_for_features, step_inputs


class Shared:
    """What runs of a backend share while they live.

    Attributes:
        tables: Of several subjects, side by side: `k_0`, `v_0`, ... -> [sum of E * R, H, M, D].
        texts: Projected: `text_k_0`, `text_v_0`, ... -> [P, S, H * D].
        hints: Embedded maps of one control: `hints` -> [M, C0, h, w].
    """

    def __init__(self) -> None:
        """Nothing is made yet."""
        self.tables: Derived[Layers] = Derived()
        self.texts: Derived[Layers] = Derived()
        self.hints: Derived[Layers] = Derived()


class OnnxRuntimeRun:
    """A bound batch. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        sessions: Of the bundle.
        batch: What the steps read.
        graph_type: What the graphs read and write.
        device: `cpu` or `cuda:N`.
        shared: What other runs made of the same tables, texts and maps.
        unet: Configuration of the Base U-Net.

    Raises:
        OutOfDeviceMemory: There is no room for it.
    """

    def __init__(
        self,
        sessions: Sessions,
        batch: DenoiseBatch,
        *,
        graph_type: np.dtype[Any],
        device: str,
        shared: Shared,
        unet: Mapping[str, Any],
    ) -> None:
        """Upload what is on the host and bind all of it."""
        self._sessions, self._shared = sessions, shared
        self._graph_type, self._device, self._unet = graph_type, device, unet
        try:
            self._upload(batch)
        except LAUNCH_ERRORS as error:
            raise failed("uploading a batch", error) from error

    def _upload(self, batch: DenoiseBatch) -> None:
        device, graph_type = self._device, self._graph_type
        streams = any(isinstance(table, HostTable) for table in batch.tables)
        laid_out = step_inputs(batch, streams=streams)
        name_of = step_graph_name if batch.controls else graph_name
        self._graph = name_of(batch.merge, laid_out.slots)
        self._session = self._sessions.get(self._graph)
        self._deep_steps = batch.deep_steps
        self._shallow: ort.InferenceSession | None = None
        if batch.deep_steps is not None and not batch.deep_steps.all():
            self._shallow = self._sessions.get(
                graph_name(batch.merge, laid_out.slots, is_deep=False)
            )
        self._num_pictures = int(batch.state.shape[1])
        tables: list[DeviceTable] = laid_out.tables
        self._streamed: StreamedTables | None = None
        self._joined: Layers | None = None  # held for other runs, which may come while this lives
        if streams:
            self._streamed = StreamedTables(batch.tables, batch.entry_of_step, graph_type, device)
            table: Mapping[str, Any] = self._streamed.layers
        elif len(tables) > 1:
            self._joined = self._shared.tables.of(tables, lambda: Layers(join(tables, device)))
            table = self._joined.arrays
        else:
            table = tables[0].layers if tables else _nothing(self._session, graph_type)
        first = laid_out.arrays.pop("state")
        given: dict[str, Any] = {
            "step": np.zeros(1, np.int64),
            **self._text(batch, laid_out.text_of_row),
            **laid_out.arrays,
            **table,
        }
        self._inputs: dict[str, ort.OrtValue] = {
            name: to_device(value, device) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        self._states = (to_device(first.copy(), device), empty(first.shape, np.float32, device))
        self._estimate = to_device(first[0].copy(), device)
        self._controls: Controls | None = None
        if batch.controls:
            height, width = batch.state.shape[-2:]
            self._controls = Controls(
                self._sessions,
                batch,
                laid_out.order,
                shapes=residual_shapes(self._unet, height, width),
                inputs=self._inputs,
                states=self._states,
                graph_type=graph_type,
                device=device,
                hints=self._shared.hints,
            )
            self._inputs |= self._controls.residuals
        self._current = 0
        self._features: ort.OrtValue | None = None
        if batch.deep_steps is not None:
            outputs = {output.name: output.shape for output in self._session.get_outputs()}
            room, self._rows = room_for_features(
                batch, laid_out, channels=outputs["features"][1], dtype=graph_type
            )
            self._features = to_device(room, device)
        self._bindings = tuple(self._bind(self._session, source) for source in range(2))
        if self._shallow is not None:
            self._shallow_bindings = tuple(self._bind(self._shallow, source) for source in range(2))

    def _text(self, batch: DenoiseBatch, text_of_row: IntArray) -> dict[str, Any]:
        """Keys and values of the rows' texts, `text_k_0`, ... -> [N, S, H * D].

        On a CPU texts are projected once, and rows picked from them. On a GPU one launch does both,
        in less time than hundreds of copies take.
        """
        given = batch.prompt_embeds

        def project(text_of_row: IntArray) -> dict[str, ort.OrtValue]:
            states = given.astype(self._graph_type) if isinstance(given, np.ndarray) else given
            inputs = {"prompt_embeds": states, "text_of_row": text_of_row}
            return self._sessions.launch("text_kv", inputs)

        def project_all() -> Layers:
            count = len(given) if isinstance(given, np.ndarray) else given.shape()[0]
            return Layers(project(np.arange(count, dtype=np.int64)))

        if self._device != "cpu":
            return project(text_of_row)
        self._texts = self._shared.texts.of([given], project_all)
        return {name: value.numpy()[text_of_row] for name, value in self._texts.arrays.items()}

    def step(self, index: int) -> None:
        """Do one step: write its number, launch, and let the buffers change places."""
        try:
            if self._streamed is not None:
                self._streamed.load(index)
            self._inputs["step"].update_inplace(np.array([index], dtype=np.int64))
            if self._controls is not None:
                self._controls.run(self._current)
            if self._deep_steps is None or self._deep_steps[index]:
                self._session.run_with_iobinding(self._bindings[self._current])
            else:
                assert self._shallow is not None  # loaded for these steps
                self._shallow.run_with_iobinding(self._shallow_bindings[self._current])
        except LAUNCH_ERRORS as error:
            raise failed(f"running the graph {self._graph}", error) from error
        self._current = 1 - self._current

    def state(self) -> FloatArray:
        """Current sample and history, float32 [1 + K, B, C, h, w]."""
        state: FloatArray = self._states[self._current].numpy().copy()
        return state

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        estimate: FloatArray = self._estimate.numpy().copy()
        return estimate

    def features(self) -> tuple[np.ndarray[Any, Any] | None, ...]:
        """What the deep blocks gave last, of each picture [rows, C', h, w], on the host."""
        if self._features is None:
            return (None,) * self._num_pictures
        found: np.ndarray[Any, Any] = self._features.numpy()
        return tuple(found[rows] for rows in self._rows)

    def _bind(self, session: ort.InferenceSession, source: int) -> Any:
        """Everything at its address, for a step that reads one of the two buffers."""
        binding = session.io_binding()
        wanted = {value.name for value in session.get_inputs()}
        for name, value in self._inputs.items():
            if name in wanted:
                binding.bind_ortvalue_input(name, value)
        if self._features is not None:
            if session is self._session:
                binding.bind_ortvalue_output("features", self._features)
            else:
                binding.bind_ortvalue_input("features", self._features)
        binding.bind_ortvalue_input("state", self._states[source])
        binding.bind_ortvalue_output("next_state", self._states[1 - source])
        binding.bind_ortvalue_output("estimate", self._estimate)
        return binding


def _nothing(session: ort.InferenceSession, dtype: np.dtype[Any]) -> dict[str, Any]:
    """A table of one reference with one token, for a batch in which no row reads any."""
    table = {}
    for value in session.get_inputs():
        if value.name[:2] in ("k_", "v_"):
            _, heads, _, size = value.shape
            table[value.name] = np.zeros((1, heads, 1, size), dtype)
    return table
