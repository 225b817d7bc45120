"""Training in two processes on the CPU: the same run as in one, and nobody is left waiting."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bootpig_rt.errors import CheckpointError, ConfigError
from bootpig_rt.training import run
from bootpig_rt.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = Path(__file__).with_name("in_each_process.py")


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("in_each_process", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module")
def real(make_config: Any, vae_result: Path, base_result: Path, tmp_path_factory: Any) -> Any:
    """`real(folder, batch_size)`: two stages, some of whose samples have no reference."""

    def configs(folder: Path, batch_size: int) -> dict[str, Any]:
        start = {"base": vae_result, "pair": base_result}
        return {
            stage: make_config(
                stage,
                folder / stage,
                steps=2,
                batch_size=batch_size,
                log_every=1,
                start_from=str(start[stage]),
                diffusion={"reference_dropout": 0.5, "max_references": 2},
            ).to_dict()
            for stage in start
        }

    return configs


@pytest.fixture(scope="module")
def two(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run the script, with batches of 2."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "real.json").write_text(json.dumps(real(folder, 2)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:  # one that waits for the other for ever must not stay
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error[-3000:]
    return folder


def said(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
    return found


def kept(folder: Path, name: str, rank: int) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def run_alone(accelerator: Accelerator, output: Path, **changes: Any) -> Trainer:
    trainer: Trainer = script.line_trainer(accelerator, output, **changes)
    trainer.run()
    return trainer


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_two_processes_with_batches_of_two_train_as_one_with_batches_of_four(
    name: str, two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    alone = run_alone(accelerator, tmp_path / "alone", batch_size=4)
    assert said(two, 0)["processes"] == 2
    for rank in (0, 1):
        assert_close(script.weights(alone), kept(two, name, rank))
    losses, together = (
        [row["loss"] for row in log_rows(folder / "log.jsonl")]
        for folder in (tmp_path / "alone", two / name)
    )
    assert together == pytest.approx(losses, rel=1e-4)


def test_every_sample_of_a_step_is_seen_by_one_process_alone(
    two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    alone = run_alone(accelerator, tmp_path / "alone", batch_size=4)
    mine, other = (said(two, rank)["seen plain"] for rank in (0, 1))
    together = [sorted(a + b) for a, b in zip(mine, other, strict=True)]
    assert together == [sorted(step) for step in alone.stage.seen]  # type: ignore[attr-defined]
    assert mine != other


@pytest.mark.parametrize("stage", ["base", "pair"])
def test_the_stages_train_in_two_processes_as_in_one(
    stage: str, two: Path, real: Any, accelerator: Accelerator, tmp_path: Path
) -> None:
    trainer = script.real_trainer(accelerator, real(tmp_path, 4)[stage])
    before = script.weights(trainer)
    trainer.run()
    alone = script.weights(trainer)
    for rank in (0, 1):
        together = kept(two, stage, rank)
        # AdamW moves a weight whose gradient is rounding alone by a whole step, so a few differ.
        apart, way = (
            torch.stack([(a[name] - b[name]).norm() for name in alone]).norm()
            for a, b in ((together, alone), (alone, before))
        )
        assert apart < 0.02 * way
    figures = ("loss", "error", "gradient_norm")
    rows = [
        [row[name] for row in log_rows(folder / "log.jsonl") for name in figures]
        for folder in (tmp_path / stage, two / stage)
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    assert (two / stage / "result" / "pair.json").is_file()
    record = json.loads((two / stage / "result" / "provenance.json").read_text())
    assert record["processes"] == 2


def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_in_both(two: Path) -> None:
    first, second = (kept(two, "gradient", rank) for rank in (0, 1))
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_loss_that_is_nan_in_one_process_ends_both(two: Path) -> None:
    assert [said(two, rank)["loss"] for rank in (0, 1)] == [["NumericalError", 4]] * 2


def test_whoever_is_asked_to_stop_both_stop_at_the_same_step(two: Path) -> None:
    assert [said(two, rank)["stopped"] for rank in (0, 1)] == [[False, 3]] * 2
    checkpoints = [path.name for path in (two / "stopped" / "checkpoints").iterdir()]
    assert checkpoints == ["step-0000003"]
    steps = [row["step"] for row in log_rows(two / "stopped" / "log.jsonl")]
    assert steps == [1, 2, 3]  # one process logs


def test_one_process_goes_on_with_steps_of_the_same_size_and_no_other(
    two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    state = json.loads((two / "stopped/checkpoints/step-0000003/state.json").read_text())
    assert (state["processes"], state["samples_per_step"]) == (2, 4)
    part: Trainer = script.line_trainer(accelerator, two / "stopped", batch_size=2)
    with pytest.raises(CheckpointError, match="4 samples in 2 processes, this run has steps of 2"):
        part.run()
    rest = run_alone(accelerator, two / "stopped", batch_size=4)
    assert rest.step == script.STEPS
    assert_close(script.weights(rest), kept(two, "plain", 0))


@pytest.mark.parametrize(
    ("variable", "name"),
    [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")],
)
def test_ways_to_train_that_are_not_done_are_refused_by_name(
    variable: str,
    name: str,
    make_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"asks for {name} .*{variable}.* take it out"):
        run.train(make_config("vae", tmp_path / "run", steps=1))
    assert not (tmp_path / "run").exists()
