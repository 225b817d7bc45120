"""The graphs of a pair with what tracing needs: names, example inputs, free axes.

`denoise_step` is for rows with one reference each, `denoise_step_<merge>` for rows with several;
`shallow_step` and `shallow_step_<merge>` are those without the deep blocks of the U-Net.
What each computes stands in `graph_modules.py`; `onnx_export.py` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from bootpig_rt.backends.step_inputs import OF_PAIRS
from bootpig_rt.bundle.pair_config import MERGES, TINY_VAE
from bootpig_rt.errors import ParameterError
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.graph_modules import (
    DenoiseStep,
    ReferenceTable,
    ShallowStep,
    SizedStep,
    TextEncoder,
    TextTable,
    TinyDecoder,
    VaeDecoder,
    VaeEncoder,
)
from bootpig_rt.export.reference_op import OpMerge
from bootpig_rt.models.load import Pair
from bootpig_rt.models.text_encoders import ids_length, states_shape
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet

GRAPH_NAMES = (
    "text_encoder",
    "text_kv",
    "vae_encoder",
    "reference_kv",
    "denoise_step",
    *(f"denoise_step_{merge}" for merge in MERGES),
    "shallow_step",
    *(f"shallow_step_{merge}" for merge in MERGES),
    "vae_decoder",
)
"""All graphs. A pair with one reference a subject needs no `denoise_step_<merge>`, one whose U-Net
has a single resolution no `shallow_step`."""

TINY_DECODER = "tiny_decoder"
"""The graph that only a pair with a tiny autoencoder has."""

_NO_LIMIT = 3e38
"""`clip_range` of a solver that does not clamp x0."""


@dataclass(frozen=True)
class Graph:
    """A module with what tracing needs.

    Attributes:
        name: One of `GRAPH_NAMES`, or `TINY_DECODER`.
        module: In evaluation mode; positional inputs.
        inputs: Example inputs by name, in order. No two sizes that may differ are equal by design.
        axes: For each input its free axes, axis -> size.
        outputs: Names, in order.
        merge: Of the reference self-attentions; None for graphs without any.
        control: The kind of the control whose weights it has, if it is one's.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]
    merge: OpMerge | None = None
    control: str = ""


def build_graph(
    name: str, pair: Pair, *, dtype: torch.dtype = torch.float32, dialect: Dialect = "portable"
) -> Graph:
    """A graph of a pair, whose modules are of type `dtype` on the CPU, with its example inputs.

    Raises:
        ParameterError: Another name, or a graph that the pair has not.
    """
    if name not in (*GRAPH_NAMES, TINY_DECODER):
        raise ParameterError(f"graph is {name!r}, expected one of {', '.join(GRAPH_NAMES)}")
    if name == "text_encoder":
        return _text_graph(pair)
    if name == TINY_DECODER and pair.tiny_vae is None:
        raise ParameterError(f"graph is {name!r}, but the pair has no folder {TINY_VAE}")
    if name in ("vae_encoder", "vae_decoder", TINY_DECODER):
        return _vae_graph(name, pair)
    text_length = states_shape(pair.text_encoder)[0]
    if name == "text_kv":
        return text_graph(pair.base, text_length, dtype)
    if name == "reference_kv":
        return reference_graph(pair.base, pair.reference, pair.config.ref_scale, text_length, dtype)
    kind, merge = name.partition("_step")[::2]
    return step_graph(
        pair.base,
        cast("OpMerge", merge.removeprefix("_") or "one"),
        text_length,
        dtype,
        dialect,
        is_shallow=kind == "shallow",
    )


def _text_graph(pair: Pair) -> Graph:
    return Graph(
        name="text_encoder",
        module=TextEncoder(pair.text_encoder),
        inputs={"ids": torch.zeros(3, ids_length(pair.text_encoder), dtype=torch.int64)},
        axes={"ids": {0: Dim("prompts", min=1)}},
        outputs=("prompt_embeds",),
    )


def text_graph(base: BaseUNet, text_length: int, dtype: torch.dtype) -> Graph:
    """`text_kv` of a U-Net; `text_length` is the rows of the text states."""
    return Graph(
        name="text_kv",
        module=TextTable(base),
        inputs={
            "prompt_embeds": torch.zeros(3, text_length, _text_width(base), dtype=dtype),
            "text_of_row": torch.zeros(5, dtype=torch.int64),
        },
        axes={
            "prompt_embeds": {0: Dim("prompts", min=1)},
            "text_of_row": {0: Dim("rows", min=1)},
        },
        outputs=text_names(base),
    )


def _vae_graph(name: str, pair: Pair) -> Graph:
    vae: Any = pair.vae
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = Dim("latent_height", min=1), Dim("latent_width", min=1)
    images = Dim("images", min=1, max=63)  # diffusers' upsampling takes another way from 64 on
    if name == "vae_encoder":
        return Graph(
            name=name,
            module=VaeEncoder(vae),
            inputs={"pixels": torch.zeros(3, vae.config.in_channels, 5 * factor, 4 * factor)},
            axes={"pixels": {0: images, 2: factor * height, 3: factor * width}},
            outputs=("latents",),
        )
    return Graph(
        name=name,
        module=TinyDecoder(pair.tiny_vae) if name == TINY_DECODER else VaeDecoder(vae),
        inputs={"latents": torch.zeros(3, vae.config.latent_channels, 5, 4)},
        axes={"latents": {0: images, 2: height, 3: width}},
        outputs=("pixels",),
    )


def reference_graph(
    base: BaseUNet,
    reference: ReferenceUNet,
    ref_scale: float,
    text_length: int,
    dtype: torch.dtype,
) -> Graph:
    """`reference_kv` of two U-Nets; `text_length` is the rows of the text states."""
    multiple = base.size_multiple
    rows = Dim("references", min=1)
    size = {2: multiple * Dim("_height", min=1), 3: multiple * Dim("_width", min=1)}
    shape = (5, base.latent_channels, 3 * multiple, 2 * multiple)
    inputs = {
        "latents": torch.zeros(shape),
        "noise": torch.zeros(shape),
        "alpha": torch.ones(5),
        "sigma": torch.zeros(5),
        "timesteps": torch.zeros(5, dtype=torch.int64),
        "prompt_embeds": torch.zeros(5, text_length, _text_width(base), dtype=dtype),
    }
    axes: dict[str, dict[int, Any]] = {key: {0: rows} for key in inputs}
    axes["latents"] |= size
    axes["noise"] |= size
    return Graph(
        name="reference_kv",
        module=ReferenceTable(base, reference, ref_scale),
        inputs=inputs,
        axes=axes,
        outputs=table_names(base),
    )


def step_graph(
    base: BaseUNet,
    merge: OpMerge,
    text_length: int,
    dtype: torch.dtype,
    dialect: Dialect = "portable",
    *,
    is_shallow: bool = False,
) -> Graph:
    """`denoise_step`, or `denoise_step_<merge>` for another merge than `one`.

    `text_length` is the rows of the text states, S and those of what is added.

    `is_shallow` gives `shallow_step` in place of it, for U-Nets with blocks that are not deep.
    """
    multiple = base.size_multiple
    history, pictures, steps, rows, reading, slots, entries = 2, 3, 4, 7, 5, 6, 9
    pairs, reading_pairs = 10, 8
    width = 1 if merge == "one" else slots
    latents = base.latent_channels, 3 * multiple, 2 * multiple
    inputs: dict[str, Tensor] = {
        "step": torch.zeros(1, dtype=torch.int64),
        "state": torch.zeros(1 + history, pictures, *latents),
        "timesteps": torch.zeros(steps, pictures, dtype=torch.int64),
        "matrices": torch.zeros(steps, pictures, 1 + history, 2 + history),
        "x0": torch.zeros(steps, pictures, 2),
        "clip_weight": torch.zeros(steps, pictures),
        "clip_range": torch.full((1,), _NO_LIMIT),
        "canvas": torch.zeros(3, pictures, *latents),
        "canvas_weights": torch.zeros(steps, pictures, 2),
        "mask": torch.ones(pictures, 1, *latents[1:]),
        "picture_of_row": torch.zeros(rows, dtype=torch.int64),
        "rows_of_picture": torch.zeros(3, pictures, dtype=torch.int64),
        "image_guidance_scale": torch.zeros(pictures),
        "text_guidance_scale": torch.zeros(pictures),
        "ref_of_row": torch.zeros(steps, reading, width, dtype=torch.int64),
        "pair_of_row": torch.zeros(rows, dtype=torch.int64),
        "picture_of_pair": torch.zeros(pairs, dtype=torch.int64),
        "ref_of_pair": torch.zeros(steps, reading_pairs, width, dtype=torch.int64),
    }
    free = {
        letter: Dim(name, min=least)
        for letter, name, least in (
            ("K", "history", 0),
            ("B", "pictures", 1),
            ("T", "steps", 1),
            ("N", "rows", 1),
            ("Nr", "reading_rows", 0),
            ("U", "pairs", 1),
            ("Ur", "reading_pairs", 0),
            ("R", "slots", 1),
            ("F", "table", 1),
            ("M", "tokens", 1),
        )
    }
    size = {3: multiple * Dim("_height", min=1), 4: multiple * Dim("_width", min=1)}
    axes: dict[str, dict[int, Any]] = {
        "state": {0: free["K"] + 1, 1: free["B"], **size},
        "timesteps": {0: free["T"], 1: free["B"]},
        "matrices": {0: free["T"], 1: free["B"], 2: free["K"] + 1, 3: free["K"] + 2},
        "x0": {0: free["T"], 1: free["B"]},
        "clip_weight": {0: free["T"], 1: free["B"]},
        "canvas": {1: free["B"], **size},
        "canvas_weights": {0: free["T"], 1: free["B"]},
        "mask": {0: free["B"], 2: size[3], 3: size[4]},
        "picture_of_row": {0: free["N"]},
        "rows_of_picture": {1: free["B"]},
        "image_guidance_scale": {0: free["B"]},
        "text_guidance_scale": {0: free["B"]},
        "ref_of_row": {0: free["T"], 1: free["Nr"]},
        "pair_of_row": {0: free["N"]},
        "picture_of_pair": {0: free["U"]},
        "ref_of_pair": {0: free["T"], 1: free["Ur"]},
    }
    if merge != "one":
        axes["ref_of_row"][2] = axes["ref_of_pair"][2] = free["R"]
    if is_shallow or base.added_width:
        inputs = {name: value for name, value in inputs.items() if name not in OF_PAIRS}
        axes = {name: axis for name, axis in axes.items() if name not in OF_PAIRS}
    if is_shallow:
        features = torch.zeros(rows, base.deep_channels(), *inputs["state"].shape[3:], dtype=dtype)
        inputs = {"features": features, **inputs}
        axes["features"] = {0: free["N"], 2: size[3], 3: size[4]}
    if base.added_width:
        width = base.unet.add_embedding.linear_2.out_features
        inputs["added"] = torch.zeros(rows, width, dtype=dtype)
        axes["added"] = {0: free["N"]}
        text_length -= -(-base.added_width // _text_width(base))
    layers = [i for i in range(base.num_layers) if not (is_shallow and i in base.deep_layers)]
    for layer in layers:
        for kind in "kv":
            name = f"text_{kind}_{layer}"
            inputs[name] = torch.zeros(rows, text_length, base.text_widths()[layer], dtype=dtype)
            axes[name] = {0: free["N"]}
    for layer in layers:
        _, heads, inner = base.layer_shapes()[layer]
        tokens = Dim(f"tokens_{layer}", min=1)
        for kind in "kv":
            name = f"{kind}_{layer}"
            inputs[name] = torch.zeros(entries, heads, 10 + layer, inner // heads, dtype=dtype)
            axes[name] = {0: free["F"], 2: tokens}
    step, module = ("shallow_step", ShallowStep) if is_shallow else ("denoise_step", DenoiseStep)
    if base.added_width and not is_shallow:
        module = SizedStep
    return Graph(
        name=step if merge == "one" else f"{step}_{merge}",
        module=module(base, merge, dialect),
        inputs=inputs,
        axes=axes,
        outputs=("next_state", "estimate")
        if is_shallow
        else ("next_state", "estimate", "features"),
        merge=merge,
    )


def text_names(base: BaseUNet) -> tuple[str, ...]:
    """`text_k_0`, `text_v_0`, ..., `added`: outputs of `text_kv`, inputs of `denoise_step`."""
    added = ("added",) if base.added_width else ()
    return (*(f"text_{name}" for name in table_names(base)), *added)


def table_names(base: BaseUNet) -> tuple[str, ...]:
    """`k_0`, `v_0`, `k_1`, `v_1`, ...: outputs of `reference_kv` and inputs of `denoise_step`."""
    return tuple(f"{kind}_{layer}" for layer in range(base.num_layers) for kind in "kv")


def _text_width(base: BaseUNet) -> int:
    width = base.unet.config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])
