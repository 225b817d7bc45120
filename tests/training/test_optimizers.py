"""Optimisers: fused, and with moments in eight bits; both resume bit for bit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.training.config import OptimizerConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.optimizers import build_optimizer, learning_rate_share
from bootpig_rt.training.order import Order
from bootpig_rt.training.stage import Validation
from bootpig_rt.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

pytestmark = pytest.mark.usefixtures("one_thread")


class WideStage:
    """A layer that is large enough for eight bits, and one that is not."""

    order = Order([24])

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 3))
            self.points = torch.randn(24, 80)

    def modules(self) -> dict[str, nn.Module]:
        return {"layers": self.layers}

    def walks(self) -> list[Any]:
        return []

    def frozen(self) -> list[nn.Module]:
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.layers.parameters()), "lr": 0.01}]

    def expect(self, upcoming: Iterator[tuple[Tensor, Draws]]) -> None:
        """Everything is in memory."""

    def loss(self, indices: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.points[indices]
        wanted = x[:, :3] + 0.01 * draws.normal(3)
        return (self.layers(x) - wanted).pow(2).mean(), {}

    def validate(self) -> Validation:
        return Validation()

    def result(self) -> None:
        return None


@pytest.fixture
def wide(accelerator: Accelerator, make_config: Any, tmp_path: Path) -> Callable[..., Trainer]:
    def make(name: str, folder: str, *, steps: int = 20) -> Trainer:
        config = make_config(
            "vae", tmp_path / folder, optimizer={"name": name}, steps=20, batch_size=6
        )
        trainer = Trainer(config, WideStage(), accelerator, lambda _, place: place.mkdir())
        loss = trainer.stage.loss

        def stopping(indices: Tensor, draws: Draws) -> Any:
            if trainer.step + 1 == steps:
                trainer.ask_to_stop()
            return loss(indices, draws)

        trainer.stage.loss = stopping  # type: ignore[method-assign]
        return trainer

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
def test_each_optimiser_learns_and_resumes_bit_for_bit(
    name: str, wide: Callable[..., Trainer]
) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    whole = wide(name, "whole")
    start = weights(whole)
    whole.run()
    wide(name, "part", steps=9).run()
    rest = wide(name, "part")
    rest.run()
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[key]), key
        assert not torch.equal(value, start[key])


def test_eight_bits_are_a_quarter_of_the_memory_and_train_nearly_as_well(
    wide: Callable[..., Trainer],
) -> None:
    pytest.importorskip("bitsandbytes")
    trainers = {name: wide(name, name) for name in ("adamw", "adamw8bit")}
    moments, ways = {}, {}
    for name, trainer in trainers.items():
        start = weights(trainer)["layers.0.weight"]
        trainer.run()
        parameter = trainer.parameters["layers.0.weight"]
        state = trainer.optimizer.state[parameter]
        moments[name] = sum(
            value.nbytes
            for key, value in state.items()
            if isinstance(value, Tensor) and not key.startswith("qmap")
        )
        ways[name] = parameter.detach() - start
    assert moments["adamw8bit"] < 0.27 * moments["adamw"]
    apart = (ways["adamw"] - ways["adamw8bit"]).norm() / ways["adamw"].norm()
    assert apart < 0.15


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "bootpig-rt\[adam8bit\]", or take'):
        build_optimizer(
            [{"params": [nn.Parameter(torch.zeros(2))], "lr": 1e-3}],
            OptimizerConfig(name="adamw8bit"),
        )


def test_one_fused_step_is_that_of_the_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = OptimizerConfig(beta1=0.9, beta2=0.99, weight_decay=0.1)
    optimizer = build_optimizer([{"params": [parameter], "lr": 0.01}], settings)
    parameter.grad = torch.tensor([0.5, 3.0])
    optimizer.step()
    # The first step of Adam is one of the rate, whatever the gradient (Loshchilov and Hutter 2019).
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.01 * 0.1) - 0.01
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)
    assert math.isclose(float(optimizer.state[parameter]["step"]), 1.0)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    def share(step: int) -> float:
        return learning_rate_share(step, 110, 10, 0.1)

    assert [share(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert share(10) == 1.0
    assert share(60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert share(110) == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(share(step) for step in range(10, 120)))
    assert learning_rate_share(0, 10, 0, 0.1) == 1.0
