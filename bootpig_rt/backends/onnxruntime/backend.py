"""A bundle of ONNX graphs in ONNX Runtime, on a CPU or a CUDA device. No torch.

Tables that one graph makes and another reads stay on the device. A reference table in the graph's
own type is bound once for a batch and not copied, however many pictures read it at whatever steps;
those of several subjects are joined once, on the device. A table in a narrower type, or one that is
to stay on the host, is unpacked entry by entry ahead of the steps that read it; the copies of ONNX
Runtime wait, so they do not overlap with steps. Two buffers hold the state of a run and take turns,
so that a step is one launch and the host only counts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from bootpig_rt.backends.base import (
    Decoder,
    DenoiseBatch,
    FloatArray,
    IntArray,
    PairSpec,
    PassProgress,
    ReferencePass,
)
from bootpig_rt.backends.bundle_spec import DECODER_GRAPHS, bundle_spec, self_attention_shapes
from bootpig_rt.backends.host_table import HostTable, TableDtype
from bootpig_rt.backends.onnxruntime.sessions import LAUNCH_ERRORS, Sessions, failed
from bootpig_rt.backends.onnxruntime.steps import OnnxRuntimeRun, Shared
from bootpig_rt.backends.onnxruntime.tables import DeviceTable, TableWriter, download, upload
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.backends.pass_inputs import pass_launches
from bootpig_rt.backends.step_inputs import graph_name
from bootpig_rt.backends.tiles import MOST_LATENTS, MOST_SIDE, in_tiles
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import BackendUnavailable

_ROWS_PER_LAUNCH = 16
"""Rows that go through the autoencoder or the text encoder at once: bounds their memory."""

_GRAPHS = ("reference_kv", "text_encoder", "text_kv", "vae_encoder", "vae_decoder")
"""What every picture needs. Which graph its steps need is known with its references."""


def load(
    bundle: Bundle, device: str, base_model: None, options: OnnxRuntimeOptions
) -> OnnxRuntimeBackend:
    """Load the graphs of a bundle; see `bootpig_rt.backends.create_backend`.

    Args:
        bundle: Whose files were all checked.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: None; a bundle holds all parts.
        options: Threads and memory.

    Raises:
        BackendUnavailable: A CUDA device was asked for and is not there.
        BundleError: The bundle is damaged, or was built for something else.
    """
    bundle.check_runtime("onnxruntime", ort.__version__)
    return OnnxRuntimeBackend(bundle, choose_device(device, bundle.manifest.target), options)


def choose_device(device: str, target: str) -> str:
    """`cpu` or `cuda:N`.

    Args:
        device: What the user asked for; `auto` takes a GPU where the bundle was built for one.
        target: What the bundle was built for.

    Raises:
        BackendUnavailable: This ONNX Runtime has no CUDA.
    """
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cpu" or (device == "auto" and not (has_cuda and target == "cuda")):
        return "cpu"
    if not has_cuda:
        raise BackendUnavailable(
            f"device is {device}, but onnxruntime {ort.__version__} was built without CUDA; use "
            'cpu, or: pip uninstall onnxruntime && pip install "bootpig-rt[gpu]"'
        )
    return f"cuda:{device.partition(':')[2] or 0}"


class OnnxRuntimeBackend:
    """A loaded bundle. Implements `bootpig_rt.backends.base.Backend`.

    Args:
        bundle: Whose files were all checked.
        device: `cpu` or `cuda:N`.
        options: Threads and memory.

    Attributes:
        shared: What runs made of tables and texts that are still there.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, device: str, options: OnnxRuntimeOptions) -> None:
        """Load the graphs that every picture needs."""
        self.device = device
        self.options = options
        self.sessions = Sessions(bundle.folder, bundle.read_graph, device=device, options=options)
        self.sessions.prepare(_GRAPHS)
        self.shared = Shared()
        self._expected: set[int] = set()  # numbers of references whose step was begun to load
        self._unet = read_json(bundle.folder / "base_unet" / "config.json")
        self.spec: PairSpec = replace(bundle_spec(bundle), runtime=f"onnxruntime {ort.__version__}")
        self._graph_type: np.dtype[Any] = np.dtype(self.spec.precision)

    def encode_text(self, ids: IntArray) -> ort.OrtValue:
        """Token ids int64 [N, S] -> text states [N, S, E] on the device."""
        return self.sessions.launch("text_encoder", {"ids": ids})["prompt_embeds"]

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w]."""
        if len(pixels) not in self._expected:
            self._expected.add(len(pixels))
            self.sessions.begin(graph_name(self.spec.config.merge, len(pixels)))
        run = partial(self._by_rows, "vae_encoder", "pixels", output="latents")
        factor = self.spec.vae_scale_factor
        if _is_small(pixels, factor):
            return run(pixels)
        return in_tiles(run, pixels, reads=factor, makes=1)

    def decode(self, latents: FloatArray, *, decoder: Decoder = "full") -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""
        run = partial(self._by_rows, DECODER_GRAPHS[decoder], "latents", output="pixels")
        if _is_small(latents, 1):
            return run(latents)
        return in_tiles(run, latents, reads=1, makes=self.spec.vae_scale_factor)

    def reference_kv(
        self,
        latents: FloatArray,
        timesteps: IntArray,
        prompt_embeds: ort.OrtValue | FloatArray,
        *,
        dtype: TableDtype = "float32",
        rows_per_launch: int = _ROWS_PER_LAUNCH,
        progress: PassProgress | None = None,
    ) -> ReferencePass:
        """Run the Reference U-Net over all entries and references in batches."""
        entries, references, _, height, width = latents.shape
        total = entries * references
        states = prompt_embeds
        if not isinstance(states, np.ndarray):
            states = self.download_states(states)
        states = states.astype(self._graph_type, copy=False)
        launches = pass_launches(latents, timesteps, rows_per_launch)
        try:
            writer = TableWriter(
                self_attention_shapes(self._unet, height, width),
                entries=entries,
                references=references,
                dtype=dtype,
                graph_type=self._graph_type,
                device=self.device,
            )
        except LAUNCH_ERRORS as error:
            raise failed("reading references", error) from error
        for launch in launches:
            inputs = {**launch.inputs, "prompt_embeds": states[launch.references]}
            made = self.sessions.launch("reference_kv", inputs, into=writer.into, rows=launch.rows)
            writer.take(launch.rows, made)
            if progress is not None:
                progress(launch.rows.stop, total)
        table = writer.finish()
        return ReferencePass(table, table.nbytes, total)

    def download_table(self, data: DeviceTable | HostTable) -> HostTable:
        """A table as arrays of the host, in the same type."""
        return download(data)

    def upload_table(self, table: HostTable, *, is_resident: bool) -> DeviceTable | HostTable:
        """A table of the host as `data` of a batch."""
        try:
            return upload(table, self._graph_type, self.device, is_resident=is_resident)
        except LAUNCH_ERRORS as error:
            raise failed("uploading a reference table", error) from error

    def download_states(self, prompt_embeds: ort.OrtValue) -> FloatArray:
        """Text states of `encode_text` as float32 of numpy."""
        states: FloatArray = prompt_embeds.numpy().astype(np.float32)
        return states

    def start(self, batch: DenoiseBatch) -> OnnxRuntimeRun:
        """Upload a batch and bind it."""
        return OnnxRuntimeRun(
            self.sessions,
            batch,
            graph_type=self._graph_type,
            device=self.device,
            shared=self.shared,
            unet=self._unet,
        )

    def _by_rows(self, graph: str, name: str, values: FloatArray, output: str) -> FloatArray:
        """Run a graph over rows that do not depend on each other."""
        pieces = []
        for start in range(0, len(values), _ROWS_PER_LAUNCH):
            rows = {name: values[start : start + _ROWS_PER_LAUNCH]}
            pieces.append(self.sessions.launch(graph, rows)[output].numpy())
        return np.concatenate(pieces)


def _is_small(values: FloatArray, unit: int) -> bool:
    """Whether pictures go in one launch as they are, as most do; `unit` places along a latent."""
    count, _, height, width = values.shape
    is_whole: bool = max(height, width) <= MOST_SIDE * unit
    return is_whole and bool(count * height * width <= MOST_LATENTS * unit**2)
