"""ControlNets in the pipeline of diffusers: both ways give one picture, and conventions hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.pipeline import Pipeline

torch = pytest.importorskip("torch", reason="diffusers needs torch")
diffusers = pytest.importorskip("diffusers", reason="the pipeline is diffusers'")

from bootpig_rt.integrations.diffusers import BootPIGPipeline  # noqa: E402
from bootpig_rt.integrations.diffusers.controls import acting_steps, for_engine  # noqa: E402

LIMIT = 2
"""Levels of 255 that a picture of the eager way may differ from an engine's in float32."""

WORDS = {"prompt": "a dog, on a beach", "reference_prompt": "a photo of a dog"}

# diffusers makes numpy arrays of torch tensors in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def depth(size: tuple[int, int] = (32, 32)) -> Image.Image:
    slope = np.linspace(0, 255, size[1]).astype(np.uint8)
    return Image.fromarray(np.repeat(slope[:, None], size[0], axis=1))


def outline() -> Image.Image:
    lines = np.zeros((32, 32), np.uint8)
    lines[8:24, 10] = lines[12, 4:28] = 255
    return Image.fromarray(lines)


def drawn(pipe: Any, disc: Image.Image, **settings: Any) -> list[Any]:
    """Pictures of a call, int16 [H, W, 3] each."""
    given = {
        "ref_image": disc,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(3),
        **WORDS,
        **settings,
    }
    return [np.asarray(image, np.int16) for image in pipe(**given).images]


def off(ones: list[Any], others: list[Any]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(ones, others, strict=True))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def eager(loaded: Callable[..., Any], controlled_pair_folder: Path) -> Any:
    return loaded(controlled_pair_folder)


@pytest.fixture
def on_engine(loaded: Callable[..., Any], controlled_bundle_folder: Path) -> Any:
    return loaded(controlled_bundle_folder, backend="onnxruntime", device="cpu")


@pytest.fixture
def plain(loaded: Callable[..., Any], tiny_pair_folder: Path) -> Any:
    """The pair without controls, by its modules."""
    return loaded(tiny_pair_folder)


@pytest.fixture
def parts(plain: Any) -> dict[str, Any]:
    """What is loaded of the pair without controls, for pipelines that are to have some."""
    return {name: part for name, part in plain.components.items() if part is not None}


@pytest.mark.parametrize(
    "settings",
    [
        {"control_image": {"depth": depth()}},
        {"control_image": {"depth": depth()}, "controlnet_conditioning_scale": 0.4},
        {"control_image": {"outline": outline()}, "control_guidance_end": 0.7},
        {"control_image": [depth(), outline()], "controlnet_conditioning_scale": [0.5, 2.0]},
        {
            "control_image": [depth(), outline()],
            "control_guidance_start": [0.0, 0.3],
            "control_guidance_end": [0.5, 1.0],
            "num_images_per_prompt": 2,
        },
        {"control_image": {"depth": depth((48, 16))}, "negative_prompt": "do"},
    ],
    ids=["one", "weaker", "to 0.7", "both", "both in turn", "wide"],
)
def test_both_ways_follow_maps_alike(
    eager: Any, on_engine: Any, disc: Image.Image, settings: dict[str, Any]
) -> None:
    mine, theirs = drawn(eager, disc, **settings), drawn(on_engine, disc, **settings)
    assert off(mine, theirs) <= LIMIT
    sides = {"width": mine[0].shape[1], "height": mine[0].shape[0]}
    count = {"num_images_per_prompt": len(mine), "negative_prompt": settings.get("negative_prompt")}
    assert off(mine, drawn(eager, disc, **sides, **count)) > LIMIT  # maps change what is drawn


def test_a_picture_of_an_engine_says_which_maps_it_followed(
    on_engine: Any, disc: Image.Image
) -> None:
    (told,) = on_engine(
        **WORDS,
        ref_image=disc,
        num_inference_steps=4,
        control_image={"depth": depth()},
        controlnet_conditioning_scale={"depth": 0.5},
        control_guidance_end=0.7,
    ).parameters
    (control,) = told.controls
    assert (control.kind, control.scale, control.interval) == ("depth", 0.5, (0.0, 0.5))


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        ((0.0, 1.0), range(4)),
        ((0.0, 0.7), range(2)),
        ((0.3, 1.0), range(2, 4)),
        ((0.0, 0.5), range(2)),
    ],
)
def test_an_interval_acts_in_the_steps_that_diffusers_lets_it_act_in(
    interval: tuple[float, float], steps: range
) -> None:
    """i / T >= start and (i + 1) / T <= end; the engine counts steps by where they begin."""
    from bootpig_rt.images.control import Control
    from bootpig_rt.reference.schedule import steps_of_share

    control = Control.load("depth", depth(), interval=interval)
    assert acting_steps(control, 4) == steps
    (same,) = for_engine([control], 4)
    assert steps_of_share(same.interval, 4) == steps


def test_a_map_and_a_mask_go_together_on_an_engine(on_engine: Any, disc: Image.Image) -> None:
    given = Image.new("RGB", (32, 32), (40, 80, 120))
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24] = 1
    settings: dict[str, Any] = {"image": given, "mask_image": mask, "strength": 0.75}
    plain = drawn(on_engine, disc, **settings)[0]
    made = drawn(on_engine, disc, **settings, control_image=[depth(), outline()])[0]
    assert (made[mask == 0] == (40, 80, 120)).all()
    assert (made[mask == 1] != plain[mask == 1]).any()


def test_maps_are_taken_in_every_form_that_pictures_are(eager: Any, disc: Image.Image) -> None:
    grey = np.asarray(depth())
    rgb = np.repeat(grey[..., None], 3, axis=2)
    tensor = torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1)
    first, *others = (
        drawn(eager, disc, control_image={"depth": one}, num_inference_steps=2)
        for one in (depth(), rgb, tensor, tensor[None])
    )
    assert all(off(first, other) == 0 for other in others)


# Loading and saving


def test_controls_lie_beside_the_pair_and_are_saved_there(
    eager: Any, disc: Image.Image, tmp_path: Path
) -> None:
    assert eager.control_kinds == ("depth", "outline")
    assert isinstance(eager.controlnet, diffusers.MultiControlNetModel)
    assert "controlnet" in eager.components
    maps = {"control_image": [depth(), outline()], "num_inference_steps": 2}
    expected = drawn(eager, disc, **maps)
    saved = tmp_path / "saved"
    eager.save_pretrained(saved)
    assert isinstance(eager.controlnet, diffusers.MultiControlNetModel)  # it is as it was
    assert {path.name for path in saved.glob("controlnet*")} == {
        "controlnet_depth",
        "controlnet_outline",
    }
    index = json.loads((saved / "model_index.json").read_text())
    assert "control_kinds" not in index
    for path in saved.rglob("config.json"):
        assert "_name_or_path" not in json.loads(path.read_text())
    again = quiet(BootPIGPipeline.from_pretrained(saved))
    assert off(expected, drawn(again, disc, **maps)) == 0
    with Pipeline(saved, device="cpu") as runtime:  # and it is a pair with its controls
        assert [control.kind for control in runtime.spec.controls] == ["depth", "outline"]


def test_an_engines_controls_are_saved_with_its_pair(
    tiny_pair_folder: Path, controlled_pair_folder: Path, tmp_path: Path
) -> None:
    given = {"depth": controlled_pair_folder / "controlnet_depth"}
    pipe = BootPIGPipeline.from_pretrained(
        tiny_pair_folder, backend="torch", device="cpu", controlnet=given
    )
    assert pipe.control_kinds == ("depth",)
    pipe.save_pretrained(tmp_path / "saved")
    pipe.close()
    assert (tmp_path / "saved" / "controlnet_depth" / "config.json").is_file()
    again = BootPIGPipeline.from_pretrained(tmp_path / "saved")
    assert again.control_kinds == ("depth",)


def test_controls_are_given_by_kind_or_as_diffusers_takes_them(
    tiny_pair_folder: Path, controlled_pair_folder: Path, parts: dict[str, Any], disc: Image.Image
) -> None:
    folders = [controlled_pair_folder / f"controlnet_{kind}" for kind in ("depth", "outline")]
    nets = [diffusers.ControlNetModel.from_pretrained(folder) for folder in folders]
    load: Callable[..., Any] = lambda given: quiet(  # noqa: E731
        BootPIGPipeline.from_pretrained(tiny_pair_folder, controlnet=given, **parts)
    )
    expected = None
    for given, kinds in (
        ({"depth": folders[0]}, ("depth",)),
        ({"near": nets[0]}, ("near",)),
        (nets[0], ("depth",)),  # so its folder is called
        (folders[0], ("depth",)),
    ):
        pipe = load(given)
        assert pipe.control_kinds == kinds
        made = drawn(pipe, disc, control_image=depth(), num_inference_steps=2)
        expected = made if expected is None else expected
        assert off(made, expected) == 0
    assert load(nets).control_kinds == ("depth", "outline")
    unnamed = [diffusers.ControlNetModel.from_config(net.config) for net in nets]
    for net in unnamed:
        net.register_to_config(_name_or_path="")
    assert load(unnamed[0]).control_kinds == ("map",)
    assert load(unnamed).control_kinds == ("map0", "map1")
    both = BootPIGPipeline.from_pipe(load(nets))
    assert both.control_kinds == ("depth", "outline")


def test_a_pipeline_without_controls_draws_as_before(
    eager: Any, plain: Any, disc: Image.Image
) -> None:
    assert plain.control_kinds == ()
    assert off(drawn(plain, disc), drawn(eager, disc)) == 0


def test_controls_move_and_change_their_type_with_the_rest(
    controlled_pair_folder: Path, disc: Image.Image
) -> None:
    eager = quiet(BootPIGPipeline.from_pretrained(controlled_pair_folder))  # its parts are cast
    eager.to(dtype=torch.bfloat16)
    assert eager.controlnet.dtype == torch.bfloat16
    assert len(drawn(eager, disc, control_image=[depth(), outline()])) == 1


# Refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control_image": depth()}, "has 1 maps, expected one for each control, depth, outline"),
        ({"control_image": {"normal": depth()}}, "has maps of 'normal', expected some of depth"),
        ({"control_image": {}}, "has maps of nothing"),
        ({"control_image": {"depth": [depth()] * 2}}, "control_image depth has 2 maps"),
        ({"controlnet_conditioning_scale": 0.5}, "scale is given without control_image"),
        ({"control_guidance_end": 0.5}, "control_guidance_end is given without control_image"),
        (
            {"control_image": {"depth": depth()}, "controlnet_conditioning_scale": [1.0, 0.5]},
            "controlnet_conditioning_scale has 2 values for 1 maps",
        ),
        (
            {"control_image": {"depth": depth()}, "controlnet_conditioning_scale": -1.0},
            "controlnet_conditioning_scale is -1.0, expected a number from 0",
        ),
        (
            {"control_image": {"depth": depth()}, "control_guidance_start": 0.9,
             "control_guidance_end": 0.2},
            "control_guidance_start and control_guidance_end is",
        ),
        (
            {"control_image": {"depth": depth()}, "control_guidance_end": 0.1},
            "none of 4 steps lies between",
        ),
        (
            {"control_image": {"depth": depth()}, "width": 64},
            "control_image.* 32x32 px, but .*64",
        ),
        ({"control_image": {"depth": Image.new("RGB", (32, 32), "red")}}, "is in colour"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["eager", "on_engine"])
def test_what_cannot_be_followed_is_told_before_anything_is_drawn(
    request: pytest.FixtureRequest,
    disc: Image.Image,
    way: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    pipe = request.getfixturevalue(way)
    with pytest.raises(ValueError, match=message):
        drawn(pipe, disc, **settings)


def test_a_pair_without_controls_says_how_to_get_one(plain: Any, disc: Image.Image) -> None:
    with pytest.raises(ParameterError, match="this pipeline has no control; load it with"):
        drawn(plain, disc, control_image=depth())


def test_controls_that_do_not_fit_are_refused_when_they_are_loaded(
    tiny_pair_folder: Path, controlled_pair_folder: Path, parts: dict[str, Any]
) -> None:
    folder = controlled_pair_folder / "controlnet_depth"
    net = diffusers.ControlNetModel.from_pretrained(folder)
    with pytest.raises(ParameterError, match="controlnet depth is a module, but an engine loads"):
        BootPIGPipeline.from_pretrained(tiny_pair_folder, backend="torch", controlnet=net)
    with pytest.raises(ParameterError, match="control depth is given twice"):
        BootPIGPipeline.from_pretrained(
            controlled_pair_folder, controlnet={"depth": folder}, **parts
        )
    with pytest.raises(ParameterError, match="control depth is given twice"):
        BootPIGPipeline.from_pretrained(controlled_pair_folder, controlnet={"depth": net}, **parts)
    other = diffusers.ControlNetModel.from_config(net.config, cross_attention_dim=24)
    with pytest.raises(CheckpointError, match="has cross_attention_dim 24, expected 16"):
        BootPIGPipeline.from_pretrained(tiny_pair_folder, controlnet={"depth": other}, **parts)
    with pytest.raises(CheckpointError, match="is no folder, expected a ControlNet"):
        BootPIGPipeline.from_pretrained(tiny_pair_folder, controlnet={"depth": "nowhere"}, **parts)
