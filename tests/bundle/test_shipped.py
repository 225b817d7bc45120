"""The few-step pair of the package, put together from the shipped pair and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.shipped import default_model, few_step_model, packaged_model
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.images.picture import read_parameters
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


def test_it_has_a_name_in_python_and_on_the_command_line(root: Path, tmp_path: Path) -> None:
    owl = root / "bootpig_rt" / "assets" / "subjects" / "owl.png"
    with Pipeline(variant="fast") as pipe:
        assert pipe.spec.config.default_steps == 4
        fingerprint = pipe.spec.fingerprint
    words = ["generate", "--fast", "--reference", str(owl), "--prompt", "a photo of an owl, at sea"]
    assert main([*words, "-o", str(tmp_path / "fast.png"), "--quiet"]) == 0
    drawn = read_parameters(tmp_path / "fast.png")
    assert drawn["model_fingerprint"] == fingerprint
    assert drawn["num_inference_steps"] == 4


def test_other_pairs_and_other_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="got variant 'fast' and a model, expected one"):
        Pipeline(tmp_path, variant="fast")
    with pytest.raises(ParameterError, match="variant is 'quick', expected one of: full, fast"):
        Pipeline(variant="quick")  # type: ignore[arg-type]


def test_a_missing_student_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    monkeypatch.setattr("bootpig_rt.bundle.shipped.few_step_model", lambda: None)
    with pytest.raises(CheckpointError, match="no student inside the package"):
        packaged_model("fast")


def test_it_is_put_together_once() -> None:
    assert few_step_model() is few_step_model()


def test_a_missing_shipped_pair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.bundle.shipped._ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="no pair inside the package"):
        default_model()
