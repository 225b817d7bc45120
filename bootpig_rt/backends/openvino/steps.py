"""One batch on its way through the steps of `denoise_step`, in parts that are bound once.

Two buffers hold the state of a part, latents and the solver's history, and take turns: an even step
reads the first and writes the second. Each has a request of its own, all of whose inputs and
outputs stay where they are; the host writes the number of the step and starts it. All parts run
while the host goes on, and are waited for when somebody asks for what they make. Where steps leave
out the deep blocks of the U-Net, a third buffer holds the features that those gave: requests of
`denoise_step` write it, requests of `shallow_step` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov

from bootpig_rt.backends.base import DenoiseBatch, FloatArray
from bootpig_rt.backends.bundle_spec import residual_shapes
from bootpig_rt.backends.control_inputs import step_graph_name
from bootpig_rt.backends.derived import Derived, Layers
from bootpig_rt.backends.host_table import NUMPY_TYPE, HostTable, LayerShape, TableDtype
from bootpig_rt.backends.openvino.buckets import step_shapes
from bootpig_rt.backends.openvino.controls import Controls
from bootpig_rt.backends.openvino.launch import AnyArray, Launch
from bootpig_rt.backends.openvino.models import OV_ERRORS, Models, failed
from bootpig_rt.backends.openvino.parts import batch_of, parts_of
from bootpig_rt.backends.openvino.tables import StreamedTables, Table, join
from bootpig_rt.backends.step_inputs import graph_name, room_for_features, step_inputs


class Shared:
    """What runs of a backend share.

    Args:
        models: Of the bundle.
        beside: The same for several launches at once.
        native: Type of tables and texts.
        sizes: Numbers of pictures that have a model of fixed shapes.
        size: Height and width of the pair's own latents.
        layers: H, M, D of the tables of references of the pair's own size.
        unet: Configuration of the Base U-Net.

    Attributes:
        tables: Of several subjects, side by side: `k_0`, `v_0`, ... -> [sum of E * R, H, M, D].
        texts: Projected: `text_k_0`, `text_v_0`, ... -> [P, S, H * D].
        hints: Embedded maps of one control: `hints` -> [M, C0, h, w].
    """

    def __init__(
        self,
        models: Models,
        beside: Models,
        *,
        native: TableDtype,
        sizes: tuple[int, ...],
        size: tuple[int, int],
        layers: tuple[LayerShape, ...],
        unet: Mapping[str, Any],
    ) -> None:
        """Nothing is made yet."""
        self.models, self.beside = models, beside
        self.native, self.sizes = native, sizes
        self.size, self.layers, self.unet = size, layers, unet
        self.tables: Derived[Layers] = Derived()
        self.texts: Derived[Layers] = Derived()
        self.hints: Derived[Layers] = Derived()

    def project(self, prompt_embeds: FloatArray) -> Layers:
        """Keys and values of all texts of a batch, made once while the batch's texts live."""
        count = len(prompt_embeds)
        inputs: dict[str, AnyArray] = {
            "prompt_embeds": prompt_embeds,
            "text_of_row": np.arange(count, dtype=np.int64),
        }
        model = self.models.get("text_kv")
        launch = Launch(model, inputs)
        launch.run()
        return Layers({port.any_name: launch.output(port.any_name) for port in model.outputs})


class OpenVINORun:
    """A bound batch. Implements `bootpig_rt.backends.base.DenoiseRun`.

    Args:
        shared: Models, and what other runs made of the same tables and texts.
        batch: What the steps read.

    Raises:
        OutOfDeviceMemory: There is no room for it.
    """

    def __init__(self, shared: Shared, batch: DenoiseBatch) -> None:
        """Lay the batch out and bind all of it."""
        parts = parts_of(batch, sizes=shared.sizes, latent_size=shared.size)
        self._order = np.argsort([picture for part in parts for picture in part.pictures])
        models = shared.beside if len(parts) > 1 else shared.models
        try:
            self._runs = [
                PartRun(shared, models, batch_of(batch, part.pictures), is_fixed=part.is_fixed)
                for part in parts
            ]
        except OV_ERRORS as error:
            raise failed("laying out a batch", error) from error

    def step(self, index: int) -> None:
        """Begin one step of all pictures, when the last one has ended."""
        for run in self._runs:
            run.begin(index)

    def state(self) -> FloatArray:
        """Current sample and history, float32 [1 + K, B, C, h, w]."""
        return self._together([run.state() for run in self._runs], axis=1)

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        return self._together([run.estimate() for run in self._runs], axis=0)

    def features(self) -> tuple[AnyArray | None, ...]:
        """What the deep blocks gave last, of each picture; bfloat16 as its bits."""
        found = [features for run in self._runs for features in run.features()]
        return tuple(found[place] for place in self._order)

    def _together(self, arrays: list[FloatArray], axis: int) -> FloatArray:
        """A copy of all parts, pictures in the order of the batch."""
        together: FloatArray = np.concatenate(arrays, axis=axis).take(self._order, axis=axis)
        return together


class PartRun:
    """Pictures of a batch that are launched together.

    Args:
        shared: What other runs made of the same tables and texts.
        models: That the steps are of.
        batch: What the steps read.
        is_fixed: By a model of fixed shapes, unless the references have another size than usual.
    """

    def __init__(
        self, shared: Shared, models: Models, batch: DenoiseBatch, *, is_fixed: bool
    ) -> None:
        """Lay the pictures out and bind all of them."""
        self._running: Launch | None = None
        self._streamed: StreamedTables | None = None
        streams = any(isinstance(table, HostTable) for table in batch.tables)
        laid_out = step_inputs(batch, streams=streams)
        name_of = step_graph_name if batch.controls else graph_name
        self._graph = name_of(batch.merge, laid_out.slots)
        self._deep_steps = batch.deep_steps
        self._num_pictures = int(batch.state.shape[1])
        # Held for other runs, which may come while this one lives.
        self._texts = shared.texts.of(
            [batch.prompt_embeds], lambda: shared.project(batch.prompt_embeds)
        )
        texts = {
            name: np.ascontiguousarray(value[laid_out.text_of_row])
            for name, value in self._texts.arrays.items()
        }
        first = laid_out.arrays.pop("state")
        inputs: dict[str, AnyArray] = {
            **{name: np.ascontiguousarray(array) for name, array in laid_out.arrays.items()},
            **texts,
            **self._table(shared, batch, laid_out.tables, streams),
        }
        self._states = (np.array(first, np.float32), np.empty(first.shape, np.float32))
        self._estimate = self._states[0][0].copy()
        self._current = 0
        self._step = np.zeros(1, np.int64)
        inputs |= {"state": self._states[0], "step": self._step}
        self._controls: Controls | None = None
        if batch.controls:
            self._controls = Controls(
                models,
                batch,
                laid_out.order,
                shapes=residual_shapes(shared.unet, *batch.state.shape[-2:]),
                inputs=inputs,
                states=self._states,
                hints=shared.hints,
            )
            inputs |= self._controls.residuals

        def model_of(graph: str) -> ov.CompiledModel:
            return models.get(graph, step_shapes(inputs, shared.layers) if is_fixed else ())

        deep = model_of(self._graph)
        kept: dict[str, AnyArray] = {}
        if batch.deep_steps is not None:
            kept["features"], self._rows = room_for_features(
                batch,
                laid_out,
                channels=deep.output("features").partial_shape[1].get_length(),
                dtype=NUMPY_TYPE[shared.native],
            )
        self._features = kept.get("features")
        self._launches = {True: self._bound(deep, inputs, kept)}
        if batch.deep_steps is not None and not batch.deep_steps.all():
            inputs |= kept
            shallow = model_of(graph_name(batch.merge, laid_out.slots, is_deep=False))
            self._launches[False] = self._bound(shallow, inputs, {})

    def _bound(
        self,
        model: ov.CompiledModel,
        inputs: Mapping[str, AnyArray],
        outputs: Mapping[str, AnyArray],
    ) -> tuple[Launch, Launch]:
        """A model with everything at its address, for steps that read either buffer."""
        first, second = (
            Launch(
                model,
                {**inputs, "state": self._states[source]},
                {"next_state": self._states[1 - source], "estimate": self._estimate, **outputs},
            )
            for source in range(2)
        )
        return first, second

    def _table(
        self, shared: Shared, batch: DenoiseBatch, tables: list[Table], streams: bool
    ) -> Mapping[str, AnyArray]:
        """What the steps read keys and values from."""
        if streams:
            self._streamed = StreamedTables(batch.tables, batch.entry_of_step, shared.native)
            return self._streamed.layers
        if len(tables) > 1:
            self._joined = shared.tables.of(tables, lambda: Layers(join(tables)))
            return self._joined.arrays
        if tables:
            return tables[0].layers
        # No row reads any: one reference of the usual size, so that the usual model fits.
        return {
            f"{kind}_{index}": np.zeros((1, *shape), NUMPY_TYPE[shared.native])
            for index, shape in enumerate(shared.layers)
            for kind in "kv"
        }

    def begin(self, index: int) -> None:
        """Write the number of a step, start it, and let the buffers change places."""
        self._wait()
        if self._streamed is not None:
            self._streamed.load(index)
        self._step[0] = index
        is_deep = self._deep_steps is None or bool(self._deep_steps[index])
        launch = self._launches[is_deep][self._current]
        try:
            if self._controls is not None:
                self._controls.run(self._current)
            launch.start()
        except OV_ERRORS as error:
            raise failed(f"running the graph {self._graph}", error) from error
        self._running = launch
        self._current = 1 - self._current

    def state(self) -> FloatArray:
        """Current sample and history, float32 [1 + K, B, C, h, w]; changes with the next step."""
        self._wait()
        state: FloatArray = self._states[self._current]
        return state

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; changes with the next step."""
        self._wait()
        estimate: FloatArray = self._estimate
        return estimate

    def features(self) -> tuple[AnyArray | None, ...]:
        """What the deep blocks gave last, of each picture."""
        self._wait()
        if self._features is None:
            return (None,) * self._num_pictures
        return tuple(self._features[rows] for rows in self._rows)

    def _wait(self) -> None:
        """Until the step that was started has ended."""
        if self._running is None:
            return
        launch, self._running = self._running, None
        try:
            launch.wait()
        except OV_ERRORS as error:
            raise failed(f"running the graph {self._graph}", error) from error
