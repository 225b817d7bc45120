"""How a picture is drawn into a given one, or from it: decided when it is asked for.

`strength` means what it means in diffusers: of T steps the last `int(T * strength)` are done, from
the given picture's latents, noised for the first of them. With a mask and a strength of 1 they
begin from noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from bootpig_rt.backends.base import FloatArray, PairSpec
from bootpig_rt.diffusion.solver import SolverTable
from bootpig_rt.errors import ParameterError
from bootpig_rt.images.canvas import Canvas

_STRENGTH = 0.8
"""Of a picture that is drawn from another, without a mask, where the request says nothing."""


@dataclass(frozen=True, eq=False)
class CanvasPlan:
    """The given picture of one that is drawn, and how steps keep to it.

    Attributes:
        canvas: The given picture.
        weights: float32 [T, 2], of its latents and of the picture's noise at the level that each
            step arrives at: what latents are that are not drawn. The last step arrives at (1, 0).
        start: The same two for what the first step begins from.
        edge_px: Of the mask, see `Canvas.paste`.
    """

    canvas: Canvas
    weights: FloatArray
    start: tuple[float, float]
    edge_px: int

    def paste(self, drawn: Image.Image) -> Image.Image:
        """What comes back of a picture that was drawn."""
        return self.canvas.paste(drawn, self.edge_px)


def strength_of(canvas: Canvas, strength: float | None, steps: int) -> tuple[float, int]:
    """How much is drawn anew, and the first of the steps that does so.

    Args:
        canvas: The given picture.
        strength: That is asked for; None for the usual one.
        steps: T.

    Raises:
        ParameterError: No step would.
    """
    if strength is None:
        strength = _STRENGTH if canvas.mask is None else 1.0
    count = int(steps * strength)
    if count < 1:
        raise ParameterError(
            f"strength is {strength:g}, of which no step of {steps} is left; raise it to "
            f"{1 / steps:.3g} or more, or take more steps"
        )
    return strength, steps - count


def plan_canvas(
    canvas: Canvas,
    solver: SolverTable,
    strength: float | None,
    *,
    edge_px: int | None,
    spec: PairSpec,
) -> CanvasPlan:
    """How a picture is drawn into a given one, or from it.

    Args:
        canvas: The given picture.
        solver: The steps that are done.
        strength: Of `strength_of`.
        edge_px: Of the mask; None for as many as a latent is wide.
        spec: Of the pair.

    Raises:
        ParameterError: The bundle's graphs know no masks.
    """
    if canvas.mask is not None and spec.canvas == "none":
        raise ParameterError(
            "mask_image is given, but the graphs of this bundle were built without masks; build it "
            "again with bootpig-rt build-engine, or leave out the mask"
        )
    bars = spec.noise_schedule.alphas_cumprod[solver.timesteps]
    levels = np.stack([np.sqrt(bars), np.sqrt(1.0 - bars)], axis=-1).astype(np.float32)
    start = (float(levels[0, 0]), float(levels[0, 1]))
    if canvas.mask is not None and strength == 1.0:
        start = (0.0, 1.0)
    clean = np.array([[1.0, 0.0]], np.float32)
    return CanvasPlan(
        canvas,
        np.concatenate([levels[1:], clean]),
        start,
        spec.vae_scale_factor if edge_px is None else edge_px,
    )
