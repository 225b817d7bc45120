"""The two U-Nets of a golden folder in ONNX Runtime, for `bootpig_rt.export.golden`.

The folder is exported to a temporary one, and run by what runs bundles: the same graphs, tables and
steps. A row of the Base U-Net is a picture whose guidance and solver pass the output through.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.onnxruntime.sessions import Sessions
from bootpig_rt.backends.onnxruntime.steps import OnnxRuntimeRun
from bootpig_rt.backends.onnxruntime.tables import DeviceTable
from bootpig_rt.backends.onnxruntime.values import to_device
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.export.golden import FloatArray, IntArray, References
from bootpig_rt.export.graphs import reference_graph, step_graph, text_graph
from bootpig_rt.export.onnx_export import DEFAULT_OPSET, write_graph
from bootpig_rt.export.reference_op import OpMerge
from bootpig_rt.models.load import load_unet
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

_CPU = "cpu"


def load(folder: Path) -> OnnxGoldenPair:
    """Load `base_unet` and `ref_unet` of a folder and export them.

    Raises:
        CheckpointError: A U-Net is missing or damaged.
        EngineError: The exporter failed.
    """
    base = BaseUNet(load_unet(folder / "base_unet")).eval()
    reference = ReferenceUNet(load_unet(folder / "ref_unet")).eval()
    return OnnxGoldenPair(folder, base, reference)


class OnnxGoldenPair:
    """Implements `GoldenPair`. Graphs are written when they are first needed."""

    def __init__(self, folder: Path, base: BaseUNet, reference: ReferenceUNet) -> None:
        """Copy the weights, which the graphs point to."""
        self._base, self._reference = base, reference
        self._folder = Path(tempfile.mkdtemp(prefix="bootpig-golden-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for part in ("base_unet", "ref_unet"):
            shutil.copytree(folder / part, self._folder / part)
        # The merge of the recordings is a choice by `argmax`, and some choices hang on the last
        # digits: arithmetic that is the same on every CPU keeps the verdict the same.
        self._options = OnnxRuntimeOptions(portable=True)
        # `ref_scale` is folded into the reference graph, so there is one for each scale.
        self._of_scale: dict[float, Sessions] = {}
        self._steps = Sessions(self._folder, self._read_step, device=_CPU, options=self._options)
        self._text_length = 0

    def features(self, latents: FloatArray, t: IntArray, prompt_embeds: FloatArray) -> None:
        """The graphs show keys and values, not what they are projected from."""

    def predict(
        self,
        latents: FloatArray,
        t: IntArray,
        prompt_embeds: FloatArray,
        references: References | None = None,
    ) -> FloatArray:
        """Output of the Base U-Net, [B, C, h, w]."""
        rows = len(latents)
        self._text_length = prompt_embeds.shape[1]
        numbers = np.arange(rows, dtype=np.int64)
        tables: tuple[DeviceTable, ...] = ()
        if references is not None:
            tables = (self._table(references),)
        pass_through = BatchSolver(
            timesteps=np.asarray(t, dtype=np.int64)[np.newaxis],
            matrices=np.tile(np.array([0, 1], np.float32), (1, rows, 1, 1)),
            x0=np.tile(np.array([0, 1], np.float32), (1, rows, 1)),
            clip_weight=np.zeros((1, rows), np.float32),
            clip_sample_range=None,
            init_noise_sigma=np.ones(rows, np.float32),
        )
        batch = DenoiseBatch(
            latents=np.ascontiguousarray(latents),
            prompt_embeds=to_device(prompt_embeds, _CPU),
            text_of_row=numbers,
            picture_of_row=numbers,
            ref_of_row=np.full((rows, 1), -1) if references is None else references.ref_of_row,
            rows_of_picture=np.tile(numbers, (3, 1)),
            image_guidance_scale=np.zeros(rows, np.float32),
            text_guidance_scale=np.zeros(rows, np.float32),
            tables=tables,
            num_references=tuple(table.references for table in tables),
            entry_of_step=np.zeros((len(tables), 1), np.int64),
            solver=pass_through,
            merge="argmax",
        )
        run = OnnxRuntimeRun(self._steps, batch, None, device=_CPU)
        run.step(0)
        return run.latents()

    def _table(self, references: References) -> DeviceTable:
        """Keys and values of one entry."""
        scale, count = references.ref_scale, len(references.latents)
        if scale not in self._of_scale:
            self._of_scale[scale] = Sessions(
                self._folder,
                lambda _: self._read_reference(scale),
                device=_CPU,
                options=self._options,
            )
        layers = self._of_scale[scale].launch(
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
        return DeviceTable(layers, 1, count, "float32")

    def _read_reference(self, scale: float) -> bytes:
        graph = reference_graph(
            self._base, self._reference, scale, self._text_length, torch.float32
        )
        return write_graph(graph, self._folder, opset=DEFAULT_OPSET).read_bytes()

    def _read_step(self, name: str) -> bytes:
        if name == "text_kv":
            graph = text_graph(self._base, self._text_length, torch.float32)
        else:
            merge: OpMerge = "one" if name == "denoise_step" else "argmax"
            graph = step_graph(self._base, merge, self._text_length, torch.float32)
        return write_graph(graph, self._folder, opset=DEFAULT_OPSET).read_bytes()
