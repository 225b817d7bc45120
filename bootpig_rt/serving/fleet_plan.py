"""How large a fleet must be: the smallest that keeps its latency, and what it needs beside that.

A fleet of thousands is found by a slice of it: with a share of the replicas, the pictures and the
subjects a replica meets what it meets in the whole.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from bootpig_rt.errors import ParameterError
from bootpig_rt.serving.fleet_model import (
    IngressFigures,
    ReplicaFigures,
    Workload,
    hits_anywhere,
    hits_by_subject,
)
from bootpig_rt.serving.fleet_simulation import FleetSimulation, Simulated

_SLICE = 16
_PICTURES, _WARM_UP = 3000, 500
_MOST_REPLICAS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What a load takes.

    Attributes:
        replicas: The fewest that keep the latency.
        at_least: That full batches alone would take: what more there is, latency costs.
        utilisation: Share of the time in which replicas are busy.
        batch: Mean pictures of a step.
        latency_mean_s: Of a picture, from asking to drawn.
        latency_p95_s: Of 95 of 100.
        hit_ratio: Reference tables that are found, requests going by subject.
        hit_ratio_anywhere: If they went to any replica.
        at_least_anywhere: And what full batches would take then.
        tables: That a replica has room for.
        ingress_cores: That requests and their pictures keep busy.
        answers_bytes_per_s: To clients.
    """

    replicas: int
    at_least: int
    utilisation: float
    batch: float
    latency_mean_s: float
    latency_p95_s: float
    hit_ratio: float
    hit_ratio_anywhere: float
    at_least_anywhere: int
    tables: int
    ingress_cores: float
    answers_bytes_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plan_fleet(
    load: Workload, figures: ReplicaFigures, ingress: IngressFigures, *, spill_over: int = 3
) -> FleetPlan:
    """The smallest fleet that keeps the latency of a load.

    Args:
        load: What is asked.
        figures: Of a replica.
        ingress: Of the ingress.
        spill_over: As of the router.

    Raises:
        ParameterError: One picture alone takes longer than the latency, or no fleet keeps it.
    """
    alone_s = load.steps * figures.step_of(1) + figures.picture_s
    if alone_s > load.latency_s:
        raise ParameterError(
            f"a picture alone takes {alone_s:.3g} s, expected at most the latency of "
            f"{load.latency_s:g} s; allow more, or ask for fewer steps"
        )
    at_least = _at_least(load, figures, is_sticky=True)
    anywhere = _at_least(load, figures, is_sticky=False)
    replicas, found = _fewest(load, figures, at_least, spill_over)
    return FleetPlan(
        replicas=replicas,
        at_least=at_least,
        utilisation=found.utilisation,
        batch=found.batch,
        latency_mean_s=found.latency_mean_s,
        latency_p95_s=found.latency_p95_s,
        hit_ratio=found.hit_ratio,
        hit_ratio_anywhere=hits_anywhere(load, figures, anywhere),
        at_least_anywhere=anywhere,
        tables=figures.tables,
        ingress_cores=ingress.cores(load.rate_per_s, replicas),
        answers_bytes_per_s=load.rate_per_s * ingress.answer_bytes,
    )


def simulate(
    load: Workload, figures: ReplicaFigures, replicas: int, *, spill_over: int = 3
) -> Simulated:
    """What a fleet of a size makes of a load, or a slice of it what its share makes."""
    size = min(replicas, _SLICE)
    share = size / replicas
    slice_of = replace(
        load,
        rate_per_s=load.rate_per_s * share,
        subjects=max(1, round(load.subjects * share)),
    )
    simulation = FleetSimulation(slice_of, figures, size, spill_over=spill_over)
    return simulation.run(_PICTURES, _WARM_UP)


def _fewest(
    load: Workload, figures: ReplicaFigures, at_least: int, spill_over: int
) -> tuple[int, Simulated]:
    """By doubling what it has more than the least, then by halves."""
    tried: dict[int, Simulated] = {}

    def keeps(replicas: int) -> bool:
        tried[replicas] = simulate(load, figures, replicas, spill_over=spill_over)
        return tried[replicas].latency_p95_s <= load.latency_s

    high, more = at_least, 1
    while not keeps(high):
        high, more = at_least + more, 2 * more
        if more > _MOST_REPLICAS:
            raise ParameterError(
                f"no fleet keeps {load.latency_s:g} s, however large; allow more time: a picture "
                "whose table must be made first may take longer than that alone"
            )
    low = max([one for one in tried if one < high], default=high - 1)
    # To a hundredth: a simulation knows no better.
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high, tried[high]


def _at_least(load: Workload, figures: ReplicaFigures, *, is_sticky: bool) -> int:
    """More replicas hold more tables, so that fewer may do: the smallest number that is enough."""
    hits = hits_by_subject if is_sticky else hits_anywhere
    low, high = 0, max(1, math.ceil(load.rate_per_s / figures.most_per_s(load.steps, 0.0)))
    while high - low > 1:
        middle = (low + high) // 2
        most_per_s = figures.most_per_s(load.steps, hits(load, figures, middle))
        low, high = (low, middle) if middle * most_per_s > load.rate_per_s else (middle, high)
    return high
