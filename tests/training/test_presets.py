"""`paper.toml` and `official.toml`: each thing in which paper and published code differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from bootpig_rt.training.augment import augment
from bootpig_rt.training.bootstrap.config import load_bootstrap_config
from bootpig_rt.training.config import TrainConfig, load_config
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.optimizers import learning_rate_share
from bootpig_rt.training.parts import parts_of_step
from bootpig_rt.training.run import build_stage

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(__file__).parents[2] / "training" / "configs"
NAMES = ("paper", "official")


def preset(name: str) -> TrainConfig:
    return load_config(FOLDER / f"{name}.toml", [])


StageOf = Callable[..., Any]


@pytest.fixture(scope="module")
def stage_of(samples: Path, base_result: Path, tmp_path_factory: pytest.TempPathFactory) -> StageOf:
    """A preset's stage on a tiny pair, with settings of [diffusion] changed; each is made once."""
    folder = tmp_path_factory.mktemp("presets")

    @cache
    def make(name: str, **diffusion: Any) -> Any:
        config = preset(name)
        config = structs.replace(
            config,
            output=str(folder / name),
            data=str(samples),
            start_from=str(base_result),
            diffusion=structs.replace(config.diffusion, **diffusion),
        )
        return build_stage(config, torch.device("cpu"))[0]

    return make


def test_several_references_are_weighed_by_softmax_or_the_strongest_is_taken(
    stage_of: StageOf,
) -> None:
    assert [stage_of(name).pair.config.merge for name in NAMES] == ["softmax", "argmax"]


def test_reference_keys_are_scaled_by_the_code_alone(stage_of: StageOf) -> None:
    assert [stage_of(name).pair.config.ref_scale for name in NAMES] == [1.0, 1.1]


def test_pairs_are_drawn_with_the_steps_and_scales_of_each(stage_of: StageOf) -> None:
    found = [stage_of(name).pair.config for name in NAMES]
    assert [(each.default_solver, each.default_steps) for each in found] == [
        ("unipc", 50),
        ("unipc", 25),
    ]
    scales = [(each.image_guidance_scale, each.text_guidance_scale) for each in found]
    assert scales == [(5.0, 7.5), (4.0, 6.5)]


def test_the_reference_unet_is_told_the_caption_or_the_class(stage_of: StageOf) -> None:
    for name in NAMES:
        data = stage_of(name, prompt_dropout=1.0, reference_dropout=0.0).data
        indices = torch.arange(4)
        batch = data.batch(indices, Draws(0, 0, range(4)))
        texts = [data.samples.texts(sample) for sample in indices.tolist()]
        told = [texts[batch.order[row]][name == "official"] for row in batch.owner]
        assert torch.equal(batch.reference_ids, data.ids(told))  # and it is never dropped
        assert torch.equal(batch.ids, data.empty_ids.expand(4, -1))


def test_base_attention_learns_ten_times_slower_in_the_code_and_rates_are_constant(
    stage_of: StageOf,
) -> None:
    for name, rsa in (("paper", 1e-6), ("official", 1e-7)):
        groups = stage_of(name).parameter_groups()
        assert [group["lr"] for group in groups] == [5e-6, rsa]
        config = preset(name)
        share = config.optimizer.final_learning_rate / config.optimizer.learning_rate
        warmup = config.optimizer.warmup_steps
        shares = {learning_rate_share(step, config.steps, warmup, share) for step in (0, 99, 9999)}
        assert shares == {1.0}
        assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.999)
        assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (1e-2, 1.0)


def test_a_step_has_as_many_samples_as_published_on_any_number_of_gpus() -> None:
    for name, samples in (("paper", 64), ("official", 128)):
        config = preset(name)
        assert config.steps == 10_000
        for processes in (1, 2, 4, 8, 16):
            assert config.batch_size * processes * parts_of_step(config, processes) == samples


def picture() -> Any:
    pixels = np.full((40, 40, 3), 255, np.uint8)
    pixels[10:30, 10:30] = (200, 0, 0)
    return pixels


def test_the_code_draws_references_as_large_as_their_square_and_the_paper_in_any_size() -> None:
    for name, least, most in (("paper", 15, 20), ("official", 40, 40)):
        widths = []
        for seed in range(60):
            drawn = augment(
                np.random.default_rng(seed), picture(), preset(name).diffusion.augmentation
            )
            columns = np.flatnonzero((drawn.min(axis=2) < 250).any(axis=0))
            widths.append(int(np.ptp(columns)) + 1)
        # Of those that nothing was erased of.
        assert max(widths) >= 38
        assert least <= (min(widths) if name == "paper" else int(np.median(widths))) <= most


def test_the_code_alone_jitters_and_erases_references() -> None:
    changed = {}
    for name in NAMES:
        kind, count = preset(name).diffusion.augmentation, 0
        for seed in range(200):
            drawn = augment(np.random.default_rng(seed), picture(), kind)
            rows, columns = np.nonzero(drawn.min(axis=2) < 250)
            inside = drawn[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1]
            count += bool((np.abs(inside.astype(int) - (200, 0, 0)) > 3).any())
        changed[name] = count / 200
    assert changed["paper"] == 0
    assert 0.3 < changed["official"] < 0.6  # .4 erased, not always inside, and .1 jittered


def test_references_are_left_out_of_single_samples_or_of_a_whole_step(stage_of: StageOf) -> None:
    kept = {}
    for name in NAMES:
        config = preset(name).diffusion
        shares = (config.reference_dropout, config.prompt_dropout, config.both_dropout)
        assert shares == (0.15, 0.15, 0.0)
        data = stage_of(name, reference_dropout=0.5).data
        # Two processes of two samples each.
        kept[name] = [
            [data.batch(torch.arange(2), Draws(0, step, place)).kept for place in ((0, 1), (2, 3))]
            for step in range(24)
        ]
    assert any(1 in each for each in kept["paper"])
    assert all(each in ([0, 0], [2, 2]) for each in kept["official"])
    assert 4 < sum(each == [0, 0] for each in kept["official"]) < 20


def test_loss_is_the_plain_error_at_uniform_timesteps() -> None:
    for name in NAMES:
        settings = preset(name).diffusion
        assert (settings.snr_gamma, settings.foreground_weight) == (0.0, 0.0)
        assert settings.timestep_sampling == "uniform"
        assert preset(name).pair.reference_timestep == "same"
        assert settings.max_references == 1


def test_samples_are_drawn_by_the_base_or_by_a_larger_model_and_kept_off_the_border() -> None:
    paper, official = (
        load_bootstrap_config(FOLDER / f"bootstrap-{name}.toml", []) for name in NAMES
    )
    assert paper.pictures.model.endswith("stable-diffusion-2-1-base")
    assert official.pictures.model.endswith("stable-diffusion-xl-base-1.0")
    assert (paper.filters.border_px, official.filters.border_px) == (0, 25)
    assert official.pictures.steps == 25
    for each in (paper, official):
        assert each.max_samples == 200_000
        assert (each.masks.source, each.masks.finder) == ("sam", "grounding_dino")
        assert (each.captions.per_ask, each.captions.temperature) == (50, 1.2)
