"""Training in two processes on the CPU: the same run as in one, and nobody is left waiting.

All is done twice: with a whole copy in each process (DDP), and with shards (FSDP2).
"""

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
from bootpig_rt.training.processes import read_sharding
from bootpig_rt.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = Path(__file__).with_name("in_each_process.py")
CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "accelerate"


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
def real(make_config: Any, vae_result: Path, base_result: Path, pair_result: Path) -> Any:
    """`real(folder, batch_size)`: the stages, some of whose samples have no reference."""

    def configs(folder: Path, batch_size: int, **changes: Any) -> dict[str, Any]:
        start = {"base": vae_result, "pair": base_result, "distill": pair_result}
        return {
            stage: make_config(
                stage,
                folder / stage,
                steps=2,
                batch_size=batch_size,
                log_every=1,
                start_from=str(start[stage]),
                diffusion={"reference_dropout": 0.5, "max_references": 2},
                **({"distill": {"steps": 2}} if stage == "distill" else {}),
                **changes,
            ).to_dict()
            for stage in start
        } | {
            "vae": make_config(
                "vae", folder / "vae", steps=2, batch_size=batch_size, log_every=1, **changes
            ).to_dict()
        }

    return configs


def launched(config: str) -> dict[str, str]:
    """What `accelerate launch` says to each process of a config of the repository."""
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = CONFIGS / config
    assert load_config_from_file(str(path)).num_processes == 8
    words = ["--config_file", str(path), "--main_process_port", "0", "-m", "bootpig_rt"]
    args = launch_command_parser().parse_args(words)
    args, _, _ = _validate_launch_command(args)
    said: dict[str, str] = prepare_multi_gpu_env(args)
    before = os.environ
    return {k: v for k, v in said.items() if v != before.get(k) and k.startswith(("ACC", "FSDP"))}


def place_of(rank: int, count: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}


def in_each(
    folder: Path, what: str, environment: dict[str, str], *, count: int = 2
) -> list[tuple[int, str]]:
    """Run the script in several processes; exit code and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = environment | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if count > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), what],
            env=os.environ | environment | place_of(rank, count),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=500)[1] for process in processes]
    finally:  # one that waits for the other for ever must not stay
        for process in processes:
            process.kill()
    return [(int(p.returncode), error) for p, error in zip(processes, errors, strict=True)]


def train_in_two(folder: Path, real: Any, environment: dict[str, str], **changes: Any) -> Path:
    (folder / "real.json").write_text(json.dumps(real(folder, 2, **changes)))
    for what, count in (("one", 1), ("all", 2)):
        said = environment if count > 1 else {}
        for code, error in in_each(folder, what, said, count=count):
            assert code == 0, error[-3000:]
    return folder


@pytest.fixture(scope="module")
def copies(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes with a whole copy each ran, with batches of 2."""
    return train_in_two(tmp_path_factory.mktemp("copies"), real, launched("ddp.yaml"))


@pytest.fixture(scope="module")
def shards(real: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with shards; their blocks are computed anew for the gradients."""
    folder = tmp_path_factory.mktemp("shards")
    return train_in_two(folder, real, launched("fsdp2.yaml"), checkpointing="blocks")


@pytest.fixture(params=["copies", "shards"])
def two(request: pytest.FixtureRequest) -> Path:
    """Both of them."""
    folder: Path = request.getfixturevalue(request.param)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "accumulated", "given", "often"])
def test_two_processes_with_batches_of_two_train_as_one_with_batches_of_four(
    name: str, two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    alone = run_alone(accelerator, tmp_path / "alone", batch_size=4)
    assert said(two, 0)["processes"] == 2
    for rank in (0, 1):
        assert_close(script.weights(alone), kept(two, name, rank))
    losses, together = (
        [row["loss"] for row in log_rows(folder / "log.jsonl") if "loss" in row]
        for folder in (tmp_path / "alone", two / name)
    )
    assert together == pytest.approx(losses, rel=1e-4)
    assert said(two, 0)[f"whole {name}"]  # the result is made of whole weights


@pytest.mark.slow
def test_every_sample_of_a_step_is_seen_by_one_process_alone(
    two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    alone = run_alone(accelerator, tmp_path / "alone", batch_size=4)
    mine, other = (said(two, rank)["seen plain"] for rank in (0, 1))
    together = [sorted(a + b) for a, b in zip(mine, other, strict=True)]
    assert together == [sorted(step) for step in alone.stage.seen]  # type: ignore[attr-defined]
    assert mine != other


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "base", "pair", "distill"])
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
    figures = ("loss", "gradient_norm")
    rows = [
        [row[name] for row in log_rows(folder / "log.jsonl") for name in figures]
        for folder in (tmp_path / stage, two / stage)
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    record = json.loads((two / stage / "result" / "provenance.json").read_text())
    assert record["processes"] == 2
    if stage == "vae":
        return
    results = [
        load_file(next((folder / stage / "result" / "base_unet").glob("*.safetensors")))
        for folder in (tmp_path, two)
    ]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0.01, atol=5e-3, msg=name)


@pytest.mark.slow
def test_shards_are_half_of_the_weights_moments_and_averages_each(
    copies: Path, shards: Path
) -> None:
    for stage in ("base", "pair", "distill", "vae"):
        for what, of_copy in said(copies, 0)[f"local {stage}"].items():
            of_shards = [said(shards, rank)[f"local {stage}"][what] for rank in (0, 1)]
            assert sum(of_shards) == of_copy
            assert 0.4 < of_shards[0] / of_copy < 0.6


@pytest.mark.slow
def test_gradients_are_sent_in_buckets_while_others_are_still_made(copies: Path) -> None:
    events = said(copies, 0)["buckets"]
    assert events.count("bucket") > 1
    assert "gradient" in events[events.index("bucket") :]
    assert events.index("bucket") < len(events) - events[::-1].index("gradient") - 1


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_in_both(two: Path) -> None:
    first, second = (kept(two, "gradient", rank) for rank in (0, 1))
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize(("what", "step"), [("stop", 2), ("skip", 3)])
def test_a_loss_that_is_nan_in_one_process_ends_both(two: Path, what: str, step: int) -> None:
    for rank in (0, 1):
        name, at, message = said(two, rank)[f"loss {what}"]
        assert (name, at) == ("NumericalError", step)
        assert f"not finite in 1 of 2 processes at step {step + 1}" in message


@pytest.mark.slow
def test_whoever_is_asked_to_stop_both_stop_at_the_same_step(two: Path) -> None:
    assert [said(two, rank)["stopped"] for rank in (0, 1)] == [[False, 3]] * 2
    checkpoints = [path.name for path in (two / "stopped" / "checkpoints").iterdir()]
    assert checkpoints == ["step-0000003"]
    steps = [row["step"] for row in log_rows(two / "stopped" / "log.jsonl")]
    assert steps == [1, 2, 3]  # one process logs


@pytest.mark.slow
def test_a_checkpoint_that_one_cannot_write_ends_both_and_those_before_are_whole(
    two: Path,
) -> None:
    first, second = (said(two, rank)["full"] for rank in (0, 1))
    assert first[0] == second[0] == "StorageError"
    assert "not a directory" in first[1]
    checkpoints = sorted(path.name for path in (two / "full" / "checkpoints").iterdir())
    assert checkpoints[:2] == ["step-0000001", "step-0000002"]


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_in_as_many_processes(two: Path) -> None:
    for rank in (0, 1):
        before, after = kept(two, "plain", rank), kept(two, "part", rank)
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two_and_the_other_way_round(
    two: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    whole = run_alone(accelerator, tmp_path / "whole", batch_size=4)
    assert_close(script.weights(whole), kept(two, "from-one", 0))
    state = json.loads((two / "stopped/checkpoints/step-0000003/state.json").read_text())
    assert (state["processes"], state["samples_per_step"]) == (2, 4)
    other: Trainer = script.line_trainer(accelerator, two / "stopped", batch_size=2)
    with pytest.raises(CheckpointError, match="4 samples in 2 processes, this run has steps of 2"):
        other.run()
    rest = run_alone(accelerator, two / "stopped", batch_size=4)
    assert rest.step == script.STEPS
    assert_close(script.weights(rest), kept(two, "plain", 0))


@pytest.mark.slow
def test_shards_of_a_checkpoint_that_are_missing_or_cut_are_named(
    shards: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    import shutil

    for damage in ("gone", "cut"):
        shutil.copytree(shards / "part", tmp_path / damage)
        (folder,) = [max((tmp_path / damage / "checkpoints").iterdir())]
        file = sorted(folder.glob("*.safetensors"))[1]
        file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:-9])
        shutil.rmtree(tmp_path / damage / "result")
        trainer: Trainer = script.line_trainer(accelerator, tmp_path / damage, batch_size=4)
        with pytest.raises(CheckpointError, match=f"is damaged .*{file.stem}"):
            trainer.run()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml"])
def test_when_a_process_dies_the_other_ends_and_the_last_checkpoint_is_whole(
    config: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    (code, error), (other, _) = in_each(tmp_path, "lost", launched(config))
    assert (code, other) == (3, 9), error[-3000:]
    name, message = json.loads((tmp_path / "lost.json").read_text())
    assert name == "ProcessLost"
    assert "one of the 2 processes is gone or did not answer in time" in message
    assert "\n" not in message
    rest = run_alone(accelerator, tmp_path / "lost", batch_size=4)
    seen = rest.stage.seen  # type: ignore[attr-defined]
    assert len(seen) == script.STEPS - 2
    whole = run_alone(accelerator, tmp_path / "whole", batch_size=4)
    assert_close(script.weights(whole), script.weights(rest))


# What the launcher asks for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "name"),
    [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")],
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


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "asks for FSDP 1, this trainer does version 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, 'checkpointing = "blocks" in that of the'),
        ({}, {"optimizer": {"name": "adamw8bit"}}, "with FSDP optimizer.name is adamw8bit, take"),
        ({}, {"optimizer": {"name": "muon"}}, "with FSDP optimizer.name is muon, take adamw"),
        ({}, {"optimizer": {"ema_device": "host"}}, "with FSDP optimizer.ema_device is host"),
        ({}, {"mixed_precision": "fp16"}, "with FSDP mixed_precision is fp16, take bf16"),
        ({}, {"channels_last": True}, "with FSDP channels_last is true"),
    ],
)
def test_what_shards_do_not_go_together_with_is_refused_by_name(
    environment: dict[str, str],
    changes: dict[str, Any],
    message: str,
    make_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        read_sharding(make_config("vae", tmp_path / "run", **changes))


def test_the_launchers_configs_say_what_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = launched("fsdp2.yaml")
    assert (said["ACCELERATE_USE_FSDP"], said["FSDP_VERSION"]) == ("true", "2")
    assert said["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert "ACCELERATE_USE_FSDP" not in launched("ddp.yaml")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    sharding = read_sharding(script.line_config(Path("runs/x")))
    assert sharding is not None
    assert sharding.reshard_after_forward
