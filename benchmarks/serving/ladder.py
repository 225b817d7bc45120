"""Finds the rate at which a server does the most, by offering more and more."""

from __future__ import annotations

from collections.abc import Callable

from bootpig_rt.benchmarks.serving.load import Point

FACTOR = 1.3
"""From one rate to the next."""
_BETTER = 1.03
_AT_MOST = 24


def climb(
    measure: Callable[[float], Point], start_per_s: float, *, most: int = _AT_MOST
) -> list[tuple[float, Point]]:
    """Offer rates that grow by `FACTOR`, until two in a row do no better than the best so far.

    Args:
        measure: Offers a rate, in requests a second.
        start_per_s: The first, well below what it can do.
        most: Rates that are tried.

    Returns:
        Rates with what came of them, in order; see `best`.
    """
    found: list[tuple[float, Point]] = []
    peak, worse = 0.0, 0
    for step in range(most):
        rate = start_per_s * FACTOR**step
        point = measure(rate)
        found.append((rate, point))
        worse = 0 if point.goodput_per_s > _BETTER * peak else worse + 1
        peak = max(peak, point.goodput_per_s)
        if worse == 2:
            break
    return found


def best(points: list[tuple[float, Point]]) -> tuple[float, Point]:
    """The rate with the most goodput, and what came of it."""
    return max(points, key=lambda each: each[1].goodput_per_s)
