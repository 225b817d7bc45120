"""The published way as a server needs it: bodies in, encoded pictures out, several at once.

Its code draws one picture at a time. To let a server that batches do so, pictures of one size and
one number of steps go through the same U-Nets together here, each with a reference of its own; the
numbers are those of one at a time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bootpig_rt.benchmarks.published import (
    SCHEDULERS,
    FloatArray,
    PublishedWay,
    Scene,
    attend,
    attend_plain,
)
from bootpig_rt.benchmarks.truth import add_noise
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.engine.batch import picture_noise
from bootpig_rt.images.picture import prepare_reference, to_pil
from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.load import load_pair
from bootpig_rt.text.tokenizer import Tokenizer


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a request.

    Attributes:
        prompt: "a photo of a frog, in the snow".
        reference_prompt: What the image shows.
        image: The reference, a file in base64.
        size_px: Side of the pictures.
        steps: T.
        n: Pictures.
        seed: Of the first picture, from which the others count on.
    """

    prompt: str
    reference_prompt: str
    image: str
    size_px: int
    steps: int
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """Pictures of a request.

    Attributes:
        files: PNG.
        batch: Pictures that the U-Nets drew together.
    """

    files: tuple[bytes, ...]
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """As it is answered."""
        data = [{"b64_json": base64.b64encode(file).decode()} for file in self.files]
        return {"data": data, "batch": self.batch}


class BatchedWay(PublishedWay):
    """The published way for several pictures with a reference each, in one pass a step."""

    def pictures(self, scenes: Sequence[Scene]) -> FloatArray:
        """Pixels, float32 [B, 3, H, W].

        Args:
            scenes: Of one size, solver and number of steps; one reference each.
        """
        first = scenes[0]
        scheduler = SCHEDULERS[first.solver].from_config(self._pair.scheduler)
        scheduler.set_timesteps(first.steps)
        timesteps = scheduler.timesteps.numpy()
        config = self._pair.config
        scales = torch.tensor([config.image_guidance_scale, config.text_guidance_scale])
        with torch.inference_mode():
            ids = torch.from_numpy(np.stack([scene.ids for scene in scenes], axis=1))
            texts = self._pair.text_encoder(ids.flatten(0, 1)).last_hidden_state
            none, prompts, references = texts.unflatten(0, ids.shape[:2]).unbind(0)
            rows = torch.cat([none, none, prompts])
            pixels = torch.from_numpy(np.concatenate([scene.pixels for scene in scenes]))
            scale = LatentScale(self._vae)
            latents = scale.scaled(mean_latents(self._vae, pixels))
            noised = [
                scene.add_noise(one[None].numpy(), timesteps)
                for scene, one in zip(scenes, latents, strict=True)
            ]
            read = torch.from_numpy(np.concatenate(noised, axis=1))
            x = torch.from_numpy(np.stack([scene.noise for scene in scenes]))
            x = x * float(scheduler.init_noise_sigma)
            for index, t in enumerate(scheduler.timesteps):
                guided = self._guided(x, read[index], t, rows, references, scales)
                x = scheduler.step(guided, t, x).prev_sample
            drawn: FloatArray = self._vae.decode(scale.unscaled(x)).sample.numpy()
        return drawn

    def _attend(self, attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        feature = self._features.pop(0)  # [B, M, C]: each picture has its own reference
        count = len(feature)
        guided, feature = tokens[count:], feature.repeat(2, 1, 1)
        keys = torch.cat([guided, feature * self._pair.config.ref_scale], dim=1)
        values = torch.cat([guided, feature], dim=1)
        own = attend_plain(attn, tokens[:count])
        return torch.cat([own, attend(attn, guided, keys, values)])


class Drawer:
    """Draws what bodies ask for.

    Args:
        folder: Of the pair.
        threads: Of torch.
        is_batched: Pictures that can be drawn together are.
    """

    def __init__(self, folder: Path, *, threads: int, is_batched: bool) -> None:
        """Load the pair."""
        torch.set_num_threads(threads)
        self._pair = load_pair(folder, dtype=torch.float32)
        self._way = (BatchedWay if is_batched else PublishedWay)(self._pair)
        self._tokenizer = Tokenizer.from_folder(self._pair.tokenizer_folder)
        schedule = NoiseSchedule.from_config(self._pair.scheduler)
        self._add_noise = partial(add_noise, noise_schedule=schedule)
        vae: Any = self._pair.vae
        self._scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self._channels = int(self._pair.base.unet.config.in_channels)

    def draw(self, bodies: Sequence[Body]) -> list[Drawn]:
        """Pictures for all bodies.

        Raises:
            ImageError: A reference cannot be used.
        """
        scenes = [self._scene(body, n) for body in bodies for n in range(body.n)]
        files: list[bytes] = [b""] * len(scenes)
        batches = [0] * len(scenes)
        for group in self._groups(scenes):
            members = [scenes[n] for n in group]
            pixels = (
                self._way.pictures(members)
                if isinstance(self._way, BatchedWay)
                else self._way.picture(members[0])
            )
            for n, image in zip(group, to_pil(pixels), strict=True):
                files[n], batches[n] = _png(image), len(group)
        drawn, at = [], 0
        for body in bodies:
            own = slice(at, at + body.n)
            drawn.append(Drawn(tuple(files[own]), max(batches[own])))
            at += body.n
        return drawn

    def _groups(self, scenes: Sequence[Scene]) -> list[list[int]]:
        """Numbers of the scenes that are drawn together."""
        if not isinstance(self._way, BatchedWay):
            return [[n] for n in range(len(scenes))]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for n, scene in enumerate(scenes):
            groups.setdefault((scene.noise.shape, scene.steps), []).append(n)
        return list(groups.values())

    def _scene(self, body: Body, number: int) -> Scene:
        config = self._pair.config
        file, share = base64.b64decode(body.image), config.subject_share
        pixels = prepare_reference(file, config.sample_size_px, subject_share=share)
        side = body.size_px // self._scale
        return Scene(
            ids=self._tokenizer(["", body.prompt, body.reference_prompt]),
            pixels=pixels[None],
            noise=picture_noise(body.seed + number, (self._channels, side, side)),
            add_noise=self._add_noise,
            solver=config.default_solver,
            steps=body.steps,
        )


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
