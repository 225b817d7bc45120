"""A pair of Stable Diffusion XL in training: stages, stored text states, told sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig_rt.models.load import load_pair
from bootpig_rt.models.text_encoders import unpack
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.sampling import told_size

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(make_tiny_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of the size of the samples."""
    folder: Path = make_tiny_pair(
        tmp_path_factory.mktemp("xl"), xl=True, zeros_for_empty_prompt=True, sample_size_px=16
    )
    return folder


def states_seen(config: Any) -> tuple[Any, list[torch.Tensor]]:
    """A stage, and the text states that its Base U-Net reads for the loss of four samples."""
    stage: Any = build_stage(config, CPU)[0]
    seen: list[torch.Tensor] = []
    stage.pair.base.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    with torch.no_grad():
        loss, _ = stage.loss(torch.arange(4), Draws(0, 0, range(4)))
    assert torch.isfinite(loss)
    return stage, seen


def test_the_stages_train_it_and_save_it_whole(
    start: Path, make_config: Any, train: Any, tmp_path: Path
) -> None:
    before, clean = load_pair(start), {"reference_timestep": "clean"}
    config = make_config("pair", tmp_path / "p", steps=1, start_from=str(start), pair=clean)
    trained = train(config)
    folder = trained.folder / "result"
    result = load_pair(folder)
    assert (folder / "text_encoder_2" / "model.safetensors").is_file()
    assert result.config.zeros_for_empty_prompt
    assert result.fingerprint != before.fingerprint
    theirs = before.text_encoder.state_dict()
    for key, value in result.text_encoder.state_dict().items():
        assert torch.equal(value, theirs[key].half().float())
    short = {"steps": 2}
    student = train(
        make_config("distill", tmp_path / "d", steps=1, start_from=str(folder), distill=short)
    )
    small = load_pair(student.folder / "result")
    assert small.config.image_guidance_scale == 1.0
    assert small.base.num_layers == before.base.num_layers


def test_text_states_that_are_stored_are_those_that_are_computed(
    start: Path, make_config: Any, tmp_path: Path
) -> None:
    found = []
    for how in ("computed", "stored"):
        config = make_config(
            "pair", tmp_path / how, start_from=str(start), samples={"text_states": how}
        )
        found.append(states_seen(config)[1][0])
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)  # files are float16


def test_prompts_are_told_the_size_of_what_is_drawn_and_references_their_own(
    xl_pair_folder: Path,
) -> None:
    pair: Any = load_pair(xl_pair_folder)
    ids = torch.from_numpy(pair.tokenizer()(["a dog", "a cat", "a dog"]))
    with torch.no_grad():
        states = pair.text_encoder(ids)[0]
        square = told_size(pair, states, 2, torch.zeros(2, 4, 8, 8))
        wide = told_size(pair, states, 2, torch.zeros(2, 4, 8, 16))
        sizes = [(32, 64, 0, 0, 32, 64)] * 2 + [(32, 32, 0, 0, 32, 32)]
        expected = pair.text_encoder(
            torch.from_numpy(pair.tokenizer()(["a dog", "a cat", "a dog"], sizes=sizes))
        )[0]
    assert torch.equal(square, states)
    assert torch.equal(wide, expected)
    tokens, _ = unpack(wide, pair.base.added_width)
    assert torch.equal(tokens, unpack(states, pair.base.added_width)[0])
