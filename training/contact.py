"""A contact sheet of shards: what a person should look at before a training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from bootpig_rt.images.png import save_png
from bootpig_rt.images.sheet import SheetRow, label_sheet
from bootpig_rt.training.shards import StoredSample, read_manifest, read_shard

TILE_PX = 192
_FAINT = 0.75
"""How much of what is outside of the mask turns white."""


def write_contact_sheet(folder: Path, path: Path, *, samples: int = 12) -> Path:
    """Draw references, target and mask of a few samples, from shards spread over the folder.

    Raises:
        InputError: The folder has no manifest, or a shard is damaged.
        StorageError: The sheet cannot be written.
    """
    shards = read_manifest(folder)["shards"]
    chosen = [shards[k * len(shards) // samples] for k in range(samples)]
    rows = []
    for name in dict.fromkeys(shard["file"] for shard in chosen):
        count = sum(shard["file"] == name for shard in chosen)
        rows += [_row(sample) for sample in islice(read_shard(folder / name), count)]
    sheet = label_sheet(rows, ["target", "the rest faint by the mask"], tile_px=TILE_PX)
    save_png(sheet, path, is_generated=False)
    return path


def _row(sample: StoredSample) -> SheetRow:
    mask = sample.mask[..., None].astype(np.float32) / 255
    shade = 1 - (1 - mask) * _FAINT
    shown = sample.target * shade + 255 * (1 - shade)
    return SheetRow(
        [Image.fromarray(each) for each in sample.references],
        [Image.fromarray(sample.target), Image.fromarray(shown.astype(np.uint8))],
        f"{sample.index}: {sample.caption}",
    )
