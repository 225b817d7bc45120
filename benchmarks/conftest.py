"""Options of the latency suite, the pair that it runs, and the table that it prints."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.load import Pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.pair_config import PairConfig
from bootpig_rt.pipeline import default_model

TABLE = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which pair, how many rounds and threads."""
    group = parser.getgroup("bootpig-rt latency")
    group.addoption(
        "--pair",
        help="folder of a pair; 'random' for an untrained one of 11 M "
        "parameters per U-Net; default: the shipped pair, or else a random one",
    )
    group.addoption("--picture-rounds", type=int, default=5, help="rounds of all ways in turn")
    group.addoption("--threads", type=int, default=2, help="torch threads")


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pair_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair under test."""
    chosen = request.config.getoption("--pair")
    if chosen not in (None, "random"):
        return Path(chosen)
    if chosen is None:
        try:
            return default_model()
        except CheckpointError:
            pass
    return write_random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed after the tests."""
    return request.config.stash.setdefault(TABLE, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table, headed by what it was measured on."""
    lines = config.stash.get(TABLE, [])
    if lines:
        terminalreporter.section("latency")
        terminalreporter.line(
            f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"Python {platform.python_version()}"
        )
        for line in lines:
            terminalreporter.line(line)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_random_pair(folder: Path) -> Path:
    """Save an untrained pair of 11 M parameters per U-Net and 16 x 16 latents.

    Drawing with it costs what drawing with a trained pair of that shape costs.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 24}))
    torch.manual_seed(0)
    unets = [
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=(2, 4, 6),
            cross_attention_dim=128,
            norm_num_groups=16,
            use_linear_projection=True,
        )
        for _ in range(2)
    ]
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=16,
        sample_size=64,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    pair = Pair(
        base=BaseUNet(unets[0]),
        reference=ReferenceUNet(unets[1]),
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer_folder=tokenizer,
        scheduler={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "timestep_spacing": "trailing",
        },
        config=PairConfig(
            name="random, 11 M parameters per U-Net",
            sample_size_px=64,
            reference_timestep="mixed",
            ref_scale=1.1,
        ),
        fingerprint="",
    )
    return save_pair(pair, folder / "pair", dtype=torch.float32)
