"""Launches of the Triton kernels: outputs, grid, strides, tile. No checks of arguments.

`bootpig_rt.kernels.ops` checks and calls this. The kernels are imported on first use, so that this
file can be imported where there is no Triton.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import torch
from torch import Tensor

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.tiles import Tile
from bootpig_rt.kernels.toolchain import (
    has_tensor_descriptors,
    is_interpreting,
    require_triton,
)

LOG2_E = math.log2(math.e)

# In the interpreter any tile will do; small ones give the tests several tiles and a tail.
_INTERPRETED_TILE = Tile(64, 32, 4, 2)


def launches(tensor: Tensor) -> bool:
    """The kernels run on this tensor: on CUDA, and anywhere in Triton's interpreter."""
    return tensor.is_cuda or is_interpreting()


def launch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    first_delta_row: int | None = None,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `reference_attention_kernel`.

    Arguments are those of `bootpig_rt.kernels.eager_ops.attention_deltas`; the table and the
    indices, int32, are contiguous. Without `first_delta_row` all rows are joint. A `tile` takes the
    place of that of the table; for tuning.

    Returns:
        `o` [B, N, H * D] and `deltas` [E, S, N, H * D]; E is 0 for joint attention.

    Raises:
        BackendUnavailable: No Triton, no tile for this GPU, or a driver that is too old.
    """
    kernel = find_kernel("reference_attention")
    rows, heads, tokens, head_dim = q.shape
    entries, references, _, ref_tokens, _ = ref_k.shape
    slots = ref_of_row.shape[1]
    first_row = rows if first_delta_row is None else first_delta_row
    is_separate = first_row < rows
    if tile is None:
        tile = _tile(q, tiles.SEPARATE if is_separate else tiles.JOINT)
    tile = with_usable_loads(tile, q, k, v, ref_k, ref_v)
    keys: tuple[Any, ...] = (k, v, ref_k, ref_v)
    if tile.uses_tma:
        keys = tuple(_describe(part, tile.block_n) for part in keys)
    out = torch.empty(rows, tokens, heads * head_dim, dtype=q.dtype, device=q.device)
    deltas = out.new_empty(rows - first_row, slots, tokens, heads * head_dim)
    run_kernel(
        kernel,
        (-(-tokens // tile.block_m), heads, rows),
        q,
        q,
        *keys,
        ref_of_row,
        step,
        out,
        deltas if is_separate else out,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        rows,
        heads,
        slots,
        tokens,
        entries,
        references,
        ref_tokens,
        first_row,
        LOG2_E / math.sqrt(head_dim),
        **attention_constants(
            dtype=str(q.dtype).removeprefix("torch."),
            head_dim=head_dim,
            tokens=tokens,
            ref_tokens=ref_tokens,
            is_separate=is_separate,
            tile=tile,
        ),
        WIDEN=is_interpreting() and q.dtype == torch.bfloat16,
        **launch_options(tile),
    )
    return out, deltas


def launch_merge(
    projected: Tensor, change: Tensor, ref_of_row: Tensor, first_delta_row: int, mode: str
) -> Tensor:
    """Run `reference_merge_kernel`; arguments as for `bootpig_rt.kernels.eager_ops.merge`.

    Raises:
        BackendUnavailable: No Triton, or a driver that is too old.
    """
    kernel = find_kernel("reference_merge")
    from bootpig_rt.kernels.reference_merge import MODE_OF_MERGE

    rows, tokens, channels = projected.shape
    block_t, num_warps = tiles.merge_tile(channels)
    out = torch.empty_like(projected, memory_format=torch.contiguous_format)
    run_kernel(
        kernel,
        (-(-tokens // block_t), rows),
        projected,
        projected,
        change if change.numel() else projected,
        ref_of_row,
        out,
        ref_of_row.shape[1],
        tokens,
        first_delta_row,
        CHANNELS=channels,
        BLOCK_C=tiles.padded(channels),
        BLOCK_T=block_t,
        MODE=MODE_OF_MERGE[mode],
        num_warps=num_warps,
        enable_fp_fusion=True,
    )
    return out


def attention_constants(
    *, dtype: str, head_dim: int, tokens: int, ref_tokens: int, is_separate: bool, tile: Tile
) -> dict[str, Any]:
    """Compile-time arguments that follow from shape, type and tile."""
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": tiles.padded(head_dim),
        "IS_SEPARATE": is_separate,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "IS_EVEN_M": tokens % tile.block_m == 0,
        "IS_EVEN_SELF": tokens % tile.block_n == 0,
        "IS_EVEN_REF": ref_tokens % tile.block_n == 0,
        # Three products in tf32 are as exact as float32 and run on tensor cores.
        "PRECISION": "tf32x3" if dtype == "float32" else "tf32",
        "USES_TMA": tile.uses_tma,
    }


def with_usable_loads(tile: Tile, *inputs: Tensor) -> Tile:
    """The tile, with plain loads where the copy engine cannot read these inputs.

    It wants 16-bit numbers here, addresses and strides in multiples of 16 bytes, numbers of a token
    side by side, and a Triton that describes tensors.
    """
    if not tile.uses_tma:
        return tile
    fits = has_tensor_descriptors() and all(
        part.element_size() == 2
        and part.numel() > 0
        and part.data_ptr() % 16 == 0
        and part.stride(-1) == 1
        and all(stride > 0 and stride % 8 == 0 for stride in part.stride()[:-1])
        for part in inputs
    )
    return tile if fits else tile.with_plain_loads()


def _describe(keys: Tensor, block_n: int) -> Any:
    """A descriptor of [B, H, N, D], or of a table's entries and references as one axis."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    if keys.dim() == 5:
        keys = keys.flatten(0, 1)
    block_d = tiles.padded(keys.shape[-1])
    return TensorDescriptor(keys, list(keys.shape), list(keys.stride()), [1, 1, block_n, block_d])


def launch_options(tile: Tile) -> dict[str, Any]:
    """Options of the compiler."""
    options = {
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        "enable_fp_fusion": True,
    }
    if tile.max_registers is not None:
        options["maxnreg"] = tile.max_registers
    return options


def run_kernel(
    kernel: Any, grid: tuple[int, ...], of: Tensor, *arguments: Any, **options: Any
) -> None:
    """Launch on the device of `of`, which need not be the current one.

    Raises:
        BackendUnavailable: The driver is too old.
    """
    try:
        if of.is_cuda:
            with torch.cuda.device(of.device):
                kernel[grid](*arguments, **options)
        else:
            kernel[grid](*arguments, **options)
    except RuntimeError as error:
        if "no kernel image" in str(error) or "unsupported" in str(error).lower():
            first_line = (str(error).splitlines() or [""])[0]
            raise BackendUnavailable(
                f"the driver cannot run the fused kernel: {first_line}; update the NVIDIA driver, "
                "or force the eager path with BOOTPIG_RT_ATTENTION=eager"
            ) from error
        raise


def _tile(q: Tensor, mode: str) -> Tile:
    if not q.is_cuda:
        return _INTERPRETED_TILE
    return _tile_of(
        architecture_of(q.device), mode, str(q.dtype), head_dim=q.shape[-1], tokens=q.shape[-2]
    )


@functools.lru_cache(maxsize=256)
def _tile_of(architecture: int, mode: str, dtype: str, *, head_dim: int, tokens: int) -> Tile:
    return tiles.attention_tile(
        architecture=architecture,
        mode=mode,
        dtype=dtype.removeprefix("torch."),
        head_dim=head_dim,
        tokens=tokens,
    )


@functools.cache
def architecture_of(device: torch.device) -> int:
    """Compute capability of a CUDA device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


_FILES = {
    "reference_attention": "reference_attention",
    "reference_merge": "reference_merge",
    "group_norm": "group_norm",
    "group_norm_sums": "group_norm",
    "group_norm_scales": "group_norm",
    "group_norm_apply": "group_norm",
    "layer_norm": "layer_norm",
    "geglu": "pointwise",
    "residual_add": "pointwise",
    "reference_attention_plugin": "plugin_kernel",
}
"""Where the kernel of a name is."""


@functools.cache
def find_kernel(name: str) -> Any:
    """The Triton function `<name>_kernel`.

    Raises:
        BackendUnavailable: Triton is missing or too old.
    """
    require_triton()
    module = importlib.import_module(f"bootpig_rt.kernels.{_FILES[name]}")
    return getattr(module, f"{name}_kernel")
