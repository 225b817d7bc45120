"""Figures of a run: in `log.jsonl`, and in what trackers of accelerate write."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.training.trackers import Log

pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.fixture
def config(make_config: Any, tmp_path: Path) -> Callable[..., Any]:
    def make(*trackers: str) -> Any:
        (tmp_path / "run").mkdir(exist_ok=True)
        return make_config("vae", tmp_path / "run", trackers=trackers)

    return make


def test_tensorboard_has_each_figure_of_each_step_once(config: Callable[..., Any]) -> None:
    made = config("tensorboard")
    log = Log(made, step=0)
    for step in (1, 2, 3):
        log.write({"loss": 1.0 / step}, step)
    log.close()
    again = Log(made, step=2)  # killed after step 3, whose checkpoint is of step 2
    again.write({"loss": 0.25}, 3)
    again.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(made.output) / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, 0.25)]
    rows = [json.loads(line) for line in (Path(made.output) / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1.0, 0.5, 0.25]


def test_no_tracker_writes_the_log_alone(config: Callable[..., Any]) -> None:
    made = config()
    log = Log(made, step=0)
    log.write({"loss": 1.0}, 1)
    log.close()
    assert [path.name for path in Path(made.output).iterdir()] == ["log.jsonl"]


def test_a_tracker_that_is_not_installed_is_named(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r'trackers has wandb.* "bootpig-rt\[trackers\]"'):
        Log(config("wandb"), step=0)


@pytest.mark.slow
def test_wandb_writes_a_run_without_a_network(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    made = config("wandb")
    log = Log(made, step=0)
    log.write({"loss": 1.0}, 1)
    log.close()
    (folder,) = (Path(made.output) / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # of MLflow's store
def test_mlflow_keeps_figures_in_the_folder(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = config("mlflow")
    log = Log(made, step=0)
    log.write({"loss": 0.5}, 7)
    log.close()
    (run,) = mlflow.search_runs(experiment_names=["bootpig-rt"], output_format="list")
    assert run.data.metrics == {"loss": 0.5}
    assert run.data.params["optimizer.beta1"] == "0.9"
