"""Controls of one part of a batch in OpenVINO: launches ahead of each step, bound once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, FloatArray, IntArray
from bootpig_rt.backends.control_inputs import ControlInputs, control_inputs
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
        self._models = models

        def room() -> list[AnyArray]:
            return [np.zeros((len(order), *shape), np.float32) for shape in shapes]

        nothing = room()
        sums = nothing
        spare: list[list[AnyArray]] = []
        self._held: list[Layers] = []
        self._launches: list[tuple[Launch, ...]] = []
        for laid_out in control_inputs(batch, order):
            embedded = hints.of(laid_out.maps, partial(self._embed, laid_out))
            self._held.append(embedded)
            bound = {
                **laid_out.arrays(),
                **{name: inputs[name] for name in ("step", "timesteps")},
                **embedded.arrays,
                "prompt_embeds": batch.prompt_embeds,
                **{f"given_{index}": value for index, value in enumerate(sums)},
            }
            made = spare.pop() if spare else room()
            outputs = {f"residual_{index}": value for index, value in enumerate(made)}
            model = models.get(f"control_{laid_out.kind}")
            self._launches.append(
                tuple(Launch(model, {**bound, "state": state}, outputs) for state in states)
            )
            if sums is not nothing:
                spare.append(sums)  # the next but one may write there
            sums = made
        self.residuals = {f"residual_{index}": value for index, value in enumerate(sums)}

    def run(self, source: int) -> None:
        """Launch all of them, on one of the two buffers of the state, and wait for the last."""
        for launches in self._launches:
            launches[source].run()

    def _embed(self, laid_out: ControlInputs) -> Layers:
        model = self._models.get(f"control_map_{laid_out.kind}")
        launch = Launch(model, {"maps": np.stack(laid_out.maps)})
        launch.run()
        return Layers({"hints": launch.output("hints")})
