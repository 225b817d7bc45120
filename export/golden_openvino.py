"""The two U-Nets of a golden folder in OpenVINO, for `bootpig_rt.export.golden`.

The graphs are those of `golden_onnx.py`, with attention written as bundles for OpenVINO have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from bootpig_rt.backends.openvino.launch import Launch
from bootpig_rt.backends.openvino.models import GraphFile, Models
from bootpig_rt.export.golden_onnx import OnnxGoldenPair
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.models.load import load_unet
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet


def load(folder: Path) -> OnnxGoldenPair:
    """Load `base_unet` and `ref_unet` of a folder and export them.

    Raises:
        CheckpointError: A U-Net is missing or damaged.
        EngineError: The exporter failed.
    """
    base = BaseUNet(load_unet(folder / "base_unet")).eval()
    reference = ReferenceUNet(load_unet(folder / "ref_unet")).eval()
    return OnnxGoldenPair(folder, base, reference, OpenVINORunner, "cpu")


class OpenVINORunner:
    """Graphs in OpenVINO, in float32. Implements `golden_onnx.Runner`.

    Args:
        folder: Holds the weights.
        read: Name of a graph -> its bytes.
    """

    def __init__(self, folder: Path, read: Callable[[str], bytes]) -> None:
        """Nothing is loaded yet."""
        self._folder, self._read = folder, read
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        self._models = Models(
            ov.Core(), self._write, config=lambda _: config, narrow=None, cache=None
        )

    def shapes(self, name: str) -> dict[str, Sequence[Any]]:
        """Inputs of a graph and their shapes; what is no number may vary."""
        return {
            port.any_name: [
                size.get_length() if size.is_static else None for size in port.partial_shape
            ]
            for port in self._models.get(name).inputs
        }

    def launch(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph once; outputs as numpy arrays."""
        model = self._models.get(name)
        arrays = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        launch = Launch(model, arrays)
        launch.run()
        return {port.any_name: launch.output(port.any_name) for port in model.outputs}

    def _write(self, name: str) -> GraphFile:
        """The graph as a file beside the weights, from where OpenVINO reads it."""
        graph = self._read(name)
        path = self._folder / f"opened_{name}.onnx"
        atomic_write_bytes(path, graph)
        return GraphFile(path, hashlib.sha256(graph).hexdigest())
