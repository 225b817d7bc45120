"""Controls of one part of a batch in OpenVINO: launches ahead of each step, bound once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.control_inputs import ControlInputs, bind_in_turn, control_inputs
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.openvino.launch import AnyArray, Launch
from bootpig_rt.backends.openvino.models import Models


class Controls:
    """The controls of a run; each adds what it gives to what the ones before it gave.

    Args:
        models: Of the bundle.
        batch: With controls.
        order: int64 [N], the row of the batch that lies at each place of the step.
        shapes: C_i, h_i, w_i of each residual.
        inputs: `step` and `timesteps` of the run.
        states: The two buffers of the state.
        hints: Embedded maps of other runs.

    Attributes:
        residuals: `residual_0`, ... -> [N, C_i, h_i, w_i], what the step reads.
    """

    def __init__(
        self,
        models: Models,
        batch: DenoiseBatch,
        order: IntArray,
        *,
        shapes: Sequence[tuple[int, int, int]],
        inputs: Mapping[str, AnyArray],
        states: tuple[FloatArray, FloatArray],
        hints: Derived[Layers],
    ) -> None:
        """Embed maps that were not met lately, and bind everything."""
        self._models, self._hints = models, hints
        self._held: list[Layers] = []
        self._launches: list[tuple[Launch, ...]] = []

        def room() -> list[AnyArray]:
            return [np.zeros((len(order), *shape), np.float32) for shape in shapes]

        def bind(control: ControlInputs, given: list[AnyArray], made: list[AnyArray]) -> None:
            bound = {
                **self._read(control),
                **{name: inputs[name] for name in ("step", "timesteps")},
                "prompt_embeds": batch.prompt_embeds,
                **{f"given_{index}": value for index, value in enumerate(given)},
            }
            outputs = {f"residual_{index}": value for index, value in enumerate(made)}
            model = models.get(f"control_{control.kind}")
            self._launches.append(
                tuple(Launch(model, {**bound, "state": state}, outputs) for state in states)
            )

        last = bind_in_turn(control_inputs(batch, order), room(), room, bind)
        self.residuals = {f"residual_{index}": value for index, value in enumerate(last)}

    def run(self, source: int) -> None:
        """Launch all of them, on one of the two buffers of the state, and wait for the last."""
        for launches in self._launches:
            launches[source].run()

    def _read(self, control: ControlInputs) -> dict[str, AnyArray]:
        """What a control reads that is its own."""
        embedded = self._hints.of(control.maps, partial(self._embed, control))
        self._held.append(embedded)
        return {**control.arrays(), **embedded.arrays}

    def _embed(self, control: ControlInputs) -> Layers:
        model = self._models.get(f"control_map_{control.kind}")
        launch = Launch(model, {"maps": np.stack(control.maps)})
        launch.run()
        return Layers({"hints": launch.output("hints")})
