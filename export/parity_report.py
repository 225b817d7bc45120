"""What a failed parity gate leaves: a folder with the numbers, and pictures of the difference."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.bundle.manifest import ParityReport
from bootpig_rt.export.parity import PICTURE, Recording
from bootpig_rt.export.work_folder import remove
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.images.picture import save_png

REPORT_FILE = "report.json"

_LARGEST_GAIN = 1000.0
_GAP_PX = 4


def write_report(
    folder: Path, report: ParityReport, reference: Recording, new: Recording
) -> list[Path]:
    """Write `report.json` and a PNG for each decoded batch; an older report is replaced.

    A PNG shows torch's picture, the new one and their difference beside each other. The difference
    is grey where there is none and amplified as the file name says.

    Returns:
        The files.

    Raises:
        StorageError, OSError: The disk is full, read-only or otherwise refuses.
    """
    remove(folder)
    folder.mkdir()
    written = [folder / REPORT_FILE]
    values = {
        **msgspec.to_builtins(report),
        "failed": [r.name for r in report.results if not r.passed],
    }
    atomic_write_text(written[0], json.dumps(values, indent=2) + "\n")
    for name, arrays in reference.items():
        if not name.endswith(PICTURE) or name not in new or new[name][0].shape != arrays[0].shape:
            continue
        for index, (want, got) in enumerate(zip(arrays[0], new[name][0], strict=True)):
            got = np.nan_to_num(got, nan=-1.0, posinf=1.0, neginf=-1.0)
            gain = _gain(want, got)
            file = f"{name.removesuffix(PICTURE)}_{index}_difference_x{gain:.3g}.png"
            save_png(_side_by_side(want, got, gain), folder / file)
            written.append(folder / file)
    return written


def _gain(want: FloatArray, got: FloatArray) -> float:
    """What makes the largest difference black or white, 1 to 1000."""
    largest = float(np.abs(got - want).max())
    return min(_LARGEST_GAIN, max(1.0, 1.0 / largest)) if largest else _LARGEST_GAIN


def _side_by_side(want: FloatArray, got: FloatArray, gain: float) -> Image.Image:
    difference = (got - want) * gain
    gap = np.ones((want.shape[0], want.shape[1], _GAP_PX), dtype=np.float32)
    row = np.concatenate([want, gap, got, gap, difference], axis=2)
    pixels = np.clip((row + 1.0) * 127.5, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))
