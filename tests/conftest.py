"""Settings of the whole suite; fixtures live beside the tests that use them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, Protocol

import pytest

# Before numpy or torch start their thread pools. One thread: the models here are too small to gain
# from more, and on a busy machine threads that wait for each other are many times slower. Nothing
# is looked up on a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose hardware or package is missing, and say why."""
    marked = {marker.name for item in items for marker in item.iter_markers()}
    if marked.isdisjoint({"gpu", "trt"}):
        return
    has_gpu = False
    if importlib.util.find_spec("torch"):
        import torch

        has_gpu = torch.cuda.is_available()
    has_trt = importlib.util.find_spec("tensorrt") is not None
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))
        if item.get_closest_marker("trt") and not (has_gpu and has_trt):
            item.add_marker(pytest.mark.skip(reason="no TensorRT or no CUDA GPU on this machine"))


class MakeTinyPair(Protocol):
    """`make_tiny_pair(folder, ...)`, see the fixture."""

    def __call__(
        self,
        folder: Path,
        *,
        seed: int = ...,
        prediction_type: str = ...,
        published: bool = ...,
        **config: Any,
    ) -> Path:
        """Write a random pair and return its folder."""


@pytest.fixture(scope="session")
def make_tiny_pair() -> MakeTinyPair:
    """A function that saves a random, untrained pair of 32 px pictures and about 0.3 MB.

    Latents are [4, 8, 8]; prompts have 24 tokens. With `published` the folder holds `base_unet`
    and `ref_unet` alone and `folder / "base_model"` the rest, as the published trainer leaves it.
    Further keywords become fields of `pair.json`.
    """

    def make(
        folder: Path,
        *,
        seed: int = 0,
        prediction_type: str = "epsilon",
        published: bool = False,
        **config: Any,
    ) -> Path:
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        from bootpig_rt.models.load import Pair
        from bootpig_rt.models.save import save_pair
        from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
        from bootpig_rt.pair_config import PairConfig

        folder.mkdir(parents=True, exist_ok=True)
        tokenizer_folder = folder / "tokenizer_source"
        _write_tiny_tokenizer(tokenizer_folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base, reference = (
                UNet2DConditionModel(
                    sample_size=8,
                    block_out_channels=(16, 32),
                    layers_per_block=1,
                    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                    attention_head_dim=(2, 4),
                    cross_attention_dim=16,
                    norm_num_groups=4,
                    use_linear_projection=True,
                )
                for _ in range(2)
            )
            vae = AutoencoderKL(
                block_out_channels=(8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=4,
                sample_size=32,
            )
            text = CLIPTextConfig(
                vocab_size=len(json.loads((tokenizer_folder / "vocab.json").read_text())),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                bos_token_id=514,
                eos_token_id=515,
                pad_token_id=515,
            )
            text_encoder = CLIPTextModel(text)
        scheduler = {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": prediction_type,
            "timestep_spacing": "trailing",
        }
        defaults = {"name": "tiny", "sample_size_px": 32, "default_steps": 2}
        pair = Pair(
            base=BaseUNet(base),
            reference=ReferenceUNet(reference),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer_folder=tokenizer_folder,
            scheduler=scheduler,
            config=PairConfig(**{**defaults, **config}),
            fingerprint="",
        )
        saved = save_pair(pair, folder / "pair", dtype=torch.float32)
        if published:
            rest = folder / "base_model"
            rest.mkdir()
            for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
                (saved / name).rename(rest / name)
            (saved / "pair.json").unlink()
        return saved

    return make


@pytest.fixture(scope="session")
def tiny_pair_folder(
    make_tiny_pair: MakeTinyPair, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random pair in the single-folder layout. Copy it before changing a file."""
    return make_tiny_pair(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def published_layout_folder(
    make_tiny_pair: MakeTinyPair, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`base_unet` and `ref_unet` of a random pair; `base_model` beside it holds the rest."""
    return make_tiny_pair(tmp_path_factory.mktemp("published"), published=True)


def _write_tiny_tokenizer(folder: Path) -> None:
    """A vocabulary of bytes and two merges in the layout of CLIP's: 516 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 24,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    folder.mkdir()
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        encoding="utf-8",
    )
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
