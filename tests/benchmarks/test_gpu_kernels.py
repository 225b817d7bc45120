"""Attention on a GPU's benchmark: shapes, arithmetic, ways, times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bootpig_rt.benchmarks.gpu.attention_inputs import (
    LARGEST_ERROR,
    Attended,
    AttentionInputs,
    Call,
    error_of,
    make_inputs,
    oracle,
)
from bootpig_rt.benchmarks.gpu.attention_ways import AttentionWay, attention_ways
from bootpig_rt.benchmarks.gpu.kernel_suite import measure_case
from bootpig_rt.benchmarks.gpu.merge_suite import run_merges
from bootpig_rt.benchmarks.gpu.plan import Plan, make_plan
from bootpig_rt.benchmarks.gpu.shapes import (
    KernelCase,
    Level,
    sd21_cases,
    sd21_levels,
    toy_cases,
)
from bootpig_rt.benchmarks.gpu.timer import Prepared, rotations, time_in_turn
from bootpig_rt.errors import BackendUnavailable, ParameterError

WAYS = {way.name: way for way in attention_ways()}
HERE = [name for name, way in WAYS.items() if way.why_not("cpu") is None]


@pytest.fixture
def plan() -> Plan:
    return make_plan(rehearse=True)


def test_shapes_are_those_of_stable_diffusion() -> None:
    assert [(level.tokens, level.heads) for level in sd21_levels(512)] == [
        (4096, 5),
        (1024, 10),
        (256, 20),
        (64, 20),
    ]
    assert [level.tokens for level in sd21_levels(768)] == [9216, 2304, 576, 144]
    assert sum(level.layers for level in sd21_levels(512)) == 16


def test_cases_have_one_to_four_references_and_three_to_twelve_rows() -> None:
    cases = sd21_cases()
    assert len({case.name for case in cases}) == len(cases)
    for size_px in (512, 768):
        of_size = [case for case in cases if case.size_px == size_px]
        assert {case.references for case in of_size} == {1, 2, 3, 4}
        assert {case.rows for case in of_size} >= {3, 6, 12}


def test_operations_are_counted_as_torch_counts_them() -> None:
    case = KernelCase(64, Level(32, 2, 16, 5), 3, plain_rows=1, guided_rows=2)
    inputs = make_inputs(case, "cpu", torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.einsum("bhnd,bhmd->bhnm", inputs.q, inputs.k)
        for index in range(3):
            torch.einsum("bhnd,bhmd->bhnm", inputs.q[1:], inputs.reference(index)[0])
    assert case.flops == 2 * counter.get_total_flops()  # scores, and as much for the values


def test_one_step_takes_the_operations_that_arithmetic_says() -> None:
    total = sum(KernelCase(512, level, 1).flops * level.layers for level in sd21_levels(512))
    assert total == pytest.approx(612.5e9, rel=1e-3)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("references", [1, 3])
def test_every_way_that_runs_here_computes_what_the_oracle_does(name: str, references: int) -> None:
    case = KernelCase(64, Level(24, 2, 16, 5), references, plain_rows=2, guided_rows=4)
    inputs = make_inputs(case, "cpu", torch.float32)
    with torch.no_grad():
        found = WAYS[name].prepare(inputs)()
    assert error_of(found, oracle(inputs)) < LARGEST_ERROR[torch.float32]


@pytest.mark.parametrize("name", ["concat_sdpa", "published", "lse_merge_flash", "fused"])
def test_a_call_gives_the_same_when_it_is_made_again(name: str) -> None:
    inputs = make_inputs(toy_cases()[0], "cpu", torch.float32)
    with torch.no_grad():
        call = WAYS[name].prepare(inputs)
        first, second = call(), call()
    assert torch.equal(torch.cat(first.pieces), torch.cat(second.pieces))


def test_the_stock_baselines_of_the_issue_are_all_there() -> None:
    words = " ".join(WAYS)
    for wanted in ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "concat", "lse_merge", "xformers"):
        assert wanted in words
    assert {"concat_flex", "concat_fa3", "published", "fused"} <= set(WAYS)
    for name in set(WAYS) - set(HERE):
        assert WAYS[name].why_not("cpu")


def test_the_comparison_sees_a_way_that_ignores_the_reference() -> None:
    inputs = make_inputs(toy_cases()[0], "cpu", torch.float32)
    with torch.no_grad():
        blind = WAYS["fused"].prepare(
            replace(inputs, ref_of_row=torch.full_like(inputs.ref_of_row, -1))
        )()
    assert error_of(blind, oracle(inputs)) > 0.1


def test_the_comparison_never_takes_nan_for_right() -> None:
    expected = Attended((torch.ones(1, 2, 4),), torch.ones(1, 2, 2, 4))
    nan = torch.full((1, 2, 4), float("nan"))
    for found in (
        Attended((nan,), torch.ones(1, 2, 2, 4)),
        Attended((torch.ones(1, 2, 4),), torch.full((1, 2, 2, 4), float("nan"))),
        Attended((torch.ones(1, 2, 4),)),
    ):
        assert not error_of(found, expected) <= 1.0


def _way(name: str, call: Call) -> AttentionWay:
    return AttentionWay(name, name, "composition", lambda inputs: call, lambda device: None)


def test_a_way_that_fails_is_wrong_or_has_no_memory_is_a_row_and_not_the_end(plan: Plan) -> None:
    case = toy_cases()[0]
    shape = (case.rows, case.level.tokens, case.level.heads * case.level.head_dim)

    def fails() -> Attended:
        raise RuntimeError("no kernel image is available")

    def has_no_memory() -> Attended:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    def is_wrong() -> Attended:
        return Attended((torch.zeros(shape),))

    ways = [
        _way("fails", fails),
        _way("big", has_no_memory),
        _way("wrong", is_wrong),
        WAYS["concat_sdpa_cudnn"],
        WAYS["concat_sdpa"],
    ]
    rows = {row.way: row for row in measure_case(plan, case, 1.0, ways)}
    assert rows["fails"].status == "failed"
    assert "no kernel image" in rows["fails"].reason
    assert rows["big"].status == "out of memory"
    assert rows["wrong"].status == "wrong"
    assert rows["wrong"].ms is None
    assert rows["concat_sdpa_cudnn"].status == "not available"
    assert rows["concat_sdpa"].status == "ok"
    assert len(rows["concat_sdpa"].samples_ms) == plan.kernel_rounds
    assert rows["concat_sdpa"].values["tflops"] > 0


def test_ways_that_compile_run_on_key_shapes_alone(plan: Plan) -> None:
    def build(inputs: AttentionInputs) -> Call:
        raise AssertionError("it was compiled")

    slow = AttentionWay("slow", "slow", "composition", build, lambda device: None, compiles=True)
    case = replace(toy_cases()[0], is_key=False)
    (row,) = measure_case(plan, case, None, [slow])
    assert row.status == "skipped"


def test_the_merge_is_measured_for_several_references(plan: Plan) -> None:
    rows = run_merges(plan)
    assert {row.way for row in rows} == {"fused", "eager"}
    assert all(row.status == "ok" and row.ms is not None for row in rows)


def test_ways_are_timed_in_turn_and_warm_up_rounds_are_dropped() -> None:
    order: list[str] = []
    prepared = {
        name: Prepared([lambda name=name: order.append(name)], "cpu")  # type: ignore[misc]
        for name in "ab"
    }
    order.clear()
    timed = time_in_turn(prepared, 4, warmups=2)
    assert len(order) == 12
    assert all(set(order[at : at + 2]) == {"a", "b"} for at in range(0, 12, 2))
    assert all(len(each.samples_ms) == 4 for each in timed.values())


def test_inputs_in_turn_outgrow_the_cache_of_a_gpu() -> None:
    assert rotations(8 * 2**20, "cuda") == 16
    assert rotations(100 * 2**20, "cuda") == 2
    assert rotations(1, "cuda") == 16


def test_a_plan_needs_a_gpu_or_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="--rehearse"):
        make_plan(rehearse=False)


@pytest.mark.parametrize(("parts", "minutes"), [(("kernels",), 9.0), ((), 9.0), (("kernel",), 0.0)])
def test_a_plan_refuses_what_it_does_not_know(parts: tuple[str, ...], minutes: float) -> None:
    with pytest.raises(ParameterError, match="expected"):
        make_plan(rehearse=True, parts=parts, minutes=minutes)
