"""The road: folders in the real layout, steps that fit each other, and all of it driven."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.cli.main import build_parser
from bootpig_rt.errors import ConfigError, EngineError, ParameterError
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.latent_scale import LatentScale
from bootpig_rt.models.load import load_pair
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.evaluation.suite import SUITES, choose_subjects
from bootpig_rt.training.road.drive import Road, _Done, drive
from bootpig_rt.training.road.folders import (
    sd21_configs,
    self_attention,
    side_px,
    with_plain_scale,
    write_sd21,
    write_small,
)
from bootpig_rt.training.road.stand_ins import write_stand_ins
from bootpig_rt.training.road.steps import Places, Size, steps_of
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites

pytestmark = pytest.mark.usefixtures("one_thread")
UNET = "diffusion_pytorch_model.safetensors"
LAYOUT = {
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    f"unet/{UNET}",
    "vae/config.json",
    f"vae/{UNET}",
}
"""Of stable-diffusion-2-1-base as a hub has it, without its pickles and its picture."""


@pytest.fixture(scope="module")
def small(share: Any) -> Path:
    folder: Path = share("road-small", lambda folder: write_small(folder / "sd"))
    return folder / "sd"


@pytest.fixture(scope="module")
def sd21(share: Any) -> Path:
    folder: Path = share("road-sd21", lambda folder: write_sd21(folder / "sd"))
    return folder / "sd"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_both_folders_have_the_files_of_the_published_one(small: Path, sd21: Path) -> None:
    assert files(small) == LAYOUT
    assert files(sd21) == LAYOUT


def test_the_random_folder_has_the_keys_and_tensor_names_of_the_published_one(sd21: Path) -> None:
    text = json.loads((sd21 / "text_encoder" / "config.json").read_text())
    assert (text["num_hidden_layers"], text["hidden_act"]) == (23, "gelu")
    assert json.loads((sd21 / "scheduler" / "scheduler_config.json").read_text()) == {
        **sd21_configs()[3],
        "_class_name": "PNDMScheduler",
        "prediction_type": "epsilon",
    }
    names = set(load_file(sd21 / "vae" / UNET))
    assert "encoder.mid_block.attentions.0.query.weight" in names
    names = set(load_file(sd21 / "text_encoder" / "model.safetensors"))
    assert "text_model.encoder.layers.22.mlp.fc2.bias" in names
    assert all(name.startswith("text_model.") for name in names)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers, about itself
@pytest.mark.parametrize("name", ["small", "sd21"])
def test_diffusers_draws_from_the_folder_as_it_is(
    name: str, request: pytest.FixtureRequest
) -> None:
    from diffusers import DiffusionPipeline

    folder: Path = request.getfixturevalue(name)
    drawer: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(drawer).__name__ == "StableDiffusionPipeline"
    drawer.set_progress_bar_config(disable=True)
    drawn = drawer("a photo of an owl, in the middle of a snowy field", num_inference_steps=2)
    assert drawn.images[0].size == (side_px(), side_px())
    caption = "a photo of a school bus, on the left of a sandy beach"
    tokens = drawer.tokenizer(caption, padding="max_length")
    ours = Tokenizer.from_folder(folder / "tokenizer")([caption])[0].tolist()
    assert tokens["input_ids"][: len(ours)] == ours


@pytest.mark.parametrize("name", ["small", "sd21"])
def test_the_folder_becomes_a_pair(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    config = init_pair(folder, tmp_path / "pair", dtype=torch.float32)
    assert config.sample_size_px == side_px()
    pair = load_pair(tmp_path / "pair")
    expected = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert pair.scheduler["prediction_type"] == expected["prediction_type"]


def test_the_small_base_is_the_shipped_one_but_for_its_self_attentions(small: Path) -> None:
    shipped = load_file(default_model() / "base_unet" / UNET)
    ours = load_file(small / "unet" / UNET)
    attentions = self_attention(shipped)
    assert ours.keys() == shipped.keys()
    for name, tensor in shipped.items():
        assert torch.equal(ours[name], tensor.float()) != (name in attentions), name


def test_an_autoencoder_that_scales_by_channel_scales_by_nothing_in_the_folder(
    patch_pair_folder: Path,
) -> None:
    vae: Any = load_pair(patch_pair_folder).vae
    plain, scale = with_plain_scale(vae), LatentScale(vae)
    assert LatentScale(plain).numbers() == [[0.0], [1.0]]
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        latents = scale.scaled(vae.encode(pixels).latents)
        torch.testing.assert_close(plain.encode(pixels).latents, latents, rtol=1e-4, atol=1e-5)
        wanted = vae.decode(scale.unscaled(latents)).sample
        inside = (..., slice(12, 20), slice(12, 20))  # away from the border
        found = plain.decode(latents).sample
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-3, atol=1e-4)


def test_silent_self_attentions_add_nothing(tmp_path: Path) -> None:
    weights = load_file(write_small(tmp_path / "sd", attention="silent") / "unet" / UNET)
    for name, tensor in self_attention(weights).items():
        assert bool((tensor == 0).all()) == (".to_out." in name)


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "sd").mkdir()
    with pytest.raises(ParameterError, match="exists already"):
        write_sd21(tmp_path / "sd")
    assert list(tmp_path.rglob("*")) == [tmp_path / "sd"]


def test_stand_ins_are_enough_for_the_suite_of_the_road(tmp_path: Path) -> None:
    write_stand_ins(tmp_path)
    sprites = load_sprites(tmp_path)
    subjects = choose_subjects(sprites, load_splits(), SUITES["tiny"])
    assert [subject.group for subject in subjects] == ["identities"] * 3 + ["concepts"] * 2
    assert sum(sprite.split == "train" for sprite in sprites) > len(sprites) / 3


@pytest.mark.parametrize("kind", ["small", "sd21"])
def test_every_step_is_a_command_that_there_is_and_reads_what_one_before_it_wrote(
    kind: Any, tmp_path: Path
) -> None:
    at = Places(tmp_path / "layout")
    written = {str(at.base), str(tmp_path / "shards")}
    for step in steps_of(kind, at, Size(), tmp_path / "subjects"):
        build_parser([step.words[0]]).parse_args(list(step.words))
        read = {word.rpartition("=")[2] for word in step.words}
        assert written & read, step.name
        written.add(str(step.made.parent))


def test_a_step_that_is_done_is_not_done_again_and_one_whose_result_is_gone_is(
    tmp_path: Path,
) -> None:
    runs = []
    made = tmp_path / "made"

    def work() -> dict[str, Any]:
        runs.append(1)
        made.touch()
        return {"about": "a file"}

    for _ in range(2):
        _Done(tmp_path / "done.json", lambda name: None).once("make", made, work)
    assert len(runs) == 1
    made.unlink()
    done = _Done(tmp_path / "done.json", lambda name: None)
    done.once("make", made, work)
    assert len(runs) == 2
    assert done.found["make"]["about"] == "a file"
    with pytest.raises(EngineError, match="left no"):
        done.once("other", tmp_path / "other", lambda: {})


def test_a_road_of_another_size_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    sizes = {**asdict(Size()), "pictures": 7}
    (tmp_path / "settings.json").write_text(json.dumps({**sizes, "data": "data"}))
    with pytest.raises(ConfigError, match="holds a road of other pictures"):
        drive(Road(tmp_path), on_step=lambda name: None)


@pytest.mark.slow
def test_the_whole_road_goes_from_a_folder_to_a_picture_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    """Few pictures and steps: what it ends with is whole, not good."""
    out = tmp_path / "road"
    command = [sys.executable, "-m", "bootpig_rt.training.road", "-o", str(out)]
    command += ["--data", str(tmp_path / "none"), "--pictures", "24", "--steps", "6"]
    command += ["--batch", "4", "--subjects", "3"]
    subprocess.run(command, check=True)
    with Image.open(out / "picture.png") as picture:
        assert picture.size == (side_px(), side_px())
        assert "c2pa" not in picture.info
    page = (out / "report.html").read_text()
    assert "plain shapes" in page
    card = (out / "card" / "README.md").read_text()
    assert "Suite tiny" in card
    assert "people and professions: not applicable" in card
    assert "samples are bootstrapped" in card
    for name in ("compare.png", "samples.png", "picture.png", "evaluation.json"):
        assert (out / "card" / name).is_file()
    assert (out / "layout" / "picture.png").is_file()
    done = json.loads((out / "done.json").read_text())
    (out / "picture.png").unlink()
    shutil.rmtree(out / "bundle")
    subprocess.run(command, check=True)
    again = json.loads((out / "done.json").read_text())
    assert (out / "picture.png").is_file()
    redone = {name for name in done if again[name] != done[name]}
    assert redone <= {"build-engine", "serve"}


@pytest.mark.slow
def test_a_pair_that_was_trained_on_what_its_base_drew_personalises_better_than_its_start(
    tmp_path: Path,
) -> None:
    """The true bootstrap at the road's own size: pictures by the base, masks by GrabCut.

    Judged on plain shapes; figures on drawings are in training/LOG.md.
    """
    out = tmp_path / "road"
    command = [sys.executable, "-m", "bootpig_rt.training.road", "-o", str(out), "--no-layout"]
    subprocess.run([*command, "--data", str(tmp_path / "none")], check=True)
    report = json.loads((out / "comparison" / "report.json").read_text())
    found = report["psnr_db"]
    assert found["gain"]["value"] > 0
    assert found["reference"]["low"] > 0  # its own reference serves it better than a wrong one,
    assert found["better"]["value"] > 0  # and more so than its start
    assert report["psnr_db"]["renderer_own"]["low"] > report["psnr_db"]["pair_own"]["high"]
