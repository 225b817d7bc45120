"""Pictures: any Stable Diffusion folder or a pair of ours; each depends on its own seed alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.errors import BackendUnavailable, CheckpointError, ConfigError
from bootpig_rt.training.bootstrap.pictures import (
    DiffusersPictures,
    PairPictures,
    prompt_of,
    seed_of,
)
from bootpig_rt.training.bootstrap.stage import Item, Reject


def items(*indices: int, **fields: Any) -> list[Item]:
    texts = {"noun": "dog", "position": "on", "scene": "a beach"} | fields
    return [Item(k, f"a photo of a dog, on beach {k}", **texts) for k in indices]


def draw(stage: Any, *wanted: Item) -> list[Any]:
    return [one for (one,) in stage(list(wanted))]


def sd_config(bootstrap_config: Any, folder: Path, **changes: Any) -> Any:
    settings = {"source": "diffusers", "model": str(folder), "steps": 2, "guidance": 3.0}
    return bootstrap_config(pictures=settings | changes, size_px=24)


# Of diffusers' Euler scheduler with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("version", ["1.x", "2.x", "xl"])
def test_a_picture_of_stable_diffusion_depends_on_its_own_seed_alone(
    bootstrap_config: Any, sd_folder: Any, version: str
) -> None:
    stage = DiffusersPictures(sd_config(bootstrap_config, sd_folder(version)))
    together = draw(stage, *items(0, 1, 2))
    (alone,) = draw(stage, *items(2))
    assert [item.index for item in together] == [0, 1, 2]
    pictures = [item.views[0].picture for item in together]
    assert all(picture.shape == (24, 24, 3) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    difference = np.abs(alone.views[0].picture.astype(int) - pictures[2].astype(int))
    assert difference.max() <= 1  # the last bit of float32, where it decides a rounding
    assert together[0].prompt == "a photo of a dog, on beach 0"


def test_steps_guidance_and_negative_prompt_reach_the_model(
    bootstrap_config: Any, sd_folder: Any
) -> None:
    def pixels(**changes: Any) -> Any:
        stage = DiffusersPictures(sd_config(bootstrap_config, sd_folder("1.x"), **changes))
        (item,) = draw(stage, *items(0))
        return item.views[0].picture

    usual = pixels()
    for changes in ({"steps": 3}, {"guidance": 0.0}, {"negative_prompt": "do"}, {"draw_px": 24}):
        assert not np.array_equal(pixels(**changes), usual), changes
    # A few-step model's settings: one step, no guidance.
    assert pixels(steps=1, guidance=0.0).shape == (24, 24, 3)


def test_a_pair_is_one_wide_picture_cut_in_halves(bootstrap_config: Any, sd_folder: Any) -> None:
    stage = DiffusersPictures(sd_config(bootstrap_config, sd_folder("2.x")))
    single, pair = *items(0), *items(1, is_pair=True)
    first, second = draw(stage, single, pair)
    assert len(first.views) == 1
    assert [view.picture.shape for view in second.views] == [(24, 24, 3)] * 2
    assert not np.array_equal(second.views[0].picture, second.views[1].picture)
    assert second.prompt.startswith("two photos of the same dog side by side, on the left on a be")
    assert second.prompt == prompt_of(stage._config, pair)


def test_seeds_are_the_runs_own(bootstrap_config: Any) -> None:
    one, other = bootstrap_config(seed=1), bootstrap_config(seed=2)
    assert len({seed_of(config, k) for config in (one, other) for k in range(50)}) == 100


def test_templates_are_filled(bootstrap_config: Any) -> None:
    (item,) = items(0)
    config = bootstrap_config(
        pictures={"source": "pair", "template": "{noun} at {scene}, studio light"}
    )
    assert prompt_of(config, item) == "dog at a beach, studio light"


@pytest.mark.parametrize("template", ["no field", "{colour}", "{caption"])
def test_a_template_that_nothing_fills_is_refused(bootstrap_config: Any, template: str) -> None:
    with pytest.raises(Exception, match="template is "):
        bootstrap_config(pictures={"source": "pair", "template": template})


def test_our_own_pair_draws_from_the_prompt_alone(
    bootstrap_config: Any, tiny_pair_folder: Path
) -> None:
    config = bootstrap_config(
        pictures={"source": "pair", "model": str(tiny_pair_folder), "steps": 2}, size_px=48
    )
    stage = PairPictures(config)
    together = draw(stage, *items(0, 1), *items(2, is_pair=True))
    (alone,) = draw(stage, *items(1))
    assert np.array_equal(together[1].views[0].picture, alone.views[0].picture)
    assert together[0].views[0].picture.shape == (48, 48, 3)
    assert len(together[2].views) == 2


def test_pictures_that_show_nothing_are_rejects(bootstrap_config: Any, sd_folder: Any) -> None:
    stage = DiffusersPictures(sd_config(bootstrap_config, sd_folder("1.x")))
    whole = np.random.default_rng(0).random((32, 32, 3), np.float32)
    drawn = [whole, np.full_like(whole, np.nan), np.full_like(whole, 0.3), None]
    stage._draw = lambda *_: drawn  # type: ignore[method-assign]
    found = draw(stage, *items(0, 1, 2, 3))
    assert isinstance(found[0], Item)
    reasons = [each.reason for each in found[1:] if isinstance(each, Reject)]
    assert reasons == ["not_finite", "flat", "unsafe"]
    assert found[1].caption == "a photo of a dog, on beach 1"


def change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def pickle_all(folder: Path) -> None:
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_suffix(".bin"))


def pickle_one(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
        folder / "vae" / "diffusion_pytorch_model.bin"
    )


def cut_weights(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is no folder, expected one in the hub's layout; check the path"),
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("["), "model_index.json cannot be read"),
        (remove_unet, "lacks its unet; copy the whole folder"),
        (pickle_all, "has only .*bin, a pickle, which is not opened"),
        (pickle_one, "cannot be loaded: "),
        (cut_weights, "cannot be loaded: "),
        (lambda f: change_index(f, _class_name="NoPipeline"), "cannot be loaded: .*NoPipeline"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_named(
    bootstrap_config: Any, sd_folder: Any, tmp_path: Path, change: Any, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder("1.x"), folder)
    change(folder)
    with pytest.raises(CheckpointError, match=rf"text-to-image model .*model.* ?{message}"):
        DiffusersPictures(sd_config(bootstrap_config, folder))


def test_a_safety_checker_that_is_a_pickle_is_left_out_and_said(
    bootstrap_config: Any, sd_folder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd_folder("1.x"), folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"not to be opened")
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change_index(folder, safety_checker=checker, requires_safety_checker=True)
    stage = DiffusersPictures(sd_config(bootstrap_config, folder))
    assert "its safety checker has no safetensors and is left out" in caplog.text
    assert isinstance(draw(stage, *items(0))[0], Item)


def test_a_device_that_is_not_there_is_named(bootstrap_config: Any, sd_folder: Any) -> None:
    settings = {"source": "diffusers", "model": str(sd_folder("1.x"))}
    with pytest.raises(ConfigError, match="device is 'gpu', expected auto, cpu or cuda:N"):
        DiffusersPictures(bootstrap_config(pictures=settings, device="gpu"))
    with pytest.raises(BackendUnavailable, match="device is 'cuda:99', and this machine has"):
        DiffusersPictures(bootstrap_config(pictures=settings, device="cuda:99"))
