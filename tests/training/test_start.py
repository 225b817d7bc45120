"""What stages start from: every layout, its settings carried through, and where it comes from."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.init_pair import init_pair
from bootpig_rt.models.load import load_pair
from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.config import PairSettings, load_config
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.start import load_start, subject_share, with_settings

pytestmark = pytest.mark.usefixtures("one_thread", "_no_network")
REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")
SD_2 = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 400,
    "beta_start": 0.0005,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)


@pytest.fixture(scope="module")
def diffusers_folder(base_result: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with a schedule and a prediction of its own."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(base_result / name, folder / name)
    shutil.copytree(base_result / "base_unet", folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_2))
    return folder


@pytest.fixture(scope="module")
def starts(
    diffusers_folder: Path,
    base_result: Path,
    pair_result: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Every layout that training can start from."""
    untrained = tmp_path_factory.mktemp("untrained") / "pair"
    init_pair(diffusers_folder, untrained)
    published = tmp_path_factory.mktemp("published") / "pair"
    shutil.copytree(pair_result, published, ignore=shutil.ignore_patterns("*.json"))
    shutil.copytree(pair_result, published, dirs_exist_ok=True)
    (published / "pair.json").unlink()
    (published / "model_index.json").unlink()
    return {
        "init-pair": untrained,
        "diffusers": diffusers_folder,
        "base": base_result,
        "pair": pair_result,
        "published": published,
    }


LAYOUTS = ("init-pair", "diffusers", "base", "pair", "published")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_is_trained_from_every_layout_with_the_schedule_of_its_start(
    layout: str, starts: dict[str, Path], make_config: Any, train: Any, make_output: Any
) -> None:
    start = starts[layout]
    before = load_start(start, CPU)
    config = make_config("pair", make_output("mine"), steps=1, start_from=str(start))
    trainer = train(config)
    result = load_pair(trainer.folder / "result")
    assert result.scheduler == before.scheduler
    is_foreign = layout in ("init-pair", "diffusers")
    assert result.scheduler["prediction_type"] == ("v_prediction" if is_foreign else "sample")
    changed = {"name": trainer.folder.name, "shared_unet": False, "subject_share": 0.6}
    assert vars(result.config) == vars(before.config) | changed
    for name in ("vae", "text_encoder"):
        theirs = getattr(before, name).state_dict()
        for key, value in getattr(result, name).state_dict().items():
            assert torch.equal(value, theirs[key].half().float())
    assert result.vae.config.scaling_factor == before.vae.config.scaling_factor


def test_noise_and_target_of_the_loss_are_those_of_the_start(
    diffusers_folder: Path, make_config: Any, make_output: Any
) -> None:
    kept = {"prompt_dropout": 0.0, "reference_dropout": 0.0, "both_dropout": 0.0}
    plain = {"snr_gamma": 0.0, "snr_floor": 0.0, "foreground_weight": 0.0}
    start = str(diffusers_folder)
    config = make_config("pair", make_output("run"), start_from=start, diffusion=kept | plain)
    stage: Any = build_stage(config, CPU)[0]
    seen: list[Any] = []
    stage.pair.base.register_forward_hook(lambda _, args, output: seen.append((args, output)))
    with torch.no_grad():
        loss, _ = stage.loss(torch.arange(5), Draws(0, 0, range(5)))
    (noisy, t, *_), output = seen[0]
    betas = np.linspace(0.0005, 0.02, 400)
    alpha = torch.from_numpy(np.cumprod(1 - betas))[t].view(-1, 1, 1, 1)
    assert int(t.max()) < 400
    x = stage.data.train.targets(range(5)).double()
    noise = (noisy.double() - alpha.sqrt() * x) / (1 - alpha).sqrt()
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x
    error = (output.double() - velocity).pow(2)
    assert float(loss) == pytest.approx(float(error.mean()), rel=1e-3)


def test_defaults_go_through_every_stage_unless_a_stage_says_otherwise(
    base_result: Path, pair_result: Path, make_config: Any, train: Any, make_output: Any
) -> None:
    base, pair = (load_pair(folder).config for folder in (base_result, pair_result))
    assert (base.image_guidance_scale, base.default_steps, base.ref_scale) == (3.5, 7, 1.1)
    assert (pair.image_guidance_scale, pair.default_steps, pair.ref_scale) == (3.0, 6, 1.0)
    config = make_config(
        "pair",
        make_output("next"),
        steps=1,
        start_from=str(pair_result),
        pair={"text_guidance_scale": 4.5, "merge": "mean"},
    )
    after = load_pair(train(config).folder / "result").config
    assert after.image_guidance_scale == 3.0
    assert after.default_steps == 6
    assert after.reference_timestep == "mixed"
    assert (after.text_guidance_scale, after.merge) == (4.5, "mean")


def test_an_untied_pair_is_trained_on_with_both_of_its_unets(
    pair_result: Path, make_config: Any, make_output: Any
) -> None:
    config = make_config("pair", make_output("run"), start_from=str(pair_result))
    stage: Any = build_stage(config, CPU)[0]
    before = load_pair(pair_result)
    for name in ("base", "reference"):
        mine, theirs = (getattr(pair, name).unet.state_dict() for pair in (stage.pair, before))
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    one, other = (before.base.unet.state_dict(), before.reference.unet.state_dict())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("layout", ["base", "pair"])
def test_the_length_of_prompts_is_that_of_the_start(
    layout: str, starts: dict[str, Path], make_config: Any, make_output: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "start"
    shutil.copytree(starts[layout], folder)
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"model_max_length": 13}
    path.write_text(json.dumps(settings))
    config = make_config("pair", make_output("run"), start_from=str(folder))
    stage: Any = build_stage(config, CPU)[0]
    assert stage.data.empty_ids.shape[1] == 13


def test_a_start_that_is_nothing_is_refused_without_asking_a_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither base_unet nor unet, expected a pair or a"):
        load_start(tmp_path, CPU)
    with pytest.raises(CheckpointError, match="stabilityai/stable.* does not exist"):
        load_start(Path("stabilityai/stable-diffusion-2-1-base"), CPU)


def test_references_are_prepared_as_large_as_those_of_the_samples() -> None:
    assert subject_share({"settings": {"triplets": {"fill": 0.86}}}) == 0.86
    assert subject_share({"settings": {"fit": {"subject_share": 0.7}}}) == 0.7
    assert subject_share({"settings": {"world": {"reference_length": 0.64}}}) == 0.64
    assert subject_share({"settings": {"world": {}}}) == REFERENCE_LENGTH


def test_a_trained_pair_says_how_large_its_references_showed_the_subject(
    make_config: Any, base_result: Path, samples: Path, make_output: Any, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(samples, tmp_path / "data"))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["settings"]["triplets"] = {"fill": 0.8}
    (data / "manifest.json").write_text(json.dumps(manifest))
    changes = {"start_from": str(base_result), "data": str(data)}
    stage, _ = build_stage(make_config("pair", make_output("run"), **changes), CPU)
    assert stage.result().config.subject_share == 0.8


def test_settings_that_are_left_out_stay() -> None:
    config = PairConfig(name="a", sample_size_px=64, default_steps=9)
    changed = with_settings(config, PairSettings(merge="mean", ref_scale=0.0), name="b")
    assert (changed.name, changed.merge, changed.ref_scale) == ("b", "mean", 0.0)
    assert changed.default_steps == 9


# Where it comes from ------------------------------------------------------------------------------


def test_a_pair_says_what_it_was_trained_on_all_the_way_to_its_vae(
    pair_result: Path, base_result: Path, vae_result: Path, samples: Path
) -> None:
    pair, base, vae = (
        json.loads((folder / "provenance.json").read_text())
        for folder in (pair_result, base_result, vae_result)
    )
    assert [each["config"]["stage"] for each in (pair, base, vae)] == ["pair", "base", "vae"]
    assert pair["start"]["fingerprint"] == load_pair(base_result).fingerprint
    assert pair["start"]["provenance"] == base
    assert base["start"]["provenance"] == vae
    assert len(base["start"]["fingerprint"]) == 64
    assert vae["start"] is None
    manifest = json.loads((samples / "manifest.json").read_text())
    for record in (pair, base, vae):
        assert record["config"]["seed"] == 5
        assert record["processes"] == 1
        assert record["data"]["samples"] == manifest["samples"] == 24
        assert record["data"]["settings"]["seed"] == 3
        assert record["data"]["manifest_sha256"] == vae["data"]["manifest_sha256"]
        assert record["packages"]["torch"] == version("torch")
    assert pair["config"]["optimizer"]["learning_rate"] == 5e-3


def test_the_fingerprint_of_a_pair_does_not_depend_on_its_provenance(
    pair_result: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pair_result, copy)
    (copy / "provenance.json").unlink()
    assert load_pair(copy).fingerprint == load_pair(pair_result).fingerprint


def test_the_record_of_the_shipped_pair_is_of_the_shipped_pair() -> None:
    shipped = REPOSITORY / "bootpig_rt" / "assets" / "pair"
    record = json.loads((REPOSITORY / "training" / "logs" / "provenance.json").read_text())
    pair = load_pair(shipped)
    assert record["shipped"]["fingerprint"] == pair.fingerprint
    by_hand = record["shipped"]["set_by_hand"]
    assert by_hand == {name: getattr(pair.config, name) for name in by_hand}
    stages, told = [], record
    while told:
        stages.append(told["config"]["stage"])
        told = (told.get("start") or {}).get("provenance")
    assert (stages[0], stages[-1]) == ("pair", "vae")
    assert record["start"]["provenance"]["config"]["unet"]["max_tokens"] == 32


# The recipe ---------------------------------------------------------------------------------------


def folders_of(text: str, command: str) -> set[str]:
    """What `bootpig-rt COMMAND` writes with -o in a text."""
    lines = (line.split() for line in text.splitlines() if f"bootpig-rt {command}" in line)
    return {words[words.index("-o") + 1] for words in lines if "-o" in words}


def test_the_readme_makes_the_samples_that_the_configurations_read() -> None:
    folder = REPOSITORY / "training/configs"
    others = ("bootstrap", "recipe", "world3d")
    stages = [path for path in folder.glob("*.toml") if not path.stem.startswith(others)]
    configs = [load_config(path, []) for path in sorted(stages)]
    read = {config.data for config in configs} | {config.validation_data for config in configs}
    read -= {"", "data/bootstrapped"}  # what a bootstrap makes, and none
    readme = (REPOSITORY / "training" / "README.md").read_text()
    assert folders_of(readme, "synthesize") == read
