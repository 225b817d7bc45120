"""Controls of one batch in ONNX Runtime: launches ahead of each step, bound once.

Each control reads the state that the step will read, adds what it gives to what the controls before
it gave, and leaves the sum where the next one reads it; the step reads that of the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.base import DenoiseBatch, IntArray
from bootpig_rt.backends.control_inputs import ControlInputs, bind_in_turn, control_inputs
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.onnxruntime.sessions import Sessions, empty, to_device


class Controls:
    """The controls of a run.

    Args:
        sessions: Of the bundle.
        batch: With controls.
        order: int64 [N], the row of the batch that lies at each place of the step.
        shapes: C_i, h_i, w_i of each residual.
        inputs: `step` and `timesteps` of the run, on the device.
        states: The two buffers of the state.
        graph_type: What the graphs read and write.
        device: `cpu` or `cuda:N`.
        hints: Embedded maps of other runs.

    Attributes:
        residuals: `residual_0`, ... -> [N, C_i, h_i, w_i], what the step reads.
    """

    def __init__(
        self,
        sessions: Sessions,
        batch: DenoiseBatch,
        order: IntArray,
        *,
        shapes: Sequence[tuple[int, int, int]],
        inputs: Mapping[str, ort.OrtValue],
        states: tuple[ort.OrtValue, ort.OrtValue],
        graph_type: np.dtype[Any],
        device: str,
        hints: Derived[Layers],
    ) -> None:
        """Embed maps that were not met lately, and bind everything."""
        self._sessions, self._hints, self._device = sessions, hints, device
        given_texts = batch.prompt_embeds
        if isinstance(given_texts, np.ndarray):
            given_texts = to_device(given_texts.astype(graph_type), device)
        self._held: list[Any] = []  # with what the bindings point to
        self._launches: list[tuple[ort.InferenceSession, tuple[Any, Any]]] = []
        sizes = [(len(order), *shape) for shape in shapes]

        def room() -> list[ort.OrtValue]:
            return [empty(size, graph_type, device) for size in sizes]

        def bind(
            control: ControlInputs, given: list[ort.OrtValue], made: list[ort.OrtValue]
        ) -> None:
            bound = {
                **self._read(control),
                **{name: inputs[name] for name in ("step", "timesteps")},
                "prompt_embeds": given_texts,
                **{f"given_{index}": value for index, value in enumerate(given)},
            }
            session = sessions.get(f"control_{control.kind}")
            first, second = (self._bind(session, bound, state, made) for state in states)
            self._launches.append((session, (first, second)))
            self._held += [bound, made]

        nothing = [to_device(np.zeros(size, graph_type), device) for size in sizes]
        last = bind_in_turn(control_inputs(batch, order), nothing, room, bind)
        self.residuals = {f"residual_{index}": value for index, value in enumerate(last)}

    def run(self, source: int) -> None:
        """Launch all of them, on one of the two buffers of the state."""
        for session, bindings in self._launches:
            session.run_with_iobinding(bindings[source])

    def _read(self, control: ControlInputs) -> dict[str, ort.OrtValue]:
        """What a control reads that is its own, on the device."""
        embedded = self._hints.of(control.maps, partial(self._embed, control))
        self._held.append(embedded)
        own = {name: to_device(array, self._device) for name, array in control.arrays().items()}
        return {**own, **embedded.arrays}

    def _embed(self, control: ControlInputs) -> Layers:
        graph = f"control_map_{control.kind}"
        return Layers(self._sessions.launch(graph, {"maps": np.stack(control.maps)}))

    @staticmethod
    def _bind(
        session: ort.InferenceSession,
        inputs: Mapping[str, ort.OrtValue],
        state: ort.OrtValue,
        outputs: Sequence[ort.OrtValue],
    ) -> Any:
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_input("state", state)
        for index, value in enumerate(outputs):
            binding.bind_ortvalue_output(f"residual_{index}", value)
        return binding
