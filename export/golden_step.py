"""What a pair is asked in a recorded step, and the choices that rounding makes in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.export.golden_recording import (
    Recording,
)

FloatArray = npt.NDArray[np.float32]

IntArray = npt.NDArray[np.int64]

Norms = tuple[FloatArray, ...]
"""Of each merge, in order: how much each reference changes, float32 [rows, R, tokens]."""

Choices = tuple[IntArray, ...]
"""Of each merge: the reference that each token takes, int64 [rows, tokens]."""

STEP_LIMIT = 1e-4
"""Largest relative error of any quantity within one step, float32."""

TIE_LIMIT = 1e-2
"""Largest distance of the two norms of a flip, relative to the larger."""

_MOST_TRIES = 16
"""Near ties of one step whose other choice is tried."""


@dataclass(frozen=True, eq=False)
class References:
    """What the rows of one call read.

    Attributes:
        latents: float32 [N, C, h, w], already noised.
        t: int64 [N].
        prompt_embeds: float32 [N, S, E].
        ref_of_row: int64 [B, R], indices into N, -1 for none.
        ref_scale: Multiplies the features for keys only.
    """

    latents: FloatArray
    t: IntArray
    prompt_embeds: FloatArray
    ref_of_row: IntArray
    ref_scale: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """Output of the Base U-Net.

    Attributes:
        output: float32 [B, C, h, w].
        norms: Of the merges; none where no row reads several references.
    """

    output: FloatArray
    norms: Norms = ()

    @property
    def choices(self) -> Choices:
        """What its own norms choose: the largest, the first of equal ones."""
        return tuple(norms.argmax(axis=1) for norms in self.norms)


class GoldenPair(Protocol):
    """The two U-Nets of a golden folder in some backend; several references merge by `argmax`."""

    def features(
        self, latents: FloatArray, t: IntArray, prompt_embeds: FloatArray
    ) -> tuple[FloatArray, ...] | None:
        """Features of the Reference U-Net ahead of each self-attention, L arrays [N, M_l, C_l].

        None where a backend's graphs do not show them.
        """

    def predict(
        self,
        latents: FloatArray,
        t: IntArray,
        prompt_embeds: FloatArray,
        references: References | None = None,
        choices: Choices | None = None,
    ) -> Prediction:
        """Run the Base U-Net on [B, C, h, w], [B], [B, S, E].

        Args:
            latents: The samples.
            t: Timesteps.
            prompt_embeds: Text states.
            references: What the rows read.
            choices: Of the first merges, in place of their own; those behind choose themselves.
        """


class Step:
    """One step of a recorded run."""

    def __init__(
        self, pair: GoldenPair, recording: Recording, schedule: NoiseSchedule, index: int
    ) -> None:
        data = recording.tensors
        count, t = len(data["ref_latents"]), data["t"][index]
        reads = np.arange(count, dtype=np.int64)
        self._pair = pair
        self._data, self._index, self._t = data, index, np.full(3, t)
        self._references = References(
            latents=schedule.add_noise(data["ref_latents"], data["ref_noise"][index], int(t)),
            t=np.full(count, t),
            prompt_embeds=data["ref_prompt_embeds"],
            ref_of_row=np.stack([np.full(count, -1), reads, reads]),
            ref_scale=recording.number("ref_scale"),
        )
        self._image_scale = np.float32(recording.number("guidance_scale"))
        self._text_scale = np.float32(recording.number("txtim_guidance_scale"))

    def predict(self, latents: FloatArray, choices: Choices | None = None) -> Prediction:
        """The three rows from `latents` [1, C, h, w]."""
        rows = np.repeat(latents, 3, 0)
        return self._pair.predict(
            rows, self._t, self._data["prompt_embeds"], self._references, choices
        )

    def as_recorded(self) -> tuple[Prediction, Choices]:
        """From the recorded latents, and with the choices that the recording made.

        They are our own; where the output differs by more than the limit, the other choice of
        those that nearly tie is tried, the nearest first, and kept where it comes closer.
        """
        latents = self._data["latents_in"][self._index]
        best = self.predict(latents)
        choices = best.choices
        tried: set[tuple[int, int, int]] = set()
        while self.error(best) > STEP_LIMIT and len(tried) < _MOST_TRIES:
            place = next((one for one in _near_ties(best.norms) if one not in tried), None)
            if place is None:
                break
            tried.add(place)
            layer, row, token = place
            other = choices[layer].copy()
            other[row, token] = np.argsort(-best.norms[layer][row, :, token], kind="stable")[1]
            changed = (*choices[:layer], other)
            prediction = self.predict(latents, changed)
            if self.error(prediction) < self.error(best):
                best, choices = prediction, (*changed, *prediction.choices[layer + 1 :])
        return best, choices

    def error(self, prediction: Prediction) -> float:
        """Of the output, against the recording."""
        return relative_error(prediction.output, self._data["noise_pred"][self._index])

    def guided(self, rows: FloatArray) -> FloatArray:
        """The guided output [1, C, h, w] of the three rows."""
        uncond, image, text_image = rows[0:1], rows[1:2], rows[2:3]
        guided: FloatArray = (
            uncond + self._image_scale * (image - uncond) + self._text_scale * (text_image - image)
        )
        return guided


def _near_ties(norms: Norms) -> list[tuple[int, int, int]]:
    """Merge, row and token of the choices that rounding may decide, the nearest first."""
    found: list[tuple[float, tuple[int, int, int]]] = []
    for layer, of_layer in enumerate(norms):
        ordered = np.sort(of_layer, axis=1)
        distance = 1 - ordered[:, -2] / ordered[:, -1]
        for row, token in np.argwhere(distance <= TIE_LIMIT):
            found.append((float(distance[row, token]), (layer, int(row), int(token))))
    return [place for _, place in sorted(found)]


def flips(step: int, prediction: Prediction, choices: Choices) -> dict[tuple[int, ...], float]:
    """Step, merge, row and token where the prediction would choose otherwise.

    Returns:
        How near the two norms are, relative to the larger.
    """
    found: dict[tuple[int, ...], float] = {}
    for layer, (norms, kept) in enumerate(zip(prediction.norms, choices, strict=True)):
        own = norms.argmax(axis=1)
        for row, token in np.argwhere(own != kept).tolist():
            largest, taken = (norms[row, choice[row, token], token] for choice in (own, kept))
            found[step, layer, row, token] = float(1 - taken / largest)
    return found


def relative_error(got: npt.NDArray[Any], recorded: npt.NDArray[Any]) -> float:
    """Max |got - recorded| / max |recorded|; NaN where `got` is not finite, Inf on other shapes."""
    if got.shape != recorded.shape:
        return float("inf")
    if not np.isfinite(got).all():
        return float("nan")
    difference = float(np.abs(got.astype(np.float64) - recorded).max())
    scale = float(np.abs(recorded).max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))
