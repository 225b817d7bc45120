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
from bootpig_rt.backends.control_inputs import ControlInputs, control_inputs
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
        self._sessions, self._type, self._device = sessions, graph_type, device
        given = batch.prompt_embeds
        if isinstance(given, np.ndarray):
            given = to_device(given.astype(graph_type), device)
        nothing = [to_device(np.zeros((len(order), *s), graph_type), device) for s in shapes]
        sums = nothing
        self._held: list[Any] = []  # with what the bindings point to
        self._launches: list[tuple[ort.InferenceSession, tuple[Any, Any]]] = []
        spare: list[list[ort.OrtValue]] = []
        for laid_out in control_inputs(batch, order):
            embedded = hints.of(laid_out.maps, partial(self._embed, laid_out))
            session = sessions.get(f"control_{laid_out.kind}")
            bound = {
                **{name: to_device(array, device) for name, array in laid_out.arrays().items()},
                **{name: inputs[name] for name in ("step", "timesteps")},
                **embedded.arrays,
                "prompt_embeds": given,
                **{f"given_{index}": value for index, value in enumerate(sums)},
            }
            made = (
                spare.pop()
                if spare
                else [empty((len(order), *shape), graph_type, device) for shape in shapes]
            )
            bindings = tuple(self._bind(session, bound, state, made) for state in states)
            self._launches.append((session, (bindings[0], bindings[1])))
            self._held += [embedded, bound, made]
            if sums is not nothing:
                spare.append(sums)  # the next but one may write there
            sums = made
        self.residuals = {f"residual_{index}": value for index, value in enumerate(sums)}

    def run(self, source: int) -> None:
        """Launch all of them, on one of the two buffers of the state."""
        for session, bindings in self._launches:
            session.run_with_iobinding(bindings[source])

    def _embed(self, laid_out: ControlInputs) -> Layers:
        graph = f"control_map_{laid_out.kind}"
        return Layers(self._sessions.launch(graph, {"maps": np.stack(laid_out.maps)}))

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
