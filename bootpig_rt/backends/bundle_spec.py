"""What the pipeline must know about the pair in a bundle, read from its small json files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bootpig_rt.backends.base import DECODERS, CanvasUse, ControlSpec, Decoder, PairSpec
from bootpig_rt.backends.host_table import LayerShape
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.pair_config import read_json, read_pair_config
from bootpig_rt.bundle.text_parts import TOKENIZER_2, has_two_texts, text_shape
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.errors import CheckpointError, ConfigError

DECODER_GRAPHS: dict[Decoder, str] = {"full": "vae_decoder", "tiny": "tiny_decoder"}
"""Names of the graphs."""


def bundle_spec(bundle: Bundle) -> PairSpec:
    """Read the pair of a bundle; weights are not touched.

    Tables are of the type that the graphs compute in: they read such a table where it lies.

    Args:
        bundle: With `pair.json`, `tokenizer`, and the configurations of the modules. Its manifest
            says what the graphs compute in and how far they reach.

    Raises:
        CheckpointError: A file is missing or wrong.
    """
    folder, manifest = bundle.folder, bundle.manifest
    low, _, high = manifest.profile.resolution_px
    unet = read_json(folder / "base_unet" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    text = read_json(folder / "text_encoder" / "config.json")
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    pair_config = read_pair_config(folder / "pair.json")
    try:
        channels = int(unet.get("out_channels", 4))
        unet_levels = len(unet["block_out_channels"])
        vae_scale = 2 ** (len(vae["block_out_channels"]) - 1)
        side = pair_config.sample_size_px // vae_scale
        shape_of_text = text_shape(unet, text)
        shapes = self_attention_shapes(unet, side, side)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: config.json of base_unet, vae or text_encoder lacks a field or has a wrong "
            f"one ({error}); build the bundle again",
            folder,
        ) from error
    try:
        noise_schedule = NoiseSchedule.from_config(read_json(scheduler_file))
    except ConfigError as error:
        raise CheckpointError(f"{scheduler_file}: {error}", scheduler_file) from error
    has_tiny = any(graph.name == "tiny_decoder" for graph in manifest.graphs)
    return PairSpec(
        config=pair_config,
        fingerprint=manifest.pair.fingerprint,
        noise_schedule=noise_schedule,
        tokenizer_folder=folder / "tokenizer",
        latent_channels=channels,
        vae_scale_factor=vae_scale,
        size_multiple_px=vae_scale * 2 ** (unet_levels - 1),
        reference_shapes=shapes,
        text_shape=shape_of_text,
        precision=manifest.precision,
        table_dtype=manifest.precision,
        joins_tables=True,
        max_batch=manifest.profile.max_batch,
        max_references=manifest.profile.max_references,
        max_steps=manifest.profile.max_steps,
        sides_px=(low, high),
        decoders=DECODERS if has_tiny else ("full",),
        keeps_features=any(graph.name == "shallow_step" for graph in manifest.graphs),
        controls=tuple(ControlSpec(one.kind, one.fingerprint) for one in manifest.controls),
        canvas=_canvas(bundle, is_read=int(unet.get("in_channels", 4)) > channels),
        tokenizer_2_folder=folder / TOKENIZER_2 if has_two_texts(unet) else None,
    )


def _canvas(bundle: Bundle, *, is_read: bool) -> CanvasUse:
    """What the step's graph does with given pictures, by its inputs."""
    steps = (graph for graph in bundle.manifest.graphs if graph.name == "denoise_step")
    names = {tensor.name for graph in steps for tensor in graph.inputs}
    if "mask" not in names:
        return "none"
    return "read" if is_read else "blend"


def self_attention_shapes(
    unet: Mapping[str, Any], height: int, width: int
) -> tuple[LayerShape, ...]:
    """Heads, tokens and head dim of each self-attention, in the order down, mid, up.

    Args:
        unet: A U-Net's configuration. Its `attention_head_dim` is the number of heads, and its
            lists may be one number for all blocks.
        height: Of the latents.
        width: Of the latents.
    """
    widths = [int(width) for width in unet["block_out_channels"]]
    heads = _per_block(unet, "num_attention_heads", None)
    if heads[0] is None:
        heads = _per_block(unet, "attention_head_dim", 8)
    return tuple(
        (
            int(heads[level]),
            (height >> level) * (width >> level),
            widths[level] // int(heads[level]),
        )
        for level in self_attention_levels(unet)
    )


def self_attention_levels(unet: Mapping[str, Any]) -> tuple[int, ...]:
    """How often latents were halved ahead of each self-attention, in the order down, mid, up."""
    down, up = list(unet["down_block_types"]), list(unet["up_block_types"])
    depth = [int(layers) for layers in _per_block(unet, "layers_per_block", 2)]
    blocks = _per_block(unet, "transformer_layers_per_block", 1)
    levels: list[int] = []
    for level, kind in enumerate(down):
        levels += [level] * (depth[level] * blocks[level]) if "CrossAttn" in kind else []
    levels += [len(down) - 1] * blocks[-1]
    for index, kind in enumerate(up):
        level = len(down) - 1 - index
        levels += [level] * ((depth[level] + 1) * blocks[level]) if "CrossAttn" in kind else []
    return tuple(levels)


def residual_shapes(
    unet: Mapping[str, Any], height: int, width: int
) -> tuple[tuple[int, int, int], ...]:
    """Channels, height and width of what a control adds to each skip connection and the middle.

    Args:
        unet: A U-Net's configuration.
        height: Of the latents.
        width: Of the latents.
    """
    return tuple((count, height >> level, width >> level) for count, level in residuals_of(unet))


def residuals_of(unet: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Channels of the same, and how often latents were halved before it."""
    channels = [int(one) for one in unet["block_out_channels"]]
    depth = [int(layers) for layers in _per_block(unet, "layers_per_block", 2)]
    places = [(channels[0], 0)]
    for level, count in enumerate(channels):
        places += [(count, level)] * depth[level]
        places += [(count, level + 1)] if level + 1 < len(channels) else []
    places.append((channels[-1], len(channels) - 1))
    return tuple(places)


def _per_block(unet: Mapping[str, Any], name: str, default: Any) -> list[Any]:
    value = unet.get(name, default)
    count = len(unet["down_block_types"])
    return list(value) if isinstance(value, (list, tuple)) else [value] * count
