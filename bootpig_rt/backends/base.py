"""The one seam between the pipeline and whatever computes the pair.

A backend holds a pair on a device and does five things: encode text, encode images, run a
reference pass, take a step, decode images. It knows nothing about prompts as text, schedules, seeds
or files of pictures, and is asked for nothing that its `PairSpec` does not allow: requests are
checked when they are submitted. Arrays typed `DeviceArray` are the backend's own and stay on its
device; the pipeline only passes them on. All others are numpy.

Every method may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from bootpig_rt.backends.host_table import HostTable, LayerShape, Precision, TableDtype
from bootpig_rt.bundle.pair_config import Merge, PairConfig
from bootpig_rt.diffusion.solver import BatchSolver, NoiseSchedule
from bootpig_rt.errors import NumericalError
from bootpig_rt.text.tokenizer import Sizes, Tokenizer, whole_picture

DeviceArray: TypeAlias = Any
"""An array that only the backend that made it can read."""

Decoder: TypeAlias = Literal["full", "tiny"]
"""What makes pictures of latents: the pair's autoencoder, or its tiny one."""

DECODERS: tuple[Decoder, ...] = get_args(Decoder)

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CanvasUse = Literal["none", "blend", "read"]
"""What steps do with given pictures: nothing (graphs of older bundles), keep what is not drawn, or
that and read them, for a U-Net that was made for inpainting."""


@dataclass(frozen=True)
class ControlSpec:
    """A control of a loaded pair: what its maps show, and sha256 of weights and configuration."""

    kind: str
    fingerprint: str


@dataclass(frozen=True)
class PairSpec:
    """What the pipeline must know about a loaded pair.

    Attributes:
        config: Contents of `pair.json`: defaults and limits.
        fingerprint: sha256 over weights and configurations.
        noise_schedule: Of training.
        tokenizer_folder: Where the vocabulary lies.
        tokenizer_2_folder: That of the second text encoder; None: there is none, and text states
            are told no sizes.
        latent_channels: C.
        vae_scale_factor: Pixels of a picture per latent, along a side.
        size_multiple_px: Width and height must be multiples of this.
        reference_shapes: Heads, tokens and head dim of each self-attention for a reference of the
            pair's size: what the bytes of a table follow from.
        text_shape: Rows and width of the text states of a prompt, S and E where nothing is added;
            None: not known ahead of a prompt.
        precision: What the pair computes in.
        runtime: Name and version of what computes, "onnxruntime 1.32.0".
        table_dtype: How tables keep their numbers unless the user says otherwise: the type that
            the steps compute in, where they can read a table of it without a copy.
        resident_dtype: What tables lie on the device in, however they are kept; None: as kept.
        joins_tables: A launch with several tables reads them from a copy, side by side.
        max_batch: Pictures that can be drawn at once. None, here and below: no limit.
        max_references: Of one subject.
        max_steps: Of the solver.
        sides_px: Least and most that a side of a picture or a reference image may measure.
        keeps_features: Steps may leave out the deep blocks of the Base U-Net, and read what those
            gave in an earlier step.
        decoders: What can make pictures of latents here.
        canvas: What steps do with a picture that is given.
        controls: That can be asked for, by kind.
    """

    config: PairConfig
    fingerprint: str
    noise_schedule: NoiseSchedule
    tokenizer_folder: Path
    latent_channels: int
    vae_scale_factor: int
    size_multiple_px: int
    reference_shapes: tuple[LayerShape, ...] = ()
    text_shape: tuple[int, int] | None = None
    precision: Precision = "float32"
    runtime: str = ""
    table_dtype: TableDtype = "float32"
    resident_dtype: TableDtype | None = None
    joins_tables: bool = False
    max_batch: int | None = None
    max_references: int | None = None
    max_steps: int | None = None
    sides_px: tuple[int, int] | None = None
    keeps_features: bool = False
    decoders: tuple[Decoder, ...] = ("full",)
    canvas: CanvasUse = "blend"
    controls: tuple[ControlSpec, ...] = ()
    tokenizer_2_folder: Path | None = None

    @property
    def reads_sizes(self) -> bool:
        """Text states are told the sizes of the picture, as those of Stable Diffusion XL."""
        return self.tokenizer_2_folder is not None

    def sizes_of(self, width: int, height: int) -> Sizes:
        """What a whole picture of this size is told: it is neither scaled nor cropped."""
        return whole_picture(width, height) if self.reads_sizes else ()

    def tokenizer(self) -> Tokenizer:
        """Read the vocabularies; references are told the size that the pair was trained on.

        Raises:
            CheckpointError: A file is missing, damaged, or of another kind of tokenizer.
        """
        side = self.config.sample_size_px
        return Tokenizer.from_folder(
            self.tokenizer_folder, self.tokenizer_2_folder, sizes=self.sizes_of(side, side)
        )


@dataclass(frozen=True)
class ReferencePass:
    """A table as the backend keeps it.

    Attributes:
        data: E entries x L layers of keys and values; opaque.
        size_bytes: Device memory that it holds.
        num_passes: How many (entry, reference) pairs went through the Reference U-Net.
    """

    data: DeviceArray
    size_bytes: int
    num_passes: int


PassProgress: TypeAlias = Callable[[int, int], object]
"""Called with (rows done, rows in all) in a reference pass; what it raises ends the pass."""


@dataclass(frozen=True)
class BatchCanvas:
    """The given pictures that B pictures are drawn into; the mask of one that has none is 1.

    Attributes:
        latents: float32 [3, B, C, h, w]: those of the given picture; the noise that the picture
            starts from; those of the given picture with what is drawn in grey, which U-Nets read
            that were made for inpainting, and no others.
        weights: float32 [T, B, 2], of the first two at the noise level that a step arrives at.
        mask: float32 [B, 1, h, w], 1 where latents are drawn, 0 where they are the given ones.
    """

    latents: FloatArray
    weights: FloatArray
    mask: FloatArray

    def of(self, pictures: IntArray) -> BatchCanvas:
        """That of some pictures, by their indices."""
        return BatchCanvas(
            self.latents[:, pictures], self.weights[:, pictures], self.mask[pictures]
        )


@dataclass(frozen=True)
class BatchControl:
    """One kind of control, of the pictures of a batch that have it.

    Attributes:
        kind: Of the control.
        maps: float32 [3, H, W] in [0, 1], the distinct ones. Equal ones are the same object from
            batch to batch, so that they are embedded once.
        map_of_picture: int64 [B], indices into `maps`; -1 for a picture without this control.
        scale: float32 [B], what its residuals are multiplied by.
    """

    kind: str
    maps: tuple[FloatArray, ...]
    map_of_picture: IntArray
    scale: FloatArray

    def of(self, pictures: IntArray) -> BatchControl:
        """That of some pictures, by their indices."""
        found = self.map_of_picture[pictures]
        used = np.unique(found[found >= 0])
        place = np.full(len(self.maps) + 1, -1, np.int64)  # -1 finds the last, which is -1
        place[used] = np.arange(len(used))
        maps = tuple(self.maps[index] for index in used)
        return BatchControl(self.kind, maps, place[found], self.scale[pictures])


@dataclass(frozen=True)
class DenoiseBatch:
    """Everything that a batch of B pictures needs from the first step to the last.

    A picture is drawn by up to three guidance rows. Rows that would be equal are computed once, so
    N is between B and 3 B; `rows_of_picture` says where each branch is found.

    Attributes:
        state: float32 [1 + K', B, C, h, w], what the steps go on from: the sample, at first noise
            of unit variance, then the solver's history. What is missing of that is zeros.
        prompt_embeds: [P, S, E], the distinct text states: of `encode_text`, or float32 of numpy.
        text_of_row: int64 [N], indices into P.
        picture_of_row: int64 [N], indices into B.
        ref_of_row: int64 [N, R], indices into the references of all `tables`, counted through;
            -1 for none.
        rows_of_picture: int64 [3, B], rows of the branches uncond, image, text_image.
        image_guidance_scale: float32 [B].
        text_guidance_scale: float32 [B].
        tables: `data` of the S subjects, each E x L x [R_s, H, M, D]; may be empty. A table occurs
            twice where pictures of one subject are at different steps of it.
        num_references: R_s of each table.
        entry_of_step: int64 [S, T], the entry of each table that a step reads, 0 to E - 1.
        solver: Timesteps and coefficients of the T steps, of each picture its own.
        merge: How several references of a row are combined.
        deep_steps: bool [T], whether a step computes the deep blocks of the U-Net, or reads the
            features that they gave in the last step that did; None: all compute them, and none
            keeps the features.
        features: Of each picture what `DenoiseRun.features` gave, where the first steps do not
            compute the deep blocks.
        canvas: Of the pictures; None: none has any.
        controls: That act on some of the pictures in all of the steps, by kind; the batch has no
            `deep_steps` then.
    """

    state: FloatArray
    prompt_embeds: DeviceArray | FloatArray
    text_of_row: IntArray
    picture_of_row: IntArray
    ref_of_row: IntArray
    rows_of_picture: IntArray
    image_guidance_scale: FloatArray
    text_guidance_scale: FloatArray
    tables: tuple[DeviceArray, ...]
    num_references: tuple[int, ...]
    entry_of_step: IntArray
    solver: BatchSolver
    merge: Merge
    deep_steps: BoolArray | None = None
    features: tuple[DeviceArray, ...] = ()
    canvas: BatchCanvas | None = None
    controls: tuple[BatchControl, ...] = ()


class DenoiseRun(Protocol):
    """One batch on its way from noise to latents; its arrays stay on the device.

    Not for use from several threads, unlike the backend that made it.
    """

    def step(self, index: int) -> None:
        """Do step `index` of the solver: U-Net rows, guidance and solver in one go.

        For each picture b `eps = uncond + s_image (image - uncond) + s_text (text_image - image)`,
        then `[sample, *history] = matrices[index, b] @ [sample, eps, *history]`, and where the
        mask is 0 the sample is `weights[index, b] @ [given latents, noise]`. Ahead of that each
        control gives residuals for the rows of its pictures, which are scaled and added up.
        """

    def state(self) -> FloatArray:
        """Current sample, then the solver's history, float32 [1 + K, B, C, h, w], on the host.

        What a run of the same pictures goes on from, with other rows or beside other pictures.
        """

    def estimate(self) -> FloatArray:
        """What the last step took for the finished latents (x0), float32 [B, C, h, w]."""

    def features(self) -> tuple[DeviceArray, ...]:
        """What the deep blocks gave last, of each picture: for a run of the same rows of it.

        None of each picture where the batch has no `deep_steps`.
        """


class Backend(Protocol):
    """A pair on a device.

    Attributes:
        name: Of the backend.
        device: `cpu` or `cuda:N`.
        spec: What the pipeline must know of the pair.
    """

    name: str
    device: str
    spec: PairSpec

    def encode_text(self, ids: IntArray) -> DeviceArray:
        """Ids of `Tokenizer` -> text states [N, S, E].

        int64 [N, S]; or, of a pair with two text encoders, [N, 2 S + 6], whose states have more
        rows: what is added to the embedding of timesteps, see `bundle.text_parts`.
        """

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels float32 [N, 3, H, W] in [-1, 1] -> scaled latents float32 [N, C, h, w].

        The mean of the posterior, so that equal pictures give equal latents.
        """

    def reference_kv(
        self,
        latents: FloatArray,
        timesteps: IntArray,
        prompt_embeds: DeviceArray,
        *,
        dtype: TableDtype = "float32",
        rows_per_launch: int = 16,
        progress: PassProgress | None = None,
    ) -> ReferencePass:
        """Run the Reference U-Net and project its features with the base's weights.

        Args:
            latents: float32 [E, R, C, h, w], already noised to `timesteps`.
            timesteps: int64 [E].
            prompt_embeds: [R, S, E], text states of the reference prompt, one row a reference:
                of `encode_text`, or float32 of numpy.
            dtype: How the table keeps its numbers; converted launch by launch.
            rows_per_launch: (entry, reference) pairs that go through at once: bounds the memory
                that the pass takes beside its table.
            progress: Called after each launch, with nothing held that another call on the same
                thread would wait for: it may start and step runs.

        Raises:
            NumericalError: The table holds NaN or Inf.
        """

    def download_table(self, data: DeviceArray) -> HostTable:
        """A table of `reference_kv` or `upload_table` as arrays of the host, in the same type."""

    def upload_table(self, table: HostTable, *, is_resident: bool) -> DeviceArray:
        """A table of the host as `data` of a batch.

        Args:
            table: Made by `download_table`, by this backend or another, or read from a file.
            is_resident: Copy it to the device as a whole; otherwise it stays where it is, and each
                step copies the entry that it reads.
        """

    def download_states(self, prompt_embeds: DeviceArray) -> FloatArray:
        """Text states of `encode_text` as float32 of numpy."""

    def start(self, batch: DenoiseBatch) -> DenoiseRun:
        """Upload a batch and return its run, ahead of step 0."""

    def decode(self, latents: FloatArray, *, decoder: Decoder = "full") -> FloatArray:
        """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W] in [-1, 1]."""


BackendLoader: TypeAlias = Callable[..., Backend]
"""(pair, device, folder of the base model or None, options of the backend) -> backend.

The pair is a folder for torch. The others take a `Bundle`: it was opened once, and what is loaded
is what was checked then.
"""


def check_finite(array: FloatArray, after: str) -> FloatArray:
    """Return the array if all of it is finite: no picture is ever made from NaN.

    Args:
        array: float32 [B, ...], one entry a picture.
        after: What made it, for the message.

    Raises:
        NumericalError: Says which pictures of the batch are affected.
    """
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        bad = ", ".join(str(index) for index in np.flatnonzero(~finite))
        raise NumericalError(
            f"NaN or Inf in picture {bad} of the batch after {after}, expected finite numbers; "
            "lower the guidance scales, take another solver or check the weights"
        )
    return array
