"""The recorded tensors of the published pipeline, and the command that compares them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.numpy import save_file

from bootpig_rt.cli.main import main
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.diffusion.solver import solver_table
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export import golden
from bootpig_rt.export.golden import GoldenReport, verify_golden
from bootpig_rt.export.golden_pair import load
from bootpig_rt.export.golden_step import Choices, Prediction, References, relative_error

DATA = Path(__file__).parent / "data"
FILES = ("ddim_1ref", "ddim_3ref", "train_forward", "unipc_1ref")
RUN = "ddim_1ref"
"""The shortest of them with one reference."""

# It exports three graphs first, which takes a minute.
EXPORTED = [pytest.param(name, marks=pytest.mark.slow) for name in ("onnxruntime", "openvino")]

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(
    scope="module",
    params=["torch", *EXPORTED],
)
def reports(request: pytest.FixtureRequest) -> dict[str, GoldenReport]:
    return {report.name: report for report in verify_golden(DATA, backend=request.param)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One run and the weights, to be spoiled."""
    target = tmp_path / "golden"
    for name in ("base_unet", "ref_unet"):
        shutil.copytree(DATA / name, target / name)
    shutil.copy(DATA / f"{RUN}.safetensors", target)
    return target


def _change(path: Path, change: Callable[[Arrays, dict[str, str]], object]) -> None:
    with safe_open(path, framework="numpy") as stream:
        tensors: Arrays = {name: stream.get_tensor(name) for name in stream.keys()}
        metadata = dict(stream.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("name", FILES)
def test_each_backend_computes_what_the_published_pipeline_computed(
    name: str, reports: dict[str, GoldenReport]
) -> None:
    report = reports[name]
    assert report.step_error < 1e-4, report.errors
    assert report.end_to_end_error is None or report.end_to_end_error < 1e-3, report.errors
    assert report.passed


def test_every_quantity_is_compared(
    reports: dict[str, GoldenReport], request: pytest.FixtureRequest
) -> None:
    assert set(reports) == set(FILES)
    run = {"noise_pred", "guided", "solver", "end to end"}
    assert all(set(reports[name].errors) == run for name in FILES if name != "train_forward")
    forward = {"pred", "pred_without_reference"}
    if request.node.callspec.params["reports"] == "torch":  # graphs show no features
        forward.add("features")
    assert set(reports["train_forward"].errors) == forward


@pytest.mark.parametrize("backend", ["torch", *EXPORTED])
def test_the_command_passes_on_a_recording(
    backend: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-golden", str(folder), "--json", "--backend", backend]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [RUN]
    assert all(line["passed"] and line["backend"] == backend for line in lines)


def test_other_weights_fail_with_exit_code_1(
    made_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(made_folder / "ref_unet")
    shutil.copytree(made_folder / "base_unet", made_folder / "ref_unet")
    assert main(["verify-golden", str(made_folder)]) == 1
    assert "ddim_made" in (out := capsys.readouterr().out)
    assert "FAILED" in out


@pytest.mark.parametrize("field", ["ref_scale", "guidance_scale", "txtim_guidance_scale"])
def test_each_scale_matters(field: str, made_folder: Path) -> None:
    path = made_folder / "ddim_made.safetensors"
    _change(path, lambda _, metadata: metadata.update({field: "1.0"}))
    (report,) = verify_golden(made_folder)
    assert not report.passed
    assert report.step_error > 1e-3


class _NaNPair:
    """A backend whose outputs are not finite."""

    def features(self, *_: object) -> None:
        return None

    def predict(self, latents: npt.NDArray[np.float32], *_: object) -> Prediction:
        return Prediction(np.full_like(latents, np.nan))


def test_nan_is_a_failure_and_valid_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(golden.BACKENDS, "nan", "bootpig_rt.export.golden")
    monkeypatch.setattr(golden, "load", lambda _: _NaNPair(), raising=False)
    assert main(["verify-golden", str(folder), "--backend", "nan", "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert not line["passed"]
    assert line["errors"]["noise_pred"] is None


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no recordings": (lambda f: (f / f"{RUN}.safetensors").unlink(), "no .safetensors file"),
    "no weights": (lambda f: shutil.rmtree(f / "ref_unet"), "ref_unet.*is missing"),
    "truncated": (
        lambda f: (f / f"{RUN}.safetensors").write_bytes(b"\x10\x00\x00"),
        "truncated or damaged",
    ),
    "another file": (
        lambda f: save_file({"a": np.zeros(1)}, f / "other.safetensors"),
        "no recording of a run or a forward",
    ),
    "missing tensor": (
        lambda f: _change(f / f"{RUN}.safetensors", lambda t, _: t.pop("guided")),
        "no tensor 'guided'",
    ),
    "sizes": (
        lambda f: _change(f / f"{RUN}.safetensors", lambda t, _: t.update(guided=t["guided"][:2])),
        r"'guided' is float32 \[2, 1, 4, 16, 16\], expected float32 \[T, 1, C, h, w\]",
    ),
    "NaN": (
        lambda f: _change(
            f / f"{RUN}.safetensors", lambda t, _: t["guided"].fill(np.float32("nan"))
        ),
        "'guided' holds NaN",
    ),
    "timesteps": (
        lambda f: _change(f / f"{RUN}.safetensors", lambda t, _: t.update(t=t["t"] - 1)),
        "timesteps are",
    ),
    "scheduler": (
        lambda f: _change(f / f"{RUN}.safetensors", lambda _, m: m.update(scheduler="LMS")),
        "scheduler is 'LMS'",
    ),
    "scale": (
        lambda f: _change(f / f"{RUN}.safetensors", lambda _, m: m.pop("ref_scale")),
        "ref_scale is None",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_ends_in_one_line_and_exit_code_2(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BAD_FOLDERS[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        list(verify_golden(folder))
    assert main(["verify-golden", str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_backend_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected one of: torch"):
        next(verify_golden(DATA, backend="abacus"))
    with pytest.raises(CheckpointError, match="is not a folder"):
        next(verify_golden(tmp_path / "nothing"))


# Sets made the same way as the recorded ones: a random pair with sharp attentions, DDIM, guided
# hard. `spoil` says what a recording chooses where ours would choose otherwise.

Spoil = Callable[[int, Prediction], Choices | None]
TIMES = 2


def record(folder: Path, *, seed: int, num_references: int = 3, spoil: Spoil | None = None) -> None:
    """Record a run of the pair in a folder."""
    pair, rng = load(folder), np.random.default_rng(seed)

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    schedule = NoiseSchedule.from_config(
        {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
        | {"beta_end": 0.012, "clip_sample": True, "final_sigmas_type": "sigma_min"}
    )
    table = solver_table("ddim", schedule, TIMES)
    negative, prompt = normal(2, 24, 32)
    tensors: dict[str, Any] = {
        "t": table.timesteps,
        "ref_latents": normal(num_references, 4, 16, 16) * np.float32(0.22),
        "ref_noise": normal(TIMES, num_references, 4, 16, 16),
        "ref_prompt_embeds": np.repeat(normal(1, 24, 32), num_references, 0),
        "prompt_embeds": np.stack([negative, negative, prompt]),
    }
    reads = np.arange(num_references)
    latents = normal(1, 4, 16, 16)
    history = table.initial_history(latents)
    made: dict[str, list[Any]] = {"latents_in": [], "noise_pred": [], "guided": []}
    for index, t in enumerate(table.timesteps):
        references = References(
            schedule.add_noise(tensors["ref_latents"], tensors["ref_noise"][index], int(t)),
            np.full(num_references, t),
            tensors["ref_prompt_embeds"],
            np.stack([np.full(num_references, -1), reads, reads]),
            ref_scale=1.1,
        )
        inputs = np.repeat(latents, 3, 0), np.full(3, t), tensors["prompt_embeds"], references
        prediction = pair.predict(*inputs)
        choices = None if spoil is None else spoil(index, prediction)
        if choices is not None:
            prediction = pair.predict(*inputs, choices)
        rows = prediction.output
        guided = rows[:1] + np.float32(5) * (rows[1:2] - rows[:1])
        guided = guided + np.float32(7.5) * (rows[2:] - rows[1:2])
        for name, value in (("latents_in", latents), ("noise_pred", rows), ("guided", guided)):
            made[name].append(np.ascontiguousarray(value))
        latents, history = table.step(index, latents, output=guided, history=history)
    tensors |= {name: np.stack(values) for name, values in made.items()}
    tensors["final_latents"] = np.ascontiguousarray(latents)
    scales = {"ref_scale": "1.1", "guidance_scale": "5.0", "txtim_guidance_scale": "7.5"}
    schedule_of = {"scheduler": "DDIMScheduler", "beta": "scaled_linear 0.00085..0.012"}
    save_file(tensors, folder / "ddim_made.safetensors", scales | schedule_of)


def other_choice(largest: float) -> Spoil:
    """At the first step, the other choice of the nearest tie whose distance is at least this."""

    def spoil(index: int, prediction: Prediction) -> Choices | None:
        if index:
            return None
        places = []
        for layer, norms in enumerate(prediction.norms):
            ordered = np.sort(norms, axis=1)
            distance = 1 - ordered[:, -2] / ordered[:, -1]
            for row, token in np.argwhere(distance >= largest):
                places.append((distance[row, token], layer, row, token))
        _, layer, row, token = min(places)
        choice = prediction.choices[layer].copy()
        choice[row, token] = np.argsort(prediction.norms[layer][row, :, token])[-2]
        return (*prediction.choices[:layer], choice)

    return spoil


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    """The recorded pair without its recordings."""
    for name in ("base_unet", "ref_unet"):
        shutil.copytree(DATA / name, tmp_path / "made" / name)
    return tmp_path / "made"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded pair with a short run of ours, with one reference."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("base_unet", "ref_unet"):
        shutil.copytree(DATA / name, folder / name)
    record(folder, seed=3, num_references=1)
    return folder


@pytest.fixture
def made_folder(made_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(made_once, tmp_path / "made")


@pytest.fixture
def other_pair_folder(pair_folder: Path) -> Path:
    """Another random pair, as sharp as the recorded one."""
    torch.manual_seed(1)
    for part in ("base_unet", "ref_unet"):
        path = pair_folder / part / "diffusion_pytorch_model.safetensors"
        config = json.loads((pair_folder / part / "config.json").read_text())
        del config["bootpig_mode"]
        unet: Any = UNet2DConditionModel.from_config(config)
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.data.mul_(4)
        save_file({k: v.half().numpy() for k, v in unet.state_dict().items()}, path)
    return pair_folder


def test_a_near_tie_that_the_recording_decided_otherwise_is_counted_and_passes(
    pair_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(pair_folder, seed=3)
    with safe_open(pair_folder / "ddim_made.safetensors", framework="numpy") as stream:
        ours = stream.get_tensor("noise_pred")[0]
    record(pair_folder, seed=3, spoil=other_choice(0.0))
    with safe_open(pair_folder / "ddim_made.safetensors", framework="numpy") as stream:
        assert relative_error(ours, stream.get_tensor("noise_pred")[0]) > 1e-4
    reports: list[GoldenReport] = []

    def watch(*args: Any, **options: Any) -> Iterator[GoldenReport]:
        for one in verify_golden(*args, **options):
            reports.append(one)
            yield one

    monkeypatch.setattr(golden, "verify_golden", watch)
    assert main(["verify-golden", str(pair_folder)]) == 0
    (report,) = reports
    assert report.passed, report
    assert report.step_error < 1e-4
    assert report.end_to_end_error is not None
    assert report.end_to_end_error < 1e-3
    assert report.flips >= 1
    assert 0 < report.flip_distance < 1e-3
    assert report.choices > 3500
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"{report.flips} of {report.choices}, {report.flip_distance:.1e}" in line


def test_another_choice_that_is_no_near_tie_fails(pair_folder: Path) -> None:
    record(pair_folder, seed=3, spoil=other_choice(0.2))
    (report,) = verify_golden(pair_folder)
    assert not report.passed
    assert report.step_error > 1e-4


@pytest.mark.slow  # each process imports torch
@pytest.mark.parametrize("instructions", ["AVX2", None])
def test_other_pairs_pass_whatever_instructions_the_cpu_has(
    instructions: str | None, other_pair_folder: Path
) -> None:
    """Recorded with all that this CPU has: three references, and a tie decided otherwise."""
    record(other_pair_folder, seed=1, spoil=other_choice(0.0))
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    if instructions is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = instructions
    for folder in (other_pair_folder, DATA):
        done = subprocess.run(
            [sys.executable, "-m", "bootpig_rt", "verify-golden", str(folder), "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(line["passed"] and line["errors"].get("guided", 0) < 1e-4 for line in lines)


@pytest.mark.parametrize(
    ("end", "rounding", "distance", "passed"),
    [
        (9e-4, 0.0, 0.0, True),
        (2e-3, 1e-4, 0.0, False),
        (2e-3, 3e-3, 0.0, True),  # an end that nobody can hit better
        (4e-3, 3e-3, 0.0, False),
        (9e-4, 0.0, 9e-3, True),
        (9e-4, 0.0, 2e-2, False),  # a flip that no rounding makes
        (float("nan"), float("nan"), 0.0, False),
    ],
)
def test_a_run_passes_within_its_limits(
    end: float, rounding: float, distance: float, passed: bool
) -> None:
    errors = {"guided": 1e-5, golden.END_TO_END: end}
    report = GoldenReport("run", errors, 1, distance, 100, rounding)
    assert report.passed is passed


def test_relative_error_is_against_the_largest_recorded_value() -> None:
    recorded = np.array([1.0, -4.0])
    assert relative_error(np.array([1.0, -3.0]), recorded) == 0.25
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf
    assert relative_error(np.ones(3), recorded) == np.inf
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), recorded))
