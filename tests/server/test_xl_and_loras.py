"""A service with a pair of Stable Diffusion XL, and with LoRAs in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.server.local import load_local
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output

SIZES = [48, 40, 3, 5, 32, 32]


def write_lora(path: Path, modules: dict[str, int]) -> Path:
    """A file of random numbers in kohya's layout; modules are square matrices of a width."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, width in modules.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(width, 2, generator=generator) / 10
    save_file(tensors, path)
    return path


@pytest.fixture
def xl_lora(tmp_path: Path) -> Path:
    """Of both text encoders and the U-Net."""
    layer = "text_model_encoder_layers_0_self_attn_q_proj"
    modules = {
        f"lora_te1_{layer}": 16,
        f"lora_te2_{layer}": 24,
        "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn1_to_v": 32,
    }
    return write_lora(tmp_path / "style.safetensors", modules)


def test_a_pair_that_is_told_sizes_is_served_with_a_lora_in_it(
    run_service: Any, xl_pair_folder: Path, xl_lora: Path, reference_png: bytes
) -> None:
    options = ServerOptions(model=str(xl_pair_folder), lora=(f"{xl_lora}:0.5",), backend="torch")
    body = {"prompt": "a photo of a disc, in snow", "num_inference_steps": 2, "seed": 3}
    with run_service(options) as ask:
        form = {name: str(value) for name, value in body.items()}
        files = [("image", reference_png)]
        made = ask(Output(), "POST", "/v1/images/edits", data=form, files=files)
        assert made.status_code == 200, made.text
        assert made.json()["data"][0]["parameters"]["sizes"] == [32, 32, 0, 0, 32, 32]

        def draw(**more: Any) -> Any:
            return ask(Output(), "POST", "/v1/images/generations", json={**body, **more})

        told = draw(subject_id=made.json()["subject_id"], sizes=SIZES)
        assert told.status_code == 200, told.text
        assert told.json()["data"][0]["parameters"]["sizes"] == SIZES
        assert told.json()["reference_passes"] == 0  # the table of the subject is the same
        refused = draw(sizes=SIZES[:5])
        assert refused.status_code in (400, 422), refused.text


def test_sizes_for_a_pair_that_is_told_none_are_refused_by_name(client: Any) -> None:
    body = {"prompt": "a photo of a disc", "sizes": SIZES}
    refused = client.post("/v1/images/generations", json=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "sizes"


def test_loras_belong_to_the_default_model(
    tiny_pair_folder: Path, tiny_bundle_folder: Path, tmp_path: Path
) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
    lora = write_lora(tmp_path / "style.safetensors", {name: 32})
    options = ServerOptions(
        model=str(tiny_pair_folder), models={"other": str(tiny_bundle_folder)}, lora=(str(lora),)
    )
    for served, folder, loras in (
        (tiny_pair_folder.name, tiny_pair_folder, ["style.safetensors"]),
        ("other", tiny_bundle_folder, []),
    ):
        model = load_local(served, folder, options)
        try:
            assert [one.name for one in model.pipeline.spec.config.loras] == loras
        finally:
            model.pipeline.close()


@pytest.mark.parametrize(
    ("lora", "backend", "error", "message"),
    [
        ("missing.safetensors", "auto", CheckpointError, "does not exist"),
        ("x.safetensors:7e9", "auto", ParameterError, "the scale of LoRA"),
        ("missing.safetensors", "onnxruntime", ParameterError, "whose graphs hold the weights"),
    ],
)
def test_a_lora_that_cannot_be_used_ends_the_start(
    lora: str, backend: str, error: type[Exception], message: str, tiny_bundle_folder: Path
) -> None:
    options = ServerOptions(model=str(tiny_bundle_folder), lora=(lora,), backend=backend)
    with pytest.raises(error, match=message):
        load_local(tiny_bundle_folder.name, tiny_bundle_folder, options)
