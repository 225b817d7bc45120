"""Reading ahead: what comes is what was asked for, whoever read it when."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bootpig_rt.errors import InputError
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.read_ahead import ReadAhead, each_ahead


def part(step: int) -> tuple[Tensor, Draws]:
    return torch.tensor([step, step + 1]), Draws(0, step, [0, 1])


def parts(first: int) -> Iterator[tuple[Tensor, Draws]]:
    return (part(step) for step in range(first, 10**9))


def read(indices: Tensor, draws: Draws) -> list[float]:
    return [*indices.tolist(), *draws.uniform().tolist()]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_same_read_ahead_or_not_and_in_whatever_order(threads: int) -> None:
    plain = [read(indices, draws.of_reading()) for indices, draws in map(part, range(6))]
    ahead = ReadAhead(read, threads)
    found = []
    for step in range(6):
        ahead.expect(parts(step))
        found.append(ahead.get(*part(step)))
    assert found == plain
    assert [ReadAhead(read, threads).get(*part(step)) for step in (5, 2)] == [plain[5], plain[2]]


def test_as_many_batches_as_threads_are_read_ahead_each_once() -> None:
    asked: list[int] = []
    both = threading.Barrier(2, timeout=20)

    def slow(indices: Tensor, draws: Draws) -> int:
        both.wait()  # two are read at once, or this fails
        asked.append(int(indices[0]))
        return int(indices[0])

    ahead = ReadAhead(slow, 2)
    for _ in range(3):
        ahead.expect(parts(4))
    assert [ahead.get(*part(step)) for step in (4, 5)] == [4, 5]
    assert sorted(asked) == [4, 5]


def test_an_error_comes_with_the_batch_that_it_belongs_to() -> None:
    def fails(indices: Tensor, draws: Draws) -> int:
        if int(indices[0]) == 1:
            raise InputError("the shard was cut")
        return int(indices[0])

    ahead = ReadAhead(fails, 3)
    ahead.expect(parts(0))
    assert ahead.get(*part(0)) == 0
    with pytest.raises(InputError, match="the shard was cut"):
        ahead.get(*part(1))
    assert ahead.get(*part(2)) == 2


def test_items_come_in_order_and_only_a_few_are_taken_before_they_are_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    found = each_ahead(lambda item: item * 2, items(), 2)
    assert [next(found) for _ in range(3)] == [0, 2, 4]
    assert len(taken) < 12
    assert list(found) == [2 * item for item in range(3, 100)]
