"""The pair in torch: reads checkpoints as they are, on a CPU or a CUDA device, in float32.

The reference that engines are compared with. A run keeps its latents and history on the device and
the loop above does no arithmetic. Nothing here is shared between runs but the frozen modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bootpig_rt.backends.base import (
    DenoiseBatch,
    FloatArray,
    IntArray,
    PairSpec,
    PassProgress,
    ReferencePass,
)
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.tables import (
    Table,
    TableBuilder,
    TableReader,
    download,
    table_nbytes,
    upload,
)
from bootpig_rt.solver import NoiseSchedule
from bootpig_rt.table_storage import HostTable, TableDtype

# Rows that go through the Reference U-Net or the decoder at once: bounds the memory of a long
# schedule or a large batch.
_ROWS_PER_LAUNCH = 16


def load(folder: Path, device: str, base_model: Path | None) -> TorchBackend:
    """Load a pair; see `bootpig_rt.backends.create_backend`.

    Raises:
        BackendUnavailable: A CUDA device was asked for and is not there.
        CheckpointError: The folder is not a usable pair.
    """
    chosen = _device(device)
    pair = load_pair(folder, base_model=base_model, device=chosen, dtype=torch.float32)
    return TorchBackend(pair, chosen)


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
        pair: Modules in evaluation mode, on `device`.
        device: `cpu`, `cuda` or `cuda:N`.
    """

    name = "torch"

    def __init__(self, pair: Pair, device: str) -> None:
        """Read what the pipeline must know from the modules' configurations."""
        self.pair = pair
        self.device = device
        self._vae: Any = pair.vae
        unet_config, vae = pair.base.unet.config, self._vae
        vae_scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.spec = PairSpec(
            config=pair.config,
            fingerprint=pair.fingerprint,
            noise_schedule=NoiseSchedule.from_config(pair.scheduler),
            tokenizer_folder=pair.tokenizer_folder,
            latent_channels=int(unet_config.in_channels),
            vae_scale_factor=vae_scale,
            size_multiple_px=vae_scale * 2 ** (len(unet_config.block_out_channels) - 1),
            reference_shapes=_reference_shapes(pair, pair.config.sample_size_px // vae_scale),
        )

    def encode_text(self, ids: IntArray) -> Tensor:
        """Token ids int64 [N, S] -> text states float32 [N, S, E]."""
        with torch.inference_mode():
            states: Tensor = self.pair.text_encoder(self._tensor(ids)).last_hidden_state
            return states

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w]."""
        vae = self._vae
        with torch.inference_mode():
            mean = vae.encode(self._tensor(pixels)).latent_dist.mean
            return _numpy((mean - _shift(vae)) * vae.config.scaling_factor)

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
            A table of L pairs (keys, values), each [E, R, H, M, D]; see `bootpig_rt.models.tables`.
        """
        entries, references = latents.shape[:2]
        flat = latents.reshape(entries * references, *latents.shape[2:])
        t = np.repeat(timesteps, references)
        reference_of_row = np.tile(np.arange(references), entries)
        if isinstance(prompt_embeds, np.ndarray):
            prompt_embeds = self._tensor(prompt_embeds)
        builder = TableBuilder(entries, references, dtype)
        with torch.inference_mode():
            for start in range(0, len(flat), rows_per_launch):
                rows = slice(start, start + rows_per_launch)
                features = self.pair.reference(
                    self._tensor(flat[rows]),
                    self._tensor(t[rows]),
                    prompt_embeds[self._tensor(reference_of_row[rows])],
                )
                builder.put(
                    rows,
                    self.pair.base.project_reference(
                        features, ref_scale=self.pair.config.ref_scale
                    ),
                )
                if progress is not None:
                    progress(min(rows.stop, len(flat)), len(flat))
            data = builder.table()
        return ReferencePass(data, table_nbytes(data), len(flat))

    def download_table(self, data: Table) -> HostTable:
        """A table as arrays of the host."""
        with torch.inference_mode():
            return download(data)

    def upload_table(self, table: HostTable, *, is_resident: bool) -> Table:
        """A table of the host on the device, or to be streamed from where it is."""
        with torch.inference_mode():
            return upload(table, self.device, is_resident=is_resident)

    def download_states(self, prompt_embeds: Tensor) -> FloatArray:
        """Text states as float32 of numpy."""
        return _numpy(prompt_embeds)

    def start(self, batch: DenoiseBatch, state: FloatArray | None = None) -> TorchRun:
        """Upload a batch and return its run, ahead of step 0."""
        return TorchRun(self, batch, state)

    def decode(self, latents: FloatArray) -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""
        vae = self._vae
        pieces = []
        with torch.inference_mode():
            for start in range(0, len(latents), _ROWS_PER_LAUNCH):
                some = self._tensor(latents[start : start + _ROWS_PER_LAUNCH])
                pieces.append(
                    _numpy(vae.decode(some / vae.config.scaling_factor + _shift(vae)).sample)
                )
        return np.concatenate(pieces)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.tensor(array, device=self.device)  # a copy: the host's may be read-only


class TorchRun:
    """One batch on its way through the steps. Implements `bootpig_rt.backends.base.DenoiseRun`."""

    def __init__(
        self, backend: TorchBackend, batch: DenoiseBatch, state: FloatArray | None
    ) -> None:
        """Upload everything that the steps read."""
        to_device = backend._tensor
        self._base = backend.pair.base
        self._merge = batch.merge
        self._tables = TableReader(batch.tables, batch.entry_of_step, backend.device)
        self._plan = plan_rows(
            to_device(batch.ref_of_row),
            sum(batch.num_references),
            to_device(batch.picture_of_row),
        )
        self._rows_of_picture = to_device(batch.rows_of_picture)
        column = (-1, 1, 1, 1)
        self._image_scale = to_device(batch.image_guidance_scale).view(column)
        self._text_scale = to_device(batch.text_guidance_scale).view(column)
        solver = batch.solver
        self._clip = solver.clip_sample_range
        self._matrices = to_device(solver.matrices)
        self._x0 = to_device(solver.x0)[..., None, None, None]
        self._clip_weight = to_device(solver.clip_weight)[..., None, None, None]
        self._timesteps = to_device(solver.timesteps)
        if state is None:
            state = np.zeros((1 + solver.history_size, *batch.latents.shape), np.float32)
            state[0] = batch.latents * solver.init_noise_sigma[:, None, None, None]
        self._latents, self._history = to_device(state[0]), to_device(state[1:])
        with torch.inference_mode():
            self._prompt_embeds = batch.prompt_embeds[to_device(batch.text_of_row)]
        self._estimate = self._latents

    def step(self, index: int) -> None:
        """Do one step: U-Net rows, guidance, solver."""
        with torch.inference_mode():
            output = self._base(
                self._latents,  # one a picture: the plan knows the pictures of its rows
                self._timesteps[index],
                self._prompt_embeds,
                self._tables.read(index),
                self._plan,
                merge=self._merge,
            )
            uncond, image, text_image = output[self._rows_of_picture]
            guided = (
                uncond
                + self._image_scale * (image - uncond)
                + self._text_scale * (text_image - image)
            )
            state = torch.cat([torch.stack([self._latents, guided]), self._history])
            x0 = self._x0[index]
            self._estimate = x0[:, 0] * self._latents + x0[:, 1] * guided
            following = torch.einsum("bij,jb...->ib...", self._matrices[index], state)
            self._latents, self._history = following[0], following[1:]
            if self._clip is not None:
                weight = self._clip_weight[index]
                clipped = self._estimate.clamp(-self._clip, self._clip)
                self._latents = self._latents + weight * (clipped - self._estimate)
                self._estimate = torch.where(weight != 0, clipped, self._estimate)

    def state(self) -> FloatArray:
        """Current sample, then history, float32 [1 + K, B, C, h, w]."""
        return _numpy(torch.cat([self._latents[None], self._history]))

    def latents(self) -> FloatArray:
        """Current sample, float32 [B, C, h, w]."""
        return _numpy(self._latents)

    def estimate(self) -> FloatArray:
        """The last step's x0, float32 [B, C, h, w]; the initial noise ahead of step 0."""
        return _numpy(self._estimate)


def _reference_shapes(pair: Pair, side: int) -> tuple[tuple[int, int, int], ...]:
    """H, M, D of each self-attention for latents of side x side."""
    base = pair.base
    return tuple(
        (heads, (side >> level) ** 2, width // heads)
        for (_, heads, width), level in zip(base.layer_shapes(), base.layer_levels(), strict=True)
    )


def _shift(vae: Any) -> float:
    """Offset of latents; absent from the autoencoders of Stable Diffusion 1.x and 2.x."""
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


def _numpy(tensor: Tensor) -> FloatArray:
    return tensor.float().cpu().numpy()
