"""What a graph is written for. Knows nothing else, so that it can be asked for without torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["portable", "cpu", "cpu-large"]
"""What a graph is written for.

- `portable`: every runtime; attention is two products and a softmax.
- `cpu`: ONNX Runtime on a CPU and up to some hundred tokens; attention is ONNX's own operator,
  of opset 23, for which the runtime holds all scores.
- `cpu-large`: ONNX Runtime on a CPU and more tokens; attention is the runtime's operator
  `com.microsoft::MultiHeadAttention`, which never holds all scores.
"""

OPSETS: dict[Dialect, int] = {"portable": 20, "cpu": 23, "cpu-large": 20}
"""The first with what is needed: `Gelu`, which every runtime that we know of reads, `Attention`."""
