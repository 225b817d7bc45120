"""The recorded tensors of the published pipeline, and the command that compares them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export import golden
from bootpig_rt.export.golden import GoldenReport, relative_error, verify_golden

DATA = Path(__file__).parent / "data"
FILES = ("ddim_1ref", "ddim_3ref", "train_forward", "unipc_1ref")

# It exports three graphs first, which takes a minute.
EXPORTED = pytest.param("onnxruntime", marks=pytest.mark.slow)

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(
    scope="module",
    params=["torch", EXPORTED],
)
def reports(request: pytest.FixtureRequest) -> dict[str, GoldenReport]:
    return {report.name: report for report in verify_golden(DATA, backend=request.param)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One run and the weights, to be spoiled."""
    target = tmp_path / "golden"
    for name in ("base_unet", "ref_unet"):
        shutil.copytree(DATA / name, target / name)
    shutil.copy(DATA / "unipc_1ref.safetensors", target)
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


@pytest.mark.parametrize("backend", ["torch", EXPORTED])
def test_the_command_passes_on_a_recording(
    backend: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-golden", str(folder), "--json", "--backend", backend]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == ["unipc_1ref"]
    assert all(line["passed"] and line["backend"] == backend for line in lines)


def test_other_weights_fail_with_exit_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "ref_unet")
    shutil.copytree(folder / "base_unet", folder / "ref_unet")
    assert main(["verify-golden", str(folder)]) == 1
    assert "unipc_1ref" in (out := capsys.readouterr().out)
    assert "FAILED" in out


@pytest.mark.parametrize("field", ["ref_scale", "guidance_scale", "txtim_guidance_scale"])
def test_each_scale_matters(field: str, folder: Path) -> None:
    path = folder / "unipc_1ref.safetensors"
    _change(path, lambda _, metadata: metadata.update({field: "1.0"}))
    (report,) = verify_golden(folder)
    assert not report.passed
    assert report.step_error > 1e-3


class _NaNPair:
    """A backend whose outputs are not finite."""

    def features(self, *_: object) -> None:
        return None

    def predict(self, latents: npt.NDArray[np.float32], *_: object) -> npt.NDArray[np.float32]:
        return np.full_like(latents, np.nan)


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
    "no recordings": (lambda f: (f / "unipc_1ref.safetensors").unlink(), "no .safetensors file"),
    "no weights": (lambda f: shutil.rmtree(f / "ref_unet"), "ref_unet.*is missing"),
    "truncated": (
        lambda f: (f / "unipc_1ref.safetensors").write_bytes(b"\x10\x00\x00"),
        "truncated or damaged",
    ),
    "another file": (
        lambda f: save_file({"a": np.zeros(1)}, f / "other.safetensors"),
        "no recording of a run or a forward",
    ),
    "missing tensor": (
        lambda f: _change(f / "unipc_1ref.safetensors", lambda t, _: t.pop("guided")),
        "no tensor 'guided'",
    ),
    "sizes": (
        lambda f: _change(
            f / "unipc_1ref.safetensors", lambda t, _: t.update(guided=t["guided"][:2])
        ),
        r"'guided' is float32 \[2, 1, 4, 16, 16\], expected float32 \[T, 1, C, h, w\]",
    ),
    "NaN": (
        lambda f: _change(
            f / "unipc_1ref.safetensors", lambda t, _: t["guided"].fill(np.float32("nan"))
        ),
        "'guided' holds NaN",
    ),
    "timesteps": (
        lambda f: _change(f / "unipc_1ref.safetensors", lambda t, _: t.update(t=t["t"] - 1)),
        "timesteps are",
    ),
    "scheduler": (
        lambda f: _change(f / "unipc_1ref.safetensors", lambda _, m: m.update(scheduler="LMS")),
        "scheduler is 'LMS'",
    ),
    "scale": (
        lambda f: _change(f / "unipc_1ref.safetensors", lambda _, m: m.pop("ref_scale")),
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


def test_relative_error_is_against_the_largest_recorded_value() -> None:
    recorded = np.array([1.0, -4.0])
    assert relative_error(np.array([1.0, -3.0]), recorded) == 0.25
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == np.inf
    assert relative_error(np.ones(3), recorded) == np.inf
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), recorded))
