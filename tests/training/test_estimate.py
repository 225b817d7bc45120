"""What a run will need, against what it then has."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor

from bootpig_rt.cli.main import main
from bootpig_rt.training import run
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.estimate import MOMENTS, Plan, in_words, probe_stage

pytestmark = pytest.mark.usefixtures("one_thread")


ConfigIn = Callable[..., Any]


@pytest.fixture(scope="module")
def config_in(make_config: Any, base_result: Path) -> ConfigIn:
    def make(folder: Path, **changes: Any) -> Any:
        diffusion = {"max_references": 1, "reference_dropout": 0.0, "both_dropout": 0.0}
        return make_config(
            "pair", folder / "run", start_from=str(base_result), diffusion=diffusion, **changes
        )

    return make


@pytest.fixture
def config(config_in: ConfigIn, tmp_path: Path) -> Callable[..., Any]:
    return partial(config_in, tmp_path)


AS_COPIES: dict[str, Any] = {"steps": 100, "batch_size": 8}


@pytest.fixture(scope="module")
def copies(config_in: ConfigIn, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan of 100 steps by four processes with all weights and 8 samples each."""
    return planned(config_in(tmp_path_factory.mktemp("plan"), **AS_COPIES), processes=4)


def planned(config: Any, *, processes: int = 1, is_sharded: bool = False) -> Plan:
    return run.plan(config, processes=processes, is_sharded=is_sharded)


def test_memory_and_checkpoint_are_what_a_run_then_has(
    config: Callable[..., Any], train: Any
) -> None:
    made = config(steps=2, keep_checkpoints=1)
    found = planned(made)
    assert not Path(made.output).exists()
    trainer = train(made)
    modules = list(trainer.modules.values())
    pair = trainer.stage.pair
    weights = sum(
        p.nbytes for module in [*modules, pair.vae, pair.text_encoder] for p in module.parameters()
    )
    trained = [p for p in trainer.parameters.values() if p in trainer.optimizer.state]
    moments = sum(
        value.nbytes
        for p in trained
        for key, value in trainer.optimizer.state[p].items()
        if key != "step"
    )
    assert found.memory.weights == weights
    assert found.memory.average == sum(value.nbytes for value in trainer.ema.average.values())
    # Weights behind the last self-attention of the Reference U-Net never have a gradient.
    assert 0.9 < moments / found.memory.optimizer <= 1
    (folder,) = (Path(made.output) / "checkpoints").iterdir()
    written = (folder / "state.safetensors").stat().st_size
    assert written == pytest.approx(found.checkpoint_bytes, rel=0.1)
    assert found.samples_seen == 4


@pytest.mark.parametrize("text_states", ["computed", "stored"])
def test_the_disk_has_room_for_latents_and_text_states(
    config: Callable[..., Any], text_states: str
) -> None:
    made = config(steps=1, samples={"text_states": text_states})
    found = planned(made)
    run.build_stage(made, torch.device("cpu"))
    folder = Path(made.output).parent / "latents"
    kept = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "index"]
    written = sum(path.stat().st_size for path in kept)
    assert {path.parent.name.split("-")[0] for path in kept} == (
        {"latents"} if text_states == "computed" else {"latents", "texts"}
    )
    # Sixteen samples share fewer of their prompts than all do.
    assert 0.95 * written < found.cache_bytes < 1.6 * written
    others = (made.keep_checkpoints + 1) * found.checkpoint_bytes + found.cache_bytes
    assert found.disk_bytes > others
    assert " of latents and text states" in in_words(found)


def kept_bytes(stage: Any, count: int) -> int:
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    weights = {
        p.untyped_storage().data_ptr()
        for module in [*stage.modules().values(), *stage.frozen()]
        for p in module.parameters()
    }
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.loss(torch.arange(count), Draws(5, 0, list(range(count))))
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def test_activations_grow_with_the_batch_and_attention_is_counted(
    config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config()
    stage, _ = run.build_stage(made, torch.device("cpu"))
    probe = probe_stage(stage, made)
    for count in (2, 6):
        found = probe.kept(count, is_checkpointed=False)
        assert found == pytest.approx(kept_bytes(stage, count), rel=0.15)
    assert probe.kept(4, is_checkpointed=True) < 0.6 * probe.kept(4, is_checkpointed=False)
    assert all(p.grad is None for module in stage.modules().values() for p in module.parameters())
    monkeypatch.setattr("bootpig_rt.training.estimate._ATTENTION", {})
    # Of queries, keys and values: two products forward, and what their gradients need.
    assert probe.flops > probe_stage(stage, made).flops > 0


def test_shards_divide_what_copies_repeat(config: Callable[..., Any], copies: Plan) -> None:
    copy, shard = copies, planned(config(**AS_COPIES), processes=4, is_sharded=True)
    assert shard.memory.optimizer * 4 == pytest.approx(copy.memory.optimizer, rel=0.01)
    assert shard.memory.gradients * 4 == pytest.approx(copy.memory.gradients, rel=0.01)
    assert shard.memory.average * 4 == pytest.approx(copy.memory.average, rel=0.01)
    assert shard.memory.weights < copy.memory.weights
    assert copy.memory.gathered == 0 < shard.memory.gathered
    assert copy.samples_per_step == 32


def test_other_optimisers_and_places_of_the_average_count(
    config: Callable[..., Any], copies: Plan
) -> None:
    plain = copies.memory
    small = planned(config(optimizer={"name": "adamw8bit", "ema_device": "host"})).memory
    assert small.optimizer / plain.optimizer == pytest.approx(MOMENTS["adamw8bit"] / 8, rel=1e-3)
    assert small.average == 0
    assert plain.average > 0


def test_a_dry_run_prints_words_or_json_and_writes_nothing(
    config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = config()
    path = tmp_path / "stage.toml"
    path.write_text(
        f'stage = "pair"\noutput = "{made.output}"\nstart_from = "{made.start_from}"\n'
        f'data = "{made.data}"\nbatch_size = 2\nsteps = 10\n'
    )
    assert main(["train", str(path), "--dry-run", "--processes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 24
    assert (found["samples_per_step"], found["samples_seen"]) == (4, 40)
    assert found["memory"]["on_device"] == sum(
        value for name, value in found["memory"].items() if name not in ("on_host", "on_device")
    )
    assert main(["train", str(path), "--dry-run", "--processes", "2", "--fsdp"]) == 0
    said = capsys.readouterr().out
    assert "memory of each of 2 processes, sharded: " in said
    assert "GFLOP a sample" in said
    assert not Path(made.output).exists()
    assert main(["train", str(path), "--processes", "2"]) == 2
    assert "--processes and --fsdp are of --dry-run alone" in capsys.readouterr().err


def test_hours_on_gpus_follow_from_operations(config: Callable[..., Any], copies: Plan) -> None:
    plan = copies
    expected = 100 * 32 * plan.flops_of_sample / (0.4 * 989e12) / 4 / 3600
    assert plan.hours_on["h100"] == pytest.approx(expected)
    assert "h100" in in_words(plan)
    anew = planned(config(**AS_COPIES, checkpointing="blocks"), processes=4)
    assert anew.flops_of_sample == pytest.approx(plan.flops_of_sample * 4 / 3, rel=1e-3)
    assert structs.asdict(anew)["memory"].activations < plan.memory.activations
