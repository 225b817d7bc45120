"""Bad input on the road: model folders that cannot be used, and two runs in one output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.files.held import held
from bootpig_rt.training.road.stand_ins import write_stand_ins

pytestmark = pytest.mark.usefixtures("one_thread", "_fresh_accelerator")
CONFIG = str(Path(__file__).parents[2] / "training" / "configs" / "pair.toml")
UNET = "diffusion_pytorch_model"
Damage = Callable[[Path, str], None]
Capture = pytest.CaptureFixture[str]


def without_a_part(folder: Path, unet: str) -> None:
    shutil.rmtree(folder / "text_encoder")


def with_a_transformer(folder: Path, unet: str) -> None:
    """As Stable Diffusion 3 and FLUX have."""
    (folder / unet).rename(folder / "transformer")


def with_the_unet_of_xl(folder: Path, unet: str) -> None:
    path = folder / unet / "config.json"
    config = {**json.loads(path.read_text()), "addition_embed_type": "text_time"}
    path.write_text(json.dumps(config))


def with_a_pickle(folder: Path, unet: str) -> None:
    (folder / unet / f"{UNET}.safetensors").rename(folder / unet / f"{UNET}.bin")


def of_half_a_file(folder: Path, unet: str) -> None:
    path = folder / "vae" / f"{UNET}.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (without_a_part, "text_encoder"),
    "transformer": (with_a_transformer, "unet"),
    "xl": (with_the_unet_of_xl, "has no text_encoder_2 folder"),
    "pickle": (with_a_pickle, "a pickle, which can run code when it is opened"),
    "half": (of_half_a_file, "is truncated or damaged"),
}


@pytest.fixture(scope="module")
def sd_folder(base_result: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder of a few thousand weights."""
    folder = tmp_path_factory.mktemp("models") / "sd"
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(base_result / name, folder / name)
    shutil.copytree(base_result / "base_unet", folder / "unet")
    return folder


@pytest.fixture(params=DAMAGES)
def damaged(
    request: pytest.FixtureRequest, sd_folder: Path, tmp_path: Path
) -> tuple[Path, Damage, str]:
    """A copy of the folder that is damaged, how, and what the error must say."""
    damage, message = DAMAGES[request.param]
    folder = Path(shutil.copytree(sd_folder, tmp_path / "sd"))
    damage(folder, "unet")
    return folder, damage, message


def said(capsys: Capture) -> str:
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_folder_that_cannot_be_used_is_refused_by_init_pair_and_by_train(
    damaged: tuple[Path, Damage, str], samples: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, _, message = damaged
    assert main(["init-pair", "--base-model", str(folder), "-o", str(tmp_path / "pair")]) == 2
    assert message in said(capsys)
    run = tmp_path / "run"
    words = [f"start_from={folder}", f"data={samples}", "validation_data=", f"output={run}"]
    assert main(["train", CONFIG, *words]) == 2
    assert message in said(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sd"]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_pair_that_cannot_be_used_is_refused_by_evaluate_and_by_build_engine(
    name: str, pair_result: Path, tmp_path: Path, capsys: Capture
) -> None:
    damage, message = DAMAGES[name]
    pair, data = Path(shutil.copytree(pair_result, tmp_path / "pair")), tmp_path / "data"
    damage(pair, "base_unet")
    write_stand_ins(data)
    out = tmp_path / "out"
    words = ["--suite", "tiny", "--model", str(pair), "--data", str(data), "--backend", "torch"]
    assert main(["evaluate", *words, "-o", str(out)]) == 2
    assert message in said(capsys)
    assert main(["build-engine", "--pair", str(pair), "-o", str(out), "--quiet"]) == 2
    assert message in said(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pair"]


def test_a_second_training_in_one_output_is_refused_and_the_first_goes_on(
    base_result: Path, samples: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    words = [f"start_from={base_result}", f"data={samples}", "validation_data=", f"output={run}"]
    words += ["steps=1", "batch_size=2", "mixed_precision=no", "optimizer.warmup_steps=1"]
    with held(run, "training"):
        assert main(["train", CONFIG, *words]) == 1
        assert "another training is writing" in said(capsys)
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert main(["train", CONFIG, *words]) == 0
    assert (run / "result" / "pair.json").is_file()
    assert not (run / ".lock").exists()


def test_a_second_evaluation_in_one_output_is_refused_and_the_pictures_stay(
    pair_result: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    with held(out, "evaluation"):
        (out / "pictures").mkdir()
        assert main(["evaluate", "--model", str(pair_result), "-o", str(out)]) == 1
        assert "another evaluation is writing" in said(capsys)
    assert [path.name for path in out.iterdir()] == ["pictures"]
