"""Controls: the numbers of diffusers, whatever the family, and refusals of what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from bootpig_rt.bundle.control import ControlFolder, find_controls, to_control_folders
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.control import Control
from bootpig_rt.models.control_folder import load_controls
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet

# Of Stable Diffusion 1.x (heads as a number, convolutions as projections) and 2.x.
FAMILIES: dict[str, dict[str, Any]] = {
    "1.x": {"attention_head_dim": 2, "cross_attention_dim": 24},
    "2.x": {
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
    },
}


def unet_and_control(family: str, *, order: str = "rgb") -> tuple[Any, Any]:
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        **FAMILIES[family],
    ).eval()
    net = ControlNetModel.from_unet(
        unet,
        controlnet_conditioning_channel_order=order,
        conditioning_embedding_out_channels=(4, 8, 8),
    ).eval()
    with torch.no_grad():  # what begins as zeros would show nothing
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return unet, net


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_controlled_picture_is_that_of_diffusers(family: str, order: str) -> None:
    unet, net = unet_and_control(family, order=order)
    width = FAMILIES[family]["cross_attention_dim"]
    latents, states = torch.randn(3, 4, 8, 12), torch.randn(3, 5, width)
    t, maps = torch.tensor([7, 400, 999]), torch.rand(3, 3, 32, 48)
    down, middle = net(latents, t, states, maps, return_dict=False)
    wanted = unet(
        latents,
        t,
        states,
        down_block_additional_residuals=[0.7 * one for one in down],
        mid_block_additional_residual=0.7 * middle,
    ).sample

    control = Control(net)
    residuals = control(latents, t, states, control.embed(maps))
    for ours, theirs in zip(residuals, [*down, middle], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    shapes = [(one.shape[1], 8 // one.shape[2]) for one in residuals]
    assert shapes == [(channels, 2**level) for channels, level in control.residual_shapes()]
    drawn, _ = BaseUNet(unet).draw(latents, t, states, residuals=[0.7 * one for one in residuals])
    torch.testing.assert_close(drawn, wanted, rtol=1e-4, atol=1e-5)
    plain = BaseUNet(unet)(latents, t, states)
    assert not torch.allclose(plain, wanted, atol=1e-3)


@torch.no_grad()
def test_residuals_of_zeros_change_nothing() -> None:
    unet, net = unet_and_control("2.x")
    base, control = BaseUNet(unet), Control(net)
    latents, states, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32), torch.tensor([1, 500])
    residuals = control(latents, t, states, control.embed(torch.rand(2, 3, 32, 32)))
    nothing = [torch.zeros_like(one) for one in residuals]
    drawn, _ = base.draw(latents, t, states, residuals=nothing)
    assert torch.equal(drawn, base(latents, t, states))


def test_a_map_of_another_size_than_the_picture_is_refused() -> None:
    _, net = unet_and_control("2.x")
    control = Control(net)
    hints = control.embed(torch.rand(2, 3, 32, 64))
    with pytest.raises(ParameterError, match="a map has the size of the picture"):
        control(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 5, 32), hints)


def test_controls_lie_beside_the_pair_and_are_saved_with_it(
    controlled_pair_folder: Path, tmp_path: Path
) -> None:
    pair = load_pair(controlled_pair_folder)
    assert [control.kind for control in pair.controls] == ["depth", "outline"]
    saved = load_pair(save_pair(pair, tmp_path / "saved", dtype=torch.float32))
    assert [one.fingerprint for one in saved.controls] == [one.fingerprint for one in pair.controls]


def test_the_fingerprint_of_a_pair_does_not_depend_on_its_controls(
    controlled_pair_folder: Path, tiny_pair_folder: Path, plain: Pair
) -> None:
    """Subjects and tables stay valid: no control reads a reference."""
    depth = ControlFolder("depth", controlled_pair_folder / "controlnet_depth")
    pair = load_pair(tiny_pair_folder, controls=[depth])
    assert pair.fingerprint == plain.fingerprint
    beside = load_pair(controlled_pair_folder).controls[0]
    assert pair.controls[0].fingerprint == beside.fingerprint


@pytest.fixture(scope="module")
def plain(tiny_pair_folder: Path) -> Pair:
    """The pair that the controls would belong to."""
    return load_pair(tiny_pair_folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cross_attention_dim": 768}, "768 .Stable Diffusion 1.x.*expected 16"),
        ({"cross_attention_dim": 2048}, "Stable Diffusion XL"),
        ({"block_out_channels": [16, 64]}, "block_out_channels"),
        ({"in_channels": 9}, "in_channels 9, expected 4"),
        ({"layers_per_block": 2}, "layers_per_block"),
        ({"attention_head_dim": [4, 4]}, "attention_head_dim"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"conditioning_embedding_out_channels": [4, 8]}, "2 times smaller, expected 4"),
        ({"_class_name": "T2IAdapter"}, "of class .T2IAdapter., expected ControlNetModel"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "rgb. or .bgr"),
    ],
)
def test_a_control_of_another_family_or_size_is_refused_ahead_of_its_weights(
    controlled_pair_folder: Path,
    plain: Pair,
    tmp_path: Path,
    change: dict[str, Any],
    told: str,
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(controlled_pair_folder / "controlnet_depth", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match=told):
        load_controls(
            [ControlFolder("depth", folder)],
            plain.base,
            pixels_per_latent=4,
            device="cpu",
            dtype=torch.float32,
        )


def test_a_control_that_is_no_folder_is_refused(tiny_pair_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder, expected a ControlNet in diffusers"):
        load_pair(tiny_pair_folder, controls=[ControlFolder("depth", tmp_path / "no.safetensors")])


def test_two_controls_of_one_kind_are_refused(controlled_pair_folder: Path) -> None:
    other = ControlFolder("depth", controlled_pair_folder / "controlnet_outline")
    with pytest.raises(ParameterError, match="depth is given twice"):
        load_pair(controlled_pair_folder, controls=[other])


def test_folders_of_controls_are_named_for_their_kind(controlled_pair_folder: Path) -> None:
    found = find_controls(controlled_pair_folder)
    assert [one.kind for one in found] == ["depth", "outline"]
    assert to_control_folders([str(one.path) for one in found]) == found
    assert to_control_folders({one.kind: one.path for one in found}) == found
    assert to_control_folders(f"canny={found[0].path}")[0].kind == "canny"
    with pytest.raises(ParameterError, match="expected KIND=DIR such as depth=some/folder"):
        to_control_folders("some/folder")
    with pytest.raises(ParameterError, match="small letters and digits"):
        ControlFolder("Depth map", Path("x"))
