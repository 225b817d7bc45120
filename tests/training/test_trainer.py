"""The loop: its schedule and randomness, averaging, checkpoints, resume, stopping, guards."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bootpig_rt.errors import CheckpointError, ConfigError, NumericalError, StorageError
from bootpig_rt.training import checkpoints as state
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.ema import Ema, averaged
from bootpig_rt.training.optimizers import learning_rate_share
from bootpig_rt.training.order import Order
from bootpig_rt.training.stage import Validation
from bootpig_rt.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

pytestmark = pytest.mark.usefixtures("one_thread")


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class LineStage:
    """Learns a line through noisy points; the smallest stage there is."""

    order = Order([12])

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.line = nn.Linear(3, 1)
        self.points = torch.linspace(-1, 1, 36).reshape(12, 3)
        self.on_loss: Callable[[int], None] = lambda _: None
        self.calls = 0
        self.spoil: dict[int, float] = {}
        self.noise = 0.1
        self.indices: list[list[int]] = []
        self.expected: list[list[list[int]]] = []
        self.validated = 0

    def modules(self) -> dict[str, nn.Module]:
        return {"line": self.line}

    def walks(self) -> list[Any]:
        return []

    def frozen(self) -> list[nn.Module]:
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.line.parameters()), "lr": 0.05}]

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        self.expected.append([indices.tolist() for indices, _ in islice(upcoming, 3)])

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        self.on_loss(self.calls)
        self.indices.append(indices.tolist())
        x = self.points[indices]
        wanted = x.sum(1, keepdim=True) + self.noise * draws.normal(1)
        error = (self.line(x) - wanted).pow(2).mean()
        error = error * self.spoil.get(self.calls, 1.0)
        self.calls += 1
        return error, {"size": self.line.weight.detach().abs().sum()}

    def validate(self) -> Validation:
        self.validated += 1
        torch.rand(100)  # careless use of the global generator must do no harm
        figures = {"error": float(self.line.weight.detach().abs().sum())}
        return Validation(figures, [np.full((2, 4, 4, 3), 7, np.uint8)])

    def result(self) -> Tensor:
        return self.line.weight.detach().clone()


def write_line(result: Tensor, folder: Path) -> None:
    folder.mkdir()
    torch.save(result, folder / "line.pt")


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def config(make_config: Any, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        made: TrainConfig = make_config("vae", tmp_path / changes.pop("name", "run"), **changes)
        return made

    return make


@pytest.fixture
def trainer(accelerator: Accelerator, config: Callable[..., TrainConfig]) -> MakeTrainer:
    def make(stage: LineStage | None = None, **changes: Any) -> Trainer:
        return Trainer(config(**changes), stage or LineStage(), accelerator, write_line)

    return make


def stage_of(trainer: Trainer) -> LineStage:
    assert isinstance(trainer.stage, LineStage)
    return trainer.stage


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    found = {f"weight/{k}": p.detach().clone() for k, p in trainer.parameters.items()}
    found |= {f"average/{k}": v.clone() for k, v in trainer.ema.average.items()}
    for name, parameter in trainer.parameters.items():
        for key, value in trainer.optimizer.state[parameter].items():
            found[f"{key}/{name}"] = value.clone()
    return found


def assert_equal(first: Trainer, second: Trainer) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def losses(trainer: Trainer) -> dict[int, float]:
    rows = log_rows(trainer.folder / "log.jsonl")
    return {int(row["step"]): row["loss"] for row in rows if "loss" in row}


def checkpoints(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in (trainer.folder / "checkpoints").iterdir())


def stop_at(trainer: Trainer, step: int) -> Trainer:
    """Ask to stop within step number `step`, counted from 1."""

    def ask(_: int) -> None:
        if trainer.step + 1 == step:
            trainer.ask_to_stop()

    stage_of(trainer).on_loss = ask
    return trainer


# The rate


def test_the_rate_of_each_step_reaches_the_optimiser(trainer: MakeTrainer) -> None:
    made = trainer(log_every=1, steps=6, optimizer={"final_learning_rate": 2e-4})
    made.run()
    rows = [row["learning_rate"] for row in log_rows(made.folder / "log.jsonl")]
    expected = [0.05 * learning_rate_share(step, 6, 3, 0.1) for step in range(6)]
    assert rows == pytest.approx(expected, rel=1e-5)


# Averaged weights ---------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_starts_fast() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    ema = Ema({"p": parameter}, decay=0.9)
    expected = 0.0
    for step in range(200):
        with torch.no_grad():
            parameter.fill_(step + 1.0)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
        assert float(ema.average["p"]) == pytest.approx(expected, rel=1e-5)
        if step == 0:
            assert float(ema.average["p"]) == pytest.approx(0.9)


def test_averaged_weights_are_in_place_for_a_block_and_come_back_bit_for_bit() -> None:
    line = nn.Linear(4, 4)
    ema = Ema(dict(line.named_parameters()), 0.99)
    before = line.weight.detach().clone()
    with torch.no_grad():
        line.weight.mul_(1.37)
    trained = line.weight.detach().clone()
    with averaged(ema, [line]):
        assert torch.equal(line.weight, before)
        assert not line.training
    assert torch.equal(line.weight, trained)
    assert torch.equal(ema.average["weight"], before)
    assert line.training


def test_trained_weights_come_back_when_validation_fails(trainer: MakeTrainer) -> None:
    made = trainer(validate_every=5)
    stage = stage_of(made)

    def broken() -> Validation:
        raise RuntimeError("no sheet")

    stage.validate = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no sheet"):
        made.run()
    plain = trainer(name="plain", steps=20)
    stop_at(plain, 5).run()
    assert torch.equal(stage.line.weight, stage_of(plain).line.weight)


def test_the_result_holds_the_averaged_weights(trainer: MakeTrainer) -> None:
    made = trainer()
    assert made.run()
    stored = torch.load(made.folder / "result" / "line.pt")
    assert torch.equal(stored, made.ema.average["line.weight"])
    assert not torch.equal(stored, stage_of(made).line.weight)


# Resume -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 7, 10, 19])
def test_a_resumed_run_is_bit_identical_wherever_it_stopped(
    trainer: MakeTrainer, stop: int
) -> None:
    whole = trainer(name="whole")
    assert whole.run()
    part = trainer(name="part")
    assert not stop_at(part, stop).run()
    assert part.step == stop
    assert checkpoints(part) == [f"step-{stop:07d}"]
    rest = trainer(name="part")
    assert rest.run()
    assert stage_of(rest).calls == 20 - stop
    assert_equal(whole, rest)
    whole_losses, rest_losses = losses(whole), losses(rest)
    assert list(rest_losses) == [5, 10, 15, 20]
    cut = 5 * (stop // 5) + 5 if stop % 5 else 0  # the row whose first steps ran before the stop
    assert {k: v for k, v in rest_losses.items() if k != cut} == {
        k: v for k, v in whole_losses.items() if k != cut
    }


def test_many_interruptions_change_nothing(trainer: MakeTrainer) -> None:
    whole = trainer(name="whole")
    whole.run()
    for stop in (3, 4, 11, 17):
        assert not stop_at(trainer(name="part"), stop).run()
    last = trainer(name="part")
    assert last.run()
    assert_equal(whole, last)


def test_a_row_after_a_stop_between_rows_is_the_mean_of_the_steps_since(
    trainer: MakeTrainer,
) -> None:
    each = trainer(name="each", log_every=1)
    each.run()
    part = trainer(name="part")
    stop_at(part, 7).run()
    rest = trainer(name="part")
    rest.run()
    single = losses(each)
    assert losses(rest)[10] == pytest.approx((single[8] + single[9] + single[10]) / 3, rel=1e-5)


def test_running_out_of_time_stops_with_a_checkpoint(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(name="whole")
    whole.run()
    clock = iter(range(10_000))

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return float(next(clock))

    with monkeypatch.context() as patch:
        patch.setattr("bootpig_rt.training.trainer.time", Clock)
        part = trainer(name="part")
        assert not part.run(max_minutes=9 / 60)
    assert 0 < part.step < 20
    assert checkpoints(part) == [f"step-{part.step:07d}"]
    rest = trainer(name="part")
    assert rest.run(max_minutes=60)
    assert_equal(whole, rest)


def test_no_time_at_all_trains_nothing_and_writes_no_checkpoint(trainer: MakeTrainer) -> None:
    made = trainer()
    assert not made.run(max_minutes=0)
    assert stage_of(made).calls == 0
    assert not (made.folder / "checkpoints").exists()


def test_a_stop_without_progress_does_not_touch_the_checkpoint(trainer: MakeTrainer) -> None:
    stop_at(trainer(), 7).run()
    again = trainer()
    path = again.folder / "checkpoints" / "step-0000007" / "state.safetensors"
    before = path.stat().st_mtime_ns
    assert not again.run(max_minutes=0)
    assert path.stat().st_mtime_ns == before


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_writes_its_log_anew(
    trainer: MakeTrainer,
) -> None:
    whole = trainer(name="whole", checkpoint_every=6)
    whole.run()
    killed = trainer(name="killed", checkpoint_every=6)

    def kill(call: int) -> None:
        if call == 16:
            raise SystemExit(9)

    stage_of(killed).on_loss = kill
    with pytest.raises(SystemExit):
        killed.run()
    log = killed.folder / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 16, "lo')  # killed while it wrote
    rest = trainer(name="killed", checkpoint_every=6)
    assert rest.run()
    assert stage_of(rest).calls == 20 - 12
    assert_equal(whole, rest)
    assert list(losses(rest)) == list(losses(whole))


def test_a_run_killed_before_its_first_checkpoint_starts_anew_with_an_empty_log(
    trainer: MakeTrainer,
) -> None:
    killed = trainer()

    def kill(call: int) -> None:
        if call == 12:
            raise SystemExit(9)

    stage_of(killed).on_loss = kill
    with pytest.raises(SystemExit):
        killed.run()
    assert list(losses(killed)) == [5, 10]
    again = trainer()
    again.run()
    assert stage_of(again).calls == 20
    assert list(losses(again)) == [5, 10, 15, 20]


def test_a_finished_stage_is_not_trained_again(trainer: MakeTrainer) -> None:
    trainer().run()
    again = trainer()
    assert again.run()
    assert stage_of(again).calls == 0
    (again.folder / "result" / "line.pt").unlink()
    (again.folder / "result").rmdir()
    third = trainer()
    assert third.run()
    assert stage_of(third).calls == 0
    assert (third.folder / "result" / "line.pt").exists()


def test_a_run_from_before_an_option_existed_goes_on_with_its_default(
    trainer: MakeTrainer,
) -> None:
    first = trainer()
    first.run()
    path = first.folder / "config.json"
    before = json.loads(path.read_text())
    del before["distill"], before["max_samples"]
    path.write_text(json.dumps(before))
    trainer().run()
    before["distill"] = {"steps": 3, "substeps": 1}
    path.write_text(json.dumps(before))
    with pytest.raises(CheckpointError, match=r"other distill\.steps;"):
        trainer().run()


def test_other_settings_in_the_folder_are_refused_by_name(trainer: MakeTrainer) -> None:
    stop_at(trainer(), 7).run()
    with pytest.raises(CheckpointError, match=r"run with other optimizer\.beta1, seed; use its"):
        trainer(seed=3, optimizer={"beta1": 0.5}).run()


def test_steps_may_be_divided_otherwise_but_not_be_of_another_size(trainer: MakeTrainer) -> None:
    whole = trainer(name="whole", batch_size=6)
    whole.run()
    stop_at(trainer(name="part", batch_size=6), 7).run()
    rest = trainer(name="part", batch_size=2, accumulate=3)
    rest.run()
    for name, value in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(rest)[name], value, rtol=1e-5, atol=1e-6)
    stop_at(trainer(name="other", batch_size=6), 7).run()
    with pytest.raises(CheckpointError, match="steps of 6 samples in 1 processes, this run has"):
        trainer(name="other", batch_size=5).run()


@pytest.mark.parametrize("content", [None, "{"])
def test_checkpoints_without_their_config_are_refused(
    trainer: MakeTrainer, content: str | None
) -> None:
    made = stop_at(trainer(), 7)
    made.run()
    path = made.folder / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        trainer().run()


@pytest.mark.parametrize("damage", ["cut", "no tensors", "no number"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_works(
    trainer: MakeTrainer, damage: str
) -> None:
    made = stop_at(trainer(checkpoint_every=5), 7)
    made.run()
    last = made.folder / "checkpoints" / "step-0000007"
    if damage == "cut":
        whole = (last / "state.safetensors").read_bytes()
        (last / "state.safetensors").write_bytes(whole[:-10])
    else:
        (last / {"no tensors": "state.safetensors", "no number": "state.json"}[damage]).unlink()
    with pytest.raises(CheckpointError, match="step-0000007 is damaged .*delete it to go on"):
        trainer(checkpoint_every=5).run()
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    whole_run = trainer(name="whole", checkpoint_every=5)
    whole_run.run()
    rest = trainer(checkpoint_every=5)
    assert rest.run()
    assert_equal(whole_run, rest)


def test_a_checkpoint_of_another_model_is_refused(trainer: MakeTrainer) -> None:
    stop_at(trainer(), 7).run()
    other = LineStage()
    other.line = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"no weight/line.weight of shape \[2, 3\]"):
        trainer(other).run()


def test_a_longer_run_of_a_folder_goes_on_with_the_rate_of_its_new_length(
    trainer: MakeTrainer,
) -> None:
    trainer().run()
    longer = trainer(steps=30, log_every=1)
    assert longer.run()
    assert stage_of(longer).calls == 10
    rows = log_rows(longer.folder / "log.jsonl")
    assert rows[-1]["step"] == 30
    assert rows[4]["learning_rate"] == pytest.approx(
        0.05 * learning_rate_share(20, 30, 3, 1e-5 / 2e-3), rel=1e-5
    )
    assert json.loads((longer.folder / "config.json").read_text())["steps"] == 30
    with pytest.raises(CheckpointError, match="step-0000030 is further than steps 20"):
        trainer(steps=20, name="run").run()


def test_samples_of_a_step_may_be_given_whatever_the_processes(trainer: MakeTrainer) -> None:
    by_parts = trainer(name="parts", batch_size=2, accumulate=3)
    by_parts.run()
    given = trainer(name="given", batch_size=2, samples_per_step=6)
    given.run()
    assert_equal(by_parts, given)
    with pytest.raises(ConfigError, match="samples_per_step is 7, expected a multiple of batch"):
        trainer(batch_size=2, samples_per_step=7)
    with pytest.raises(ConfigError, match="accumulate is 3 and samples_per_step 6"):
        trainer(batch_size=2, accumulate=3, samples_per_step=6)


# Validation ---------------------------------------------------------------------------------------


def test_validation_does_not_disturb_training(trainer: MakeTrainer) -> None:
    plain = trainer(name="plain", validate_every=0)
    plain.run()
    often = trainer(name="often", validate_every=3)
    often.run()
    assert stage_of(often).validated == 6
    assert_equal(plain, often)
    assert losses(plain) == losses(often)


def test_validation_sees_averaged_weights_and_its_figures_are_logged(trainer: MakeTrainer) -> None:
    made = trainer(steps=6, validate_every=6, optimizer={"ema_decay": 0.5})
    made.run()
    rows = [r for r in log_rows(made.folder / "log.jsonl") if "validation/error" in r]
    (row,) = rows
    average = float(made.ema.average["line.weight"].abs().sum())
    assert row["validation/error"] == pytest.approx(average, rel=1e-5)
    assert [p.name for p in (made.folder / "validation").iterdir()] == ["step-0000006.png"]


# Accumulation -------------------------------------------------------------------------------------


def test_accumulated_gradients_equal_those_of_the_big_batch(trainer: MakeTrainer) -> None:
    stages = [LineStage(), LineStage()]
    big = trainer(stages[0], name="big", batch_size=6)
    small = trainer(stages[1], name="small", batch_size=2, accumulate=3)
    big.run()
    small.run()
    parts = stages[1].indices
    shown = [parts[i] + parts[i + 1] + parts[i + 2] for i in range(0, 60, 3)]
    assert shown == stages[0].indices
    for name, value in tensors_of(big).items():
        torch.testing.assert_close(tensors_of(small)[name], value, rtol=1e-4, atol=1e-6)
    assert losses(small) == pytest.approx(losses(big), rel=1e-4)


# Checkpoints and results on disk ------------------------------------------------------------------


def test_old_checkpoints_are_pruned(trainer: MakeTrainer) -> None:
    made = trainer(checkpoint_every=4, keep_checkpoints=2)
    made.run()
    assert checkpoints(made) == ["step-0000016", "step-0000020"]
    single = trainer(name="single", checkpoint_every=3, keep_checkpoints=1)
    single.run()
    assert checkpoints(single) == ["step-0000020"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space left")]
)
def test_a_full_disk_keeps_the_checkpoint_before(
    trainer: MakeTrainer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(checkpoint_every=5)
    save, count = state.save_file, iter(range(9))  # type: ignore[attr-defined]

    def full(tensors: Any, path: Path) -> None:
        if next(count) == 1:
            path.write_bytes(b"half")
            raise error
        save(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(StorageError, match="cannot write the checkpoint .*no space left"):
        made.run()
    assert checkpoints(made) == ["step-0000005"]


def test_training_goes_on_while_a_checkpoint_is_written_from_a_copy(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(checkpoint_every=8, keep_checkpoints=9)
    stage, save, steps = stage_of(made), state.save_file, []  # type: ignore[attr-defined]
    is_seen = threading.Event()

    def slow(tensors: Any, path: Path) -> None:
        assert is_seen.wait(20)
        steps.append(stage.calls)
        save(tensors, path)

    def watch(call: int) -> None:
        if call == 12:
            is_seen.set()

    stage.on_loss = watch
    monkeypatch.setattr(state, "save_file", slow)
    made.run()
    assert steps[0] >= 12
    whole = trainer(name="whole")
    stop_at(whole, 8).run()
    stored = load_file(made.folder / "checkpoints" / "step-0000008" / "state.safetensors")
    expected = load_file(whole.folder / "checkpoints" / "step-0000008" / "state.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in stored.items())


def test_one_checkpoint_at_a_time_is_under_way(
    trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(checkpoint_every=1, keep_checkpoints=30)
    save, under_way, most = state.save_file, [0], [0]  # type: ignore[attr-defined]

    def count(tensors: Any, path: Path) -> None:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        save(tensors, path)
        under_way[0] -= 1

    monkeypatch.setattr(state, "save_file", count)
    made.run()
    assert most == [1]
    assert len(checkpoints(made)) == 20


def test_averages_on_the_host_are_the_same(trainer: MakeTrainer) -> None:
    plain, host = trainer(name="plain"), trainer(name="host", optimizer={"ema_device": "host"})
    plain.run()
    host.run()
    assert_equal(plain, host)


def test_a_result_appears_whole_or_not_at_all(trainer: MakeTrainer) -> None:
    made = trainer()

    def broken(result: Any, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise RuntimeError("broken export")

    made._write_result = broken
    with pytest.raises(RuntimeError, match="broken export"):
        made.run()
    assert not (made.folder / "result").exists()
    again = trainer()
    assert again.run()
    assert [p.name for p in (again.folder / "result").iterdir()] == ["line.pt"]
    assert not (again.folder / ".result.tmp").exists()


def test_the_folder_holds_config_and_log(trainer: MakeTrainer) -> None:
    made = trainer()
    made.run()
    stored = json.loads((made.folder / "config.json").read_text())
    assert stored["optimizer"]["ema_decay"] == 0.9
    assert stored["stage"] == "vae"
    rows = log_rows(made.folder / "log.jsonl")
    names = {"step", "loss", "size", "gradient_norm", "skipped", "samples_per_s", "learning_rate"}
    assert all(set(row) == names for row in rows)
    assert list((made.folder / "tensorboard").iterdir())


# Numbers that are not finite ----------------------------------------------------------------------


def test_a_loss_that_is_nan_ends_the_run_and_keeps_the_checkpoint(trainer: MakeTrainer) -> None:
    made = trainer(checkpoint_every=5, on_nan="stop")
    stage_of(made).spoil = {7: math.nan}
    message = "the loss is not finite in 1 of 1 processes at step 8, expected a finite number; the"
    with pytest.raises(NumericalError, match=message):
        made.run()
    assert checkpoints(made) == ["step-0000005"]
    assert list(losses(made)) == [5]
    assert all(torch.isfinite(value).all() for value in tensors_of(made).values())


def test_losses_that_are_nan_are_left_out_as_often_in_a_row_as_is_allowed(
    trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(max_skips=3)
    stage_of(made).spoil = dict.fromkeys((2, 3, 4, 8, 11), math.nan)
    assert made.run()
    rows = log_rows(made.folder / "log.jsonl")
    assert [row["skipped"] for row in rows] == pytest.approx([0.6, 0.2, 0.2, 0])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    places = [record for record in caplog.records if "not finite in [" in record.getMessage()]
    assert len(places) == 5
    assert str(stage_of(made).indices[2]) in places[0].getMessage()
    again = trainer(name="again", max_skips=3)
    stage_of(again).spoil = dict.fromkeys(range(2, 20), math.nan)
    with pytest.raises(NumericalError, match="at step 6, 4 times in a row, expected"):
        again.run()


def test_a_run_goes_on_with_a_lower_rate_after_nan(
    trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(checkpoint_every=5, on_nan="stop")
    stage_of(made).spoil = {7: math.nan}
    with pytest.raises(NumericalError):
        made.run()
    rest = trainer(checkpoint_every=5, on_nan="stop", optimizer={"learning_rate": 1e-3})
    assert rest.run()
    assert stage_of(rest).calls == 15
    assert "going on with optimizer.learning_rate 0.001, it was 0.002" in caplog.text


def test_a_gradient_that_is_not_finite_is_left_out_and_counted(trainer: MakeTrainer) -> None:
    made = trainer(log_every=20)
    stage, weights = stage_of(made), []

    def watch(call: int) -> None:
        weights.append(stage.line.weight.detach().clone())

    stage.on_loss = watch
    stage.line.weight.register_hook(lambda g: g * math.inf if stage.calls - 1 == 8 else g)
    made.run()
    assert torch.equal(weights[9], weights[8])
    assert not torch.equal(weights[10], weights[9])
    (row,) = log_rows(made.folder / "log.jsonl")
    assert row["skipped"] == pytest.approx(1 / 20)
    assert math.isfinite(row["gradient_norm"])


class HalfPrecision:
    """What the trainer uses of an accelerator, with the gradient scaler of float16 on a CPU."""

    num_processes, process_index, is_main_process = 1, 0, True
    device = torch.device("cpu")

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def wait_for_everyone(self) -> None:
        """There is only one."""


def test_float16_finds_its_scale_after_steps_that_overflow(
    config: Callable[..., TrainConfig],
) -> None:
    accelerator: Any = HalfPrecision(2.0**127)
    made = Trainer(config(log_every=20), LineStage(), accelerator, write_line)
    assert made.run()
    (row,) = log_rows(made.folder / "log.jsonl")
    assert 0 < row["skipped"] < 0.5
    assert accelerator.scaler.get_scale() < 2.0**127
    assert all(torch.isfinite(value).all() for value in tensors_of(made).values())


def test_float16_resumes_with_its_scale(config: Callable[..., TrainConfig]) -> None:
    def run(name: str, *, stop: int = 0) -> Trainer:
        accelerator: Any = HalfPrecision(2.0**127)
        return stop_at(Trainer(config(name=name), LineStage(), accelerator, write_line), stop)

    whole = run("whole")
    whole.run()
    run("part", stop=10).run()
    rest = run("part")
    rest.run()
    assert_equal(whole, rest)
    assert rest.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale()


# Signals ------------------------------------------------------------------------------------------


@pytest.fixture
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("number", "requeues"),
    [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGUSR1, True)],
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    trainer: MakeTrainer, number: signal.Signals, requeues: bool
) -> None:
    before = signal.getsignal(number)
    made = trainer()

    def kill(call: int) -> None:
        if call == 8:
            os.kill(os.getpid(), number)

    stage_of(made).on_loss = kill
    assert not made.run()
    assert made.step == 9
    assert checkpoints(made) == ["step-0000009"]
    assert signal.getsignal(number) == before
    assert made.shall_requeue is requeues
    assert trainer().run()


@pytest.mark.usefixtures("_handlers")
def test_a_second_interrupt_does_not_wait_for_the_step(trainer: MakeTrainer) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of the tests ignore it
    made = trainer(checkpoint_every=5)

    def kill(call: int) -> None:
        if call == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    stage_of(made).on_loss = kill
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert checkpoints(made) == ["step-0000005"]
