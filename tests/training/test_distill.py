"""Stage `distill`: what it learns from, what it leaves alone, and the pair that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bootpig_rt.diffusion.solver import solver_table
from bootpig_rt.errors import CheckpointError, ConfigError
from bootpig_rt.kernels import choose
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.config import TrainConfig, load_config
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage
from bootpig_rt.training.sampling import Drawer, Guidance
from bootpig_rt.training.stage import Validation
from bootpig_rt.training.stages import distill
from bootpig_rt.training.stages.distill import DistillStage, teacher_timesteps

pytestmark = pytest.mark.usefixtures("one_thread", "_short_validation")
CPU = torch.device("cpu")
ConfigOf = Callable[..., TrainConfig]
KEPT = {"prompt_dropout": 0.0, "reference_dropout": 0.0, "both_dropout": 0.0}


def log_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def teacher(pair_result: Path) -> Path:
    return pair_result


def change_pair(folder: Path, **fields: Any) -> None:
    path = folder / "pair.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def config_of(make_config: Any, teacher: Path, make_output: Any) -> ConfigOf:
    """`config_of(name, ...)`: a student of `teacher`, 20 steps of 2 pictures of 3 steps."""

    def make(
        name: str = "student", *, steps_of_student: int = 3, substeps: int = 1, **changes: Any
    ) -> TrainConfig:
        settings = {"start_from": str(teacher), "log_every": 1, **changes}
        distill = {"steps": steps_of_student, "substeps": substeps}
        made: TrainConfig = make_config("distill", make_output(name), distill=distill, **settings)
        return made

    return make


def build(config: TrainConfig) -> DistillStage:
    stage, _ = build_stage(config, CPU)
    assert isinstance(stage, DistillStage)
    return stage


@pytest.fixture(scope="module")
def untrained(make_config: Any, teacher: Path, workshop: Path) -> DistillStage:
    """A student of three steps that nobody trains; nothing is left out of its batches."""
    settings = {"start_from": str(teacher), "distill": {"steps": 3}, "diffusion": KEPT}
    return build(make_config("distill", workshop / "untrained-student", **settings))


def rows_of(trainer: Any) -> list[dict[str, float]]:
    rows = log_rows(trainer.folder / "log.jsonl")
    return [{k: v for k, v in r.items() if k != "samples_per_s"} for r in rows if "loss" in r]


def conditions_of(stage: DistillStage, count: int = 4) -> Any:
    return stage._conditions(stage.data.batch(torch.arange(count), draws_of(count)))


def draws_of(count: int, step: int = 0) -> Draws:
    return Draws(0, step, range(count))


def noise_of(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("substeps", [1, 2])
def test_the_loss_falls(substeps: int, config_of: ConfigOf) -> None:
    stage = build(config_of(steps_of_student=2, substeps=substeps, diffusion=KEPT))
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss, figures = stage.loss(torch.arange(2), draws_of(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert 0 < figures["error_last"] < 10
    assert losses[-1] < 0.8 * losses[0], losses


def test_the_teacher_and_the_rest_of_the_pair_stay_as_they_are(
    config_of: ConfigOf, teacher: Path
) -> None:
    stage = build(config_of())
    modules = {
        "base": stage.teacher.base, "reference": stage.teacher.reference,
        "vae": stage.teacher.vae, "text": stage.teacher.text_encoder,
    }  # fmt: skip
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=1e-2)
    for step in range(2):
        loss, _ = stage.loss(torch.arange(2), draws_of(2, step))
        loss.backward()
        optimizer.step()
    for name, module in modules.items():
        assert all(torch.equal(v, before[name][k]) for k, v in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    moved = stage.unet.state_dict()
    assert not torch.equal(moved["conv_in.weight"], before["base"]["unet.conv_in.weight"])
    assert all(p.grad is not None for p in stage.unet.parameters())


def test_without_training_the_student_is_the_teachers_text_image_row(
    untrained: DistillStage,
) -> None:
    stage = untrained
    conditions, x = conditions_of(stage), noise_of(4)
    with torch.no_grad():
        student = Drawer(stage.student, conditions, stage.teacher, None).output(x, 500)
        base = stage.teacher.base
        table = base.project_reference(conditions.features)
        t = torch.full((4,), 500)
        row = base(x, t, conditions.prompt, table, conditions.ref_of_row)
        neutral = Drawer(base, conditions, stage.teacher, Guidance(1.0, 1.0)).output(x, 500)
        guided = Drawer(base, conditions, stage.teacher, stage.guidance).output(x, 500)
    torch.testing.assert_close(student, row, rtol=0, atol=0)
    torch.testing.assert_close(student, neutral, rtol=1e-4, atol=1e-5)
    assert (student - guided).abs().max() > 1e-3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_one_ddim_step_to_what_is_wanted_ends_where_the_teacher_ends(
    prediction_type: str, config_of: ConfigOf, teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for item in teacher.iterdir():
        if item.name != "scheduler":
            (other / item.name).symlink_to(item)
    (other / "scheduler").mkdir()
    name = "scheduler/scheduler_config.json"
    scheduler = json.loads((teacher / name).read_text())
    changes = {"prediction_type": prediction_type, "rescale_betas_zero_snr": False}
    (other / name).write_text(json.dumps(scheduler | changes))
    stage = build(config_of(start_from=str(other), steps_of_student=2, substeps=5, diffusion=KEPT))
    assert stage.solver == "ddim"
    conditions = conditions_of(stage)
    drawer = Drawer(stage.teacher.base, conditions, stage.teacher, stage.guidance)
    x = noise_of(4)
    fine = solver_table("ddim", stage.schedule, 10)  # 1000 / 10: visits the same timesteps
    for i in range(2):
        inside = fine.timesteps[5 * i : 5 * i + 5].tolist()
        assert np.abs(np.array(stage.inside[i]) - inside).max() <= 1
        stage.inside[i] = inside
        wanted = stage._teacher_x0(drawer, x, i)
        end = x
        with torch.no_grad():
            for k in range(5 * i, 5 * i + 5):
                output = drawer.output(end, int(fine.timesteps[k]))
                end, _ = fine.step(k, end, output=output, history=())
        alpha, sigma = stage._level(inside[0])
        noise = (x - alpha * wanted) / sigma
        output = {
            "epsilon": noise, "sample": wanted, "v_prediction": alpha * noise - sigma * wanted,
        }[prediction_type]  # fmt: skip
        there, _ = stage.table.step(i, x, output=output, history=())
        torch.testing.assert_close(there, end, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(stage._x0(x, output, inside[0]), wanted, rtol=1e-3, atol=1e-3)
        # A student that says just that has no loss.
        assert float(stage._difference(output, wanted, x, inside[0])) < 1e-9


def test_the_teachers_steps_lie_inside_the_students() -> None:
    steps = torch.tensor([999, 749, 499, 249])
    assert teacher_timesteps(steps, 1) == [[999], [749], [499], [249]]
    inside = teacher_timesteps(steps, 2)
    assert [part[0] for part in inside] == steps.tolist()
    assert inside == [[999, 874], [749, 624], [499, 374], [249, 124]]
    assert teacher_timesteps(torch.tensor([3]), 9) == [[3, 2, 1, 0]]


def test_with_one_substep_the_guided_x0_is_wanted_and_the_pairs_solver_kept(
    untrained: DistillStage,
) -> None:
    stage = untrained
    assert stage.solver == "dpmpp_2m"
    drawer = Drawer(stage.teacher.base, conditions_of(stage), stage.teacher, stage.guidance)
    x = noise_of(4)
    t = int(stage.table.timesteps[1])
    with torch.no_grad():
        assert torch.equal(stage._teacher_x0(drawer, x, 1), drawer.output(x, t))


def test_pictures_without_a_reference_follow_the_text_guidance_alone(config_of: ConfigOf) -> None:
    stage = build(config_of(diffusion={**KEPT, "reference_dropout": 1.0}))
    conditions, x = conditions_of(stage), noise_of(4)
    assert (conditions.ref_of_row == -1).all()
    loss, _ = stage.loss(torch.arange(4), draws_of(4))
    assert torch.isfinite(loss)
    with torch.no_grad():
        guided = Drawer(stage.teacher.base, conditions, stage.teacher, stage.guidance).output(
            x, 300
        )
        t = torch.full((4,), 300)
        text, empty = (
            stage.teacher.base(x, t, states) for states in (conditions.prompt, conditions.negative)
        )
    expected = empty + stage.guidance.text * (text - empty)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


def test_on_a_gpu_the_teacher_computes_in_bfloat16_with_the_kernels_that_inference_has(
    untrained: DistillStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the twins of the kernels stand in; they refuse mixed types as the kernels do."""

    def loss() -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return float(untrained.loss(torch.arange(2), draws_of(2))[0])

    plain = loss()
    monkeypatch.setattr(choose, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(choose, "_has_kernels", lambda device: True)
    assert loss() == pytest.approx(plain, rel=0.05)


# Resume -------------------------------------------------------------------------------------------


def test_a_resume_is_bit_identical(config_of: ConfigOf, train: Any) -> None:
    settings: dict[str, Any] = {
        "steps": 2,
        "steps_of_student": 2,
        "substeps": 2,
        "diffusion": {"max_references": 2, "reference_dropout": 0.4},
    }
    whole = train(config_of("whole", **settings))
    assert train(config_of("part", **settings), stop_after=1).step == 1
    rest = train(config_of("part", **settings))
    assert rest.step == 2
    assert rows_of(whole) == rows_of(rest)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, rest.parameters[name])
        assert torch.equal(whole.ema.average[name], rest.ema.average[name])


# Result -------------------------------------------------------------------------------------------


def test_the_student_is_a_pair_that_draws_one_row_in_its_own_steps(
    config_of: ConfigOf, train: Any, teacher: Path
) -> None:
    trainer = train(config_of(steps=2, optimizer={"learning_rate": 1e-2}))
    result = trainer.folder / "result"
    student, before = (json.loads((f / "pair.json").read_text()) for f in (result, teacher))
    changed = {k: v for k, v in student.items() if v != before[k]}
    assert changed == {
        "name": trainer.folder.name,
        "reference_timestep": "clean",
        "default_steps": 3,
        "image_guidance_scale": 1.0,
        "text_guidance_scale": 1.0,
    }
    loaded, old = load_pair(result), load_pair(teacher)
    for name, parameter in loaded.base.unet.named_parameters():
        average: Tensor = trainer.ema.average[f"base_unet.{name}"]
        assert torch.equal(parameter, average.half().float())
    for ours, theirs in zip(loaded.reference.parameters(), old.reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.fingerprint != old.fingerprint

    pipe = Pipeline(result, backend="torch")
    rows: list[int] = []
    base = pipe._backend.pair.base  # type: ignore[attr-defined]
    draw_rows = base.draw

    def count(latents: Tensor, t: Tensor, text: Any, *given: Any, **named: Any) -> Any:
        rows.append(len(text[0][0]))  # keys of the first layer's text
        return draw_rows(latents, t, text, *given, **named)

    base.draw = count
    subject = pipe.encode_subject(Image.new("RGB", (16, 16), (200, 30, 30)), "a dog")
    images = pipe.generate([Request(prompt="a dog on a beach", subject=subject, seed=1)]).images
    assert len(images) == 1
    assert set(rows) == {1}
    assert len(rows) == 3


def test_validation_compares_with_the_teacher_on_the_same_noise(
    config_of: ConfigOf, samples: Path
) -> None:
    stage = build(config_of(validation_data=str(samples)))
    torch.rand(3)
    first, again = stage.validate(), stage.validate()
    assert first.figures == again.figures
    assert first.figures["teacher_gap"] > 0
    assert [np.array_equal(*rows) for rows in zip(first.rows, again.rows, strict=True)] == [
        True
    ] * 3
    assert build(config_of()).validate() == Validation()


# Bad starts ---------------------------------------------------------------------------------------


def test_settings_that_make_no_student_are_refused(
    config_of: ConfigOf, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="distill.steps 100 times distill.substeps 11 is above"):
        build(config_of(steps_of_student=100, substeps=11))
    with pytest.raises(CheckpointError, match="does not exist"):
        build(config_of(start_from=str(tmp_path / "none")))
    same = tmp_path / "same"
    same.mkdir()
    for item in teacher.iterdir():
        target = same / item.name
        target.write_bytes(item.read_bytes()) if item.is_file() else target.symlink_to(item)
    change_pair(same, reference_timestep="same")
    with pytest.raises(ConfigError, match="expected a pair that reads them clean"):
        build(config_of(start_from=str(same)))


def test_the_config_of_the_repository_starts_from_the_pair_and_names_a_short_student() -> None:
    folder = Path(distill.__file__).parents[1] / "configs"
    config = load_config(folder / "distill.toml", [])
    assert config.start_from == f"{load_config(folder / 'pair.toml', []).output}/result"
    assert 4 <= config.distill.steps <= 8
    with pytest.raises(ConfigError, match="needs start_from"):
        load_config(folder / "distill.toml", ["start_from="])
