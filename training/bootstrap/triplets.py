"""The last stage: from views with masks to target and references, as a pair reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.errors import ImageError
from bootpig_rt.images.picture import prepare_reference, to_pil
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.encoders import Encoder, make_encoder
from bootpig_rt.training.bootstrap.stage import Item, Outcome, View

NAME = "triplets"


class TripletsStage:
    """Makes the reference, verifies pairs, and takes the fingerprint of the target.

    The reference of a single picture is its own subject, cut out; that of a pair is the subject of
    the other half, which has to be alike and yet another picture.

    Raises:
        CheckpointError: An encoder's folder cannot be used.
        BackendUnavailable: A package is missing.
    """

    name = NAME

    def __init__(self, config: BootstrapConfig) -> None:
        self._config = config
        self.batch_size = config.filters.batch_size
        name = config.filters.duplicates
        self._fingerprint = (
            None if name == "none" else make_encoder(name, config.device, config.dtype)
        )
        self._verify: Encoder | None = None
        if config.pairs.share:
            self._verify = make_encoder(config.pairs.encoder, config.device, config.dtype)

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Make a triplet of each item."""
        outcomes = [self._triplet(item) for item in items]
        left = [k for k, outcome in enumerate(outcomes) if isinstance(outcome, Item)]
        if self._fingerprint is not None and left:
            prints = self._fingerprint([items[k].views[0].picture for k in left])
            for k, fingerprint in zip(left, prints, strict=True):
                item = outcomes[k]
                assert isinstance(item, Item)
                outcomes[k] = replace(item, fingerprint=fingerprint)
        return [(outcome,) for outcome in outcomes]

    def _triplet(self, item: Item) -> Outcome:
        try:
            cut_outs = [self._cut_out(view) for view in item.views]
        except ImageError as error:
            return item.reject(NAME, "too_small", str(error))
        if not item.is_pair:
            return replace(item, references=(cut_outs[0],))
        assert self._verify is not None
        first, second = self._verify(cut_outs)
        similarity = float(first @ second)
        limits = self._config.pairs
        if similarity < limits.floor:
            detail = f"the two have a cosine of {similarity:.3f}, the floor is {limits.floor:g}"
            return item.reject(NAME, "other_subject", detail)
        if similarity > limits.ceiling:
            detail = f"the two have a cosine of {similarity:.3f}, the ceiling is {limits.ceiling:g}"
            return item.reject(NAME, "same_picture", detail)
        return replace(item, references=(cut_outs[1],)).with_scores(similarity=similarity)

    def _cut_out(self, view: View) -> NDArray[np.uint8]:
        """The subject on a white square, uint8 [S, S, 3], exactly as references are prepared."""
        assert view.mask is not None  # a stage before made it
        image = Image.fromarray(np.dstack([view.picture, view.mask]))
        size_px = view.picture.shape[0]
        pixels = prepare_reference(
            image, size_px, what="subject", subject_share=self._config.triplets.fill
        )
        return np.asarray(to_pil(pixels[None])[0], np.uint8)
