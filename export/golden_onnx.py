"""The two U-Nets of a golden folder as ONNX graphs in ONNX Runtime, for `bootpig_rt.export.golden`.

The folder is exported to a temporary one, and run as bundles are: the same graphs, tables and
inputs. A row of the Base U-Net is a picture whose guidance and solver pass the output through. Each
choice between references is opened: the graph shows the norms, and may be told what to take.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, inliner

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.onnxruntime.sessions import Sessions
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.backends.step_inputs import graph_name, step_inputs
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.golden_step import Choices, FloatArray, IntArray, Prediction, References
from bootpig_rt.export.graphs import reference_graph, step_graph, text_graph
from bootpig_rt.export.onnx_export import write_graph
from bootpig_rt.export.reference_op import OpMerge
from bootpig_rt.models.load import load_unet
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

_CPU = "cpu"
_CHOICE, _NORMS = "choice_", "norms_"
_OWN_CHOICE = np.full((1, 1, 1), -1, np.int64)


def load(folder: Path) -> OnnxGoldenPair:
    """Load `base_unet` and `ref_unet` of a folder and export them.

    Raises:
        CheckpointError: A U-Net is missing or damaged.
        EngineError: The exporter failed.
    """
    base = BaseUNet(load_unet(folder / "base_unet")).eval()
    reference = ReferenceUNet(load_unet(folder / "ref_unet")).eval()
    return OnnxGoldenPair(folder, base, reference)


class Runner(Protocol):
    """What launches graphs: the sessions of ONNX Runtime, or the like of another runtime."""

    def shapes(self, name: str) -> dict[str, Sequence[Any]]:
        """Inputs of a graph and their shapes; what is no number may vary."""

    def launch(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph once; outputs as numpy arrays."""


class OnnxRunner:
    """Graphs in ONNX Runtime.

    Args:
        folder: Holds the weights.
        read: Name of a graph -> its bytes.
    """

    def __init__(self, folder: Path, read: Callable[[str], bytes]) -> None:
        """Nothing is loaded yet."""
        self._sessions = Sessions(folder, read, device=_CPU, options=OnnxRuntimeOptions())

    def shapes(self, name: str) -> dict[str, Sequence[Any]]:
        """See `Runner`."""
        return {value.name: value.shape for value in self._sessions.get(name).get_inputs()}

    def launch(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `Runner`."""
        found = self._sessions.launch(name, inputs)
        return {key: value.numpy() for key, value in found.items()}


class OnnxGoldenPair:
    """Implements `GoldenPair`. Graphs are written when they are first needed.

    Args:
        folder: Holds the weights.
        base: The Base U-Net.
        reference: The Reference U-Net.
        runner: What launches the graphs.
    """

    def __init__(
        self,
        folder: Path,
        base: BaseUNet,
        reference: ReferenceUNet,
        runner: Callable[[Path, Callable[[str], bytes]], Runner] = OnnxRunner,
        dialect: Dialect = "portable",
    ) -> None:
        """Copy the weights, which the graphs point to."""
        self._base, self._reference = base, reference
        self._folder = Path(tempfile.mkdtemp(prefix="bootpig-golden-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for part in ("base_unet", "ref_unet"):
            shutil.copytree(folder / part, self._folder / part)
        self._runner, self._dialect = runner, dialect
        # `ref_scale` is folded into the reference graph, so there is one for each scale.
        self._of_scale: dict[float, Runner] = {}
        self._steps = runner(self._folder, self._read_step)
        self._text_length = 0

    def features(self, latents: FloatArray, t: IntArray, prompt_embeds: FloatArray) -> None:
        """The graphs show keys and values, not what they are projected from."""

    def predict(
        self,
        latents: FloatArray,
        t: IntArray,
        prompt_embeds: FloatArray,
        references: References | None = None,
        choices: Choices | None = None,
    ) -> Prediction:
        """Output of the Base U-Net, [B, C, h, w], and norms of its merges, rows as they are."""
        rows = len(latents)
        self._text_length = prompt_embeds.shape[1]
        numbers = np.arange(rows, dtype=np.int64)
        count = 0 if references is None else len(references.latents)
        pass_through = BatchSolver(
            timesteps=np.asarray(t, dtype=np.int64)[np.newaxis],
            matrices=np.tile(np.array([0, 1], np.float32), (1, rows, 1, 1)),
            x0=np.tile(np.array([0, 1], np.float32), (1, rows, 1)),
            clip_weight=np.zeros((1, rows), np.float32),
            clip_sample_range=None,
        )
        batch = DenoiseBatch(
            state=np.ascontiguousarray(latents)[None],
            prompt_embeds=prompt_embeds,
            text_of_row=numbers,
            picture_of_row=numbers,
            ref_of_row=np.full((rows, 1), -1) if references is None else references.ref_of_row,
            rows_of_picture=np.tile(numbers, (3, 1)),
            image_guidance_scale=np.zeros(rows, np.float32),
            text_guidance_scale=np.zeros(rows, np.float32),
            tables=(None,) if count else (),
            num_references=(count,) if count else (),
            entry_of_step=np.zeros((1 if count else 0, 1), np.int64),
            solver=pass_through,
            merge="argmax",
        )
        laid_out = step_inputs(batch, streams=True)
        name = graph_name(batch.merge, laid_out.slots)
        known = self._steps.shapes(name)
        text = {"prompt_embeds": prompt_embeds, "text_of_row": laid_out.text_of_row}
        inputs = {
            **laid_out.arrays,
            "step": np.zeros(1, np.int64),
            **self._steps.launch("text_kv", text),
            **(_nothing(known) if references is None else self._table(references)),
            **{key: _OWN_CHOICE for key in known if key.startswith(_CHOICE)},
        }
        for layer, choice in enumerate(choices or ()):
            inputs[f"{_CHOICE}{layer}"] = np.expand_dims(choice, 1)
        found = self._steps.launch(name, inputs)
        norms = [found[f"{_NORMS}{layer}"] for layer in range(_count(known, _CHOICE))]
        return Prediction(found["next_state"][0], tuple(norms))

    def _table(self, references: References) -> dict[str, Any]:
        """Keys and values of one entry."""
        scale, count = references.ref_scale, len(references.latents)
        if scale not in self._of_scale:
            self._of_scale[scale] = self._runner(
                self._folder, lambda _: self._read_reference(scale)
            )
        return self._of_scale[scale].launch(
            "reference_kv",
            {
                "latents": references.latents,
                "noise": np.zeros_like(references.latents),
                "alpha": np.ones(count, np.float32),
                "sigma": np.zeros(count, np.float32),
                "timesteps": np.asarray(references.t, np.int64),
                "prompt_embeds": references.prompt_embeds,
            },
        )

    def _read_reference(self, scale: float) -> bytes:
        graph = reference_graph(
            self._base, self._reference, scale, self._text_length, torch.float32
        )
        return write_graph(graph, self._folder).read_bytes()

    def _read_step(self, name: str) -> bytes:
        if name == "text_kv":
            graph = text_graph(self._base, self._text_length, torch.float32)
        else:
            merge: OpMerge = "one" if name == "denoise_step" else "argmax"
            graph = step_graph(self._base, merge, self._text_length, torch.float32, self._dialect)
        path = write_graph(graph, self._folder, dialect=self._dialect)
        return _opened(path.read_bytes())


def _opened(graph: bytes) -> bytes:
    """The graph with the norms of each choice as outputs and the choice as an input.

    `norms_0`, float32 [rows, R, tokens], is what the first choice compares; `choice_0`, int64
    [rows, 1, tokens], is what it takes, -1 for what it takes by itself.
    """
    model = inliner.inline_local_functions(onnx.load_from_string(graph))
    nodes, num_outputs = [], len(model.graph.output)
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ArgMax":
            continue
        number = len(model.graph.output) - num_outputs
        norms, choice, own = f"{_NORMS}{number}", f"{_CHOICE}{number}", f"own_choice_{number}"
        taken, node.output[0] = node.output[0], own
        zero, is_given = f"{own}_zero", f"{own}_is_given"
        nodes += [
            helper.make_node("Identity", [node.input[0]], [norms]),
            helper.make_node("Constant", [], [zero], value_int=0),
            helper.make_node("GreaterOrEqual", [choice, zero], [is_given]),
            helper.make_node("Where", [is_given, choice, own], [taken]),
        ]
        model.graph.input.append(
            helper.make_tensor_value_info(choice, TensorProto.INT64, [None, 1, None])
        )
        model.graph.output.append(
            helper.make_tensor_value_info(norms, TensorProto.FLOAT, [None, None, None])
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    opened: bytes = model.SerializeToString()
    return opened


def _nothing(known: Mapping[str, Sequence[Any]]) -> dict[str, FloatArray]:
    """A table of one reference with one token, which no row reads."""
    names = [name for name in known if name[:2] in ("k_", "v_")]
    return {name: np.zeros((1, known[name][1], 1, known[name][3]), np.float32) for name in names}


def _count(names: Iterable[str], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in names)
