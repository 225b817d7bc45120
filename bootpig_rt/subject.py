"""A Subject: what is kept of the reference images of one thing, encoded once and used many times.

It is frozen and lives on the host, so it can be shared between threads and pipelines of the same
pair. The reference table on the device is the pipeline's, see `reference_kv.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.errors import SubjectMismatch
from bootpig_rt.image import to_pil


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject, from one or more reference images. Made by `Pipeline.encode_subject`.

    Attributes:
        pixels: What the model sees: float32 [R, 3, H, W] in [-1, 1], the subject on white.
        latents: float32 [R, C, h, w], scaled by the VAE factor.
        reference_prompt: What the Reference U-Net is told, "a photo of a dog".
        noise_seed: Of the noise that is added to the reference, apart from any picture's seed.
        pair_fingerprint: Of the pair that encoded it.
    """

    pixels: FloatArray
    latents: FloatArray
    reference_prompt: str
    noise_seed: int
    pair_fingerprint: str

    def __post_init__(self) -> None:
        """Make the arrays read-only: their fingerprint must stay true."""
        for array in (self.pixels, self.latents):
            array.setflags(write=False)
        digest = hashlib.sha256(self.pair_fingerprint.encode())
        digest.update(f"\0{self.reference_prompt}\0{self.noise_seed}\0".encode())
        for array in (self.pixels, self.latents):
            digest.update(f"{array.shape}".encode())
            digest.update(array.tobytes())
        object.__setattr__(self, "_fingerprint", digest.hexdigest())

    @property
    def fingerprint(self) -> str:
        """sha256 over everything above: subjects with equal fingerprints are equal."""
        fingerprint: str = self._fingerprint  # type: ignore[attr-defined]  # set in __post_init__
        return fingerprint

    @property
    def num_references(self) -> int:
        """R."""
        return len(self.latents)

    def reference_images(self) -> list[Image.Image]:
        """The reference images as the model sees them."""
        return to_pil(self.pixels)

    def check_pair(self, fingerprint: str) -> None:
        """Refuse to be used with another pair than the one that encoded it.

        Raises:
            SubjectMismatch: The fingerprints differ.
        """
        if self.pair_fingerprint != fingerprint:
            raise SubjectMismatch(
                f"the subject was encoded with pair {self.pair_fingerprint[:12]}, this pipeline "
                f"runs pair {fingerprint[:12]}; encode the reference images again"
            )

    def __repr__(self) -> str:
        """Short: the arrays stay out of it."""
        return (
            f"Subject({self.reference_prompt!r}, {self.num_references} reference images, "
            f"{self.fingerprint[:12]})"
        )
