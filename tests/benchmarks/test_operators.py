"""Shares of a step by operator, and the floor beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.benchmarks.operators import OperatorTime, of_counters, of_profile, profiled
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import shares
from bootpig_rt.benchmarks.way import Journal

pytestmark = pytest.mark.filterwarnings("default")


def node(op: str, us: int, suffix: str = "_kernel_time") -> dict[str, object]:
    return {"cat": "Node", "name": f"n{suffix}", "dur": us, "args": {"op_name": op}}


def test_a_profile_is_summed_by_operator_and_shared_by_steps() -> None:
    events = [
        node("Conv", 2000), node("Conv", 4000), node("Add", 1000),
        node("Conv", 9000, "_fence_before"),
        {"cat": "Session", "name": "model_run", "dur": 9999},
    ]  # fmt: skip
    assert of_profile(events, 2) == [OperatorTime("Conv", 3.0, 1.0), OperatorTime("Add", 0.5, 0.5)]


@dataclass
class Counter:
    node_type: str
    real_time: timedelta


def test_counters_leave_out_what_was_fused_away() -> None:
    ms = timedelta(milliseconds=1)
    found = of_counters([Counter("MatMul", ms), Counter("MatMul", 2 * ms), Counter("Add", 0 * ms)])
    (one,) = found
    assert (one.kind, one.calls) == ("MatMul", 2)
    assert one.ms == pytest.approx(3.0)


def test_the_shares_of_a_step_add_up_and_stand_beside_its_floor(
    tiny_bundle_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(
        tiny_bundle_folder, rounds=1, threads=1, is_smoke=True, only=("onnxruntime",), work=tmp_path
    )
    result = shares.run(settings, Journal())
    named = [row for row in result.rows if "share" in row.values]
    assert sum(row.values["share"] or 0 for row in named) == pytest.approx(1)
    assert result.row("floor float32").values["gflop"]
    step = result.row("onnxruntime")
    assert not step.status
    # Three rows need more time than their products alone do.
    assert (step.values["times_floor"] or 0) > 1


def test_openvinos_counters_are_those_of_a_step_and_not_of_a_longer_pass(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    ops = ov.opset13

    def run(output: str, operation: Callable[[Any], Any]) -> None:
        given = ops.parameter([256, 256], np.float32, name="given")
        node = operation(given)
        node.output(0).set_names({output})
        compiled = ov.Core().compile_model(ov.Model([node], [given], output), "CPU")
        compiled.create_infer_request().infer({0: np.ones((256, 256), np.float32)})

    with profiled("openvino", tmp_path) as read:
        run("next_state", ops.sigmoid)
        run(
            "keys",
            lambda given: ops.matmul(ops.matmul(given, given, False, False), given, False, False),
        )
        found = read(1)
    assert found
    assert "MatMul" not in {each.kind for each in found}
