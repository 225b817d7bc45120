"""What is recorded reads no value on the host: run where there are no values, on meta tensors.

A read, such as `.item()` or a branch on a tensor, is an error there, as it is in a recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bootpig_rt.backends.torch.backend import TorchBackend
from bootpig_rt.backends.torch.steps import StepProgram, StepTensors, take_step
from bootpig_rt.backends.torch.tables import TableBuilder, TableReader
from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.kernels import choose
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.rows import plan_rows

pytestmark = pytest.mark.slow


class NothingFromTheHost(TorchDispatchMode):
    """Refuses tensors of the host, which a recording could only copy by waiting."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        there = [one.device.type for one in given if isinstance(one, torch.Tensor)]
        assert "cpu" not in there, func
        return func(*args, **(kwargs or {}))


PICTURES, STEPS, ENTRIES = 2, 5, 3
REFS = [[-1, -1], [0, -1], [0, -1], [-1, -1], [0, 1], [0, 1]]
PICTURE_OF_ROW = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def backend(tiny_pair_folder: Path) -> TorchBackend:
    """A pair without values, in float16, with an autoencoder in float32."""
    pair = load_pair(tiny_pair_folder, dtype=torch.float16, upcasts_vae=True)
    modules: Any = (pair.base, pair.reference, pair.vae, pair.text_encoder)
    for module in modules:
        torch.nn.Module.to(module, "meta")
    return TorchBackend(pair, "cpu")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def tensors(history: int, text_widths: tuple[int, ...]) -> StepTensors:
    return StepTensors(
        state=empty(1 + history, PICTURES, 4, 8, 8),
        estimate=empty(PICTURES, 4, 8, 8),
        step=empty(1, dtype=torch.int64),
        text=empty(6, 24, 2 * sum(text_widths), dtype=torch.float16),
        added=empty(6, 0, dtype=torch.float16),
        image_scale=empty(PICTURES),
        text_scale=empty(PICTURES),
        timesteps=empty(STEPS, PICTURES, dtype=torch.int64),
        matrices=empty(STEPS, PICTURES, 1 + history, 2 + history),
        x0=empty(STEPS, PICTURES, 2),
        clip_weight=empty(STEPS, PICTURES),
        clip_range=empty(1),
        canvas=empty(3, PICTURES, 4, 8, 8),
        canvas_weights=empty(STEPS, PICTURES, 2),
        mask=empty(PICTURES, 1, 8, 8),
        entries=empty(STEPS, dtype=torch.int32),
        rows_of_picture=empty(3, PICTURES, dtype=torch.int64),
        picture_of_row=empty(6, dtype=torch.int64),
        pair_of_row=empty(6, dtype=torch.int64),
        picture_of_pair=empty(4, dtype=torch.int64),
        refs=empty(6, 2, dtype=torch.int32),
        refs_of_pair=empty(4, 2, dtype=torch.int32),
        features=empty(0, dtype=torch.float16),
    )


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("merge", get_args(Merge))
@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_step(
    backend: TorchBackend,
    monkeypatch: pytest.MonkeyPatch,
    merge: Merge,
    has_table: bool,
    is_fused: bool,
    is_recorded: bool,
) -> None:
    asked: list[int] = []

    def decide(*_: Any) -> bool:
        asked.append(1)
        return is_fused

    monkeypatch.setattr(choose, "_decide", decide)
    monkeypatch.setattr("bootpig_rt.kernels.checks.MIN_HEAD_DIM", 8)  # the tiny pair's
    plan: Any = plan_rows(
        torch.tensor(REFS if has_table else [[-1]] * 6),
        2,
        torch.tensor(PICTURE_OF_ROW),
        device="meta",
    )
    if is_recorded:  # what rows read is data
        plan = (((1, 2), (2, 4)), ((1, 2), (2, 2))) if has_table else (((0, 6),), ((0, 4),))
    widths = backend.pair.base.text_widths()
    program = StepProgram(backend.pair.base, widths, torch.float16, merge, plan)
    table = tuple(
        (
            empty(ENTRIES, 2, heads, tokens, width, dtype=torch.float16),
            empty(ENTRIES, 2, heads, tokens, width, dtype=torch.float16),
        )
        for heads, tokens, width in backend.spec.reference_shapes
    )
    with torch.inference_mode(), NothingFromTheHost():
        take_step(program, tensors(2, widths), table if has_table else None)
    assert bool(asked) == has_table


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8", "int8"])
def test_a_reference_pass_and_what_steps_read_of_its_table(
    backend: TorchBackend, dtype: Any
) -> None:
    builder = TableBuilder(2, 2, dtype)
    with torch.inference_mode(), NothingFromTheHost():
        parts = backend._run_reference(
            empty(4, 4, 8, 8), empty(4, dtype=torch.int64), empty(4, 24, 16, dtype=torch.float16)
        )
        builder.put(slice(0, 4), tuple(zip(parts[::2], parts[1::2], strict=True)))
        shaped = [[one.view(2, 2, *one.shape[1:]) for one in kept] for kept in builder._parts]
    assert {one[0].shape[:2] for one in shaped} == {(2, 2)}


def test_text_and_pictures(backend: TorchBackend) -> None:
    with torch.inference_mode(), NothingFromTheHost():
        (states,) = backend._run_text(empty(2, 24, dtype=torch.int64))
        (latents,) = backend._run_encoder(empty(2, 3, 32, 40))
        (pixels,) = backend._run_decoder(empty(2, 4, 8, 10))
    assert (states.dtype, latents.dtype, pixels.dtype) == (
        torch.float16,
        torch.float32,
        torch.float32,
    )
    assert pixels.shape == (2, 3, 32, 40)


def test_reading_a_value_would_be_seen() -> None:
    with pytest.raises(RuntimeError):
        int(empty(1))
    with NothingFromTheHost(), pytest.raises(AssertionError):
        empty(2).copy_(torch.zeros(2))
    assert TableReader((), torch.zeros(0, 3).numpy(), "cpu").read(0) is None
