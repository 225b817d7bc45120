"""Metrics of all ingresses of a service: whichever answers a scrape tells of every one.

Behind a balancer a scrape reaches any ingress, and counters that come from another each time would
mean nothing. So the one that is asked asks the others, and each sample says whose it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from bootpig_rt.server.metrics import Metrics

logger = logging.getLogger(__name__)

_ANSWER_S = 3.0


@dataclass(frozen=True)
class IngressMetrics:
    """What one ingress counts.

    Attributes:
        ingress: Its name.
        families: As the registry collects them.
    """

    ingress: str
    families: Sequence[Metric]


class FleetMetrics(Metrics):
    """Counters of this ingress, told together with those of the others.

    Args:
        models: Names that the label `model` may have.
        ingress: Name of this process.
        handle: Of Ray Serve, to all ingresses.
    """

    def __init__(self, models: Iterable[str], *, ingress: str, handle: Any) -> None:
        """Everything is at zero."""
        super().__init__(models)
        self._ingress, self._handle = ingress, handle

    def own(self) -> IngressMetrics:
        """What this ingress counts. May ask engines: to be called on a thread."""
        return IngressMetrics(self._ingress, list(self.registry.collect()))

    def render(self) -> bytes:
        """See `Metrics`. Of this ingress alone where the others do not answer."""
        told: list[Any] = []
        try:
            broadcast = self._handle.broadcast("own_metrics")
            told = broadcast.results(timeout_s=_ANSWER_S, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("the other ingresses did not tell their metrics: %s", error)
        found = [one for one in told if isinstance(one, IngressMetrics)]
        if all(one.ingress != self._ingress for one in found):
            found.append(self.own())
        return render_all(found)


def render_all(parts: Sequence[IngressMetrics]) -> bytes:
    """All parts in Prometheus' text format, each sample with the label `ingress`."""
    families: dict[str, Metric] = {}
    for part in sorted(parts, key=lambda one: one.ingress):
        for family in part.families:
            joined = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            for sample in family.samples:
                labels = {**sample.labels, "ingress": part.ingress}
                joined.samples.append(sample._replace(labels=labels))
    return generate_latest(_Families(list(families.values())))


@dataclass(frozen=True)
class _Families:
    """As much of a registry as writing text needs."""

    families: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.families
