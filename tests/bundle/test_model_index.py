"""The file that makes a pair's folder one of Hugging Face's: written with each pair, and read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.model_index import FILE, check_model_index
from bootpig_rt.bundle.shipped import default_model, few_step_model
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError
from bootpig_rt.export.stage_pair import link_pair, pair_files
from bootpig_rt.models.hub import pair_folder, wanted_pair_files
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.pipeline import Pipeline


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / FILE).read_text())
    return index


@pytest.fixture
def pair(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair_folder, tmp_path / "pair"))


def test_every_part_that_the_index_names_lies_in_its_folder(tiny_pair_folder: Path) -> None:
    index = index_of(tiny_pair_folder)
    assert index.pop("_class_name") == "BootPIGPipeline"
    parts = {name for name in index if not name.startswith("_")}
    assert parts == {path.name for path in tiny_pair_folder.iterdir() if path.is_dir()}
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]


def test_saving_a_pair_writes_the_index_of_what_it_holds(
    make_tiny_pair: Any, patch_pair_folder: Path, tmp_path: Path
) -> None:
    shared = load_pair(make_tiny_pair(tmp_path, shared_unet=True, default_solver="ddim"))
    index = index_of(save_pair(shared, tmp_path / "again"))
    assert index["ref_unet"] == [None, None]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index_of(patch_pair_folder)["vae"] == [
        "bootpig_rt.models.patch_autoencoder",
        "PatchAutoencoder",
    ]


def test_a_tiny_autoencoder_is_in_the_index_of_what_is_saved_and_of_what_is_built(
    pair_with_tiny_folder: Path, tmp_path: Path
) -> None:
    saved = save_pair(load_pair(pair_with_tiny_folder), tmp_path / "again")
    assert index_of(saved)["tiny_vae"] == ["diffusers", "AutoencoderTiny"]
    files = pair_files(pair_with_tiny_folder)
    assert files is not None
    link_pair(pair_with_tiny_folder, files, tmp_path / "bundle")
    assert index_of(tmp_path / "bundle") == index_of(saved)


def test_the_shipped_pairs_are_sealed_with_their_index_and_have_a_card() -> None:
    for folder in (default_model(), few_step_model()):
        assert folder is not None
        manifest = open_bundle(folder).manifest
        assert FILE in {file.path for file in manifest.files}
        assert (folder / "README.md").read_text().startswith("---\nlibrary_name: bootpig-rt\n")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_folder_of_another_pipeline_is_refused_with_what_to_do(
    make_sd_folder: Any, tmp_path: Path, backend: str
) -> None:
    folder = make_sd_folder(tmp_path / "sd", "2.1-base")
    with pytest.raises(CheckpointError, match="'StableDiffusionPipeline', expected a pair; to mak"):
        Pipeline(folder, backend=backend)


def test_settings_that_did_not_come_along_are_missed_and_not_made_up(pair: Path) -> None:
    (pair / "pair.json").unlink()
    with pytest.raises(CheckpointError, match="its pair.json is missing"):
        Pipeline(pair)


def rewritten(**changes: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewritten(ref_unet=[None, None]), "has none for ref_unet, and pair.json the contrary"),
        (lambda path: path.write_text("["), "is not valid json"),
        (rewritten(_class_name=7), "no base_unet"),
    ],
    ids=["no reference", "damaged", "no name"],
)
def test_an_index_that_contradicts_its_folder_is_refused(
    pair: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(pair / FILE)
    if message == "no base_unet":
        shutil.rmtree(pair / "base_unet")
        message = "is the folder of a 7, expected a pair"
    with pytest.raises(CheckpointError, match=message):
        check_model_index(pair)


def test_a_folder_of_an_earlier_version_without_an_index_still_loads(pair: Path) -> None:
    before = load_pair(pair).fingerprint
    (pair / FILE).unlink()
    assert load_pair(pair).fingerprint == before


def test_a_card_is_written_for_a_pair_that_nobody_trained(pair: Path) -> None:
    words = ["model-card", str(pair), "--pair-licence", "Apache-2.0", "--base-licence", "MIT"]
    assert main(words) == 0
    assert "\nlicense: apache-2.0\n" in (pair / "README.md").read_text().partition("\n---\n")[0]
    assert main(["model-card", str(pair), "--pair-licence", "ours: ask"]) == 0
    front = (pair / "README.md").read_text().partition("\n---\n")[0]
    assert '\nlicense: other\nlicense_name: "ours: ask"\n' in front


def test_of_a_hub_a_pair_is_fetched_without_pickles_and_a_bundle_whole() -> None:
    listing = [".gitattributes", "README.md", "pair.json", FILE, "training.log"]
    listing += ["base_unet/config.json", "base_unet/diffusion_pytorch_model.safetensors"]
    listing += ["base_unet/diffusion_pytorch_model.bin", "tokenizer/vocab.json"]
    files = wanted_pair_files(listing)
    assert not {".gitattributes", "training.log", "base_unet/diffusion_pytorch_model.bin"} & {
        *files
    }
    assert {"pair.json", FILE, "README.md", "base_unet/config.json"} < {*files}
    bundle = [*listing, "manifest.json", "denoise_step.onnx"]
    assert wanted_pair_files(bundle) == sorted(bundle[1:])


def test_a_pair_that_is_no_folder_here_is_sought_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'owner/pair' is no folder here and could not be f"):
        pair_folder("owner/pair")  # HF_HUB_OFFLINE is set for the whole suite
    with pytest.raises(CheckpointError, match="does not exist, expected the folder of a pair or"):
        pair_folder(tmp_path / "missing")
