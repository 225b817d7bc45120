"""Subjects cut out by the stage `masks` of the bootstrap, where a sample came without a mask.

SAM led by a phrase, for one: it sees many pictures at once on one device, so it works on what the
processes have made of the candidates, in their order.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from bootpig_rt.errors import ImageError
from bootpig_rt.images.picture import prepare_reference, to_pil
from bootpig_rt.training.bootstrap.stage import Item, MakeStage, Outcome, Stage, View
from bootpig_rt.training.importing.candidate import Place, Refused
from bootpig_rt.training.importing.fit import Fitted, Pixels

Results = Generator[tuple[Place, Fitted | Refused], None, None]


@dataclass(frozen=True)
class Cut:
    """How subjects are cut out: `make_stage` builds the stage, `settings` are what decides it."""

    make_stage: MakeStage
    settings: dict[str, Any]
    subject_share: float

    def __call__(self, results: Results) -> Results:
        """The same samples in the same order, those without a mask cut out."""
        stage = self.make_stage()
        waiting: list[tuple[Place, Fitted | Refused]] = []
        try:
            for place, result in results:
                waiting.append((place, result))
                if sum(_needs(each) for _, each in waiting) >= stage.batch_size:
                    yield from self._done(stage, waiting)
                    waiting = []
            yield from self._done(stage, waiting)
        finally:
            results.close()

    def _done(
        self, stage: Stage, waiting: list[tuple[Place, Fitted | Refused]]
    ) -> Iterator[tuple[Place, Fitted | Refused]]:
        needs = [each for _, each in waiting if isinstance(each, Fitted) and _needs(each)]
        items = [_item(k, fitted) for k, fitted in enumerate(needs)]
        cut = iter([outcome for (outcome,) in stage(items)] if items else [])
        for place, result in waiting:
            if isinstance(result, Fitted) and _needs(result):
                yield place, self._joined(result, next(cut))
            else:
                yield place, result

    def _joined(self, fitted: Fitted, outcome: Outcome) -> Fitted | Refused:
        """A sample with what the stage found."""
        if not isinstance(outcome, Item):
            return Refused(fitted.name, outcome.reason, outcome.detail)
        masks = [view.mask for view in outcome.views]
        mask, origin = fitted.mask, fitted.mask_origin
        if origin == "none":
            first = masks.pop(0)
            assert first is not None  # the stage made it
            mask, origin = first, "cut_out"
        try:
            references = [
                self._on_white(reference, masks.pop(0)) if is_whole else reference
                for reference, is_whole in zip(fitted.references, fitted.is_whole, strict=True)
            ]
            if not references:
                references = [self._on_white(fitted.target, mask)]
        except ImageError as error:
            return Refused(fitted.name, "bad_picture", str(error))
        return replace(
            fitted,
            mask=mask,
            mask_origin=origin,
            references=tuple(references),
            is_whole=(False,) * len(references),
        )

    def _on_white(self, picture: Pixels, mask: Pixels | None) -> Pixels:
        assert mask is not None  # the stage made it
        image = Image.fromarray(np.dstack([picture, mask]))
        size_px = picture.shape[0]
        pixels = prepare_reference(image, size_px, subject_share=self.subject_share)
        return np.asarray(to_pil(pixels[None])[0], np.uint8)


def _needs(result: Fitted | Refused) -> bool:
    return isinstance(result, Fitted) and (result.mask_origin == "none" or any(result.is_whole))


def _item(index: int, fitted: Fitted) -> Item:
    """What is to be cut out of a sample: its target without a mask, references with background."""
    views = [View(fitted.target)] if fitted.mask_origin == "none" else []
    whole = zip(fitted.references, fitted.is_whole, strict=True)
    views += [View(reference) for reference, is_whole in whole if is_whole]
    return Item(index, caption=fitted.caption, noun=fitted.subject, views=tuple(views))
