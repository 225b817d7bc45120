"""Data on the device: same samples, same shapes in every step, and a step that compiles whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import load_pair
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RESIDENT: dict[str, Any] = {"resident": True}


@pytest.fixture
def stage_of(make_config: Any, vae_result: Path, base_result: Path, tmp_path: Path) -> Any:
    """`stage_of(stage, ...)`: a stage whose data are on the device."""
    starts = {"base": vae_result, "pair": base_result}

    def make(stage: str, **changes: Any) -> Any:
        config = make_config(
            stage, tmp_path / "run", start_from=str(starts[stage]), samples=RESIDENT, **changes
        )
        return build_stage(config, CPU)[0]

    return make


def everything_kept(stage: Any) -> Any:
    """Batches of it drop nothing."""
    from msgspec import structs

    resident = stage.resident
    resident.settings = structs.replace(
        resident.settings, prompt_dropout=0.0, reference_dropout=0.0, both_dropout=0.0
    )
    return resident


def test_a_batch_holds_the_samples_that_are_asked_for(stage_of: Any) -> None:
    stage = stage_of("base")
    resident, data = everything_kept(stage), stage.data
    indices = torch.tensor([3, 0, 17])
    batch = resident.batch(indices, resident.generator(Draws(0, 0, range(3))))
    assert torch.equal(batch.latents, data.train.targets([3, 0, 17]).float())
    assert torch.equal(batch.masks, data.train.masks([3, 0, 17]).float() / 255)
    texts = [data.samples.texts(n) for n in (3, 0, 17)]
    assert torch.equal(batch.ids, data.ids([caption for caption, _ in texts]))
    assert torch.equal(batch.reference_ids, data.ids([prompt for _, prompt in texts]))
    for row, sample in enumerate((3, 0, 17)):
        own = [(sample, k) for k in range(data.samples.num_references(sample))]
        assert any(torch.equal(batch.references[row], r) for r in data.train.references(own))
    assert resident.nbytes > 0


def test_prompts_and_references_are_left_out_as_often_as_settings_say(stage_of: Any) -> None:
    shares = {"prompt_dropout": 0.3, "reference_dropout": 0.2, "both_dropout": 0.1}
    resident = stage_of("base", diffusion=shares).resident
    indices = torch.arange(4000) % len(resident.ids)
    batch = resident.batch(indices, resident.generator(Draws(0, 0, range(4000))))
    empty = (batch.ids == resident.empty).all(dim=1)
    assert float(empty.float().mean()) == pytest.approx(0.1 + 0.9 * 0.3, abs=0.03)
    assert float((~batch.reads).float().mean()) == pytest.approx(0.1 + 0.9 * 0.2, abs=0.03)
    plan = batch.plan()
    assert [(group.rows, group.num_references) for group in plan.groups] == [(slice(0, 4000), 1)]


def test_chance_is_a_function_of_seed_step_and_place(stage_of: Any) -> None:
    stage = stage_of("pair", pair={"reference_timestep": "mixed"})
    indices = torch.tensor([1, 2, 3, 4])
    losses = [
        float(stage.loss(indices, Draws(seed, step, range(4)))[0].detach())
        for seed, step in ((5, 0), (5, 0), (5, 1), (6, 0))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_a_masked_reference_changes_nothing(stage_of: Any) -> None:
    stage = stage_of("base")
    torch.manual_seed(0)
    channels, side = stage.data.train.shape[:2]
    noisy, references = torch.randn(2, 2, channels, side, side)
    ids = torch.cat([stage.data.ids(["a red dog"] * 2), stage.data.ids(["a dog"] * 2)])
    t = torch.tensor([400, 400])
    resident = everything_kept(stage)
    batch = resident.batch(torch.tensor([0, 1]), resident.generator(Draws(0, 0, range(2))))
    reads = type(batch)(**{**vars(batch), "reads": torch.tensor([True, False])})
    with torch.no_grad():
        both = [
            stage._predict(noisy, t, ids, given, torch.zeros_like(t), reads.plan())
            for given in (references, references + 1)
        ]
        plain = stage.pair.base(noisy, t, stage.pair.text_encoder(ids)[0][:2])
    assert not torch.allclose(both[0][0], both[1][0])
    torch.testing.assert_close(both[0][1], both[1][1])
    torch.testing.assert_close(both[0][1], plain[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_u_nets_of_a_step_are_one_graph(stage_of: Any) -> None:
    """Nothing in it depends on values: a compiler takes it whole, once."""
    stage = stage_of("pair")
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    stage._predict = torch.compile(
        stage._read_and_draw, backend=count, fullgraph=True, dynamic=False
    )
    compiled = [
        float(stage.loss(torch.arange(4), Draws(0, step, range(4)))[0].detach())
        for step in range(3)
    ]
    stage._predict = stage._read_and_draw
    eager = [
        float(stage.loss(torch.arange(4), Draws(0, step, range(4)))[0].detach())
        for step in range(3)
    ]
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_both_stages_train_on_it(
    make_config: Any, train: Any, vae_result: Path, tmp_path: Path
) -> None:
    start, settings = vae_result, {"steps": 2, "samples": RESIDENT, "export_every": 1}
    for stage in ("base", "pair"):
        folder = tmp_path / stage
        train(make_config(stage, folder, start_from=str(start), **settings))
        assert load_pair(folder / "so-far").config == load_pair(folder / "result").config
        start = folder / "result"


@pytest.mark.parametrize(
    ("stage", "changes", "fix"),
    [
        ("pair", {"diffusion": {"max_references": 2}}, "set diffusion.max_references to 1"),
        ("pair", {"diffusion": {"augmentation": "paper"}}, "set diffusion.augmentation"),
        ("base", {"samples": {"buckets": ((16, 16),)}}, "take out samples.buckets"),
        ("pair", {"samples": {"text_states": "stored"}}, "take out samples.text_states"),
        ("pair", {"diffusion": {"reference_prompt": "caption"}}, "take out diffusion.reference_p"),
        ("base", {"diffusion": {"reference_dropout_draw": "step"}}, "take out reference_dropout"),
        ("vae", {}, "it is of stages 'base' and 'pair'"),
    ],
)
def test_what_it_cannot_do_is_refused(
    make_config: Any, stage: str, changes: dict[str, Any], fix: str, tmp_path: Path
) -> None:
    samples = {**RESIDENT, **changes.get("samples", {})}
    with pytest.raises(ConfigError, match=fix):
        make_config(stage, tmp_path, start_from="x", **{**changes, "samples": samples})
