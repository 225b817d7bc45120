"""Fused or eager: who decides, and what is logged."""

from __future__ import annotations

import logging

import pytest
import torch

from bootpig_rt.errors import BackendUnavailable, ParameterError
from bootpig_rt.kernels import choose, launch, toolchain

Q = torch.zeros(1, 2, 4, 16)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose._report.cache_clear()
    choose._obstacle.cache_clear()


def test_a_cpu_runs_the_eager_path_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bootpig_rt"):
        assert [choose.is_fused(Q) for _ in range(3)] == [False] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "reference self-attention: eager torch (the device is cpu, not cuda)"
    ]


def test_eager_can_be_forced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(choose.VARIABLE, "eager")
    with caplog.at_level(logging.INFO, logger="bootpig_rt"):
        assert not choose.is_fused(Q)
    assert "BOOTPIG_RT_ATTENTION says so" in caplog.text


def test_fused_is_never_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "fused")
    with pytest.raises(BackendUnavailable, match="is fused, but the device is cpu, not cuda"):
        choose.is_fused(Q)
    with pytest.raises(BackendUnavailable, match="head dim 8 is not 16 to 128 in steps of 8"):
        choose.is_fused(torch.zeros(1, 2, 4, 8))
    with pytest.raises(BackendUnavailable, match="do not compute in float64"):
        choose.is_fused(Q.double())


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "fast")
    with pytest.raises(ParameterError, match="is 'fast', expected auto, fused, eager"):
        choose.is_fused(Q)


@pytest.mark.parametrize(
    ("version", "message"), [(None, "Triton is not installed"), ((3, 2), "Triton is 3.2, .* 3.3")]
)
def test_a_missing_or_old_triton_is_named(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, message: str
) -> None:
    monkeypatch.setattr(toolchain, "triton_version", lambda: version)
    with pytest.raises(BackendUnavailable, match=message):
        toolchain.require_triton()


def test_blocks_are_fused_on_the_architectures_that_kernels_are_checked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(toolchain, "triton_version", lambda: (3, 5))
    x = torch.zeros(1, 4, 8, dtype=torch.float16)
    for number, expected in ((90, True), (75, False)):
        choose._has_kernels.cache_clear()
        monkeypatch.setattr(launch, "architecture_of", lambda device, number=number: number)
        with torch.inference_mode():
            assert choose.fuses_blocks(x) is expected
    choose._has_kernels.cache_clear()
