"""Controls of one batch in TensorRT: launches ahead of each step, recorded with it.

Each adds what it gives to what the ones before it gave; the step reads what the last one gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bootpig_rt.backends.base import DenoiseBatch, IntArray
from bootpig_rt.backends.control_inputs import ControlInputs, control_inputs
from bootpig_rt.backends.cuda.memory import DeviceArray
from bootpig_rt.backends.derived import Layers
from bootpig_rt.backends.tensorrt.engine import Launch

if TYPE_CHECKING:
    from bootpig_rt.backends.tensorrt.backend import TensorRTBackend


class Controls:
    """The controls of a run. The caller holds the backend's lock.

    Args:
        backend: Of the engines.
        batch: With controls.
        order: int64 [N], the row of the batch that lies at each place of the step.
        inputs: `step`, `state` and `timesteps` of the run.

    Attributes:
        launches: In order, ahead of the step.
        residuals: `residual_0`, ... -> [N, C_i, h_i, w_i], what the step reads.
    """

    def __init__(
        self,
        backend: TensorRTBackend,
        batch: DenoiseBatch,
        order: IntArray,
        inputs: Mapping[str, DeviceArray],
    ) -> None:
        """Embed maps that were not met lately, and bind everything."""
        self._backend = backend
        self.launches: list[Launch] = []
        self.residuals: dict[str, DeviceArray] = {}
        self._hints: list[Layers] = []
        for laid_out in control_inputs(batch, order):
            engine = backend.engine(f"control_{laid_out.kind}")
            embedded = backend.hints.of(laid_out.maps, partial(self._embed, laid_out))
            self._hints.append(embedded)
            if not self.residuals:
                height, width = batch.state.shape[-2:]
                self.residuals = {
                    f"residual_{index}": backend.zeros(engine, f"given_{index}", shape)
                    for index, shape in enumerate(
                        backend.residual_shapes(len(order), height, width)
                    )
                }
            given = backend.upload(
                engine,
                {
                    **laid_out.arrays(),
                    **{name: inputs[name] for name in ("step", "state", "timesteps")},
                    **embedded.arrays,
                    "prompt_embeds": batch.prompt_embeds,
                    **{
                        name.replace("residual", "given"): value
                        for name, value in self.residuals.items()
                    },
                },
            )
            launch = backend.launch(engine, given)
            self.launches.append(launch)
            self.residuals = launch.outputs

    def _embed(self, laid_out: ControlInputs) -> Layers:
        engine = self._backend.engine(f"control_map_{laid_out.kind}")
        return Layers(self._backend.run(engine, {"maps": np.stack(laid_out.maps)}))
