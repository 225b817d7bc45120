"""The subject of a photograph or a picture, cut out; the whole of it where none is found.

A remover that finds nothing in one of three thousand pictures must not end the evaluation, nor may
that picture go unnoticed: it is taken whole and counted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from bootpig_rt.bundle.files import measure
from bootpig_rt.images.background import BackgroundRemover, load_remover
from bootpig_rt.images.image_input import MIN_SIDE_PX
from bootpig_rt.images.png import save_png

_MIN_ALPHA = 8  # of 255, as for reference images
_MIN_SHARE = (
    1 / 16
)  # of the picture's longer side: less is a speck, not the subject of a photograph


class Cutter:
    """A background remover that takes the whole picture where it finds no subject, or a speck.

    Args:
        name: As for `load_remover`.

    Attributes:
        name: Of the remover; for a file its name, not its path.
        fingerprint: Of the remover: its name, or the sha256 of its file.
        num_whole: Pictures so far in which it found none.

    Raises:
        ParameterError: No remover of that name.
        BackendUnavailable: A package is missing.
        CheckpointError: The file cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self._remover: BackgroundRemover = load_remover(name)
        path = Path(name)
        self.name = path.name
        self.fingerprint = measure(path)[1] if path.is_file() else name
        self.num_whole = 0

    def __call__(self, image: Image.Image) -> Image.Image:
        """A mask, as for `BackgroundRemover`; never empty."""
        mask = self._remover(image)
        box = mask.point(lambda alpha: 255 * (alpha > _MIN_ALPHA)).getbbox()
        longest = 0 if box is None else max(box[2] - box[0], box[3] - box[1])
        if longest < max(MIN_SIDE_PX, _MIN_SHARE * max(image.size)):
            self.num_whole += 1
            return Image.new("L", image.size, 255)
        return mask


class KeptMasks:
    """Masks of picture files, each made once and kept in a folder.

    Attributes:
        cutter: Makes them.
        num_whole: Files so far whose mask is the whole picture, kept ones included.
    """

    def __init__(self, cutter: Cutter, folder: Path) -> None:
        self.cutter, self._folder = cutter, folder
        self._whole: set[Path] = set()

    @property
    def num_whole(self) -> int:
        """Files so far in which no subject was found."""
        return len(self._whole)

    def __call__(self, file: Path, image: Image.Image) -> Image.Image:
        """The mask of a file, whose picture is `image`.

        Raises:
            StorageError: The folder cannot be written.
        """
        digest = hashlib.sha256(f"{self.cutter.fingerprint} {measure(file)[1]}".encode())
        kept = self._folder / f"{digest.hexdigest()[:32]}.png"
        mask = _read_mask(kept, image.size)
        if mask is None:
            mask = self.cutter(image)
            self._folder.mkdir(parents=True, exist_ok=True)
            save_png(mask, kept, is_generated=False)
        if mask.getextrema()[0] == 255:
            self._whole.add(file)
        return mask

    def on_white(self, file: Path, image: Image.Image) -> Image.Image:
        """The subject of a file on white, where it is, as large as it is."""
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=self(file, image))
        return white

    def cut_out(self, file: Path, image: Image.Image) -> Image.Image:
        """The subject of a file on nothing, mode RGBA."""
        rgba = image.convert("RGBA")
        rgba.putalpha(self(file, image))
        return rgba


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """A kept mask; None if there is none, or it is damaged."""
    try:
        with Image.open(path) as opened:
            mask = opened.convert("L")
    except (OSError, SyntaxError, ValueError):  # Pillow raises SyntaxError for broken PNGs
        return None
    return mask if mask.size == size else None
