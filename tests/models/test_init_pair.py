"""`bootpig-rt init-pair` and the models of a hub, on small folders in the published layouts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import equal, float16

from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError
from bootpig_rt.images.picture import SUBJECT_SHARE
from bootpig_rt.models import hub
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline

VERSIONS = ("2.1-base", "1.x")
UNET = "diffusion_pytorch_model.safetensors"


def drawing(colour: str) -> Image.Image:
    """A coloured disc, cut out."""
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=colour)
    return image


@pytest.fixture(scope="module", params=VERSIONS)
def sd_folder(
    request: pytest.FixtureRequest, make_sd_folder: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("sd") / request.param
    made: Path = make_sd_folder(folder, request.param)
    return made


@pytest.fixture(scope="module")
def one_folder(make_sd_folder: Any, share: Any) -> Path:
    """Of version 1.x, for what does not depend on the version. Copy it before changing a file."""
    folder: Path = share("sd_1", lambda folder: make_sd_folder(folder / "1.x", "1.x"))
    return folder / "1.x"


@pytest.fixture(scope="module")
def pair_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pair") / "pair"
    assert main(["init-pair", "--base-model", str(sd_folder), "-o", str(output)]) == 0
    return output


def test_the_weights_are_stored_once_as_float16_safetensors(
    sd_folder: Path, pair_folder: Path
) -> None:
    config = read_pair_config(pair_folder / "pair.json")
    assert (config.shared_unet, config.sample_size_px) == (True, 64)
    assert config.subject_share == SUBJECT_SHARE
    assert config.name == f"{sd_folder.name}, untrained"
    files = {str(path.relative_to(pair_folder)) for path in pair_folder.rglob("*.*")}
    assert {name for name in files if not name.endswith((".json", ".txt"))} == {
        f"base_unet/{UNET}",
        f"vae/{UNET}",
        "text_encoder/model.safetensors",
    }
    written = load_file(pair_folder / "base_unet" / UNET)
    for name, tensor in load_file(sd_folder / "unet" / UNET).items():
        assert equal(written[name], tensor.to(float16))


def test_the_heads_are_those_of_the_published_model(sd_folder: Path, pair_folder: Path) -> None:
    heads = {shape[1] for shape in load_pair(pair_folder).base.layer_shapes()}
    assert heads == ({8} if sd_folder.name == "1.x" else {2, 4, 8})


def test_an_untrained_pair_draws_and_its_reference_counts(pair_folder: Path) -> None:
    pipeline = Pipeline(pair_folder, backend="torch", device="cpu")
    pictures = []
    for colour in ("red", "blue"):
        drawn = pipeline(
            "a photo of a dog, on a beach",
            reference_images=drawing(colour),
            reference_prompt="a photo of a dog",
            num_inference_steps=1,
            seed=1,
        )
        pictures.append(np.asarray(drawn.images[0]))
    assert pictures[0].shape == (64, 64, 3)
    assert np.any(pictures[0] != pictures[1])


def test_the_summary_names_the_pair(
    one_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init-pair", "--base-model", str(one_folder), "-o", str(tmp_path / "pair"), "--json"]
    assert main([*words, "--name", "mine", "--dtype", "float32"]) == 0
    summary = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in (tmp_path / "pair").rglob("*") if path.is_file())
    assert summary == {
        "pair": str(tmp_path / "pair"),
        "name": "mine",
        "sample_size_px": 64,
        "size_bytes": size,
    }
    assert load_file(tmp_path / "pair" / "vae" / UNET)["encoder.conv_in.weight"].is_floating_point()


def test_references_are_prepared_as_large_as_is_said(
    one_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init-pair", "--base-model", str(one_folder), "-o", str(tmp_path / "pair")]
    assert main([*words, "--subject-share", "1.2"]) == 2
    assert "subject_share is 1.2, expected a share 0.1..1" in capsys.readouterr().err
    assert main([*words, "--subject-share", "0.6"]) == 0
    assert read_pair_config(tmp_path / "pair" / "pair.json").subject_share == 0.6


def test_an_existing_folder_is_replaced_only_when_asked_and_only_a_pair(
    one_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pair"
    output.mkdir()
    (output / "keep.txt").write_text("mine")
    words = ["init-pair", "--base-model", str(one_folder), "-o", str(output)]
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 2
    assert "is no pair" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["pair", "keep.txt"]
    shutil.rmtree(output)
    assert main(words) == 0
    assert main([*words, "--overwrite", "--name", "second"]) == 0
    assert read_pair_config(output / "pair.json").name == "second"


def _remove_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def _leave_a_pickle(folder: Path) -> None:
    (folder / "unet" / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def _truncate(folder: Path) -> None:
    path = folder / "unet" / UNET
    path.write_bytes(path.read_bytes()[:-100])


def _edit(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_vae, "has no vae folder"),
        (_leave_a_pickle, "a pickle"),
        (_truncate, "truncated or damaged"),
        (_edit(sample_size=[64, 96]), r"sample_size is \[64, 96\]"),
        (_edit(addition_embed_type="text_image"), "addition_embed_type is 'text_image'"),
    ],
    ids=["part missing", "pickle", "truncated", "not square", "other architecture"],
)
def test_a_folder_that_cannot_be_a_pair_is_refused_and_nothing_is_left(
    damage: Any, message: str, one_folder: Path, tmp_path: Path
) -> None:
    from bootpig_rt.models.init_pair import init_pair

    folder = shutil.copytree(one_folder, tmp_path / "sd")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        init_pair(folder, tmp_path / "pair")
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


def test_a_hub_id_needs_a_network_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # HF_HUB_OFFLINE is set for the whole suite
    assert main(["init-pair", "--base-model", "owner/model", "-o", "pair"]) == 2
    error = capsys.readouterr().err
    assert "'owner/model' is no folder here and could not be fetched" in error
    assert "give a folder" in error
    assert list(tmp_path.iterdir()) == []


def test_a_hub_id_is_fetched_at_one_commit_and_without_pickles(
    one_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for `huggingface_hub` that serves a folder of this disk."""
    asked: dict[str, Any] = {}

    class Api:
        def model_info(self, model_id: str) -> Any:
            files = [str(p.relative_to(one_folder)) for p in one_folder.rglob("*") if p.is_file()]
            files += ["unet/diffusion_pytorch_model.bin", "v1-5-pruned.ckpt"]
            siblings = [SimpleNamespace(rfilename=name) for name in files]
            return SimpleNamespace(sha="1234abcd", siblings=siblings)

    def snapshot_download(model_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.update(model_id=model_id, revision=revision, files=allow_patterns)
        for name in allow_patterns:
            target = tmp_path / "cache" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one_folder / name, target)
        return str(tmp_path / "cache")

    fake = SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    assert main(["init-pair", "--base-model", "owner/model", "-o", "pair"]) == 0
    assert (asked["model_id"], asked["revision"]) == ("owner/model", "1234abcd")
    assert not [name for name in asked["files"] if name.endswith((".bin", ".ckpt"))]
    assert f"unet/{UNET}" in asked["files"]
    assert load_pair(tmp_path / "pair").config.shared_unet


@pytest.mark.parametrize("name", ["models/missing/deep", "./missing", "missing", "https://a/b"])
def test_a_path_is_not_taken_for_an_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        hub.base_model_folder(name)


def test_only_the_files_of_a_pair_are_fetched_and_no_pickle() -> None:
    listing = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/README.md",
        "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors",
    ]
    assert hub.wanted_files(listing) == [
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
