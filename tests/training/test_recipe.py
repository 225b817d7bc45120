"""Recipes: one file for samples and stages, run from nothing, rehearsed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import load_pair
from bootpig_rt.training import recipe as recipe_module
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.recipe import (
    PROBE_MINUTES,
    TRAIN,
    VALIDATION,
    fit_steps,
    is_recipe,
    read_recipe,
    steps_of,
)

pytestmark = pytest.mark.usefixtures("one_thread", "_fresh_accelerator")

RECIPE = """
output = "{output}"
drawings = "{drawings}"

[[samples]]
name = "train"
count = 24
seed = 3
size_px = 16

[[samples]]
name = "validation"
split = "held_out_identity"
count = 8
seed = 4
size_px = 16

[[stages]]
name = "vae"
config = "vae.toml"

[[stages]]
name = "base"
config = "base.toml"

[[stages]]
name = "pair"
config = "pair.toml"
"""
STAGE = """
stage = "{stage}"
output = "elsewhere"
{start}
steps = 4
batch_size = 2
seed = 5
log_every = 1
validate_every = 0
checkpoint_every = 2
trackers = []
"""
TABLES = {
    "vae": "[vae]\nkind = 'patch'\nblock_channels = [8, 8]\nencoder_channels = [8, 8]\n"
    "latent_channels = 5\nkl_weight = 0.0",
    "base": "[unet]\nblock_channels = [16, 32]\nhead_dim = 8\nnorm_groups = 8\ntext_width = 16\n"
    "text_layers = 1\ntext_heads = 2\nvocabulary = 700",
    "pair": "",
}


@pytest.fixture
def recipe(tmp_path: Path, drawings: Path) -> Path:
    """A recipe of three tiny stages in a folder of its own."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(output=tmp_path / "made", drawings=drawings))
    for stage, table in TABLES.items():
        start = "" if stage == "vae" else 'start_from = "elsewhere"'
        (folder / f"{stage}.toml").write_text(STAGE.format(stage=stage, start=start) + table)
    return path


def steps_done(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [int(row["step"]) for row in rows if "loss" in row]


def test_one_command_makes_a_pair_from_drawings(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "vae.steps=2", "base.steps=2", "pair.steps=3"]) == 0
    assert "stage pair, 3 of 3, is finished" in capsys.readouterr().out
    made = tmp_path / "made"
    pair = load_pair(made / "pair" / "result")
    assert type(pair.vae).__name__ == "PatchAutoencoder"
    assert steps_done(made / "pair") == [1, 2, 3]
    record = json.loads((made / "pair" / "result" / "provenance.json").read_text())
    before = record["start"]["provenance"]["start"]["provenance"]
    assert before["config"]["stage"] == "vae"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_recipe_goes_on_where_it_stopped(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--max-minutes", "0", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["stage"], outcome["is_finished"]) == ("vae", False)
    shards = list((tmp_path / "made" / "samples" / "train").glob("*.tar"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    assert main(["train", str(recipe), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["stage"], outcome["is_finished"]) == ("pair", True)
    assert [shard.stat().st_mtime_ns for shard in shards] == times
    before = (tmp_path / "made" / "vae" / "log.jsonl").read_text()
    assert main(["train", str(recipe)]) == 0
    assert (tmp_path / "made" / "vae" / "log.jsonl").read_text() == before


def test_a_rehearsal_takes_a_share_of_steps_and_samples(recipe: Path) -> None:
    steps = list(steps_of(read_recipe(recipe), recipe, ["base.steps=1000"], scale=0.01))
    assert [(step.name, step.config.steps) for step in steps] == [
        ("vae", 2),
        ("base", 10),
        ("pair", 2),
    ]
    assert steps[1].config.optimizer.warmup_steps == 1


def test_stages_read_what_is_before_them(recipe: Path, tmp_path: Path) -> None:
    vae, base, pair = (
        step.config for step in steps_of(read_recipe(recipe), recipe, ["base.unet.head_dim=16"])
    )
    made = tmp_path / "made"
    assert vae.start_from == ""
    assert base.start_from == str(made / "vae" / "result")
    assert pair.start_from == str(made / "base" / "result")
    assert base.unet.head_dim == 16
    assert {vae.data, base.data} == {str(made / "samples" / "train")}
    assert pair.validation_data == str(made / "samples" / "validation")


def test_steps_follow_from_the_minutes_a_stage_is_given(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(
        recipe.read_text().replace(
            'config = "base.toml"',
            'config = "base.toml"\nminutes = 1.0\nchanges = ["steps=999"]',
        )
    )
    _, step, other = steps_of(read_recipe(recipe), recipe, [])
    assert step.config.steps == 999
    Path(step.config.output).mkdir(parents=True)
    clock, reached = iter([100.0, 124.0]), iter([2, 12])
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(recipe_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def train(config: TrainConfig, minutes: float) -> int:
        asked.append((config.steps, minutes))
        return next(reached)

    # Ten steps in 0.4 minutes; of the minute 0.2 are left.
    assert fit_steps(step, train).steps == 12 + 5
    assert asked == [(999, PROBE_MINUTES)] * 2
    assert fit_steps(step, train).steps == 17  # kept: a run that goes on asks nothing
    assert fit_steps(other, train) == other.config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "pair"', 'name = "base"', "two with the name 'base'"),
        ('name = "validation"', 'name = "other"', "expected names of"),
        ('config = "pair.toml"', 'config = "pair.toml"\nstart = "pair"', "a stage before it"),
        ("count = 24", 'count = 24\nchanges = ["drawing_share=0"]', "are of the drawn"),
        ("count = 24", "count = 0", "recipe.toml: Expected `int` >= 1"),
        ("[[stages]]", "[[stages]", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused(recipe: Path, old: str, new: str, message: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe)


def test_a_base_grows_from_the_stage_that_is_named(recipe: Path, tmp_path: Path) -> None:
    grown = '[[stages]]\nname = "large"\nconfig = "base.toml"\nstart = "vae"\ngrow = "base"\n'
    recipe.write_text(recipe.read_text() + grown)
    *_, large = (step.config for step in steps_of(read_recipe(recipe), recipe, []))
    made = tmp_path / "made"
    assert large.start_from == str(made / "vae" / "result")
    assert large.unet.grow_from == str(made / "base" / "result")


@pytest.mark.slow
def test_the_script_for_one_gpu_keeps_what_there_is(recipe: Path, tmp_path: Path) -> None:
    """On a CPU, with a tiny recipe: within its time it leaves the result of some stage, whole."""
    script = Path(__file__).parents[2] / "training" / "one_gpu.sh"
    settings = {"RECIPE": recipe, "RUNS": tmp_path / "made", "OUT": tmp_path / "out"}
    environment = {name: str(value) for name, value in settings.items()}
    environment |= {"MINUTES": "3", "PIECE": "1", "PYTHON": sys.executable}
    subprocess.run(["bash", str(script)], check=True, env={**os.environ, **environment})
    kept = sorted((tmp_path / "out" / "kept").glob("*.tar.*"))
    archive = tmp_path / "joined.tar"
    archive.write_bytes(b"".join(part.read_bytes() for part in kept))
    with tarfile.open(archive) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"provenance.json", "diffusion_pytorch_model.safetensors"} <= names
    assert (tmp_path / "out" / "kept" / "log.jsonl").is_file()


@pytest.mark.parametrize("name", ["recipe-128", "recipe-128-gpu"])
def test_recipes_of_the_repository_are_valid(name: str) -> None:
    path = Path(__file__).parents[2] / "training" / "configs" / f"{name}.toml"
    recipe = read_recipe(path)
    steps = list(steps_of(recipe, path, []))
    names = [step.name for step in steps]
    lesson = ["lesson"] if name == "recipe-128" else []
    last = ["vae", *lesson, "base", "pair"]
    assert names[names.index("vae") :][: len(last)] == last
    assert {each.size_px for each in recipe.samples if each.name in (TRAIN, VALIDATION)} == {128}
    seeds = [step.config.seed for step in steps] + [samples.seed for samples in recipe.samples]
    assert len(set(seeds)) == len(seeds)


def test_wrong_options_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = recipe.parent / "vae.toml"
    assert is_recipe(recipe)
    assert not is_recipe(stage)
    for command, message in (
        ([str(recipe), "steps=3"], "names no stage"),
        ([str(recipe), "--scale", "0"], "expected a share above 0"),
        ([str(stage), "--scale", "0.5"], "--scale is of recipes alone"),
        ([str(recipe), "--dry-run"], "--dry-run is of one stage"),
    ):
        assert main(["train", *command]) == 2
        assert message in capsys.readouterr().err
