"""Whichever ingress is scraped tells of all, and each sample says whose it is."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from prometheus_client.parser import text_string_to_metric_families

from bootpig_rt.serving.fleet_metrics import FleetMetrics, IngressMetrics


class Others:
    """A handle behind which other ingresses are, or nobody."""

    def __init__(self, told: list[Any] | None) -> None:
        self._told = told

    def broadcast(self, method: str) -> Others:
        assert method == "own_metrics"
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if self._told is None:
            raise TimeoutError
        return self._told


def counted(name: str, pictures: int, others: list[Any] | None = None) -> FleetMetrics:
    metrics = FleetMetrics(["pair"], ingress=name, handle=Others(others))
    metrics.picture_done("pair", "succeeded", pictures)
    return metrics


def pictures(text: bytes) -> dict[str, float]:
    """Pictures by ingress."""
    return {
        sample.labels["ingress"]: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == "bootpig_pictures_total" and sample.labels["outcome"] == "succeeded"
    }


def test_all_ingresses_are_told_with_one_help_for_each_metric() -> None:
    other = counted("b", 5).own()
    one = counted("a", 3)
    one._handle = Others([one.own(), other, RuntimeError("one that did not answer")])
    text = one.render()
    assert pictures(text) == {"a": 3.0, "b": 5.0}
    assert text.count(b"# HELP bootpig_pictures_total ") == 1
    assert text.count(b"# TYPE bootpig_step_duration_seconds histogram") == 1


def test_an_ingress_that_is_alone_tells_of_itself() -> None:
    assert pictures(counted("a", 3).render()) == {"a": 3.0}
    assert pictures(counted("a", 3, others=[]).render()) == {"a": 3.0}


def test_what_is_sent_between_ingresses_can_be_pickled() -> None:
    import pickle

    own = pickle.loads(pickle.dumps(counted("a", 3).own()))
    assert isinstance(own, IngressMetrics)
    assert pictures(counted("b", 1, others=[own]).render()) == {"a": 3.0, "b": 1.0}
