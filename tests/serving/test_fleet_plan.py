"""Sizing a fleet: what a simulation finds is what theory says where theory knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ParameterError
from bootpig_rt.serving.fleet_model import (
    IngressFigures,
    ReplicaFigures,
    Workload,
    hits_anywhere,
    hits_by_subject,
)
from bootpig_rt.serving.fleet_plan import plan_fleet, simulate
from bootpig_rt.serving.fleet_simulation import FleetSimulation

pytestmark = pytest.mark.slow

# An H200 with Stable Diffusion 2.1 at 512 px, from docs/results, batches over 4 carried on.
FIGURES = ReplicaFigures(
    step_s={1: 0.0079, 4: 0.026, 8: 0.05},
    picture_s=0.012,
    pass_s=0.066,
    table_bytes=1 << 30,
    tables_bytes=100 << 30,
)
LOAD = Workload(rate_per_s=30.0, steps=25, latency_s=1.0, subjects=500)
INGRESS = IngressFigures(request_s=0.02, encode_s=0.03, choice_s=0.0004, answer_bytes=400_000)


def test_a_picture_that_is_alone_takes_its_steps_and_nothing_more() -> None:
    load = replace(LOAD, rate_per_s=0.01, subjects=1, pictures_per_subject=1e9)
    found = FleetSimulation(load, FIGURES, 1).run(50, 5)
    assert found.latency_p95_s == pytest.approx(25 * 0.0079 + 0.012)
    assert found.batch == 1.0
    assert found.hit_ratio == 1.0
    assert found.pictures == 50


@pytest.mark.slow
def test_without_batching_waits_are_those_of_one_server() -> None:
    """M/D/1: the mean wait is `rho s / (2 (1 - rho))`."""
    alone = replace(FIGURES, step_s={1: 0.01}, picture_s=0.0, pass_s=0.0)
    load = replace(LOAD, rate_per_s=2.4, subjects=1)  # of 4 a second
    found = FleetSimulation(load, alone, 1, seed=1).run(15_000, 1000)
    rho, service_s = 0.6, 0.25
    expected_s = service_s + rho * service_s / (2 * (1 - rho))
    assert found.latency_mean_s == pytest.approx(expected_s, rel=0.08)
    assert found.utilisation == pytest.approx(rho, rel=0.03)


def test_steps_that_cost_the_same_for_any_batch_draw_any_number_at_once() -> None:
    free = replace(FIGURES, step_s={1: 0.01, 1000: 0.01}, picture_s=0.0, pass_s=0.0)
    found = FleetSimulation(replace(LOAD, rate_per_s=100.0), free, 1).run(2000, 500)
    # Every step is full of whoever is there; a picture waits for the next one to begin.
    assert found.latency_mean_s == pytest.approx(0.255, abs=0.002)
    assert found.batch == pytest.approx(25.0, rel=0.1)  # 100 a second for a quarter of one


@pytest.mark.slow
@pytest.mark.parametrize("room", [20, 100])
def test_tables_are_found_as_often_as_their_room_says(room: int) -> None:
    figures = replace(FIGURES, tables_bytes=room << 30)
    load = replace(LOAD, rate_per_s=5.0)  # nothing spills
    found = FleetSimulation(load, figures, 10, spill_over=1000).run(6000, 3000)
    assert found.hit_ratio == pytest.approx(hits_by_subject(load, figures, 10), abs=0.08)
    anywhere = FleetSimulation(load, figures, 10, is_sticky=False).run(6000, 3000)
    assert anywhere.hit_ratio == pytest.approx(hits_anywhere(load, figures, 10), abs=0.08)
    assert found.hit_ratio > anywhere.hit_ratio


def test_a_plan_is_the_smallest_that_keeps_the_latency() -> None:
    plan = plan_fleet(LOAD, FIGURES, INGRESS)
    assert plan.latency_p95_s <= LOAD.latency_s
    assert plan.replicas >= plan.at_least
    fewer = simulate(LOAD, FIGURES, plan.replicas - 1)
    assert plan.replicas == plan.at_least or fewer.latency_p95_s > LOAD.latency_s
    assert plan.ingress_cores == pytest.approx(30 * 0.05, rel=0.01)
    assert plan.answers_bytes_per_s == 30 * 400_000
    assert plan.tables == 100
    assert plan.at_least_anywhere >= plan.at_least


@pytest.mark.slow
def test_a_hundred_times_the_load_takes_about_a_hundred_times_the_replicas() -> None:
    one = plan_fleet(LOAD, FIGURES, INGRESS)
    hundred = plan_fleet(replace(LOAD, rate_per_s=3000.0, subjects=50_000), FIGURES, INGRESS)
    assert 0.75 < hundred.replicas / (100 * one.replicas) < 1.05


@pytest.mark.slow
def test_less_time_takes_more_replicas_until_no_number_is_enough() -> None:
    calm = plan_fleet(replace(LOAD, latency_s=2.0), FIGURES, INGRESS)
    hasty = plan_fleet(replace(LOAD, latency_s=0.5), FIGURES, INGRESS)
    assert hasty.replicas > calm.replicas
    assert hasty.utilisation < calm.utilisation
    with pytest.raises(ParameterError, match="alone takes"):
        plan_fleet(replace(LOAD, latency_s=0.2), FIGURES, INGRESS)


@pytest.mark.parametrize(
    ("values", "told"),
    [({"rate_per_s": 0}, "rate_per_s is 0"), ({"steps": 0}, "steps"), ({"subjects": 0}, "subj")],
)
def test_a_load_that_is_none_is_refused(values: dict[str, float], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        Workload(**({"rate_per_s": 1.0, "steps": 25, "latency_s": 1.0} | values))  # type: ignore[arg-type]


GIVEN = ["--step-ms", "1=7.9,4=26,8=50", "--picture-ms", "12", "--pass-ms", "66"]


def test_the_command_plans_with_figures_that_it_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = ["--rate", "30", "--latency", "1", "--subjects", "500", "--picture-px", "64"]
    table = ["--table-mib", "1024", "--tables-gib", "100"]
    assert main(["plan-fleet", *load, *GIVEN, *table, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["replicas"] == plan_fleet(LOAD, FIGURES, INGRESS).replicas
    assert told["figures"]["step_ms"] == {"1": 7.9, "4": 26.0, "8": 50.0}
    assert main(["plan-fleet", *load, *GIVEN, *table, "--format", "jpeg"]) == 0
    assert f"{told['plan']['replicas']} replicas" in capsys.readouterr().out


def test_the_command_measures_this_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(["plan-fleet", "--rate", "0.1", "--latency", "60", "--steps", "3", "--max-batch", "2",
              "--threads", "1", "--json"])
        == 0
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert list(told["figures"]["step_ms"]) == ["1", "2"]
    assert min(told["figures"]["step_ms"].values()) > 0
    assert told["figures"]["pass_ms"] > 0
    assert told["plan"]["replicas"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--step-ms", "1:7.9"], "--step-ms is '1:7.9'"),
        (["--step-ms", "1=0"], "step_s"),
        ([*GIVEN, "--picture-px", "2"], "--picture-px is 2"),
        ([*GIVEN, "--format", "gif"], "gif"),
    ],
)
def test_figures_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["plan-fleet", "--rate", "30", *arguments]) == 2
    assert told in capsys.readouterr().err
