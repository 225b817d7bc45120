"""Cutting the subject out of an ordinary picture: one protocol, two ways to do it.

`GrabCutRemover` needs no model: it tells colours in the middle from colours at the border.
`OnnxBackgroundRemover` runs a segmentation network from a file that the user has, such as IS-Net
or U^2-Net. Anything that turns an RGB image into a mask fits as well, for instance the package
rembg with `lambda image: rembg.remove(image, only_mask=True)`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bootpig_rt.errors import BackendUnavailable, CheckpointError, ParameterError
from bootpig_rt.images.onnx_file import open_onnx

GRABCUT = "grabcut"

Normalization = Literal["isnet", "imagenet"]
_MEAN_STD: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "isnet": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_LARGEST_U2NET_PX = 512  # U^2-Net reads 320 px, IS-Net 1024

# GrabCut's start, chosen on 60 drawings pasted on photographs (median IoU 0.97, four in five above
# 0.85): the outermost pixels are background for certain, an ellipse in the middle is likely
# subject. A larger ellipse loses bicycles, a smaller one gains nothing.
_WORKING_PX = 384
_BORDER_SHARE = 0.03
_ELLIPSE = 0.4  # squared radius, 1 touches the sides
_ITERATIONS = 5
_SPECK_SHARE = 0.1  # parts smaller than this share of the largest are dropped


class BackgroundRemover(Protocol):
    """Finds the subject of a picture."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return where the subject is.

        Args:
            image: Mode RGB, of any size.

        Returns:
            Mode L, of the same size: 255 where the subject is, 0 where it is not, between at edges.
        """
        ...


def load_remover(name_or_path: str) -> BackgroundRemover:
    """Return the remover that a command line names.

    Args:
        name_or_path: `grabcut`, or the path of an ONNX file.

    Raises:
        ParameterError: Neither of these.
        BackendUnavailable: A package is missing.
        CheckpointError: The file cannot be loaded.
    """
    if name_or_path == GRABCUT:
        return GrabCutRemover()
    if name_or_path.endswith(".onnx"):
        return OnnxBackgroundRemover(name_or_path)
    raise ParameterError(
        f"background remover is {name_or_path!r}, expected {GRABCUT!r} or the path of a .onnx file"
    )


class GrabCutRemover:
    """Cuts out by colour, without a model. The subject must be in the middle, clear of the border.

    Works best where the subject's colours differ from those at the border of the picture; a subject
    that runs out of the picture loses what has its colours there. Holes, as in a bicycle, are often
    filled. Takes about a third of a second on one CPU core, and gives the same on every call.

    Source: Rother, Kolmogorov, Blake: "GrabCut", SIGGRAPH 2004, as implemented by OpenCV.

    Raises:
        BackendUnavailable: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            self._cv2: Any = importlib.import_module("cv2")
        except ImportError as error:
            raise BackendUnavailable(
                "GrabCutRemover needs OpenCV, which is not installed; "
                "pip install 'bootpig-rt[background]'"
            ) from error

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the mask, see `BackgroundRemover`; all 0 if no subject is found."""
        cv2 = self._cv2
        small = image.convert("RGB")
        small.thumbnail((_WORKING_PX, _WORKING_PX), Image.Resampling.LANCZOS)
        # GrabCut learns five colours a side, and stops with an error if it has fewer pixels.
        side = (max(16, small.width), max(16, small.height))
        pixels = np.asarray(small.resize(side))
        labels = self._first_guess(*side)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # its clustering starts at random; the seed is this thread's own
        cv2.grabCut(pixels, labels, None, *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
        subject = self._drop_specks((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
        mask = Image.fromarray(subject.astype(np.uint8) * 255)
        return mask.resize(image.size, Image.Resampling.BILINEAR)

    def _first_guess(self, width: int, height: int) -> npt.NDArray[np.uint8]:
        cv2 = self._cv2
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
        labels[x**2 + y**2 < _ELLIPSE] = cv2.GC_PR_FGD
        border = max(1, round(min(width, height) * _BORDER_SHARE))
        labels[:border] = labels[-border:] = cv2.GC_BGD
        labels[:, :border] = labels[:, -border:] = cv2.GC_BGD
        return labels

    def _drop_specks(self, subject: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Keep the large parts: a speck in a corner would shrink the subject when it is cropped."""
        count, parts, stats, _ = self._cv2.connectedComponentsWithStats(subject.astype(np.uint8))
        if count < 2:
            return subject
        areas = stats[1:, self._cv2.CC_STAT_AREA]
        kept = np.flatnonzero(areas >= _SPECK_SHARE * areas.max()) + 1
        result: npt.NDArray[np.bool_] = np.isin(parts, kept)
        return result


class OnnxBackgroundRemover:
    """Cuts out with a segmentation network from an ONNX file.

    For files of one image input [1, 3, H, W] whose first output, or the one named "output", is a
    mask [1, 1, H, W]: IS-Net, U^2-Net, BiRefNet and their kin. None is part of this package; mind
    the licence of the one you take.

    Args:
        path: The ONNX file.
        normalization: How the network wants its input: "isnet" or "imagenet" (U^2-Net, BiRefNet).
            None decides by the input's size: up to 512 px "imagenet", above "isnet".
        size_px: Side of the input, for files that leave it open.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        CheckpointError: No such file, or not a network as described.
        ParameterError: The file leaves the size open and `size_px` is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        normalization: Normalization | None = None,
        size_px: int | None = None,
    ) -> None:
        shown = repr(os.fspath(path))
        self._session = open_onnx(path, needed_by="OnnxBackgroundRemover")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise CheckpointError(
                f"{shown} has {len(inputs)} inputs, the first of shape {shape}, expected one image "
                "[1, 3, H, W]; use an IS-Net or U^2-Net file",
                path,
            )
        height, width = (side if isinstance(side, int) else size_px for side in shape[2:])
        if height is None or width is None:
            raise ParameterError(f"{shown} leaves the size of its input open; pass size_px")
        self._size = (width, height)
        self._input_name = inputs[0].name
        names = [output.name for output in outputs]
        self._output_name = "output" if "output" in names else names[0]
        if normalization is None:
            normalization = "imagenet" if max(self._size) <= _LARGEST_U2NET_PX else "isnet"
        if normalization not in _MEAN_STD:
            raise ParameterError(
                f"normalization is {normalization!r}, expected one of: {', '.join(_MEAN_STD)}"
            )
        self._mean, self._std = (np.array(x, np.float32) for x in _MEAN_STD[normalization])

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the mask, see `BackgroundRemover`."""
        resized = image.convert("RGB").resize(self._size, Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized, np.float32) / 255 - self._mean) / self._std
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        [mask] = self._session.run([self._output_name], {self._input_name: batch})
        mask = np.nan_to_num(np.asarray(mask, np.float32)).reshape(-1, *mask.shape[-2:])[0]
        if mask.min() < 0 or mask.max() > 1:  # logits: some exports leave the sigmoid out
            mask = 1 / (1 + np.exp(-np.clip(mask, -30, 30)))
        alpha = Image.fromarray(np.rint(mask * 255).astype(np.uint8))
        return alpha.resize(image.size, Image.Resampling.BILINEAR)
