"""The operators of torch: tracing, export, gradients and refusals, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels.launch import with_usable_loads
from bootpig_rt.kernels.ops import (
    reference_attention,
    reference_attention_deltas,
    reference_merge,
)
from bootpig_rt.kernels.tiles import Tile

SMALL = {"tokens": 6, "ref_tokens": 5, "head_dim": 16}
REFS = [[-1, -1], [2, -1], [1, 3]]
MERGES = ["argmax", "softmax", "mean"]


def _merge_arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    projected = torch.randn(3, 6, 8, generator=generator, dtype=dtype)
    change = torch.randn(2, 2, 6, 8, generator=generator, dtype=dtype)
    return projected, change, torch.tensor(REFS, dtype=torch.int32)


def test_opcheck_accepts_the_operators(make_case: Any) -> None:
    case = make_case(REFS, **SMALL)
    projected, change, refs = _merge_arguments()
    operators = torch.ops.bootpig_rt
    for operator, arguments in (
        (operators.reference_attention, case.arguments),
        (operators.reference_attention_deltas, (*case.arguments, 1)),
        (operators.reference_attention_deltas, (*case.arguments, 3)),
        (operators.reference_merge, (projected, change, refs, 1, "softmax")),
    ):
        found = torch.library.opcheck(operator.default, arguments)
        assert set(found.values()) == {"SUCCESS"}


def _whole(q: Tensor, *rest: Tensor) -> Tensor:
    own, deltas = reference_attention_deltas(q, *rest, first_delta_row=1)
    refs = rest[4]
    merged = reference_merge(own, deltas * 2.0, refs, first_delta_row=1, merge="softmax")
    return merged + reference_attention(q, *rest)


def test_torch_compile_keeps_one_graph(make_case: Any) -> None:
    case = make_case(REFS, **SMALL)
    compiled = torch.compile(_whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case.arguments), _whole(*case.arguments))


def test_the_operators_say_that_they_have_no_gradients(make_case: Any) -> None:
    case = make_case(REFS, **SMALL)
    out = _whole(*(one.requires_grad_() for one in case.arguments[:5]), *case.arguments[5:])
    with pytest.raises(RuntimeError, match="no autograd formula|does not require grad"):
        out.sum().backward()


def test_torch_export_keeps_the_operators(make_case: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return _whole(*arguments)

    case = make_case(REFS, **SMALL)
    program = torch.export.export(Module(), case.arguments)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "bootpig_rt.reference_attention.default" in called
    assert "bootpig_rt.reference_merge.default" in called
    torch.testing.assert_close(program.module()(*case.arguments), _whole(*case.arguments))


def test_an_empty_table_and_rows_without_references_run(make_case: Any) -> None:
    case = make_case([[-1], [-1]], references=0, **SMALL)
    own, deltas = case.run(reference_attention_deltas, first_delta_row=2)
    assert list(deltas.shape) == [0, 1, 6, 32]
    torch.testing.assert_close(reference_attention(*case.arguments), own)


NAMES = ("q", "k", "v", "ref_k", "ref_v", "ref_of_row", "step")


def _shifted(tensor: Tensor) -> Tensor:
    """The same values one element further in memory."""
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return moved.copy_(tensor)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda t: t.double(), "q is float64, expected float16, bfloat16 or float32"),
        ("k", lambda t: t.half(), "k is float16 but q is float32, expected one type"),
        ("ref_v", lambda t: t.half(), "ref_v is float16 but q is float32"),
        ("v", lambda t: t.to("meta"), "v is on meta but q on cpu, expected one device"),
        ("ref_of_row", lambda t: t.to("meta"), "ref_of_row is on meta, expected cpu"),
        ("ref_of_row", lambda t: t.long(), "ref_of_row is int64, expected int32"),
        ("step", lambda t: t.float(), "step is float32, expected int32"),
        ("q", lambda t: t[0], "q has shape .*, expected \\[B, H, N, D\\]"),
        ("k", lambda t: t[:, :, :3], "k has shape .*, expected that of q"),
        ("ref_k", lambda t: t[0], "expected both \\[T, R, 2, M, 16\\]"),
        ("ref_k", lambda t: t[:, :, :1], "expected both \\[T, R, 2, M, 16\\]"),
        ("ref_v", lambda t: t[:, :2], "ref_k has shape .* and ref_v"),
        ("ref_of_row", lambda t: t[:1], "ref_of_row has shape \\[1, 2\\], expected \\[3, S\\]"),
        ("ref_of_row", lambda t: t[:, :0], "at least one slot"),
        ("step", lambda t: t[0], "step has shape \\[\\], expected \\[1\\]"),
        ("q", lambda t: t.transpose(2, 3).contiguous().transpose(2, 3), "q.contiguous\\(\\)"),
        ("k", lambda t: t[:1].expand(3, -1, -1, -1), "share memory; use k.contiguous"),
        ("v", _shifted, "v starts at .* expected multiples of 16 bytes; use v.clone"),
        ("ref_k", lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "ref_k.contiguous"),
        ("step", lambda t: t + 9, "step is 10, expected 0 to 1: the table has 2 entries"),
        ("step", lambda t: t - 2, "step is -1, expected 0 to 1"),
        ("ref_of_row", lambda t: t + 2, "names reference 4 in row 1, expected -1 .* 0 to 3"),
        ("ref_of_row", lambda t: t - 1, "names reference -2 in row 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    make_case: Any, name: str, change: Any, message: str
) -> None:
    arguments = list(make_case(REFS, **SMALL).arguments)
    place = NAMES.index(name)
    arguments[place] = change(arguments[place])
    with pytest.raises(ParameterError, match=message):
        reference_attention(*arguments)
    with pytest.raises(ParameterError, match=message):
        reference_attention_deltas(*arguments, first_delta_row=1)


@pytest.mark.parametrize("head_dim", [8, 20, 136])
def test_head_dims_out_of_reach_are_refused(make_case: Any, head_dim: int) -> None:
    case = make_case([[0]], head_dim=head_dim, tokens=2, ref_tokens=2)
    with pytest.raises(ParameterError, match=f"head dim is {head_dim}, the kernel takes 16 to 128"):
        reference_attention(*case.arguments)


def test_a_row_outside_the_batch_is_refused(make_case: Any) -> None:
    case = make_case(REFS, **SMALL)
    with pytest.raises(ParameterError, match="first_delta_row is 4, expected 0 to 3"):
        case.run(reference_attention_deltas, first_delta_row=4)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t[0], "projected has shape"),
        (1, lambda t: t[:1], "change has shape .*, expected \\[2, 2, 6, 8\\]"),
        (1, lambda t: t.half(), "change is float16 but projected is float32"),
        (0, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "projected.contiguous"),
        (2, lambda t: t.long(), "ref_of_row is int64"),
    ],
)
def test_bad_arguments_of_the_merge_are_refused(place: int, change: Any, message: str) -> None:
    arguments = list(_merge_arguments())
    arguments[place] = change(arguments[place])
    with pytest.raises(ParameterError, match=message):
        reference_merge(*arguments, first_delta_row=1, merge="argmax")


def test_concat_is_no_merge_of_changes() -> None:
    with pytest.raises(ParameterError, match="expected argmax, softmax or mean"):
        reference_merge(*_merge_arguments(), first_delta_row=1, merge="concat")


def test_inputs_that_the_copy_engine_cannot_read_take_plain_loads() -> None:
    tile = Tile(64, 64, 4, 2, 128, uses_tma=True)
    wide = torch.zeros(2, 3, 4, 16, dtype=torch.float16)
    assert with_usable_loads(tile, wide) == tile
    plain = Tile(64, 64, 4, 2)
    for other in (
        wide.float(),
        wide[:0],
        wide[..., 1:9],  # an address that is no multiple of 16 bytes
        wide.transpose(2, 3),
        torch.zeros(2, 3, 4, 12, dtype=torch.float16),
        wide[:1].expand(2, -1, -1, -1),
    ):
        assert with_usable_loads(tile, wide, other) == plain
    assert with_usable_loads(plain, wide) == plain
