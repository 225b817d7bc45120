"""Stage `control`: begins as nothing, leaves the pair alone, learns from maps, ends as a pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.training.card_depth import card_depth, metric_depth
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.maps import read_maps, store_maps
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.samples import Samples
from bootpig_rt.training.shards import EncodedSample, StoredSample, encode_png, encode_sample
from bootpig_rt.training.stages.control import ControlStage
from bootpig_rt.training.synthesize import ShardPlan, write_drawn

pytestmark = pytest.mark.usefixtures("one_thread", "_short_validation")
CPU = torch.device("cpu")
ConfigOf = Callable[..., TrainConfig]


@pytest.fixture
def config_of(make_config: Any, pair_result: Path, make_output: Any) -> ConfigOf:
    """`config_of(...)`: a control of a tiny pair, 2 steps of 2 pictures."""

    def make(**changes: Any) -> TrainConfig:
        settings = {"start_from": str(pair_result), "steps": 2, **changes}
        made: TrainConfig = make_config("control", make_output("control"), **settings)
        return made

    return make


def build(config: TrainConfig) -> ControlStage:
    stage, _ = build_stage(config, CPU)
    assert isinstance(stage, ControlStage)
    return stage


def draws_of(count: int, step: int = 0) -> Draws:
    return Draws(0, step, range(count))


def test_a_control_begins_as_nothing(config_of: ConfigOf, make_config: Any) -> None:
    stage = build(config_of())
    hints = stage.control.embed(torch.rand(2, 3, 16, 16))
    states = torch.randn(2, 5, 16)
    given = stage.control(torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), states, hints)
    assert all(not one.any() for one in given)


def test_the_loss_falls_and_the_pair_stays_as_it_is(config_of: ConfigOf) -> None:
    dropped = {"prompt_dropout": 1.0, "reference_dropout": 0.0, "both_dropout": 0.0}
    stage = build(config_of(diffusion=dropped))
    rest = [module for module in stage.pair.modules if module is not stage.net]
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in rest]
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss, figures = stage.loss(torch.arange(2), draws_of(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert set(figures) == {"error", "error_subject"}
    assert losses[-1] < losses[0], losses
    for module, state in zip(rest, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())


def test_each_row_reads_the_map_of_its_own_sample(config_of: ConfigOf, samples: Path) -> None:
    stage = build(config_of(diffusion={"reference_dropout": 0.5}))
    seen: list[torch.Tensor] = []
    embed = stage.control.embed

    def noting(maps: torch.Tensor) -> torch.Tensor:
        seen.append(maps)
        return embed(maps)

    stage.control.embed = noting  # type: ignore[method-assign]
    indices, draws = torch.tensor([3, 0, 11, 7]), draws_of(4)
    stage.loss(indices, draws)
    order = stage.data.batch(indices, draws).order
    assert torch.equal(seen[0], stage._maps.of(indices[torch.tensor(order)].tolist()))


def test_a_finished_stage_is_a_pair_with_the_control(
    config_of: ConfigOf, train: Any, other_samples: Path
) -> None:
    trainer = train(config_of(validation_data=str(other_samples), control={"kind": "canny"}))
    result = trainer.folder / "result"
    assert [control.kind for control in load_pair(result).controls] == ["canny"]
    figures = trainer.stage.validate()
    assert set(figures.figures) >= {"target_error", "wrong_map_error", "no_map_error"}
    assert [row.shape[1:] for row in figures.rows] == [(16, 16, 3)] * 4
    pipe = Pipeline(result, backend="torch", device="cpu")
    lines = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    dog = pipe.encode_subject(lines, "a photo of a dog")
    pipe("a dog", subject=dog, control_image={"canny": lines}, num_inference_steps=2, seed=1)


def test_maps_are_kept_and_equal_those_that_are_read(samples: Path, tmp_path: Path) -> None:
    opened = Samples(samples, tmp_path)
    for kind in ("depth", "canny"):
        stored = store_maps(opened, kind, 16, tmp_path)
        again = store_maps(opened, kind, 16, tmp_path)
        every = read_maps(opened, kind, 16)
        assert torch.equal(stored.of(range(len(opened))), every)
        assert torch.equal(again.of([5, 23]), every[[5, 23]])
        assert every.shape == (24, 3, 16, 16)
        assert 0 <= float(every.min()) < float(every.max()) <= 1


def test_depth_of_a_shard_goes_before_that_of_the_small_world(tmp_path: Path) -> None:
    far = np.full((16, 16), 5000, np.uint16)
    far[4:12, 4:12] = 1000

    def draw(index: int) -> Any:
        grey = np.full((16, 16, 3), 100 + index, np.uint8)
        mask = np.full((16, 16), 255, np.uint8)
        stored = StoredSample(index, grey, mask, [grey], "a dog", "a dog", {})
        return EncodedSample(index, {"depth.png": encode_png(far), **encode_sample(stored)}), {}

    write_drawn(ShardPlan(tmp_path / "shards", 3, 2), draw, {})
    maps = read_maps(Samples(tmp_path / "shards", tmp_path / "cache"), "depth", 16)
    wanted = torch.zeros(16, 16)
    wanted[4:12, 4:12] = 1.0
    assert torch.equal(maps[2, 0], wanted)


def test_a_card_is_as_near_as_the_ground_that_it_stands_on() -> None:
    def card(bottom: int) -> np.ndarray:
        mask = np.zeros((20, 20), np.uint8)
        mask[2:bottom, 8:12] = 255
        return card_depth(mask)

    near, far = card(19), card(12)
    assert near[5, 9] > far[5, 9] > near[5, 0] == 0
    assert near[19, 0] > near[12, 0]
    assert (np.diff(near[:, 0].astype(int)) >= 0).all()
    steps = metric_depth(np.array([[1000, 2000], [4000, 4000]], np.uint16))
    assert steps[0, 0] == 255
    assert steps[1, 1] == 0
    assert 0 < steps[0, 1] < 128


def test_buckets_are_refused(config_of: ConfigOf) -> None:
    with pytest.raises(ConfigError, match="stage 'control' trains on pictures of the pair's own"):
        config_of(samples={"buckets": ((16, 16),)})
