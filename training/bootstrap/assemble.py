"""The end of a run: near duplicates leave, the others are numbered and written into shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bootpig_rt.errors import InputError
from bootpig_rt.training.bootstrap.config import BootstrapConfig
from bootpig_rt.training.bootstrap.parts import read_items
from bootpig_rt.training.bootstrap.stage import Item
from bootpig_rt.training.shards import (
    StoredSample,
    claim_settings,
    kept_record,
    write_manifest,
    write_shard,
)

_BLOCK = 1024


def assemble(
    config: BootstrapConfig,
    chain: Sequence[Path],
    sizes: Mapping[int, int],
    *,
    settings: dict[str, Any],
    rejects: Mapping[str, int],
    sources: dict[str, Any],
) -> dict[str, Any]:
    """Write shards and manifest; shards of the same settings that are whole are kept.

    Args:
        config: The run's.
        chain: Folders of the stages, the last one that of triplets.
        sizes: Items of each part, by its number.
        settings: What the folder is of.
        rejects: How many items left before, by stage and reason.
        sources: What the manifest says about models.

    Returns:
        The manifest. Its `rejects` count near duplicates, and samples over `max_samples`, too.
    """
    folder = config.output_folder
    # The first pass reads the texts: the last stage's parts alone know who is left.
    indices, prints = [], []
    for number in sizes:
        for item in read_items(chain[-1:], number):
            indices.append(item.index)
            if item.fingerprint is not None:
                prints.append(item.fingerprint)
    is_first = np.ones(len(indices), bool)
    if prints:
        is_first = first_of_their_kind(np.stack(prints), config.filters.max_similarity)
    kept = [index for index, first in zip(indices, is_first, strict=True) if first]
    counts = dict(rejects)
    if duplicates := len(indices) - len(kept):
        counts["shards.near_duplicate"] = duplicates
    if config.max_samples and len(kept) > config.max_samples:
        counts["shards.over_max_samples"] = len(kept) - config.max_samples
        kept = kept[: config.max_samples]
    if not kept:
        raise InputError("no sample is left to write; look at the rejects of the stages")
    claim_settings(folder, settings)
    items = _Reader(chain, list(sizes), kept)
    records = []
    starts = range(0, len(kept), config.shard_size)
    for number, start in enumerate(tqdm(starts, desc="shards", unit="shard", disable=None)):
        count = min(config.shard_size, len(kept) - start)
        record = kept_record(folder, number)
        if record is None:
            samples = (_sample(start + k, item) for k, item in enumerate(items.take(start, count)))
            record = write_shard(folder, number, samples, first=start)
        records.append(record)
    return write_manifest(
        folder, records, settings, rejects=dict(sorted(counts.items())), sources=sources
    )


def first_of_their_kind(prints: NDArray[np.float32], max_similarity: float) -> NDArray[np.bool_]:
    """Which rows, float32 [N, D] of length 1, are no nearer to a kept row before them.

    Args:
        prints: Fingerprints in order.
        max_similarity: A cosine over this is a duplicate.
    """
    is_kept = np.ones(len(prints), bool)
    for start in range(0, len(prints), _BLOCK):
        block = prints[start : start + _BLOCK]
        nearest = np.full(len(block), -np.inf, np.float32)
        for before in range(0, start, _BLOCK):
            rows = is_kept[before : before + _BLOCK]
            if rows.any():
                others = prints[before : before + _BLOCK][rows]
                nearest = np.maximum(nearest, (block @ others.T).max(axis=1))
        within = block @ block.T
        for k in range(len(block)):
            own = within[k, :k][is_kept[start : start + k]]
            closest = max(float(nearest[k]), float(own.max()) if len(own) else -1.0)
            is_kept[start + k] = closest <= max_similarity
    return is_kept


class _Reader:
    """Reads kept items in order, each part once as long as nothing is skipped."""

    def __init__(self, chain: Sequence[Path], numbers: list[int], kept: list[int]) -> None:
        self._chain, self._numbers, self._kept = chain, numbers, kept
        self._place = 0
        self._items = self._read()

    def _read(self) -> Iterator[Item]:
        wanted = set(self._kept)
        for number in self._numbers:
            for item in read_items(self._chain, number):
                if item.index in wanted:
                    yield item

    def take(self, start: int, count: int) -> Iterator[Item]:
        """Kept items `start` up to `start + count`."""
        for item in self._items:
            self._place += 1
            if self._place > start:
                yield item
            if self._place >= start + count:
                return


def _sample(index: int, item: Item) -> StoredSample:
    target = item.views[0]
    assert target.mask is not None  # of a stage before
    record = {
        "noun": item.noun,
        "position": item.position,
        "scene": item.scene,
        "is_pair": item.is_pair,
        "prompt": item.prompt,
        "item": item.index,
        "scores": dict(item.scores),
    }
    prompt = item.caption.partition(",")[0]
    return StoredSample(
        index,
        target.picture,
        target.mask,
        list(item.references),
        item.caption,
        prompt,
        record,
    )
