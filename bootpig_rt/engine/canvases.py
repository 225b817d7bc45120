"""Given pictures as latents: encoded when a picture begins, and kept while others begin from them.

Encoding is done where decoding is, on the thread that runs the engine: a request holds pixels, so
it may be sent anywhere and belongs to no pair.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from bootpig_rt.backends.base import Backend, FloatArray, check_finite
from bootpig_rt.engine.batch import Picture, PictureCanvas

_KEPT = 16
"""Given pictures whose latents are kept: those of a request are drawn from several times."""


class Canvases:
    """The latents of given pictures that were met lately. For the thread that runs the engine.

    Args:
        backend: Encodes them.
    """

    def __init__(self, backend: Backend) -> None:
        """Nothing is encoded yet."""
        self._backend = backend
        self._latents: OrderedDict[Hashable, FloatArray] = OrderedDict()

    def set_up(self, picture: Picture) -> None:
        """Give a picture, ahead of its first step, the latents that it is drawn into.

        A picture without a canvas needs it where the U-Net was made for inpainting: it reads a mask
        that is all white, and grey.

        Raises:
            NumericalError: NaN or Inf from the encoder.
        """
        plan, spec = picture.plan.canvas, self._backend.spec
        start = time.perf_counter()
        noise, shape = picture.state[0].copy(), picture.plan.latents_shape
        planes, mask = np.zeros((3, *shape), np.float32), np.ones((1, *shape[1:]), np.float32)
        if plan is not None:
            given = plan.canvas
            latents = self._encoded(given.fingerprint, given.for_encoder)
            planes[0], planes[1] = latents[0], noise
            mask = given.latent_mask(spec.vae_scale_factor)
            signal, spread = plan.start
            picture.state[0] = signal * latents[0] + spread * noise
            if given.mask is not None:
                planes[2] = latents[1]
        if spec.canvas == "read" and (plan is None or plan.canvas.mask is None):
            factor = spec.vae_scale_factor
            size_px = (shape[1] * factor, shape[2] * factor)
            planes[2] = self._encoded(size_px, lambda: np.zeros((1, 3, *size_px), np.float32))[0]
        picture.canvas = PictureCanvas(planes, mask)
        picture.job.timings.encode_ms += 1e3 * (time.perf_counter() - start)

    def _encoded(self, key: Hashable, pixels: Callable[[], FloatArray]) -> FloatArray:
        found = self._latents.get(key)
        if found is None:
            made = self._backend.encode_image(pixels())
            found = self._latents[key] = check_finite(made, "the image encoder")
            if len(self._latents) > _KEPT:
                self._latents.popitem(last=False)
        self._latents.move_to_end(key)
        return found
