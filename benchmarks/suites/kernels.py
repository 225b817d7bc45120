"""Suite `kernels`: reference attention by itself, and what the compiled kernels need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from bootpig_rt.benchmarks.onnx_attention import attention_rows
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, choose, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.kernels import eager
from bootpig_rt.kernels.ops import (
    reference_attention,
    reference_attention_deltas,
    reference_merge,
)

NAME = "kernels"
HELP = "reference attention beside the oracle, the published code, and in ONNX Runtime; resources"

_SHAPES = ((256, 2, 32), (64, 4, 32), (1024, 5, 64))
"""Tokens, heads and head dim of a row: two of a small pair, one of SD 2.1 at 256 px."""

_MERGES = ("argmax", "softmax", "mean", "concat")
_MERGED = 2
"""References of the rows with merges."""

_LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the relative error to the oracle, by norm: several times what rounding alone gives."""

_ARGMAX_LIMIT = 0.05
"""In less than float32 a token whose two changes are equally large may follow the other one."""

_TARGETS = (80, 90)
_HEAD_DIMS = (40, 64, 80, 128)
_CHANNELS = (320, 640, 1280)
_REPEATS = 20


def run(settings: Settings) -> SuiteResult:
    """Compare the ways with the oracle, time them, then compile the kernels.

    Raises:
        ParameterError: `--only` matches no row.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = [torch.float32] if device == "cpu" else list(_LIMITS)
    rows: list[Row] = []
    checks: list[Check] = []
    names: list[str] = []
    with torch_threads(settings.threads), torch.inference_mode():
        for shape in _SHAPES[: 1 if settings.is_smoke else None]:
            for dtype in dtypes:
                for references in (1, _MERGED):
                    inputs = Inputs(*shape, references=references, device=device, dtype=dtype)
                    name = f"{shape[0]} tokens"
                    name += "" if references == 1 else f", {references} references"
                    name += "" if device == "cpu" else f", {str(dtype).removeprefix('torch.')}"
                    ways = list(_ways(name, inputs))
                    names += [way.name for way in ways]
                    chosen = choose(ways, settings)
                    if chosen:
                        checks += _checks(name, inputs)
                    rows += time_ways(
                        chosen, settings.rounds, baseline=ways[0].name, progress=settings.progress
                    )
        if device == "cpu":
            more, more_checks, more_names = attention_rows(settings)
            rows, checks, names = rows + more, checks + more_checks, names + more_names
    resources = [f"sm_{architecture}" for architecture in _TARGETS]
    settings.check_only([*names, *resources])
    rows += _resources(settings)
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={"device": device, "rows": 3, "rounds": settings.rounds},
        checks=tuple(checks),
    )


class Inputs:
    """Three rows, uncond, image and text_image, and R references in a table of one entry.

    The output projection is part of every way: the merges compare changes after it.
    """

    def __init__(
        self,
        tokens: int,
        heads: int,
        size: int,
        *,
        references: int,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        width = heads * size
        self.references = references
        self.q, self.k, self.v = (random(3, heads, tokens, size) for _ in range(3))
        self.ref_k, self.ref_v = (random(1, references, heads, tokens, size) for _ in range(2))
        self.weight = random(width, width) / width**0.5
        self.bias = random(width)
        read = list(range(references))
        self.ref_of_row = torch.tensor(
            [[-1] * references, read, read], dtype=torch.int32, device=device
        )
        self.step = torch.zeros(1, dtype=torch.int32, device=device)

    def oracle(self, merge: str = "argmax") -> Tensor:
        """The arithmetic in its plainest form, row by row."""
        return eager.reference_attention(
            self.q, self.k, self.v, ref_k=self.ref_k[0], ref_v=self.ref_v[0],
            ref_of_row=self.ref_of_row, out_weight=self.weight, out_bias=self.bias, merge=merge,
        )  # fmt: skip

    def ours(self, merge: str = "argmax") -> Tensor:
        """The operators: fused on CUDA, their eager twins on a CPU."""
        table = self.q, self.k, self.v, self.ref_k, self.ref_v, self.ref_of_row, self.step
        if self.references == 1 or merge == "concat":
            attended = reference_attention(*table, checks_indices=False)
            return linear(attended, self.weight, self.bias)
        attended, deltas = reference_attention_deltas(
            *table, first_delta_row=1, checks_indices=False
        )
        projected = linear(attended, self.weight, self.bias)
        change = linear(deltas, self.weight)
        return reference_merge(projected, change, self.ref_of_row, first_delta_row=1, merge=merge)

    def concat(self) -> Tensor:
        """Stock attention over keys and values of all references joined, the uncond row apart."""
        attended = torch.cat([self._attend(slice(0, 1)), self._attend(slice(1, 3), *range(
            self.references
        ))])  # fmt: skip
        return linear(attended, self.weight, self.bias)

    def published(self) -> Tensor:
        """All rows without a reference, guided ones again with each; the largest change wins."""
        plain = linear(self._attend(slice(0, 3)), self.weight, self.bias)
        seen = [
            linear(self._attend(slice(1, 3), index), self.weight, self.bias)
            for index in range(self.references)
        ]
        change = torch.stack([each - plain[1:] for each in seen])
        best = change.norm(dim=-1).argmax(dim=0)[None, ..., None]
        best = best.expand(-1, -1, -1, change.shape[-1])
        return torch.cat([plain[:1], plain[1:] + change.gather(0, best)[0]])

    def _attend(self, rows: slice, *references: int) -> Tensor:
        """Own tokens and those of some references: [B, N, H * D]."""
        keys, values = (
            torch.cat(
                [own[rows], *(table[0, each].expand(2, -1, -1, -1) for each in references)], dim=2
            )
            if references
            else own[rows]
            for own, table in ((self.k, self.ref_k), (self.v, self.ref_v))
        )
        attended = scaled_dot_product_attention(self.q[rows], keys, values)
        return attended.transpose(1, 2).flatten(-2)


def _cases(name: str, inputs: Inputs) -> Iterator[tuple[str, str, Callable[[], Tensor], str]]:
    """Name, label, function, and the merge that it computes. The published way is first."""
    yield f"{name} published", "attention twice, as published", inputs.published, "argmax"
    yield f"{name} concat", "joined keys, stock attention", inputs.concat, "concat"
    # On a CPU the torch backend attends by `bootpig_rt.models.attention`, not by these twins.
    ours = "our kernels" if inputs.q.is_cuda else "our kernels' eager twins"
    if inputs.references == 1:
        yield f"{name} ours", ours, inputs.ours, "argmax"
        yield f"{name} oracle", "oracle", inputs.oracle, "argmax"
        return
    for merge in _MERGES:
        yield f"{name} ours {merge}", f"{ours}, {merge}", partial(inputs.ours, merge), merge
    for merge in _MERGES:
        yield f"{name} oracle {merge}", f"oracle, {merge}", partial(inputs.oracle, merge), merge


def _checks(name: str, inputs: Inputs) -> Iterator[Check]:
    """Relative error of each way against the oracle of its merge, by norm."""
    dtype = inputs.q.dtype
    for way, _, function, merge in _cases(name, inputs):
        if " oracle" in way.removeprefix(name):
            continue
        expected = inputs.oracle(merge)
        error = (function().to(expected.dtype) - expected).norm() / expected.norm()
        is_choice = merge == "argmax" and inputs.references > 1 and dtype != torch.float32
        limit = _ARGMAX_LIMIT if is_choice else _LIMITS[dtype]
        yield Check(f"{way}, oracle", float(error), limit)


def _ways(name: str, inputs: Inputs) -> Iterator[Way]:
    def repeated(function: Callable[[], Tensor]) -> None:
        for _ in range(_REPEATS):
            function()
        if inputs.q.is_cuda:
            torch.cuda.synchronize()

    for way, label, function, _ in _cases(name, inputs):
        group = f"{name}, three rows, with the output projection"
        yield Way(way, label, partial(repeated, function), _REPEATS, group=group)


def _resources(settings: Settings) -> Iterator[Row]:
    """The kernels compiled for GPUs that need not be here, as in `kernels/resources.md`."""
    from bootpig_rt.kernels.compile import compile_one, variants_of

    group = "compiled, no GPU needed"
    for architecture in _TARGETS:
        variants = variants_of(
            architecture, dtypes=["float16"], head_dims=list(_HEAD_DIMS), channels=list(_CHANNELS)
        )
        if settings.is_smoke:
            variants = variants[:1]
        variants = [
            each for each in variants if settings.is_wanted(f"sm_{architecture}/{each.name}")
        ]
        for done, variant in enumerate(variants):
            settings.progress(f"compiling for sm_{architecture}", done, len(variants))
            name = f"sm_{architecture}/{variant.name}"
            try:
                needs = compile_one(variant).resources
            except BackendUnavailable as error:
                name = f"sm_{architecture}"
                yield Row(name, name, group, notes={"status": str(error)})
                break
            values: dict[str, float | None] = {
                "registers": float(needs.registers),
                "stack_bytes": float(needs.stack_bytes),
                "spills": float(needs.spills),
                "shared_bytes": float(needs.shared_bytes),
                "tensor_core_instructions": float(sum(needs.tensor_core.values())),
            }
            yield Row(name, name.replace("/", " "), group, values=values)
