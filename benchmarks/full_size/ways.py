"""The ways of suite `full-size`: who draws, in which precision, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.benchmarks import machine
from bootpig_rt.benchmarks.full_size.folders import Folders
from bootpig_rt.benchmarks.full_size.told import Engine

KINDS = {
    "picture": ("", 3),
    "new": (", new subject", 3),
    "known": (", known subject", 3),
    "text": (", text to image", 2),
}
"""By kind of picture: what a label says of it, and rows of a step in the Base U-Net."""


@dataclass(frozen=True)
class FullWay:
    """An engine in a precision, in a process of its own.

    Attributes:
        name: Its rows are `NAME_KIND`, or NAME where it draws one kind.
        label: For people.
        engine: What draws.
        precision: Of the arithmetic.
        folder: What it reads, of those that were made.
        made: The row of that folder.
        kinds: What it draws.
        float32: The way whose pictures are the float32 ones of its kinds, by kind.
        compiles: Through `torch.compile`.
        limit_s: Its process is ended after so long.
    """

    name: str
    label: str
    engine: Engine
    precision: str
    folder: Callable[[Folders], Path]
    made: str
    kinds: tuple[str, ...]
    float32: dict[str, str]
    compiles: bool = False
    limit_s: float = 1800.0

    def row(self, kind: str) -> str:
        """Name of a row."""
        return self.name if len(self.kinds) == 1 else f"{self.name}_{kind}"

    def rows(self) -> list[str]:
        """Names of its rows."""
        return [self.row(kind) for kind in self.kinds]


def _pair(folders: Folders) -> Path:
    return folders.pair


def _plain(folders: Folders) -> Path:
    return folders.plain


def _peer(folders: Folders) -> Path:
    return folders.peer


def _bundle(target: str) -> Callable[[Folders], Path]:
    return lambda folders: folders.bundles[target]


def ways(is_smoke: bool) -> list[FullWay]:
    """All ways, float32 ahead of what is compared with it; others than ours in float32 to smoke."""
    found: list[FullWay] = []
    others = (("float32", ""),) if is_smoke else (("float32", ""), ("bf16", "_bf16"))
    for precision, suffix in others:
        for compiles in (False,) if is_smoke else (False, True):
            middle = "_compile" if compiles else ""
            label = f"published way{', torch.compile' if compiles else ''}, {precision}"
            found.append(
                FullWay(
                    f"published{middle}{suffix}", label, "published", precision, _pair,
                    "make pair", ("picture",), {"picture": "published"}, compiles,
                    900.0 if compiles else 1800.0,
                )
            )  # fmt: skip
    for precision, suffix in others:
        found.append(
            FullWay(
                f"diffusers_text{suffix}", f"diffusers, text to image, {precision}", "diffusers",
                precision, _plain, "make pair", ("text",), {"text": "diffusers_text"},
            )
        )  # fmt: skip
        found.append(
            FullWay(
                f"genai_text{suffix}", f"OpenVINO GenAI, text to image, {precision}", "genai",
                precision, _peer, "make peer", ("text",), {"text": "genai_text"},
            )
        )  # fmt: skip
    truth = {"new": "published", "known": "published", "text": "diffusers_text"}
    kinds = tuple(truth)
    found.append(
        FullWay("ours_onnxruntime", "ours, ONNX Runtime, float32", "onnxruntime", "float32",
                _bundle("cpu"), "make cpu", kinds, truth)
    )  # fmt: skip
    for precision in ("float32", "bf16", "int8"):
        bundle = "openvino-int8" if precision == "int8" else "openvino"
        found.append(
            FullWay(f"ours_openvino_{precision}", f"ours, OpenVINO, {precision}", "openvino",
                    precision, _bundle(bundle), f"make {bundle}", kinds, truth)
        )  # fmt: skip
    return found


def cannot_run(way: FullWay, folders: Folders) -> str:
    """Why a way cannot run here, ahead of its process; empty where it can."""
    if way.precision == "bf16" and machine.bf16_flag() is None:
        return (
            f"not available: this processor has none of {', '.join(machine.BF16_FLAGS)}: bfloat16 "
            "would be computed by float32"
        )
    return folders.missing(way.made)
