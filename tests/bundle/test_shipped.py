"""The few-step pair of the package, put together from the shipped pair and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.shipped import default_model, few_step_model
from bootpig_rt.errors import CheckpointError
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request


def test_the_few_step_pair_is_a_whole_bundle_that_draws_in_steps_of_one_row() -> None:
    folder = few_step_model()
    assert folder is not None
    teacher = open_bundle(default_model()).manifest.pair
    assert open_bundle(folder).manifest.pair.fingerprint != teacher.fingerprint
    with Pipeline(folder) as pipe:
        config = pipe.spec.config
        assert (config.image_guidance_scale, config.text_guidance_scale) == (1.0, 1.0)
        result = pipe.generate([Request(prompt="a photo of an owl", seed=1)])
        assert result.parameters[0].num_inference_steps == config.default_steps == 4


def test_it_is_put_together_once() -> None:
    assert few_step_model() is few_step_model()


def test_a_missing_shipped_pair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="no pair inside the package"):
        default_model()
