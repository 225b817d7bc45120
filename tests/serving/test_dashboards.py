"""The dashboard and the alerts ask for metrics that there are, in words that Prometheus knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.server.metrics import OUTCOMES, REASONS, Metrics
from bootpig_rt.server.model_states import TIERS, ModelState
from bootpig_rt.storage.stats import StoreStats

promql = pytest.importorskip("promql_parser")
yaml = pytest.importorskip("yaml")

OF_PROMETHEUS = {"up"}


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """Names of all time series of a service, and the labels of each."""
    counted = Metrics(["pair"], ["/v1/images/edits"])
    counted.watch(lambda: {"pair": ModelState(0, 0, 0.0, StoreStats())})
    counted.request_ends("/v1/images/edits", "POST", 200, 0.1)
    found: dict[str, set[str]] = {}
    for family in counted.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def dashboard(root: Path) -> Any:
    """The dashboard of Grafana."""
    return json.loads((root / "deploy" / "grafana" / "dashboards" / "bootpig.json").read_text())


def expressions_of_dashboard(dashboard: Any) -> list[str]:
    found = [one["expr"] for panel in dashboard["panels"] for one in panel.get("targets", [])]
    found += [one["expr"] for one in dashboard["annotations"]["list"]]
    return [one.replace("$__rate_interval", "5m").replace("$model", ".*") for one in found]


def expressions_of_alerts(root: Path) -> list[str]:
    file = yaml.safe_load((root / "deploy" / "prometheus" / "alerts.yml").read_text())
    return [rule["expr"] for group in file["groups"] for rule in group["rules"]]


def selectors(expression: Any) -> Iterator[Any]:
    """Every series that a parsed expression asks for."""
    if isinstance(expression, promql.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str | float):
            yield from selectors(inner)
    for argument in getattr(expression, "args", None) or ():
        yield from selectors(argument)


def check(expression: str, metrics: dict[str, set[str]]) -> set[str]:
    """The names of an expression, all of them known, with labels that they have."""
    names = set()
    for one in selectors(promql.parse(expression)):
        assert one.name in metrics or one.name in OF_PROMETHEUS, f"{one.name} in {expression}"
        names.add(one.name)
        labels = {matcher.name for matcher in one.matchers.matchers}
        assert labels <= metrics.get(one.name, set()) | {"job", "instance"}, expression
    assert names, f"no series in {expression}"
    return names


def test_the_dashboard_asks_for_metrics_that_there_are(
    dashboard: Any, metrics: dict[str, set[str]]
) -> None:
    asked = set().union(*(check(one, metrics) for one in expressions_of_dashboard(dashboard)))
    bare = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    told = {
        re.sub(r"_(total|bucket|sum|count|created)$", "", name)
        for name in metrics
        if name.startswith("bootpig_")
    }
    # Reloads have an alert, and the version is for people.
    assert told - bare <= {"bootpig_model_reloads", "bootpig_build_info"}


def test_alerts_ask_for_metrics_that_there_are(root: Path, metrics: dict[str, set[str]]) -> None:
    expressions = expressions_of_alerts(root)
    assert len(expressions) >= 8
    for expression in expressions:
        check(expression, metrics)


def test_a_name_that_there_is_not_would_be_found(metrics: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError, match="bootpig_picturez_total"):
        check("sum(rate(bootpig_picturez_total[5m]))", metrics)
    with pytest.raises(AssertionError):
        check('bootpig_queue_pictures{modell="a"}', metrics)
    with pytest.raises(ValueError, match="."):
        promql.parse("sum(rate(bootpig_pictures_total[5m])")


def test_values_of_labels_are_words_that_the_service_uses(root: Path, dashboard: Any) -> None:
    words = {"outcome": OUTCOMES, "reason": REASONS, "tier": (*TIERS, "none")}
    for expression in [*expressions_of_dashboard(dashboard), *expressions_of_alerts(root)]:
        for name, value in re.findall(r'(outcome|reason|tier)!?=~?"([^"]*)"', expression):
            assert set(value.split("|")) <= set(words[name]), expression


def test_panels_lie_beside_each_other(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert taken.isdisjoint(cells)
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_grafana_finds_prometheus_and_the_dashboard(root: Path, dashboard: Any) -> None:
    provisioning = root / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    used = {
        target["datasource"]["uid"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "bootpig.yaml").read_text())[
        "providers"
    ]
    compose = yaml.safe_load((root / "deploy" / "compose.yaml").read_text())
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    scraped = yaml.safe_load((root / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["bootpig:8000"]
