"""The map from latents to small pictures: right where it knows, silent where it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bootpig_rt.engine.preview import fit_preview

FACTOR = 8


class Encoder:
    """Latents are the mean colours of patches, turned, and channels that hold only detail."""

    spec: Any = SimpleNamespace(config=SimpleNamespace(sample_size_px=64), vae_scale_factor=FACTOR)
    offset = 0.0  # of all latents
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]

    def colours(self, pixels: Any) -> Any:
        n, _, height, width = pixels.shape
        shape = (n, 3, height // FACTOR, FACTOR, width // FACTOR, FACTOR)
        return pixels.reshape(shape).mean(axis=(3, 5))

    def encode_image(self, pixels: Any) -> Any:
        colours = self.colours(pixels)
        rows = np.diff(pixels, axis=2)[:, :, FACTOR // 2 :: FACTOR, ::FACTOR].mean(1, keepdims=True)
        detail = np.concatenate([rows, rows**2, rows**3], axis=1)
        turned = np.einsum("ij,njhw->nihw", self.turn, colours)
        return np.concatenate([turned + self.offset, 1e-2 * detail], axis=1).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_colours_are_found_whatever_the_channels_of_detail_hold(offset: float) -> None:
    encoder: Any = Encoder()
    encoder.offset = offset
    fitted = fit_preview(encoder)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (1, 3, 1, 1)) * np.ones((1, 3, 64, 64))
    latents = encoder.encode_image(pixels)
    latents[:, 3:] = rng.standard_normal(latents[:, 3:].shape)  # as a picture with detail has
    rows = np.moveaxis(latents, 1, -1).reshape(-1, 6)
    found = np.concatenate([rows, np.ones((len(rows), 1))], axis=1) @ fitted
    assert np.abs(found - pixels[0, :, 0, 0]).max() < 0.15


def test_previews_come_from_the_tiny_decoder_where_the_pair_has_one(make_paper: Any) -> None:
    paper = make_paper(decoders=("full", "tiny"))
    decode, used, shown = paper.backend.decode, list[tuple[str, float]](), list[Any]()

    def note(latents: np.ndarray, *, decoder: str) -> Any:
        used.append((decoder, float(latents.mean())))
        return decode(latents, decoder=decoder)

    paper.backend.decode = note
    paper.submit(steps=3, job={"on_event": shown.append, "preview_every": 1})
    paper.run()
    assert [len(event.previews) for event in shown] == [1] * 3
    tiny = [latents for decoder, latents in used if decoder == "tiny"]
    np.testing.assert_allclose(
        tiny, [0.1, 0.2, 0.3], rtol=1e-6
    )  # the estimates, and not the latents
    assert used[-1] == ("full", 3.0)
