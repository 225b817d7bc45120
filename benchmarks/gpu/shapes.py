"""Shapes of self-attention in Stable Diffusion 2.1, and the arithmetic that each one takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """Self-attentions of one resolution of the U-Net.

    Attributes:
        tokens: N, own tokens and tokens of a reference.
        heads: H.
        head_dim: D.
        layers: How many of the U-Net's self-attentions have this shape.
    """

    tokens: int
    heads: int
    head_dim: int
    layers: int


@dataclass(frozen=True)
class KernelCase:
    """One shape that all ways to compute the attention are measured on.

    Attributes:
        size_px: Side of the picture that the tokens belong to.
        level: Tokens and heads.
        references: R, read by every guided row.
        plain_rows: Rows that read no reference (the unconditional ones).
        guided_rows: Rows that read all R references.
        is_key: One of the few shapes on which ways run that compile for seconds.
    """

    size_px: int
    level: Level
    references: int
    plain_rows: int = 1
    guided_rows: int = 2
    is_key: bool = False

    @property
    def rows(self) -> int:
        """B."""
        return self.plain_rows + self.guided_rows

    @property
    def name(self) -> str:
        """Stable identifier."""
        return f"{self.size_px}px-n{self.level.tokens}-r{self.references}-b{self.rows}"

    @property
    def flops(self) -> int:
        """Floating point operations where each pair of a query and a key is computed once.

        Two products of 2 N S D operations a head, with S keys. Ways that compute a pair twice get
        no credit for that: rates of one case compare as times do.
        """
        n, width = self.level.tokens, self.level.heads * self.level.head_dim
        keys = self.rows * n + self.guided_rows * self.references * n
        return 4 * n * width * keys


HEAD_DIM = 64
LAYERS_OF_LEVEL = (5, 5, 5, 1)
"""Two down and three up a level, and one in the middle block: 16."""


def sd21_levels(size_px: int) -> tuple[Level, ...]:
    """The four resolutions of Stable Diffusion 2.1, largest first.

    Args:
        size_px: Side of the picture, a multiple of 64.
    """
    side = size_px // 8
    widths = (320, 640, 1280, 1280)
    return tuple(
        Level((side >> index) ** 2, width // HEAD_DIM, HEAD_DIM, layers)
        for index, (width, layers) in enumerate(zip(widths, LAYERS_OF_LEVEL, strict=True))
    )


def sd21_cases() -> list[KernelCase]:
    """What is measured on a GPU, the most important first: a budget cuts the end."""
    found: dict[str, KernelCase] = {}

    def add(cases: Iterator[KernelCase]) -> None:
        for case in cases:
            found.setdefault(case.name, case)

    levels, large = sd21_levels(512), sd21_levels(768)
    for references in (1, 4):
        add(KernelCase(512, level, references, is_key=level.tokens >= 1024) for level in levels)
        # The first self-attention, as the runtime computes it: rows are alike until they meet text.
        add(iter([KernelCase(512, levels[0], references, guided_rows=1)]))
    add(KernelCase(768, level, 1, is_key=level.tokens > 4096) for level in large)
    add(KernelCase(512, level, references) for references in (2, 3) for level in levels)
    for pictures in (4, 2):
        add(
            KernelCase(512, level, references, pictures, 2 * pictures)
            for references in (1, 4)
            for level in levels
        )
    add(KernelCase(768, level, 4) for level in large)
    add(KernelCase(768, level, references) for references in (2, 3) for level in large)
    for pictures in (4, 2):
        add(
            KernelCase(768, level, references, pictures, 2 * pictures)
            for references in (1, 4)
            for level in large
        )
    return list(found.values())


def toy_cases() -> list[KernelCase]:
    """The same kinds of shapes at a size that a CPU computes at once."""
    levels = (Level(64, 2, 16, 5), Level(16, 2, 16, 11))
    first = [KernelCase(64, levels[0], references, guided_rows=1) for references in (1, 4)]
    usual = [
        KernelCase(64, level, references, is_key=True) for references in (1, 4) for level in levels
    ]
    return [*usual, *first, KernelCase(64, levels[0], 4, 2, 4)]
