"""The pair in torch: reads checkpoints as they are, on a CPU or a CUDA device.

In float32 on a CPU it is the reference that engines are compared with. On CUDA what runs is
recorded once for each shape and replayed: see `graphs` and `recorded`. Latents and history
stay on the device, the host only counts, and reference passes run beside the steps of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bootpig_rt.backends.base import (
    DECODERS,
    ControlSpec,
    Decoder,
    DenoiseBatch,
    FloatArray,
    IntArray,
    PairSpec,
    PassProgress,
    ReferencePass,
)
from bootpig_rt.backends.derived import Derived
from bootpig_rt.backends.host_table import HostTable, Precision, TableDtype
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.tiles import in_tiles
from bootpig_rt.backends.torch.controls import Hints
from bootpig_rt.backends.torch.graphs import Lane, RecordedFunction
from bootpig_rt.backends.torch.memory import within_memory
from bootpig_rt.backends.torch.recorded import Recorded
from bootpig_rt.backends.torch.runs import ProjectedTexts, TorchRun
from bootpig_rt.backends.torch.tables import Table, TableBuilder, download, table_nbytes, upload
from bootpig_rt.diffusion.solver import NoiseSchedule
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.models.joined import join_products
from bootpig_rt.models.latent_scale import LatentScale
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.text_encoders import states_shape
from bootpig_rt.models.vae import decode, encode

T = TypeVar("T")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_NAMES: dict[torch.dtype, Precision] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

# Rows that go through the Reference U-Net or the decoder at once: bounds the memory of a long
# schedule or a large batch.
_ROWS_PER_LAUNCH = 16


def load(
    folder: Path, device: str, base_model: Path | None, options: TorchOptions | None = None
) -> TorchBackend:
    """Load a pair; see `bootpig_rt.backends.create_backend`.

    Args:
        folder: The pair.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: A Stable Diffusion folder, where the pair holds the two U-Nets alone.
        options: How to compute it.

    Raises:
        BackendUnavailable: A CUDA device was asked for and is not there.
        CheckpointError: The folder is not a usable pair.
        OutOfDeviceMemory: The device has no room for the pair.
    """
    chosen = _device(device)
    settings = (TorchOptions() if options is None else options).on(chosen)
    precision = settings.precision or "float32"

    def load_on_device() -> Pair:
        return load_pair(
            folder,
            base_model=base_model,
            device=chosen,
            dtype=_DTYPES[precision],
            upcasts_vae=precision == "float16",
            loras=settings.loras,
            controls=settings.controls,
        )

    pair = within_memory(
        f"loading the pair in {precision}",
        load_on_device,
        device=chosen,
        free_caches=lambda: None,
    )
    return TorchBackend(pair, chosen, settings)


def _device(name: str) -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= count:
        raise BackendUnavailable(
            f"device is {name}, but torch {torch.__version__} sees {count} CUDA devices; use "
            "cpu, or install a build of torch for your CUDA with: pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126"
        )
    return name


class TorchBackend:
    """A loaded pair. Implements `bootpig_rt.backends.base.Backend`.

    Args:
        pair: Modules in evaluation mode, on `device`, in the type to compute in.
        device: `cpu`, `cuda` or `cuda:N`.
        options: Recordings; the precision is that of the modules.

    Attributes:
        lane: Where text, pictures and steps are computed.
        reference_lane: Where reference passes are computed, beside the steps of other threads.
    """

    name = "torch"

    def __init__(self, pair: Pair, device: str, options: TorchOptions | None = None) -> None:
        """Read what the pipeline must know from the modules' configurations."""
        self.pair = pair
        self.device = device
        self.dtype: torch.dtype = next(pair.base.parameters()).dtype
        options = (TorchOptions() if options is None else options).on(device)
        self.options = replace(options, precision=_NAMES.get(self.dtype, "float32"))
        self._vae: Any = pair.vae
        self._latent_scale = LatentScale(pair.vae)
        self._tiny_scale = LatentScale(pair.tiny_vae or pair.vae)
        self._vae_dtype: torch.dtype = next(self._vae.parameters()).dtype
        if options.channels_last:
            for module in pair.modules:
                nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.joined_products:
            join_products(pair.base.unet)
            if pair.reference.unet is not pair.base.unet:
                join_products(pair.reference.unet)
        self._reference: Callable[..., tuple[Tensor, ...]] = pair.reference
        records, kept = bool(options.cuda_graph), options.graphs_kept
        self.lane, self.reference_lane = (Lane(device, records=records) for _ in range(2))
        self.recorded = Recorded(kept)
        self.projected: Derived[ProjectedTexts] = Derived()
        self.hints: Derived[Hints] = Derived()
        self._controls = {control.kind: control.net for control in pair.controls}
        self._text = RecordedFunction(self._run_text, self.lane, kept=kept)
        self._encoder = RecordedFunction(self._run_encoder, self.lane, kept=kept)
        self._decoder = RecordedFunction(self._run_decoder, self.lane, kept=kept)
        self._tiny_decoder = RecordedFunction(self._run_tiny, self.lane, kept=kept)
        self._pass = RecordedFunction(self._run_reference, self.reference_lane, kept=kept)
        self._texts_done: Any = None  # event behind the last text states

        unet_config, vae = pair.base.unet.config, self._vae
        vae_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.spec = PairSpec(
            config=pair.config,
            fingerprint=pair.fingerprint,
            noise_schedule=NoiseSchedule.from_config(pair.scheduler),
            tokenizer_folder=pair.tokenizer_folder,
            latent_channels=pair.base.latent_channels,
            vae_scale_factor=vae_scale,
            size_multiple_px=vae_scale * 2 ** (len(unet_config.block_out_channels) - 1),
            reference_shapes=_reference_shapes(pair, pair.config.sample_size_px // vae_scale),
            text_shape=states_shape(pair.text_encoder),
            runtime=f"torch {torch.__version__}",
            precision=_NAMES.get(self.dtype, "float32"),
            table_dtype=_NAMES.get(self.dtype, "float32"),
            keeps_features=True,
            decoders=("full",) if pair.tiny_vae is None else DECODERS,
            canvas="read" if pair.base.reads_canvas else "blend",
            controls=tuple(ControlSpec(one.kind, one.fingerprint) for one in pair.controls),
            tokenizer_2_folder=pair.tokenizer_2_folder,
        )

    @property
    def num_recordings(self) -> int:
        """How often something was recorded so far; on a CPU, how often buffers were made for it."""
        return self.lane.num_recordings + self.reference_lane.num_recordings

    def encode_text(self, ids: IntArray) -> Tensor:
        """Token ids int64 [N, S] -> text states [N, S, E], in the precision of the pair."""
        return self._within_memory(f"encoding {len(ids)} prompts", lambda: self._encode_text(ids))

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w]."""
        what = f"encoding {_pictures(pixels.shape, 1)}"
        factor = self.spec.vae_scale_factor
        run = partial(self._by_rows, self._encoder)
        return self._within_memory(what, lambda: in_tiles(run, pixels, reads=factor, makes=1))

    def reference_kv(
        self,
        latents: FloatArray,
        timesteps: IntArray,
        prompt_embeds: Tensor | FloatArray,
        *,
        dtype: TableDtype = "float32",
        rows_per_launch: int = _ROWS_PER_LAUNCH,
        progress: PassProgress | None = None,
    ) -> ReferencePass:
        """Run the Reference U-Net over all entries and references in batches.

        Returns:
            A table of L pairs (keys, values), each [E, R, H, M, D]; see `tables.py`.
        """
        entries, references = latents.shape[:2]
        what = (
            f"reading {references} references at {entries} timesteps, {rows_per_launch} at once, "
            f"into a table in {dtype}"
        )
        builder = TableBuilder(entries, references, dtype)
        flat = latents.reshape(entries * references, *latents.shape[2:])

        def run() -> Table:
            rows = np.repeat(timesteps, references), np.tile(np.arange(references), entries)
            return self._read_references(
                builder, flat, rows, prompt_embeds, rows_per_launch, progress
            )

        data = self._within_memory(what, run)
        return ReferencePass(data, table_nbytes(data), len(flat))

    def download_table(self, data: Table) -> HostTable:
        """A table as arrays of the host."""
        with torch.inference_mode(), self.lane.on_stream():
            return download(data)

    def upload_table(self, table: HostTable, *, is_resident: bool) -> Table:
        """A table of the host on the device, or to be streamed from where it is."""

        def run() -> Table:
            with torch.inference_mode(), self.lane.on_stream():
                return upload(table, self.device, is_resident=is_resident)

        return self._within_memory(f"uploading a reference table of {table.nbytes} bytes", run)

    def download_states(self, prompt_embeds: Tensor) -> FloatArray:
        """Text states as float32 of numpy."""
        with torch.inference_mode(), self.lane.on_stream():
            return self.lane.download(prompt_embeds)

    def start(self, batch: DenoiseBatch) -> TorchRun:
        """Upload a batch and return its run, ahead of step 0."""
        _, count, _, height, width = batch.state.shape
        factor = self.spec.vae_scale_factor
        what = (
            f"drawing {count} pictures of {width * factor} x {height * factor} in "
            f"{len(batch.text_of_row)} rows, {max(batch.num_references, default=0)} references"
        )

        def run() -> TorchRun:
            return TorchRun(
                batch,
                base=self.pair.base,
                controls=self._controls,
                texts=self.projected,
                hints=self.hints,
                dtype=self.dtype,
                lane=self.lane,
                recorded=self.recorded,
                within_memory=partial(self._within_memory, what),
            )

        return self._within_memory(what, run)

    def decode(self, latents: FloatArray, *, decoder: Decoder = "full") -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""
        factor = self.spec.vae_scale_factor
        what = f"decoding {_pictures(latents.shape, factor)}"
        function = self._decoder if decoder == "full" else self._tiny_decoder
        run = partial(self._by_rows, function)
        return self._within_memory(what, lambda: in_tiles(run, latents, reads=1, makes=factor))

    def free_caches(self) -> None:
        """Forget all recordings; each is made again when it is needed."""
        for lane in (self.lane, self.reference_lane):
            with lane.work():
                lane.forget()
        self.projected.clear()
        self.hints.clear()
        with self.lane.work():
            self.recorded.clear()
            for each in (self._text, self._encoder, self._decoder, self._tiny_decoder):
                each.calls.clear()
        with self.reference_lane.work():
            self._pass.calls.clear()

    def _within_memory(self, what: str, function: Callable[[], T]) -> T:
        return within_memory(what, function, device=self.device, free_caches=self.free_caches)

    # What runs on the device: tensors in, tensors out, no value read on the host.

    def _run_text(self, ids: Tensor) -> Sequence[Tensor]:
        states: Tensor = self.pair.text_encoder(ids).last_hidden_state
        return (states,)

    def _run_encoder(self, pixels: Tensor) -> Sequence[Tensor]:
        vae = self._vae
        mean = encode(vae, pixels.to(self._vae_dtype)).float()
        return (self._latent_scale.scaled(mean),)

    def _run_decoder(self, latents: Tensor) -> Sequence[Tensor]:
        vae = self._vae
        plain = self._latent_scale.unscaled(latents)
        return (decode(vae, plain.to(self._vae_dtype)).float(),)

    def _run_tiny(self, latents: Tensor) -> Sequence[Tensor]:
        tiny: Any = self.pair.tiny_vae
        plain = self._tiny_scale.unscaled(latents)
        return (tiny.decode(plain.to(self.dtype)).sample.float(),)

    def _run_reference(self, latents: Tensor, t: Tensor, states: Tensor) -> Sequence[Tensor]:
        """k_0, v_0, k_1, v_1, ..., each [N, H, M, D]."""
        features = self._reference(latents.to(self.dtype), t, states)
        scale = self.pair.config.ref_scale
        layers = self.pair.base.project_reference(features, ref_scale=scale)
        return tuple(part for layer in layers for part in layer)

    def _encode_text(self, ids: IntArray) -> Tensor:
        with self.lane.work():
            with self._text.call(self.lane.upload(ids)) as (states,):
                kept = states.clone()
            if self.lane.stream is not None:
                done = torch.cuda.Event()
                done.record(self.lane.stream)
                self._texts_done = done
        return kept

    def _by_rows(self, function: RecordedFunction, array: FloatArray) -> FloatArray:
        pieces = []
        for start in range(0, len(array), _ROWS_PER_LAUNCH):
            with self.lane.work():
                rows = self.lane.upload(array[start : start + _ROWS_PER_LAUNCH])
                with function.call(rows) as (result,):
                    kept = result.clone()
            with torch.inference_mode(), self.lane.on_stream():
                pieces.append(self.lane.download(kept))
        return np.concatenate(pieces)

    def _read_references(
        self,
        builder: TableBuilder,
        latents: FloatArray,
        rows: tuple[IntArray, IntArray],
        prompt_embeds: Tensor | FloatArray,
        rows_per_launch: int,
        progress: PassProgress | None,
    ) -> Table:
        """Rows (timestep, number of the reference) in launches of a few."""
        lane = self.reference_lane
        timesteps, reference_of_row = rows
        with lane.work():
            if self._texts_done is not None:
                lane.stream.wait_event(self._texts_done)
            if isinstance(prompt_embeds, np.ndarray):
                prompt_embeds = lane.upload(prompt_embeds)
            states = prompt_embeds.to(self.dtype)
        for start in range(0, len(latents), rows_per_launch):
            some = slice(start, start + rows_per_launch)
            with lane.work():
                inputs = (
                    lane.upload(latents[some]),
                    lane.upload(timesteps[some]),
                    states[lane.upload(reference_of_row[some])],
                )
                with self._pass.call(*inputs) as parts:
                    builder.put(some, tuple(zip(parts[::2], parts[1::2], strict=True)))
            if progress is not None:
                progress(min(some.stop, len(latents)), len(latents))
        with torch.inference_mode(), lane.on_stream():
            return builder.table()  # waits for this lane


def _pictures(shape: tuple[int, ...], factor: int) -> str:
    """How many of which size: of pixels, or of latents with their factor."""
    return f"{shape[0]} pictures of {shape[3] * factor} x {shape[2] * factor}"


def _reference_shapes(pair: Pair, side: int) -> tuple[tuple[int, int, int], ...]:
    """H, M, D of each self-attention for latents of side x side."""
    base = pair.base
    return tuple(
        (heads, (side >> level) ** 2, width // heads)
        for (_, heads, width), level in zip(base.layer_shapes(), base.layer_levels(), strict=True)
    )
