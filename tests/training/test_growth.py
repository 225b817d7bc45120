"""A U-Net that grows from a smaller pair sees what that saw and draws what that drew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import load_pair
from bootpig_rt.training.run import build_stage

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CAPTION = "a photo of a dog, in the middle of a sandy beach"


def grown(make_config: Any, output: Path, vae: Path, small: Path, **unet: Any) -> Any:
    """A stage `base` that begins as the pair `small`, with an autoencoder of its own."""
    before = make_config("base", output, start_from=str(vae))
    table = {name: getattr(before.unet, name) for name in before.unet.__struct_fields__}
    settings = {**table, "grow_from": str(small), **unet}
    config = make_config("base", output, start_from=str(vae), unet=settings)
    return build_stage(config, CPU)[0]


def with_turned_latents(vae: Path, folder: Path) -> Path:
    """The same autoencoder with its latents scaled and in another order, which loses nothing."""
    shutil.copytree(vae, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    order = torch.tensor([2, 0, 3, 1])
    outer = torch.cat([order, order + 4])
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name] = weights[name][outer].contiguous()
    weights["post_quant_conv.weight"] = weights["post_quant_conv.weight"][:, order].contiguous()
    save_file(weights, file)
    return folder


def prediction(pair: Any, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    t = torch.tensor([300])
    with torch.no_grad():
        states = pair.text_encoder(ids)[0]
        features = pair.reference(latents, torch.zeros_like(t), states)
        table = pair.base.project_reference(features)
        found: torch.Tensor = pair.base(latents, t, states, table, torch.zeros(1, 1).long())
    return found


def test_a_grown_unet_predicts_what_the_small_one_did_in_the_new_latents(
    make_config: Any, vae_result: Path, base_result: Path, tmp_path: Path
) -> None:
    turned = with_turned_latents(vae_result, tmp_path / "vae")
    stage = grown(make_config, tmp_path / "run", turned, base_result)
    small = load_pair(base_result)
    order = torch.tensor([2, 0, 3, 1])
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(1, 4, 8, 8, generator=generator)
    ids = stage.data.ids([CAPTION])
    expected = prediction(small, old, ids)[:, order]
    found = prediction(stage.pair, old[:, order], ids)
    # Latents are kept in float16, and convolutions see zeros at borders where the old saw a mean.
    assert float((found - expected).abs().max()) < 0.02 * float(expected.std())


def test_words_that_are_new_begin_as_the_mean_of_their_pieces(
    make_config: Any, vae_result: Path, base_result: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    shutil.copytree(base_result, small)
    stage = grown(make_config, tmp_path / "run", vae_result, base_result)
    tokens = json.loads((stage.pair.tokenizer_folder / "vocab.json").read_text())
    known = json.loads((base_result / "tokenizer" / "vocab.json").read_text())
    name = "text_model.embeddings.token_embedding.weight"
    new = dict(stage.pair.text_encoder.named_parameters())
    old = dict(load_pair(base_result).text_encoder.named_parameters())
    key = next(k for k in new if name.endswith(k) or k.endswith("token_embedding.weight"))
    for token in set(tokens) & set(known):
        assert torch.equal(new[key][tokens[token]], old[key][known[token]])


def test_other_layers_or_another_prediction_are_refused(
    make_config: Any, vae_result: Path, base_result: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"other layers than \[unet\] says"):
        grown(make_config, tmp_path / "a", vae_result, base_result, layers_per_block=2)
    with pytest.raises(ConfigError, match="set unet.prediction_type"):
        grown(make_config, tmp_path / "b", vae_result, base_result, prediction_type="epsilon")
