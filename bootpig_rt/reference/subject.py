"""A Subject: what is kept of the reference images of one thing, encoded once and used many times.

It is frozen and lives on the host, so it can be shared between threads, pipelines of the same pair
and machines: a file of a few tens of kilobytes in the light form. `subject_file.py` reads and
writes it. Tables on a device are the store's, see `storage/store.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.backends.base import FloatArray, PairSpec
from bootpig_rt.errors import ParameterError, SubjectMismatch
from bootpig_rt.images.picture import to_pil
from bootpig_rt.reference.reference_table import ReferenceTable
from bootpig_rt.reference.subject_file import (
    MAX_FILE_BYTES,
    PREVIEW_PX,
    SubjectContents,
    read_subject,
    unusable,
    write_subject,
)


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject, from one or more reference images. Made by `Pipeline.encode_subject`.

    Attributes:
        pixels: What the model sees: float32 [R, 3, H, W] in [-1, 1], the subject on white. None for
            a subject from a file, which keeps their digest and a preview.
        latents: float32 [R, C, h, w], scaled by the VAE factor.
        reference_prompt: What the Reference U-Net is told, "a photo of a dog".
        noise_seed: Of the noise that is added to the reference, apart from any picture's seed.
        pair_fingerprint: Of the pair that encoded it.
        prompt_states: float32 [S, E], text states of the reference prompt, or None.
        tables: Reference tables that travel with it, in the full form.
        preview: uint8 [h, w, 3], the first reference image, small.
        pixels_sha256: Digest of `pixels`, computed where they are there.
    """

    pixels: FloatArray | None
    latents: FloatArray
    reference_prompt: str
    noise_seed: int
    pair_fingerprint: str
    prompt_states: FloatArray | None = None
    tables: tuple[ReferenceTable, ...] = ()
    preview: npt.NDArray[np.uint8] | None = None
    pixels_sha256: str = ""
    num_references: int = field(init=False)
    """R."""
    fingerprint: str = field(init=False, default="")
    """sha256 over pair, prompt and its states, noise seed, pixels and latents.

    All that a table is made from is in it, so that subjects of one fingerprint may share tables.
    """

    def __post_init__(self) -> None:
        """Make the arrays read-only: their fingerprint must stay true."""
        for array in (self.pixels, self.latents, self.prompt_states, self.preview):
            if array is not None:
                array.setflags(write=False)
        put = object.__setattr__
        put(self, "num_references", len(self.latents))
        if self.pixels is not None:
            put(self, "pixels_sha256", _digest(self.pixels).hexdigest())
        states = self.prompt_states
        parts = [
            self.pair_fingerprint,
            self.reference_prompt,
            int(self.noise_seed),
            self.pixels_sha256,
            _digest(self.latents).hexdigest(),
            None if states is None else _digest(states).hexdigest(),
        ]
        put(self, "fingerprint", hashlib.sha256(json.dumps(parts).encode()).hexdigest())
        if self.pixels is not None and self.preview is None:
            put(self, "preview", _small(self.pixels))

    @property
    def form(self) -> str:
        """`full` with tables, else `light`."""
        return "full" if self.tables else "light"

    def reference_images(self) -> list[Image.Image]:
        """The reference images as the model sees them; from a file, the preview of the first."""
        if self.pixels is not None:
            return to_pil(self.pixels)
        return [] if self.preview is None else [Image.fromarray(self.preview)]

    def check_for(self, spec: PairSpec) -> None:
        """Refuse another pair, other sizes than the pair's, and more references than it takes.

        Raises:
            SubjectMismatch: The pair, the size of the latents or that of the text states differs.
            ParameterError: Too many references.
        """
        if self.pair_fingerprint != spec.fingerprint:
            raise SubjectMismatch(
                f"the subject was encoded with pair {self.pair_fingerprint[:12]}, this pipeline "
                f"runs pair {spec.fingerprint[:12]}; encode the reference images again"
            )
        side = spec.config.sample_size_px // spec.vae_scale_factor
        expected = (spec.latent_channels, side, side)
        if self.latents.shape[1:] != expected:
            raise SubjectMismatch(
                f"the subject has latents of shape {list(self.latents.shape[1:])}, expected "
                f"{list(expected)}; encode the reference images again"
            )
        states = self.prompt_states
        if states is not None and spec.text_shape not in (None, states.shape):
            raise SubjectMismatch(
                f"the subject has text states of shape {list(states.shape)}, expected "
                f"{list(spec.text_shape or ())}; encode the reference images again"
            )
        limit = spec.config.max_references
        if self.num_references > limit:
            raise ParameterError(
                f"the subject has {self.num_references} references, expected 1..{limit} for this "
                "pair; encode it again with fewer"
            )

    def save(self, path: str | PathLike[str], *, form: str = "light") -> None:
        """Write a safetensors file: whole, or the old one stays.

        Args:
            path: The file; `.subject` is the usual ending.
            form: `light` keeps latents and text states, `full` the tables as well.

        Raises:
            ParameterError: An unknown form, or `full` for a subject without a table.
            StorageError: The file cannot be written.
        """
        if form not in ("light", "full"):
            raise ParameterError(f"form is {form!r}, expected light or full")
        if form == "full" and not self.tables:
            raise ParameterError(
                "the subject has no reference table to save; encode it with keep_table=True, or "
                'save it with form="light"'
            )
        tables = self.tables if form == "full" else ()
        fields = {name: getattr(self, name) for name in SubjectContents.__dataclass_fields__}
        write_subject(path, SubjectContents(**(fields | {"tables": tables})))

    @classmethod
    def load(cls, path: str | PathLike[str], *, max_bytes: int = MAX_FILE_BYTES) -> Subject:
        """Read a file that `save` wrote, on this machine or another, and check all of it.

        Raises:
            CheckpointError: Missing, truncated, changed, too large, of another version, or with
                NaN. Nothing in such a file is ever run.
        """
        contents = read_subject(path, max_bytes=max_bytes)
        fields = dict(vars(contents))
        said = fields.pop("fingerprint")
        subject = cls(pixels=None, **fields)
        if subject.fingerprint != said:
            raise unusable(path, "its fingerprint is not that of what it holds")
        return subject

    def __repr__(self) -> str:
        """Short: the arrays stay out of it."""
        return (
            f"Subject({self.reference_prompt!r}, {self.num_references} reference images, "
            f"{self.fingerprint[:12]})"
        )


def _digest(array: FloatArray) -> Any:
    digest = hashlib.sha256(f"{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest


def _small(pixels: FloatArray) -> npt.NDArray[np.uint8]:
    image = to_pil(pixels[:1])[0]
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    return np.array(image, dtype=np.uint8)
