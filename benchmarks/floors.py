"""The floor of a step: the U-Net alone in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn


class BareUNet:
    """The Base U-Net as an ordinary text-to-image U-Net in ONNX Runtime, rows and size fixed.

    No reference, no guidance, no solver: nothing that draws with three rows a step can be quicker
    on this runtime, but by doing less.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        path: Where the graph is written; one that is there is taken.
        rows: N.
        side: Latents along a side.
        tokens: S, of the text states.
        threads: Of ONNX Runtime.
    """

    def __init__(
        self, unet: Any, path: Path, *, rows: int, side: int, tokens: int, threads: int
    ) -> None:
        """Export and load."""
        example = _example(unet, rows, side, tokens)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with quiet_export():
                torch.onnx.export(
                    _Plain(unet).eval(), example, part,
                    input_names=["sample", "timesteps", "states"], output_names=["noise"],
                    dynamo=True, external_data=False,
                )  # fmt: skip
            part.rename(path)
        self.session = _session(path, threads)
        self.example = example
        self.feeds = {
            name: value.numpy()
            for name, value in zip(("sample", "timesteps", "states"), example, strict=True)
        }

    def launch(self) -> np.ndarray[Any, Any]:
        """The U-Net once: noise [N, C, h, w]."""
        noise: np.ndarray[Any, Any] = self.session.run(["noise"], self.feeds)[0]
        return noise

    def difference(self, unet: Any) -> float:
        """Relative error against torch on random input."""
        with torch.inference_mode():
            expected = unet(*self.example).sample.numpy()
        found = self.launch()
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as our own sessions
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Plain(nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        noise: torch.Tensor = self.unet(sample, timesteps, states, return_dict=False)[0]
        return noise


def _example(unet: Any, rows: int, side: int, tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    return (
        torch.randn(rows, unet.config.in_channels, side, side, generator=generator),
        torch.full((rows,), 500, dtype=torch.int64),
        torch.randn(
            rows,
            tokens,
            width if isinstance(width, int) else width[0],
            generator=generator,
        ),
    )


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """The exporter speaks of its steps on stdout, in warnings and in logs."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
