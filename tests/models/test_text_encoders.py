"""Two text encoders as one, and pairs of Stable Diffusion XL as folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from bootpig_rt.bundle.text_parts import num_added_rows, text_parts, text_shape
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.text_encoders import TwoTextEncoders, pack, states_shape, unpack
from bootpig_rt.training.start import load_start

SIZES = (48, 40, 3, 5, 32, 32)


@pytest.fixture(scope="module")
def pair(xl_pair_folder: Path) -> Pair:
    return load_pair(xl_pair_folder)


def states_of(pair: Pair, prompts: list[str], sizes: tuple[int, ...] = SIZES) -> torch.Tensor:
    ids = pair.tokenizer()(prompts, sizes=[sizes] * len(prompts))
    with torch.inference_mode():
        states: torch.Tensor = pair.text_encoder(torch.from_numpy(ids)).last_hidden_state
    return states


@pytest.mark.parametrize("prompt", ["a dog, on a beach!", "dog " * 40])
def test_states_are_those_of_the_pipeline_of_diffusers(pair: Pair, prompt: str) -> None:
    text: Any = pair.text_encoder
    theirs: Any = StableDiffusionXLPipeline(
        vae=pair.vae,
        text_encoder=text.first,
        text_encoder_2=text.second,
        tokenizer=CLIPTokenizer.from_pretrained(pair.tokenizer_folder),
        tokenizer_2=CLIPTokenizer.from_pretrained(pair.tokenizer_2_folder),
        unet=pair.base.unet,
        scheduler=None,
        add_watermarker=False,
    )
    assert theirs.tokenizer_2.pad_token_id == 0 != theirs.tokenizer.pad_token_id
    tokens, empty, pooled, empty_pooled = theirs.encode_prompt(prompt)
    numbers = theirs._get_add_time_ids(
        SIZES[:2], SIZES[2:4], SIZES[4:], torch.float32, text.second.config.projection_dim
    )
    sinusoids = pair.base.unet.add_time_proj(numbers.flatten()).reshape(1, -1)
    mine = states_of(pair, [prompt, ""])
    expected = [
        pack(states, torch.cat([pool, sinusoids], dim=1))
        for states, pool in ((tokens, pooled), (empty, empty_pooled))
    ]
    torch.testing.assert_close(mine, torch.cat(expected))
    assert not mine[1, :24].any()  # what is empty is zeros, but for the sizes
    assert mine[1, 24:].any()


def test_an_empty_prompt_is_encoded_where_the_pair_says_nothing(
    xl_pair_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(xl_pair_folder, tmp_path / "pair")
    config = json.loads((folder / "pair.json").read_text())
    del config["zeros_for_empty_prompt"]
    (folder / "pair.json").write_text(json.dumps(config))
    said = load_pair(folder)
    assert not said.config.zeros_for_empty_prompt
    assert states_of(said, [""])[0, :24].any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 40))
def test_what_is_packed_comes_out_again(n: int, tokens: int, width: int, added: int) -> None:
    states, numbers = torch.randn(n, tokens, width), torch.randn(n, added)
    packed = pack(states, numbers)
    unet = {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": added,
        "cross_attention_dim": width,
    }
    text = {"max_position_embeddings": tokens, "hidden_size": 1}
    assert packed.shape[1:] == text_shape(unet, text)
    assert packed.shape[1] == tokens + num_added_rows(unet, width)
    for got, expected in zip(unpack(packed, added), (states, numbers), strict=True):
        assert torch.equal(got, expected)


def test_sizes_can_be_told_anew(pair: Pair) -> None:
    text: Any = pair.text_encoder
    states, other = states_of(pair, ["a dog", ""]), states_of(pair, ["a dog", ""], (1,) * 6)
    assert not torch.equal(states, other)
    assert torch.equal(text.told_sizes(states, (1,) * 6), other)


def test_a_pair_is_saved_and_loaded_as_it_was(pair: Pair, tmp_path: Path) -> None:
    again = load_pair(save_pair(pair, tmp_path / "again", dtype=torch.float32))
    assert again.fingerprint == pair.fingerprint
    assert again.config == pair.config
    assert torch.equal(states_of(again, ["a dog"]), states_of(pair, ["a dog"]))
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]


def test_the_fingerprint_follows_all_that_changes_the_states(
    pair: Pair, xl_pair_folder: Path, tmp_path: Path
) -> None:
    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> str:
        folder = shutil.copytree(xl_pair_folder, tmp_path / name.replace("/", "-"))
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))
        return load_pair(folder).fingerprint

    found = {
        pair.fingerprint,
        changed("tokenizer_2/vocab.json", lambda values: values.update({"x": 7, "y": 8})),
        changed("pair.json", lambda values: values.pop("zeros_for_empty_prompt")),
    }
    assert len(found) == 3


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_a_folder_without_its_second_text_encoder_is_told_before_weights_are_read(
    part: str, xl_pair_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(xl_pair_folder, tmp_path / "pair")
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(b"")
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=f"no {part} folder, and its U-Net reads two text"):
        load_pair(folder)
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "base_unet").rename(base / "unet")
    words = ["init-pair", "--base-model", str(base), "-o", str(tmp_path / "new")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"has no {part} folder, expected one of Stable Diffusion XL" in told
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match=f"has no {part} folder"):
        load_start(base, torch.device("cpu"))


def test_encoders_that_do_not_fit_are_refused_with_both_sizes(pair: Pair) -> None:
    text: Any = pair.text_encoder
    config = dict(pair.base.unet.config)
    for name, value, told in (
        ("projection_class_embeddings_input_dim", 64, "adds 64 numbers .* expected 72: 24 of text"),
        ("addition_time_embed_dim", 6, "expected 60: 24 of text_encoder_2 and 6 x 6 of the pictu"),
    ):
        with pytest.raises(CheckpointError, match=told):
            TwoTextEncoders(text.first, text.second, {**config, name: value})
    short: Any = load_pair_with_short_second(pair)
    with pytest.raises(CheckpointError, match="reads 24 tokens and text_encoder_2 12, expected as"):
        TwoTextEncoders(text.first, short, config)


def load_pair_with_short_second(pair: Pair) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    text: Any = pair.text_encoder
    config = {**text.second.config.to_dict(), "max_position_embeddings": 12}
    return CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config))


@pytest.fixture(scope="module")
def published(make_sd_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = make_sd_folder(tmp_path_factory.mktemp("xl") / "sd", "xl", dtype="float16")
    return folder


def test_init_pair_reads_the_published_layout(published: Path, tmp_path: Path) -> None:
    config = init_pair(published, tmp_path / "pair")
    assert config.zeros_for_empty_prompt
    pair = load_pair(tmp_path / "pair")
    assert states_shape(pair.text_encoder) == (77 + 2, 2048)
    assert pair.base.num_layers == 2 + 3 + 3 + 6 + 4
    assert pair.scheduler["set_alpha_to_one"] is True  # as its Euler scheduler ends
    assert pair.vae.config.force_upcast
    ids = pair.tokenizer()(["a dog", ""])
    assert ids.shape == (2, 77 + 77 + 6)
    side = config.sample_size_px
    assert ids[1, -6:].tolist() == [side, side, 0, 0, side, side]
    for row in ids:
        ends = row[77:154][row[:77] == 515]  # end and padding are one token of the first alone
        assert ends[0] == 515
        assert not ends[1:].any()


def test_a_base_of_few_steps_makes_them_the_defaults(published: Path, tmp_path: Path) -> None:
    words = ["init-pair", "--base-model", str(published), "--few-steps", "4", "--quiet"]
    assert main([*words[:-1], "-o", str(tmp_path / "pair"), "--json"]) == 0
    pair = load_pair(tmp_path / "pair")
    assert (pair.config.default_steps, pair.config.default_solver) == (4, "ddim")
    assert pair.config.image_guidance_scale == pair.config.text_guidance_scale == 1.0
    assert pair.scheduler["timestep_spacing"] == "trailing"
    assert main([*words[:3], "--few-steps", "0", "-o", str(tmp_path / "none")]) == 2


def test_parts_are_those_that_the_u_net_reads(pair: Pair) -> None:
    assert text_parts({}) == ("text_encoder", "tokenizer")
    assert text_parts(pair.base.unet.config)[2:] == ("text_encoder_2", "tokenizer_2")
