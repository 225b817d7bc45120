"""What the stages made, kept on disk in parts, so that an interrupted run goes on.

A part is a tar file of the outcomes of some items of one stage, items and rejects, and a record
beside it. A stage's parts hold only the pictures that it made: an item is read by joining the parts
of one number along the chain of stages.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import InputError
from bootpig_rt.training.bootstrap.stage import Item, Outcome, Reject, View
from bootpig_rt.training.shards import encode_png, read_tar, write_json, write_tar

REJECT_PX = 160
"""Side of what is kept of a rejected picture, to be looked at."""

_TEXTS = ("caption", "noun", "position", "scene", "prompt")


def kept_part(folder: Path, number: int, size: int) -> dict[str, Any] | None:
    """The record of a part that is whole and of `size` items; None where it has to be made."""
    path, record_path = _paths(folder, number)
    if not (path.exists() and record_path.exists()):
        return None
    record: dict[str, Any] = json.loads(record_path.read_text())
    is_whole = record["bytes"] == path.stat().st_size and record["of"] == size
    return record if is_whole else None


def write_part(
    folder: Path, number: int, outcomes: Sequence[Outcome], before: Mapping[int, Item]
) -> dict[str, Any]:
    """Write a part and its record.

    Args:
        folder: Of the stage.
        number: Of the part.
        outcomes: In order of their index.
        before: The items as they came, by index: what they had is not written again.

    Returns:
        The record: `of` how many items, `items` that go on, `rejects` by reason, `bytes`, `sha256`.

    Raises:
        StorageError: It cannot be written; nothing of it is left.
    """
    path, record_path = _paths(folder, number)
    write_tar(path, _members(outcomes, before))
    rejects = Counter(each.reason for each in outcomes if isinstance(each, Reject))
    size_bytes, digest = measure(path)
    record = {
        "of": len(before),
        "items": sum(isinstance(each, Item) for each in outcomes),
        "rejects": dict(sorted(rejects.items())),
        "bytes": size_bytes,
        "sha256": digest,
    }
    write_json(record_path, record)
    return record


def read_items(chain: Sequence[Path], number: int) -> Iterator[Item]:
    """The items that came through all stages of a chain of folders, of one part.

    Raises:
        InputError: A part is missing or damaged.
    """
    *earlier, last = [_paths(folder, number)[0] for folder in chain]
    stores = [dict(read_tar(path)) for path in earlier]
    for key, parts in read_tar(last):
        if not _is_reject(parts):
            found: dict[str, bytes] = {}
            for store in stores:
                found |= store.get(key, {})
            yield _item(key, found | parts, last)


def read_rejects(folder: Path, number: int) -> Iterator[Reject]:
    """The rejects of one part.

    Raises:
        InputError: It is missing or damaged.
    """
    for key, parts in read_tar(_paths(folder, number)[0]):
        if _is_reject(parts):
            values = json.loads(parts["json"])
            picture = _picture(parts["reject.png"]) if "reject.png" in parts else None
            yield Reject(
                int(key),
                values["stage"],
                values["reason"],
                values["detail"],
                values["caption"],
                picture,
            )


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"part-{number:06d}.tar", folder / f"part-{number:06d}.json"


def _is_reject(parts: Mapping[str, bytes]) -> bool:
    return "reason" in json.loads(parts["json"])


def _members(
    outcomes: Iterable[Outcome], before: Mapping[int, Item]
) -> Iterator[tuple[str, bytes]]:
    for outcome in outcomes:
        key = f"{outcome.index:010d}"
        if isinstance(outcome, Reject):
            if outcome.picture is not None:
                yield f"{key}.reject.png", encode_png(_reduced(outcome.picture))
            values: dict[str, Any] = {
                name: getattr(outcome, name) for name in ("stage", "reason", "detail", "caption")
            }
        else:
            old = before.get(outcome.index, Item(outcome.index))
            for k, view in enumerate(outcome.views):
                if k >= len(old.views):
                    yield f"{key}.view{k}.png", encode_png(view.picture)
                if view.mask is not None and (k >= len(old.views) or old.views[k].mask is None):
                    yield f"{key}.mask{k}.png", encode_png(view.mask)
            if len(outcome.references) > len(old.references):
                for k, reference in enumerate(outcome.references):
                    yield f"{key}.reference{k}.png", encode_png(reference)
            values = {name: getattr(outcome, name) for name in _TEXTS}
            values |= {"is_pair": outcome.is_pair, "scores": dict(outcome.scores)}
            if outcome.fingerprint is not None:
                values["fingerprint"] = [round(float(x), 5) for x in outcome.fingerprint]
        yield f"{key}.json", json.dumps(values).encode()


def _item(key: str, parts: Mapping[str, bytes], path: Path) -> Item:
    try:
        values = json.loads(parts["json"])
        views: list[View] = []
        while (name := f"view{len(views)}.png") in parts:
            mask = parts.get(f"mask{len(views)}.png")
            views.append(View(_picture(parts[name]), None if mask is None else _picture(mask)))
        references: list[NDArray[np.uint8]] = []
        while (name := f"reference{len(references)}.png") in parts:
            references.append(_picture(parts[name]))
        fingerprint = values.get("fingerprint")
        return Item(
            int(key),
            **{name: values[name] for name in _TEXTS},
            is_pair=values["is_pair"],
            views=tuple(views),
            references=tuple(references),
            scores=tuple(values["scores"].items()),
            fingerprint=None if fingerprint is None else np.asarray(fingerprint, np.float32),
        )
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise InputError(
            f"{path}: item {key} cannot be read ({error}); delete the file and run again"
        ) from error


def _picture(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]), np.uint8)


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((2 * REJECT_PX, REJECT_PX))
    return np.asarray(image, np.uint8)
