"""Which sizes an engine is built for: the axes of the graphs, and their ranges in a profile.

The names of inputs and what their axes count are the graphs' interface; see `ARCHITECTURE.md`. An
axis that a graph has fixed stays fixed. This file knows numbers, and no TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bootpig_rt.backends.bundle_spec import residuals_of, self_attention_levels
from bootpig_rt.backends.tiles import cut
from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.bundle.text_parts import NUM_SIZES, has_two_texts, text_shape
from bootpig_rt.errors import CheckpointError, ParameterError

if TYPE_CHECKING:
    from bootpig_rt.bundle.bundle import Profile

ROWS_PER_LAUNCH = 16
"""Rows that go through the Reference U-Net at once: a table of many entries is made in pieces."""

MAX_HISTORY = 3
"""K, most tensors that a solver hands from step to step."""

GUIDANCE_ROWS = 3
"""Rows of a picture: uncond, image, text_image. The last two read references."""

DEFAULT_STEPS = 25
"""T that kernels are chosen for, where the profile allows it."""


class Range(NamedTuple):
    """Least size of an axis, the one that kernels are chosen for, and the largest."""

    least: int
    usual: int
    most: int


class ShapeRange(NamedTuple):
    """Range of a whole shape, as TensorRT takes it."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True)
class PairShape:
    """Sizes of a pair that its graphs leave open.

    Attributes:
        pixels_per_latent: Along a side.
        text_length: S, tokens of a prompt.
        level_of_layer: Of each self-attention how often the latents were halved before it.
        level_of_residual: Likewise of what controls add.
        added_rows: Rows of text states beside S, of a pair with two text encoders.
    """

    pixels_per_latent: int
    text_length: int
    level_of_layer: tuple[int, ...]
    level_of_residual: tuple[int, ...] = ()
    added_rows: int = 0

    @property
    def ids_length(self) -> int:
        """Numbers of a prompt: S, or those for two text encoders and sizes."""
        return 2 * self.text_length + NUM_SIZES if self.added_rows else self.text_length


# graph -> input -> what its axes count; "" is an axis that graphs fix.
_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "text_encoder": {"ids": ("prompts", "ids")},
    "text_kv": {"prompt_embeds": ("prompts", "states", ""), "text_of_row": ("rows",)},
    "vae_encoder": {"pixels": ("images", "", "tile_px", "tile_px")},
    "vae_decoder": {"latents": ("batch", "", "tile", "tile")},
    "tiny_decoder": {"latents": ("batch", "", "tile", "tile")},
    "reference_kv": {
        "latents": ("passes", "", "height", "width"),
        "noise": ("passes", "", "height", "width"),
        "alpha": ("passes",),
        "sigma": ("passes",),
        "timesteps": ("passes",),
        "prompt_embeds": ("passes", "states", ""),
    },
    "denoise_step": {
        "step": ("one",),
        "state": ("state", "batch", "", "height", "width"),
        "timesteps": ("steps", "batch"),
        "matrices": ("steps", "batch", "state", "columns"),
        "x0": ("steps", "batch", "two"),
        "clip_weight": ("steps", "batch"),
        "clip_range": ("one",),
        "canvas": ("", "batch", "", "height", "width"),
        "canvas_weights": ("steps", "batch", "two"),
        "mask": ("batch", "", "height", "width"),
        "picture_of_row": ("rows",),
        "rows_of_picture": ("three", "batch"),
        "image_guidance_scale": ("batch",),
        "text_guidance_scale": ("batch",),
        "ref_of_row": ("steps", "reading_rows", "references"),
        "pair_of_row": ("rows",),
        "picture_of_pair": ("pairs",),
        "ref_of_pair": ("steps", "reading_pairs", "references"),
        "features": ("rows", "", "height", "width"),
        "added": ("rows", ""),
    },
    "control_map": {"maps": ("batch", "", "map_height", "map_width")},
    "control": {
        "step": ("one",),
        "state": ("state", "batch", "", "height", "width"),
        "timesteps": ("steps", "batch"),
        "prompt_embeds": ("prompts", "tokens", ""),
        "hints": ("batch", "", "height", "width"),
        "picture_of_control": ("control_rows",),
        "text_of_control": ("control_rows",),
        "hint_of_control": ("control_rows",),
        "control_of_row": ("rows",),
        "control_scale": ("rows",),
    },
}
_TABLE = re.compile(r"[kv]_(\d+)")
_TEXT = re.compile(r"text_[kv]_\d+")
_RESIDUAL = re.compile(r"(?:residual|given)_(\d+)")
_STEPS = ("denoise_step", "shallow_step", "controlled_step")


def pair_shape(folder: Path, base_model: Path | None = None) -> PairShape:
    """Read what graphs leave open from the configurations of a pair.

    `base_model` holds `vae` and `text_encoder` where the pair does not.

    Raises:
        CheckpointError: A configuration is missing or lacks a field.
    """
    unet = read_json(folder / "base_unet" / "config.json")
    rest = folder if base_model is None else base_model
    vae = read_json(rest / "vae" / "config.json")
    text = read_json(rest / "text_encoder" / "config.json")
    try:
        levels = self_attention_levels(unet)
        of_residuals = tuple(level for _, level in residuals_of(unet))
        vae_levels = len(vae["block_out_channels"])
        tokens = int(text["max_position_embeddings"])
        added_rows = text_shape(unet, text)[0] - tokens if has_two_texts(unet) else 0
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: a config.json of base_unet, vae or text_encoder lacks a field or has a "
            f"wrong one ({error}); copy the model folder again",
            folder,
        ) from error
    return PairShape(2 ** (vae_levels - 1), tokens, levels, of_residuals, added_rows)


def axis_ranges(profile: Profile, shape: PairShape) -> dict[str, Range]:
    """Ranges of everything that an axis counts, but for the reference tables."""
    batch, references, steps = profile.max_batch, profile.max_references, profile.max_steps
    side = Range(*(size // shape.pixels_per_latent for size in profile.resolution_px))
    # The autoencoder gets large pictures in tiles, which bounds the memory of its engines.
    tiles = [cut(size).length for size in range(side.least, side.most + 1)]
    tile = Range(min(tiles), cut(side.usual).length, max(tiles))
    tile_px = Range(*(size * shape.pixels_per_latent for size in tile))
    usual_steps = min(DEFAULT_STEPS, steps)
    return {
        "one": Range(1, 1, 1),
        "two": Range(2, 2, 2),
        "three": Range(3, 3, 3),
        "batch": Range(1, 1, batch),
        "images": Range(1, 1, references),
        "passes": Range(1, ROWS_PER_LAUNCH, ROWS_PER_LAUNCH),
        "prompts": Range(1, min(2, 2 * batch), 2 * batch),
        "rows": Range(1, GUIDANCE_ROWS, GUIDANCE_ROWS * batch),
        "reading_rows": Range(0, GUIDANCE_ROWS - 1, (GUIDANCE_ROWS - 1) * batch),
        "control_rows": Range(1, 2, 2 * batch),  # a picture's rows have two texts
        # Both of a picture's rows that read references read the same ones.
        "pairs": Range(1, 2, 2 * batch),
        "reading_pairs": Range(0, 1, batch),
        "references": Range(1, 1, references),
        "steps": Range(1, usual_steps, steps),
        "state": Range(1, 1 + MAX_HISTORY, 1 + MAX_HISTORY),
        "columns": Range(2, 2 + MAX_HISTORY, 2 + MAX_HISTORY),
        "tokens": Range(*[shape.text_length] * 3),
        "states": Range(*[shape.text_length + shape.added_rows] * 3),
        "ids": Range(*[shape.ids_length] * 3),
        # Any picture of a batch may show its own subject, each step reads its own entry.
        "passes_in_table": Range(1, usual_steps, steps * references * batch),
        "height": side,
        "width": side,
        "map_height": Range(*profile.resolution_px),
        "map_width": Range(*profile.resolution_px),
        "tile": tile,
        "tile_px": tile_px,
    }


def input_ranges(
    graph: str,
    inputs: Mapping[str, Sequence[int]],
    *,
    profile: Profile,
    shape: PairShape,
) -> dict[str, ShapeRange]:
    """Smallest, usual and largest shape of each input of a graph.

    `inputs` gives sizes by name, -1 for an open axis; variants of the step are
    `denoise_step_<merge>`, those without deep blocks read a part of the same, and those with
    controls more.

    Raises:
        ParameterError: The graph has an input or an open axis that its interface does not name.
    """
    kind = _kind(graph)
    if kind not in _AXES:
        raise ParameterError(f"graph is {graph!r}, expected one of: {', '.join(_AXES)}")
    ranges = axis_ranges(profile, shape)
    return {
        name: _shape_range(f"{graph}: input {name!r}", sizes, _axes(kind, name, shape), ranges)
        for name, sizes in inputs.items()
    }


def _kind(graph: str) -> str:
    if graph.startswith(_STEPS):
        return "denoise_step"
    of_control = (kind for kind in ("control_map", "control") if graph.startswith(f"{kind}_"))
    return next(of_control, graph)


def _axes(kind: str, name: str, shape: PairShape) -> tuple[str, ...] | None:
    """What the axes of an input count; for a table its level stands in the third."""
    if kind == "denoise_step" and _TEXT.fullmatch(name):
        return ("rows", "tokens", "")
    residual = _RESIDUAL.fullmatch(name)
    if residual and int(residual[1]) < len(shape.level_of_residual):
        level = shape.level_of_residual[int(residual[1])]
        return ("rows", "", f"height {level}", f"width {level}")
    match = _TABLE.fullmatch(name)
    if kind == "denoise_step" and match and int(match[1]) < len(shape.level_of_layer):
        return ("passes_in_table", "", f"level {shape.level_of_layer[int(match[1])]}", "")
    return _AXES[kind].get(name)


def _shape_range(
    where: str, sizes: Sequence[int], axes: tuple[str, ...] | None, ranges: Mapping[str, Range]
) -> ShapeRange:
    if axes is None or len(axes) != len(sizes):
        raise ParameterError(
            f"{where} of shape {list(sizes)} is not part of the graph's interface; export the "
            "graphs again with this version"
        )
    columns: list[Range] = []
    for size, axis in zip(sizes, axes, strict=True):
        if size >= 0:
            columns.append(Range(size, size, size))
        elif axis.startswith("level "):
            area = 4 ** int(axis.removeprefix("level "))
            sides = zip(ranges["height"], ranges["width"], strict=True)
            columns.append(Range(*(height * width // area for height, width in sides)))
        elif axis.startswith(("height ", "width ")):
            side, level = axis.split()
            columns.append(Range(*(size >> int(level) for size in ranges[side])))
        elif axis in ranges:
            columns.append(ranges[axis])
        else:
            raise ParameterError(
                f"{where} of shape {list(sizes)} has an open axis where a fixed one was expected; "
                "export the graphs again with this version"
            )
    return ShapeRange(*(tuple(column) for column in zip(*columns, strict=True)))
