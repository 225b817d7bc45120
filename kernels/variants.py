"""Variants of the kernels: what each is compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.launch import (
    LOG2_E,
    attention_constants,
    find_kernel,
    launch_options,
)
from bootpig_rt.kernels.tiles import Tile

TYPE_OF_DTYPE = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True)
class Variant:
    """One binary to make.

    Attributes:
        name: Unique within a set; the file name.
        kernel: A name that `launch.find_kernel` knows.
        architecture: Compute capability, 90 for 9.0.
        dtype: `float16`, `bfloat16` or `float32`.
        signature: Triton's type of each parameter, `constexpr` for those that are baked in.
        constants: The values baked in.
        aligned: Parameters that the host promises to be multiples of 16 (pointers: of 16 bytes).
        options: Options of the compiler.
        grid: Programs along x, y and z, in the words of the parameters.
    """

    name: str
    kernel: str
    architecture: int
    dtype: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    options: Mapping[str, Any]
    grid: tuple[str, ...]

    @property
    def parameters(self) -> list[dict[str, str]]:
        """What the host passes, in order, without Triton's two pointers at the end."""
        return [
            {"name": name, "type": kind}
            for name, kind in self.signature.items()
            if kind != "constexpr"
        ]


def attention_variant(
    *, architecture: int, mode: str, dtype: str, head_dim: int, tile: Tile, is_even: bool = True
) -> Variant:
    """A binary of `reference_attention_kernel`; `mode` is `joint` or `separate`.

    With `is_even` token counts are multiples of the tile: no masks. Otherwise it takes any count.
    """
    kernel = find_kernel("reference_attention")
    block = max(tile.block_m, tile.block_n)
    tokens = block if is_even else block + 1
    constants = attention_constants(
        dtype=dtype,
        head_dim=head_dim,
        tokens=tokens,
        ref_tokens=tokens,
        is_separate=mode == tiles.SEPARATE,
        tile=tile,
    ) | {"WIDEN": False}
    types = {"ref_of_row_ptr": "*i32", "step_ptr": "*i32", "scale": "fp32"}
    if tile.uses_tma:
        shape = [1, 1, tile.block_n, tiles.padded(head_dim)]
        described = f"tensordesc<{TYPE_OF_DTYPE[dtype]}{shape}>"
        types |= dict.fromkeys(("k_ptr", "v_ptr", "ref_k_ptr", "ref_v_ptr"), described)
    signature = _signature(kernel, constants, dtype, types)
    name = (
        f"reference_attention_{mode}_sm_{architecture}_{dtype}_d{head_dim}"
        f"_{tile.block_m}x{tile.block_n}_w{tile.num_warps}{'' if is_even else '_any'}"
        f"{'_tma' if tile.uses_tma else ''}"
    )
    return Variant(
        name=name,
        kernel="reference_attention",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name
            for name in signature
            if "_stride_" in name
            or (
                name.endswith("_ptr")
                and signature[name].startswith("*")
                and signature[name] != "*i32"
            )
        ),
        options=launch_options(tile),
        grid=(f"ceil(num_tokens / {tile.block_m})", "num_heads", "num_rows"),
    )


def merge_variant(*, architecture: int, dtype: str, channels: int, merge: str) -> Variant:
    """A binary of `reference_merge_kernel` for `channels` and one merge."""
    from bootpig_rt.kernels.reference_merge import MODE_OF_MERGE

    kernel = find_kernel("reference_merge")
    block_t, num_warps = tiles.merge_tile(channels)
    constants = {
        "CHANNELS": channels,
        "BLOCK_C": tiles.padded(channels),
        "BLOCK_T": block_t,
        "MODE": MODE_OF_MERGE[merge],
    }
    signature = _signature(kernel, constants, dtype, {"ref_of_row_ptr": "*i32"})
    return Variant(
        name=f"reference_merge_{merge}_sm_{architecture}_{dtype}_c{channels}",
        kernel="reference_merge",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name for name in signature if name.endswith("_ptr") and signature[name] != "*i32"
        ),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
        grid=(f"ceil(num_tokens / {block_t})", "num_rows"),
    )


def plugin_variant(
    *, architecture: int, dtype: str, head_dim: int, scale: float, tile: Tile
) -> Variant:
    """A binary of `reference_attention_plugin_kernel`; `scale` is the operator's, baked in."""
    kernel = find_kernel("reference_attention_plugin")
    constants = {
        "SCALE": scale * LOG2_E,
        "HEAD_DIM": head_dim,
        "BLOCK_D": tiles.padded(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PRECISION": "tf32x3" if dtype == "float32" else "tf32",
        "WIDEN": False,
    }
    signature = _signature(kernel, constants, dtype, {"ref_of_row_ptr": "*i64"})
    return Variant(
        name=f"reference_attention_plugin_sm_{architecture}_{dtype}_d{head_dim}"
        f"_{tile.block_m}x{tile.block_n}_w{tile.num_warps}",
        kernel="reference_attention_plugin",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name for name in signature if name.endswith("_ptr") and name != "ref_of_row_ptr"
        ),
        options=launch_options(tile),
        grid=(f"ceil(num_tokens / {tile.block_m})", "num_heads", "num_rows"),
    )


def variants_of(
    architecture: int, *, dtypes: list[str], head_dims: list[int], channels: list[int]
) -> list[Variant]:
    """All binaries that a host needs on one architecture.

    Each tile of the table, for token counts that are multiples of it and for any count; and the
    merges for each number of channels.

    Raises:
        ParameterError: An architecture without tile configurations.
    """
    if architecture not in tiles.ARCHITECTURES:
        known = ", ".join(f"sm_{number}" for number in tiles.ARCHITECTURES)
        raise ParameterError(f"target is sm_{architecture}, expected one of {known}")
    variants: dict[str, Variant] = {}
    for dtype in dtypes:
        for mode in (tiles.JOINT, tiles.SEPARATE):
            for head_dim in head_dims:
                found = tiles.tiles_for(
                    architecture=architecture, mode=mode, dtype=dtype, head_dim=head_dim
                )
                # A host passes pointers; descriptors would be its own to make.
                for tile in dict.fromkeys(tile.with_plain_loads() for tile in found):
                    for is_even in (True, False):
                        variant = attention_variant(
                            architecture=architecture,
                            mode=mode,
                            dtype=dtype,
                            head_dim=head_dim,
                            tile=tile,
                            is_even=is_even,
                        )
                        variants[variant.name] = variant
        for width in channels:
            for merge in ("argmax", "softmax", "mean"):
                variant = merge_variant(
                    architecture=architecture, dtype=dtype, channels=width, merge=merge
                )
                variants[variant.name] = variant
    return list(variants.values())


def _signature(
    kernel: Any, constants: Mapping[str, Any], dtype: str, types: Mapping[str, str]
) -> dict[str, str]:
    """Triton's type of each parameter: a constant, one of `types`, a pointer, or an integer."""
    return {
        name: "constexpr"
        if name in constants
        else types.get(name, f"*{TYPE_OF_DTYPE[dtype]}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
