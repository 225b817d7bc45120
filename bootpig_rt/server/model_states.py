"""What models are doing and what their stores hold, asked for whenever somebody scrapes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bootpig_rt.storage.stats import StoreStats

logger = logging.getLogger(__name__)

TIERS = ("device", "host", "disk")

_COUNTS = (
    ("waits", 1.0, "bootpig_table_waits", "Waits for a table that somebody else was making."),
    ("moves_down", 1.0, "bootpig_table_moves_down", "Tables that left a tier for lack of room."),
    ("disk_errors", 1.0, "bootpig_table_disk_errors", "Tables not written or not read."),
    ("make_ms", 1e-3, "bootpig_table_make_seconds", "Time in reference passes."),
    ("load_ms", 1e-3, "bootpig_table_load_seconds", "Time in moving tables up."),
)


@dataclass(frozen=True)
class ModelState:
    """What a model is doing at the moment of a scrape.

    Attributes:
        waiting: Pictures that have not begun.
        running: Pictures between their first step and their last.
        expected_wait_s: Until what waits has begun.
        store: Counters of its store; None where it has none here.
    """

    waiting: int
    running: int
    expected_wait_s: float
    store: StoreStats | None = None


class ModelStates(Collector):
    """Metrics of models that are asked for at each scrape.

    Args:
        models: Names that are told of; any other is left out.
        ask: Gives the states by name; called on the thread that scrapes.
    """

    def __init__(self, models: frozenset[str], ask: Callable[[], Mapping[str, ModelState]]) -> None:
        """Nothing is asked yet."""
        self._models, self._ask = models, ask

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering asks nobody."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Gauges of the engines, counters of the stores."""
        try:
            states = {name: one for name, one in self._ask().items() if name in self._models}
        except Exception:  # of any engine: the other metrics are told all the same
            logger.exception("the state of the models could not be read for a scrape")
            return
        yield from _of_engines(states)
        yield from _of_stores(
            {name: asdict(one.store) for name, one in states.items() if one.store is not None}
        )


def _of_engines(states: Mapping[str, ModelState]) -> Iterator[Metric]:
    waiting = _gauge("bootpig_queue_pictures", "Pictures that wait to begin.")
    running = _gauge("bootpig_running_pictures", "Pictures that are being drawn.")
    wait_s = _gauge(
        "bootpig_expected_wait_seconds", "Until what waits has begun, by the pace of late steps."
    )
    for model, state in states.items():
        waiting.add_metric([model], state.waiting)
        running.add_metric([model], state.running)
        wait_s.add_metric([model], state.expected_wait_s)
    yield from (waiting, running, wait_s)


def _of_stores(stores: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "bootpig_table_lookups",
        "Reference tables that were needed, by the tier that had them; `none` had to be made.",
        labels=["model", "tier"],
    )
    held = _gauge("bootpig_table_bytes", "Bytes of reference tables by tier.", "model", "tier")
    for model, stats in stores.items():
        for tier in TIERS:
            lookups.add_metric([model, tier], stats[f"{tier}_hits"])
            held.add_metric([model, tier], stats[f"{tier}_bytes"])
        lookups.add_metric([model, "none"], stats["misses"])
    yield from (lookups, held)
    for field, unit, name, told in _COUNTS:
        counter = CounterMetricFamily(name, told, labels=["model"])
        for model, stats in stores.items():
            counter.add_metric([model], unit * stats[field])
        yield counter


def _gauge(name: str, told: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, labels=labels or ("model",))
