"""Checks of the arguments of the operators, ahead of any launch.

Shapes, types and layout are known on the host and always checked. The values of `step` and
`ref_of_row` lie on the device; reading them waits for it, so a loop that planned its rows on the
host leaves that check out (the kernel never follows an index outside the table).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bootpig_rt.errors import ParameterError

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_HEAD_DIM, MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 16, 128, 8
MAX_CHANNELS = 8192
_ALIGNMENT = 16
"""Bytes: what one thread loads at once."""


def supports_head_dim(head_dim: int) -> bool:
    """16 to 128, in steps of 8: whole loads of 16 bytes in float16."""
    return MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
    first_delta_row: int | None = None,
) -> None:
    """Types, devices and shapes; see `bootpig_rt.kernels.ops.reference_attention`.

    Raises:
        ParameterError: Names the argument, what it is and what was expected.
    """
    if q.dim() != 4:
        raise ParameterError(f"q has shape {list(q.shape)}, expected [B, H, N, D]")
    _check_floats(q=q, k=k, v=v, ref_k=ref_k, ref_v=ref_v)
    _check_integers(q, ref_of_row=ref_of_row, step=step)
    rows, heads, tokens, head_dim = q.shape
    if not supports_head_dim(head_dim):
        raise ParameterError(
            f"head dim is {head_dim}, the kernel takes {MIN_HEAD_DIM} to {MAX_HEAD_DIM} in steps "
            f"of {HEAD_DIM_MULTIPLE}; use the eager path (BOOTPIG_RT_ATTENTION=eager)"
        )
    if rows == 0 or heads == 0 or tokens == 0:
        raise ParameterError(f"q has shape {list(q.shape)}, expected no dimension of 0")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ParameterError(
                f"{name} has shape {list(tensor.shape)}, expected that of q {list(q.shape)}"
            )
    table = list(ref_k.shape)
    fits = len(table) == 5 and table[2] == heads and table[4] == head_dim
    if not fits or ref_v.shape != ref_k.shape:
        raise ParameterError(
            f"ref_k has shape {table} and ref_v {list(ref_v.shape)}, expected both "
            f"[T, R, {heads}, M, {head_dim}]"
        )
    _check_rows(ref_of_row, rows)
    if list(step.shape) != [1]:
        raise ParameterError(f"step has shape {list(step.shape)}, expected [1]: one index")
    if first_delta_row is not None:
        _check_first_row(first_delta_row, rows)


def check_merge(
    projected: Tensor, change: Tensor, ref_of_row: Tensor, first_delta_row: int, mode: str
) -> None:
    """Types, devices and shapes; see `bootpig_rt.kernels.ops.reference_merge`.

    Raises:
        ParameterError: Names the argument, what it is and what was expected.
    """
    if mode not in ("argmax", "softmax", "mean"):
        raise ParameterError(f"merge is {mode!r}, expected argmax, softmax or mean")
    if projected.dim() != 3:
        raise ParameterError(
            f"projected has shape {list(projected.shape)}, expected [B, N, C] without a 0"
        )
    _check_floats(projected=projected, change=change)
    _check_integers(projected, ref_of_row=ref_of_row)
    rows, tokens, channels = projected.shape
    if rows == 0 or tokens == 0 or not 0 < channels <= MAX_CHANNELS:
        raise ParameterError(
            f"projected has shape {list(projected.shape)}, expected [B, N, C] without a 0 and with "
            f"at most {MAX_CHANNELS} channels"
        )
    _check_rows(ref_of_row, rows)
    _check_first_row(first_delta_row, rows)
    expected = [rows - first_delta_row, ref_of_row.shape[1], tokens, channels]
    if list(change.shape) != expected:
        raise ParameterError(f"change has shape {list(change.shape)}, expected {expected}")


def check_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, offset: Tensor | None
) -> None:
    """Types, devices and shapes; see `bootpig_rt.kernels.block_ops.group_norm`.

    Raises:
        ParameterError: Names the argument, what it is and what was expected.
    """
    _check_picture(x)
    _check_floats(x=x, weight=weight, bias=bias)
    rows, channels = x.shape[:2]
    _check_channels(channels, weight=weight, bias=bias)
    _check_channels_last(x=x)
    if groups < 1 or channels % groups:
        raise ParameterError(f"groups is {groups}, expected a divisor of {channels} channels")
    if offset is None:
        return
    _check_floats(x=x, offset=offset)
    if list(offset.shape) not in ([rows, channels], [1, channels]) or offset.stride(1) != 1:
        raise ParameterError(
            f"offset has shape {list(offset.shape)} and strides {list(offset.stride())}, expected "
            f"[{rows}, {channels}] or [1, {channels}] with channels side by side"
        )


def check_layer_norm(x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    """Types, devices and shapes; see `bootpig_rt.kernels.block_ops.add_layer_norm`.

    Raises:
        ParameterError: Names the argument, what it is and what was expected.
    """
    _check_tokens(x)
    _check_floats(x=x, weight=weight, bias=bias)
    _check_channels(x.shape[-1], weight=weight, bias=bias)
    check_contiguous(x=x)
    if change is not None:
        _check_floats(x=x, change=change)
        _check_same_shape(x, change)
        check_contiguous(change=change)


def check_geglu(x: Tensor) -> None:
    """Type and shape; see `bootpig_rt.kernels.block_ops.geglu`.

    Raises:
        ParameterError: Says what it is and what was expected.
    """
    _check_tokens(x)
    _check_floats(x=x)
    if x.shape[-1] % 2:
        raise ParameterError(f"x has {x.shape[-1]} channels, expected an even number")
    check_contiguous(x=x)


def check_residual_add(x: Tensor, change: Tensor, bias: Tensor) -> None:
    """Types, devices and shapes; see `bootpig_rt.kernels.block_ops.residual_add`.

    Raises:
        ParameterError: Names the argument, what it is and what was expected.
    """
    _check_picture(x)
    _check_floats(x=x, change=change, bias=bias)
    _check_same_shape(x, change)
    _check_channels(x.shape[1], bias=bias)
    _check_channels_last(x=x, change=change)


def _check_channels_last(**pictures: Tensor) -> None:
    for name, picture in pictures.items():
        if not picture.is_contiguous(memory_format=torch.channels_last):
            raise ParameterError(
                f"{name} has strides {picture.stride()}, expected channels-last; call "
                ".contiguous(memory_format=torch.channels_last)"
            )


def check_attention_layout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    step: Tensor,
) -> None:
    """Strides and alignment, which fake tensors of a trace do not have.

    Raises:
        ParameterError: Names the tensor and what to do.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        size = tensor.element_size()
        if tensor.stride(-1) != 1:
            raise ParameterError(
                f"{name} has strides {list(tensor.stride())}, expected 1 along the head dim; use "
                f"{name}.contiguous()"
            )
        if _overlaps(tensor):
            raise ParameterError(
                f"{name} has strides {list(tensor.stride())}, so its elements share memory; use "
                f"{name}.contiguous()"
            )
        pointer_and_strides = (tensor.data_ptr(), *(step * size for step in tensor.stride()[:-1]))
        if any(number % _ALIGNMENT for number in pointer_and_strides):
            raise ParameterError(
                f"{name} starts at {tensor.data_ptr()} with strides {list(tensor.stride())}, "
                f"expected multiples of {_ALIGNMENT} bytes; use {name}.clone()"
            )
    check_contiguous(ref_k=ref_k, ref_v=ref_v, ref_of_row=ref_of_row, step=step)


def check_indices(ref_of_row: Tensor, step: Tensor, ref_k: Tensor) -> None:
    """The values of `ref_of_row` and `step`. Waits for the device.

    Raises:
        ParameterError: An index is outside the table.
    """
    entries, references = ref_k.shape[:2]
    index = int(step.item())
    if not 0 <= index < entries:
        raise ParameterError(
            f"step is {index}, expected 0 to {entries - 1}: the table has {entries} entries"
        )
    for row, slots in enumerate(ref_of_row.tolist()):
        for ref in slots:
            if not -1 <= ref < references:
                raise ParameterError(
                    f"ref_of_row names reference {ref} in row {row}, expected -1 (none) or 0 to "
                    f"{references - 1}: the table holds {references}"
                )


def _check_floats(**tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    if first.dtype not in DTYPES:
        raise ParameterError(
            f"{first_name} is {_name(first.dtype)}, expected float16, bfloat16 or float32"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise ParameterError(
                f"{name} is {_name(tensor.dtype)} but {first_name} is {_name(first.dtype)}, "
                "expected one type; convert with .to()"
            )
        if tensor.device != first.device:
            raise ParameterError(
                f"{name} is on {tensor.device} but {first_name} on {first.device}, expected one "
                "device"
            )


def _check_picture(x: Tensor) -> None:
    if x.dim() != 4 or x.numel() == 0:
        raise ParameterError(f"x has shape {list(x.shape)}, expected [B, C, h, w] without a 0")


def _check_tokens(x: Tensor) -> None:
    if x.dim() == 0 or x.numel() == 0:
        raise ParameterError(f"x has shape {list(x.shape)}, expected [..., C] without a 0")


def _check_channels(channels: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if list(tensor.shape) != [channels]:
            raise ParameterError(f"{name} has shape {list(tensor.shape)}, expected [{channels}]")
    check_contiguous(**tensors)


def _check_same_shape(x: Tensor, change: Tensor) -> None:
    if change.shape != x.shape:
        raise ParameterError(
            f"change has shape {list(change.shape)}, expected that of x {list(x.shape)}"
        )


def _check_integers(first: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32:
            raise ParameterError(
                f"{name} is {_name(tensor.dtype)}, expected int32; use {name}.to(torch.int32)"
            )
        if tensor.device != first.device:
            raise ParameterError(
                f"{name} is on {tensor.device}, expected {first.device}: the kernel reads it there"
            )


def _check_rows(ref_of_row: Tensor, rows: int) -> None:
    if ref_of_row.dim() != 2 or ref_of_row.shape[0] != rows or ref_of_row.shape[1] == 0:
        raise ParameterError(
            f"ref_of_row has shape {list(ref_of_row.shape)}, expected [{rows}, S] with at least "
            "one slot; use -1 where a row has no reference"
        )


def _check_first_row(first_delta_row: int, rows: int) -> None:
    if not 0 <= first_delta_row <= rows:
        raise ParameterError(f"first_delta_row is {first_delta_row}, expected 0 to {rows}")


def check_contiguous(**tensors: Tensor) -> None:
    """Layout, which fake tensors of a trace do not have.

    Raises:
        ParameterError: Names the tensor and what to do.
    """
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ParameterError(
                f"{name} has strides {list(tensor.stride())}, expected contiguous memory; use "
                f"{name}.contiguous()"
            )


def _overlaps(tensor: Tensor) -> bool:
    """Two elements share memory, as after `expand`."""
    dims = [
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size > 1
    ]
    end = 0
    for stride, size in sorted(dims):
        if stride <= end:
            return True
        end += stride * (size - 1)
    return False


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
