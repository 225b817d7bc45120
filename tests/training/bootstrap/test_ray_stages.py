"""Stages over real Ray on this machine: two workers, one of which is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import BackendUnavailable, ConfigError
from bootpig_rt.training.bootstrap.ray_stages import RayOptions, RayRunner

HAS_RAY = all(importlib.util.find_spec(name) for name in ("ray", "pyarrow", "pandas"))
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs the extra bootstrap-ray")

ANSWER_S = 300.0


class Host:
    """Ray, and the process that holds it."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_S, self._process.kill)
        watchdog.start()
        self._process.stdin.write(json.dumps({"do": what}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        watchdog.cancel()
        assert line, f"Ray ended:\n{self._log.read_text()[-4000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="module")
def host(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("ray-stages")
    # Ray's sockets lie in this folder, and their paths must be short.
    short = Path("/tmp") / f"bootpig-stages-{os.getpid()}"
    environment = os.environ | {
        "RAY_HOST_FOLDER": str(short),
        "RAY_AUTH_MODE": "disabled",  # a cluster of this test alone; no token in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, root / "tests" / "tools" / "ray_stages_host.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            yield Host(process, folder / "log")
        finally:
            _end(process)
            shutil.rmtree(short, ignore_errors=True)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate("", timeout=60)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        pass
    # Raylet and workers are of the same session; what is left of it ends now.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(30)


@pytest.mark.slow
@needs_ray
def test_every_item_comes_back_once_though_a_worker_is_killed(host: Host) -> None:
    answer = host.ask("compare")
    assert answer["died"]
    # Two workers, and one that was started again: each has built the stage once.
    assert answer["built"] == answer["processes"] == 3
    assert answer["counts"] == [1] * 40
    assert answer["same"]


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs the extra bootstrap")
def test_a_bootstrap_on_ray_makes_the_samples_of_one_process_though_a_worker_dies(
    host: Host,
) -> None:
    answer = host.ask("samples")
    assert answer["died"]
    here, on_ray = answer["manifests"]
    assert here["samples"] >= 8
    assert on_ray == here
    assert answer["indices"] == [list(range(here["samples"]))] * 2


@pytest.mark.slow
@needs_ray
def test_an_item_that_kills_every_worker_ends_the_run(host: Host) -> None:
    answer = host.ask("poison")
    assert answer["kind"] == "EngineLost"
    assert "workers of MarkStage died 3 times over the same items" in answer["text"]
    assert "what is done is kept" in answer["text"]


@pytest.mark.slow
@needs_ray
def test_an_error_of_a_stage_arrives_as_it_is(host: Host) -> None:
    answer = host.ask("broken")
    assert answer["kind"] == "ConfigError"
    assert answer["text"].endswith("expected one; make it")


@pytest.mark.slow
@needs_ray
def test_items_that_cannot_be_read_end_the_run_with_their_own_error(host: Host) -> None:
    answer = host.ask("torn")
    assert (answer["kind"], answer["text"]) == ("InputError", "a part is damaged; make it again")


@pytest.mark.slow
@needs_ray
def test_more_workers_than_the_cluster_has_are_refused(host: Host) -> None:
    answer = host.ask("too_many")
    assert answer["kind"] == "ConfigError"
    assert "the cluster has 2 CPUs and 0 GPUs, too few for 99 workers" in answer["text"]


@pytest.mark.parametrize("change", [{"workers": -1}, {"cpus": 0}, {"retries": -1}, {"gpus": -1}])
def test_numbers_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be 0 or more and cpus above 0"):
        RayOptions(**change)


def test_without_ray_data_the_runner_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'bootpig-rt\[bootstrap-ray\]'"):
        RayRunner()
