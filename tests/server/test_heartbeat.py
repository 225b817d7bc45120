"""Whether an engine still does what it was asked, by what is heard of it."""

from __future__ import annotations

import pytest

from bootpig_rt.backends.cuda.faults import lasting_fault
from bootpig_rt.errors import EngineError, OutOfDeviceMemory
from bootpig_rt.server.heartbeat import Heartbeat


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.monotonic", found)
    return found


def test_an_engine_with_nothing_to_do_may_be_silent(clock: Clock) -> None:
    heart = Heartbeat(10.0)
    clock.now += 100.0
    assert heart.fault() is None
    heart.begins()
    clock.now += 9.0
    heart.ends()
    clock.now += 100.0
    assert heart.fault() is None


def test_one_that_is_silent_amid_its_work_hangs_for_good(clock: Clock) -> None:
    heart = Heartbeat(10.0)
    heart.begins()
    heart.begins()
    for _ in range(5):
        clock.now += 9.0
        heart.beats()
    assert heart.fault() is None
    clock.now += 11.0
    assert heart.fault() == "a launch has not ended for 11 s"
    heart.ends()
    heart.ends()
    assert heart.fault() == "a launch has not ended for 11 s"


def test_only_an_error_that_breaks_the_device_for_the_process_is_a_fault(clock: Clock) -> None:
    heart = Heartbeat(10.0)
    for error in (ValueError("illegal seed"), OutOfDeviceMemory("drawing"), None):
        heart.begins()
        heart.ends(error)
    assert heart.fault() is None
    heart.begins()
    heart.ends(_chain("CUDA error: an illegal memory access was encountered"))
    assert heart.fault() == "the device failed: illegal memory access"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA failure 719: unspecified launch failure ; GPU=0",
        "[executeV2] Cuda Runtime (misaligned address)",
        "cudaErrorIllegalAddress",
        "CUDA_ERROR_LAUNCH_FAILED",
        "GPU is lost. Reboot the system",
    ],
)
def test_what_drivers_and_runtimes_say_is_known(text: str) -> None:
    assert lasting_fault(RuntimeError(text)) is not None
    assert lasting_fault(_chain(text)) is not None


@pytest.mark.parametrize("text", ["CUDA out of memory", "an illegal argument", ""])
def test_other_errors_are_none(text: str) -> None:
    assert lasting_fault(_chain(text)) is None
    assert lasting_fault(None) is None


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert lasting_fault(first) is None


def _chain(text: str) -> BaseException:
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise EngineError("failed while drawing") from error
    except EngineError as error:
        return error
