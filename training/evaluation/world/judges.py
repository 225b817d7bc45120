"""Judges of pictures in the 3-D world: all they know is what the renderer draws.

- Identity: which look-alike a picture's subject is nearest to, by features of EfficientNet-Lite0 of
  the box where the prompt puts it, over several true views of each; once more with everything in
  grey, where outline and pattern have to tell.
- Fidelity: PSNR of the subject's pixels against the renderer's own picture of it, at the view, size
  and shift that fit best, and a perceptual distance to that picture; see `evaluation/fidelity.py`.
  Where it fits best is also where the subject is said to stand.
- Scene: a small network that learned from the renderer's pictures of training subjects.
- Detail: how much lies above half of the highest frequency, beside the renderer's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.training.captions import Position
from bootpig_rt.training.evaluation.efficientnet import EfficientNetLite0
from bootpig_rt.training.evaluation.fidelity import (
    RING,
    ShiftedViews,
    best_view,
    perceptual_distances,
    views_of,
    with_ring,
)
from bootpig_rt.training.evaluation.identity import Floats, by_prompt, network_features, unit
from bootpig_rt.training.evaluation.kept import read_arrays, write_arrays
from bootpig_rt.training.evaluation.scene_judge import SceneNet, fit_scene_net, scene_numbers
from bootpig_rt.training.evaluation.suite import Shot, stream
from bootpig_rt.training.evaluation.world.suite import (
    LookAlike,
    WorldSubject,
    WorldSuiteConfig,
)
from bootpig_rt.training.render.camera import View
from bootpig_rt.training.world3d.captions import WorldCaption
from bootpig_rt.training.world3d.compose import CENTRES, draw_target
from bootpig_rt.training.world3d.identities import Identities
from bootpig_rt.training.world3d.studio import Studio

CROP_SHARE, CROP_Y = 0.7, 0.58
SHIFT_X, SHIFT_Y = 0.3, 0.1
FINE_VIEWS = 16
"""Of the subject itself, for fidelity; drawings are seen from the front, in fewer."""
CARD_VIEWS_DEG = (-18.0, 0.0, 18.0)
SCENE_PICTURES = 64
"""Of each scene, that its judge learns from."""

_PARTS = 2
_GREY = ".grey"
_DETAIL_FROM = 0.5

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """What judges say of pictures, N each.

    Attributes:
        chosen: Index of the candidate that each is nearest to.
        chosen_in_grey: The same without colours.
        scenes: Key of the scene that each shows.
        positions: Where each shows its subject.
        measures: By name: `psnr_db`, `perceptual`, `detail`.
    """

    chosen: list[int]
    chosen_in_grey: list[int]
    scenes: list[str]
    positions: list[Position]
    measures: dict[str, list[float]]


class WorldJudges:
    """All judges of a suite; what takes long is kept in a folder.

    Args:
        subjects: Of the suite.
        config: The suite.
        studio: Of the size of the pictures.
        training: Whom the judge of scenes learns from.
        network: Gives features, in evaluation mode.
        cache: Folder that keeps features and the judge of scenes.
        digest: Of the suite, see `world_digest`.
    """

    def __init__(
        self,
        subjects: Sequence[WorldSubject],
        config: WorldSuiteConfig,
        studio: Studio,
        *,
        training: Identities,
        network: EfficientNetLite0,
        cache: Path,
        digest: str,
    ) -> None:
        self.subjects, self.config, self.studio, self.network = subjects, config, studio, network
        self._features = network_features(network)
        path = cache / f"look-alikes-2-{digest[:16]}.npz"
        bank = read_arrays(path)
        if bank is None:
            bank = {
                f"{s}.{p}{kind}": features.astype(np.float16)
                for s, subject in enumerate(subjects)
                for p in range(len(subject.captions))
                for kind, features in self._bank(s, p).items()
            }
            write_arrays(path, bank)
        self._banks = bank
        self.scene_keys = sorted({c.scene for one in subjects for c in one.captions})
        self._net = self._scene_net(training, cache, digest)

    def __call__(self, shots: Sequence[Shot], pictures: Pictures) -> Found:
        """Judge pictures, uint8 [N, S, S, 3]."""
        psnr, perceptual, positions = self._fidelity(shots, pictures)
        scenes = scene_numbers(self._net, pictures)
        return Found(
            self._chosen(shots, pictures, ""),
            self._chosen(shots, pictures, _GREY),
            [self.scene_keys[number] for number in scenes],
            positions,
            {
                "psnr_db": psnr,
                "perceptual": perceptual,
                "detail": [detail(picture) for picture in pictures],
            },
        )

    # Identity ------------------------------------------------------------------------------------

    def _bank(self, subject: int, prompt: int) -> dict[str, Floats]:
        """Features of all candidates in the prompt's scene and place, [K, V, F], and in grey."""
        whose = self.subjects[subject]
        caption = whose.captions[prompt]
        rng = stream(self.config.seed, "candidates", whose.key, prompt)
        crops = [
            [
                crop(render_in_scene(rng, one, caption, view, self.studio)[0], caption.position)
                for view in views(one, self.config.views, rng)
            ]
            for one in whose.candidates
        ]
        drawn = np.stack([crop_ for row in crops for crop_ in row])
        shape = (len(crops), len(crops[0]), -1)
        return {kind: self._seen(drawn, kind).reshape(shape) for kind in ("", _GREY)}

    def _seen(self, crops: Pictures, kind: str) -> Floats:
        return self._features(in_grey(crops) if kind == _GREY else crops)

    def _chosen(self, shots: Sequence[Shot], pictures: Pictures, kind: str) -> list[int]:
        places = [self.subjects[s.subject].captions[s.prompt].position for s in shots]
        crops = np.stack([crop(one, at) for one, at in zip(pictures, places, strict=True)])
        found = []
        for shot, query in zip(shots, self._seen(crops, kind), strict=True):
            bank = self._banks[f"{shot.subject}.{shot.prompt}{kind}"].astype(np.float32)
            parts = zip(np.split(bank, _PARTS, axis=-1), np.split(query, _PARTS), strict=True)
            found.append(int(np.sum([nearness(own, seen) for own, seen in parts], 0).argmax()))
        return found

    # Fidelity and position -----------------------------------------------------------------------

    def _fidelity(
        self, shots: Sequence[Shot], pictures: Pictures
    ) -> tuple[list[float], list[float], list[Position]]:
        size = pictures.shape[1]
        psnr, centres = np.zeros(len(shots)), np.zeros(len(shots))
        targets, rings = np.zeros_like(pictures), np.zeros(pictures.shape[:3], np.uint8)
        anything = np.stack([np.zeros((size, size, 3)), np.full((size, size, 3), 255.0)])
        for (number, prompt), rows in sorted(by_prompt(shots).items()):
            own = self._views(number, prompt)
            for row in rows:
                error, target, alpha = best_view(
                    own, pictures[row], anything, shifts=(SHIFT_Y, SHIFT_X)
                )
                psnr[row] = 10 * np.log10(255.0**2 / max(error, 1e-2))
                targets[row], rings[row] = target, with_ring(alpha, RING)
                columns = alpha.sum(axis=0)
                centres[row] = (columns * (np.arange(size) + 0.5)).sum() / columns.sum() / size
        distances = perceptual_distances(self.network, pictures, targets, rings)
        return psnr.tolist(), distances.tolist(), [nearest_position(x) for x in centres]

    def _views(self, number: int, prompt: int) -> ShiftedViews:
        """The subject in the prompt's light, in the middle, from all sides and in two sizes."""
        whose = self.subjects[number]
        own, caption = whose.candidates[0], whose.captions[prompt]
        middle = WorldCaption(
            caption.noun, "centre", caption.size, caption.scene, caption.scene_phrase
        )
        rng = stream(self.config.seed, "fine views", whose.key, prompt)
        drawn = [
            render_in_scene(rng, own, middle, view, self.studio)
            for view in views(own, FINE_VIEWS, rng) * 2
        ]
        alpha = np.stack([mask for _, mask in drawn]).astype(np.float64) / 255
        colours = np.stack([picture for picture, _ in drawn]) * alpha[..., None]
        return views_of(colours, alpha)

    # Scene ---------------------------------------------------------------------------------------

    def _scene_net(self, training: Identities, cache: Path, digest: str) -> SceneNet:
        path = cache / f"scenes-{digest[:16]}.safetensors"
        net = SceneNet(len(self.scene_keys))
        try:
            net.load_state_dict(load_file(path))
            return net.eval().requires_grad_(False)
        except (OSError, SafetensorError, RuntimeError):  # not there, damaged or of another suite
            pass
        rng = stream(self.config.seed, "scene judge")
        pictures, labels = [], []
        for number in range(SCENE_PICTURES * len(self.scene_keys)):
            label = number % len(self.scene_keys)
            one = LookAlike(training.draw(rng, 0.5), hue_deg=float(rng.uniform(0, 360)))
            position = tuple(CENTRES)[int(rng.integers(3))]
            caption = WorldCaption("thing", position, "normal", self.scene_keys[label], "")
            (view,) = views(one, 1, rng)
            pictures.append(render_in_scene(rng, one, caption, view, self.studio)[0])
            labels.append(label)
        net = fit_scene_net(
            np.stack(pictures),
            np.array(labels),
            seed=self.config.seed,
            scenes=len(self.scene_keys),
        )
        atomic_write_bytes(path, save(net.state_dict()))
        return net


def views(one: LookAlike, count: int, rng: np.random.Generator) -> list[View]:
    """From where a candidate is seen: all around, a drawing from the front."""
    if one.identity.is_drawing:
        return [View(each, float(rng.uniform(3, 9))) for each in CARD_VIEWS_DEG[:count]]
    start = float(rng.uniform(0, 360 / count))
    return [View(start + 360 * k / count, float(rng.uniform(8, 18))) for k in range(count)]


def render_in_scene(
    rng: np.random.Generator,
    one: LookAlike,
    caption: WorldCaption,
    view: View,
    studio: Studio,
) -> tuple[Pictures, Pictures]:
    """The renderer's picture of a candidate where a caption says, and its mask."""
    mesh = studio.mesh_of(one.identity)
    is_flat = one.identity.is_drawing
    look = one.look(studio)
    found = draw_target(rng, mesh, look, caption, view, studio, is_flat=is_flat)
    return found.picture, found.mask


def crop(picture: Pictures, position: Position) -> Pictures:
    """The box where prompts put a subject, out of uint8 [S, S, 3]."""
    size = picture.shape[0]
    side = round(CROP_SHARE * size)
    left = round(CENTRES[position] * size - side / 2)
    top = round(CROP_Y * size - side / 2)
    left, top = (min(max(0, start), size - side) for start in (left, top))
    return picture[top : top + side, left : left + side]


def in_grey(pictures: Pictures) -> Pictures:
    """Brightness alone, in three equal channels, of uint8 [..., 3]."""
    levels = pictures @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=-1)


def nearness(bank: Floats, query: Floats) -> Floats:
    """Cosine of a query [F] to each candidate [K, V, F] at its nearest view -> [K].

    Features are centred, and scaled by how much they vary from view to view.
    """
    means = bank.mean(axis=1)
    centre = means.mean(axis=0)
    variance = (bank - means[:, None]).var(axis=(0, 1))
    scale = 1.0 / np.sqrt(variance + 0.5 * variance.mean() + 1e-8)
    cosines: Floats = unit((bank - centre) * scale) @ unit((query - centre) * scale)
    nearest: Floats = cosines.max(axis=1)
    return nearest


def nearest_position(centre: float) -> Position:
    """The word for a place, share of the picture's side."""
    return min(CENTRES, key=lambda position: abs(CENTRES[position] - centre))


def detail(picture: Pictures) -> float:
    """Root mean square of what lies above half of the highest frequency, 0 to 255."""
    pixels = picture.astype(np.float64)
    spectrum = np.fft.fft2(pixels, axes=(0, 1))
    rows, columns = (np.abs(np.fft.fftfreq(side)) * 2 for side in pixels.shape[:2])
    high = np.maximum(rows[:, None], columns[None, :]) > _DETAIL_FROM
    power = (np.abs(spectrum) ** 2 * high[..., None]).sum() / pixels.size
    return float(np.sqrt(power / (pixels.shape[0] * pixels.shape[1])))
