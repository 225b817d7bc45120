"""The seam of the stages: what goes in, what comes out, and who runs them.

A stage is built once (that loads its model) and called many times. What it makes of an item
depends on the item and on the stage's settings, which hold the seed, and on nothing else: not on
the other items of the batch, nor on the process or the machine. So the same stages run one after
the other in this process or on many machines, and an item that was lost is simply done again.
What needs all items at once, such as finding duplicates, is no stage; see `run.py`.

Everything here is picklable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """One picture of a subject.

    `picture` is uint8 [S, S, 3]; `mask` is uint8 [S, S], 255 where the subject is, None before it
    was looked for.
    """

    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Item:
    """A sample on its way: what is known of it so far.

    `index` is its number in the whole run. `noun` is the subject ("red panda"), `position` and
    `scene` where it is, as parsed from the caption. `is_pair` asks for the subject twice: two
    views. `prompt` is what was drawn. `references` are uint8 [S, S, 3], made by the last stage;
    `fingerprint` is float32 [D] of length 1: pictures that look alike have like ones. `scores` are
    numbers that stages measured, by name.
    """

    index: int
    caption: str = ""
    noun: str = ""
    position: str = ""
    scene: str = ""
    is_pair: bool = False
    prompt: str = ""
    views: tuple[View, ...] = ()
    references: tuple[NDArray[np.uint8], ...] = ()
    scores: tuple[tuple[str, float], ...] = ()
    fingerprint: NDArray[np.float32] | None = None

    def score(self, name: str) -> float:
        """A number that a stage before measured."""
        return dict(self.scores)[name]

    def with_scores(self, **scores: float) -> Item:
        """The item, with more numbers."""
        more = tuple((name, round(float(value), 6)) for name, value in scores.items())
        return replace(self, scores=(*self.scores, *more))

    def reject(self, stage: str, reason: str, detail: str) -> Reject:
        """The reject that this item is; people see its pictures, what is cut off darkened."""
        shown = [_shown(view) for view in self.views]
        picture = np.concatenate(shown, axis=1) if shown else None
        return Reject(self.index, stage, reason, detail, self.caption, picture)


@dataclass(frozen=True)
class Reject:
    """An item that goes no further.

    `reason` is a word to count by ("border"), `detail` a line for people; `picture`, uint8
    [H, W, 3], is what people should see, None where there is none yet.
    """

    index: int
    stage: str
    reason: str
    detail: str
    caption: str = ""
    picture: NDArray[np.uint8] | None = None


def _shown(view: View) -> NDArray[np.uint8]:
    if view.mask is None:
        return view.picture
    return np.where(view.mask[..., None] > 127, view.picture, view.picture // 3)


Outcome = Item | Reject


class Stage(Protocol):
    """What one kind of model or check does. Its `__init__` loads what it needs, once."""

    name: str
    batch_size: int
    """As many items are given at once, or fewer."""

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """The outcomes of each item, in the order of the items.

        All stages but captions give one outcome for one item, with the item's index.
        """
        ...


MakeStage = Callable[[], Stage]
"""Builds a stage where it will run. Picklable: a `functools.partial` of a class, its settings."""


class Items(Protocol):
    """Items that are read when it is their turn, in whatever thread, and how many there are."""

    def __iter__(self) -> Iterator[Item]: ...

    def __len__(self) -> int: ...


class Runner(Protocol):
    """Puts items through a stage: in this process, or on many machines."""

    def __call__(
        self, make_stage: MakeStage, items: Items
    ) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
        """Yield (index of the item, its outcomes) for every item once, in any order.

        Items are taken lazily and may be more than memory holds. An error of a stage ends it.
        """
        ...


def run_here(
    make_stage: MakeStage, items: Iterable[Item]
) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    """The runner of one process: items in order, in batches."""
    stage = make_stage()
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) >= stage.batch_size:
            yield from _run_batch(stage, batch)
            batch = []
    if batch:
        yield from _run_batch(stage, batch)


def _run_batch(stage: Stage, batch: list[Item]) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    for item, outcomes in zip(batch, stage(batch), strict=True):
        yield item.index, outcomes
