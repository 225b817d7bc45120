"""The precision that OpenVINO computes in when nobody named one, and int8 graphs beside others."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import bootpig_rt
from bootpig_rt.backends import available_backends, choice, create_backend
from bootpig_rt.backends.options import OpenVINOOptions
from bootpig_rt.backends.trial import step_ms
from bootpig_rt.bundle.bundle import (
    Identity,
    ParityReport,
    Variant,
    list_files,
    read_manifest,
    record_identity,
    record_parity,
    write_manifest,
)
from bootpig_rt.errors import BundleError, ParameterError

ov = pytest.importorskip("openvino")

from bootpig_rt.backends.openvino import auto, precision  # noqa: E402
from bootpig_rt.backends.openvino.backend import OpenVINOBackend  # noqa: E402

AUTO = OpenVINOOptions(threads=1)
PASSED = ParityReport("passed")
GOOD, BAD = Identity(-0.4, -1.2, 0.4, 200), Identity(-2.5, -4.0, -1.0, 200)


@pytest.fixture(autouse=True)
def processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It could compute in it; what is timed is told by `times`."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda core: True)
    # Nothing is drawn here: what every picture needs is not compiled.
    monkeypatch.setattr(OpenVINOBackend, "prepare", lambda self: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[set[str]]]:
    """`times(float32=..., int8=...)` tells times of a step; returns what is compared later."""

    def tell(**ms: float) -> list[set[str]]:
        compared: list[set[str]] = []

        def told(backends: Mapping[choice.Candidate, Any]) -> dict[choice.Candidate, float]:
            compared.append({str(one) for one in backends})
            return {one: ms.get(one.precision, 100.0) for one in backends}

        monkeypatch.setattr(choice, "step_ms", told)
        return compared

    return tell


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a CPU with the graphs of an int8 variant, which are those in float32."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(tiny_bundle_folder, folder, ignore=shutil.ignore_patterns(".*"))
    model = ov.Core().read_model(folder / "denoise_step.onnx")
    ov.save_model(model, folder / "denoise_step.int8.xml", compress_to_fp16=False)
    manifest = read_manifest(folder)
    files = {file.path: file for file in list_files(folder)}
    file = files["denoise_step.int8.xml"]
    own = next(graph for graph in manifest.graphs if graph.name == "denoise_step")
    graph = msgspec.structs.replace(
        own, file=file.path, sha256=file.sha256, size_bytes=file.size_bytes
    )
    variant = Variant("int8", ParityReport("not run"), (graph,))
    write_manifest(
        folder,
        msgspec.structs.replace(manifest, files=tuple(files.values()), variants=(variant,)),
    )
    return folder


@pytest.fixture
def bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(int8_bundle, tmp_path / "bundle")


def with_int8(folder: Path, parity: ParityReport, identity: Identity | None) -> Path:
    from bootpig_rt.bundle.bundle import open_bundle

    made = record_parity(open_bundle(folder), parity, variant="int8")
    if identity is not None:
        record_identity(made, identity, variant="int8")
    return folder


def precision_of(folder: Path, options: OpenVINOOptions = AUTO) -> str:
    return create_backend(options, folder).spec.precision


def test_narrow_numbers_are_taken_where_they_are_quicker_by_the_margin(
    bundle: Path, times: Callable[..., list[set[str]]]
) -> None:
    times(float32=100, bfloat16=60)
    assert precision_of(bundle) == "bfloat16"


def test_narrow_numbers_that_do_not_pay_are_not_taken(
    bundle: Path, times: Callable[..., list[set[str]]]
) -> None:
    times(float32=100, bfloat16=140)
    assert precision_of(bundle) == "float32"


def test_a_choice_is_measured_once_for_a_bundle_and_said_each_time(
    bundle: Path, times: Callable[..., list[set[str]]], caplog: pytest.LogCaptureFixture
) -> None:
    compared = times(bfloat16=60)
    precision_of(bundle)
    assert compared == [{"openvino float32", "openvino bfloat16"}]
    with caplog.at_level(logging.INFO):
        assert precision_of(bundle) == "bfloat16"
    assert len(compared) == 1
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("auto")] == [
        "auto: openvino bfloat16, by the time of a step (measured earlier): openvino float32 "
        "100.0 ms, openvino bfloat16 60.0 ms; int8: parity with torch not run"
    ]


def choice_file(folder: Path) -> Path:
    (file,) = (folder / ".openvino").glob("choice-*")
    return file


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_choice_is_measured_again(
    bundle: Path,
    times: Callable[..., list[set[str]]],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    times(bfloat16=60)
    precision_of(bundle)
    file = choice_file(bundle)
    data = file.read_bytes()
    header, _, body = data.partition(b"\n")
    assert json.loads(body)["precision"] == "bfloat16"
    file.write_bytes(
        {
            "cut": data[:-5],
            "flip": header + b"\n" + body.replace(b"bfloat16", b"float320"),
            "empty": b"",
            "other": b"{}\n" + body,
        }[damage]
    )
    compared = times(bfloat16=140)
    assert precision_of(bundle) == "float32"
    assert compared
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("changed", ["processor", "version", "threads"])
def test_the_choice_of_another_machine_or_setting_is_not_taken(
    bundle: Path,
    times: Callable[..., list[set[str]]],
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    times(bfloat16=60)
    assert precision_of(bundle) == "bfloat16"
    options = AUTO
    if changed == "processor":
        monkeypatch.setattr(auto, "processor", lambda core: "another")
    elif changed == "version":
        monkeypatch.setattr(bootpig_rt, "__version__", "0.0")
    else:
        options = dataclasses.replace(AUTO, threads=2)
    compared = times(bfloat16=140)
    assert precision_of(bundle, options) == "float32"
    assert compared


def test_a_choice_that_cannot_be_kept_is_measured_each_time(
    bundle: Path, times: Callable[..., list[set[str]]]
) -> None:
    options = dataclasses.replace(AUTO, cache=False)
    compared = times(bfloat16=60)
    assert [precision_of(bundle, options) for _ in range(2)] == ["bfloat16"] * 2
    assert len(compared) == 2


@pytest.mark.parametrize("asked", ["float32", "int8"])
def test_a_precision_that_was_asked_for_is_taken_without_a_measurement(
    bundle: Path, times: Callable[..., list[set[str]]], asked: Any
) -> None:
    compared = times(bfloat16=60)
    assert precision_of(bundle, dataclasses.replace(AUTO, precision=asked)) == asked
    assert not compared


def test_a_bfloat16_that_failed_its_gate_is_never_taken_unasked(
    bundle: Path, times: Callable[..., list[set[str]]], caplog: pytest.LogCaptureFixture
) -> None:
    from bootpig_rt.bundle.bundle import open_bundle

    record_parity(open_bundle(bundle), ParityReport("failed"), variant="bfloat16")
    compared = times(bfloat16=10)
    with caplog.at_level(logging.INFO):
        assert precision_of(bundle) == "float32"
    assert not compared
    assert "bfloat16 is too far from torch" in caplog.text


@pytest.mark.parametrize(
    ("parity", "identity", "why"),
    [
        (ParityReport("failed"), GOOD, "int8: parity with torch failed"),
        (PASSED, None, "int8 was not judged"),
        (PASSED, BAD, "int8 loses 2.5 points of identity"),
    ],
)
def test_int8_that_did_not_pass_everything_is_left_out_and_the_log_says_why(
    bundle: Path,
    times: Callable[..., list[set[str]]],
    caplog: pytest.LogCaptureFixture,
    parity: ParityReport,
    identity: Identity | None,
    why: str,
) -> None:
    times(int8=10)
    with caplog.at_level(logging.INFO):
        assert precision_of(with_int8(bundle, parity, identity)) == "float32"
    assert why in caplog.text


def test_int8_that_passed_everything_is_taken_where_it_is_quickest(
    bundle: Path, times: Callable[..., list[set[str]]]
) -> None:
    compared = times(bfloat16=60, int8=40)
    assert precision_of(with_int8(bundle, PASSED, GOOD)) == "int8"
    assert compared[-1] == {"openvino bfloat16", "openvino int8"}


def test_int8_steps_are_those_of_the_variant_and_all_else_the_bundles_own(bundle: Path) -> None:
    backend: Any = create_backend(dataclasses.replace(AUTO, precision="int8"), bundle)
    files = {name: backend.models._find(name).path.name for name in ("denoise_step", "vae_decoder")}
    assert files == {"denoise_step": "denoise_step.int8.xml", "vae_decoder": "vae_decoder.onnx"}
    own: Any = create_backend(dataclasses.replace(AUTO, precision="float32"), bundle)
    assert own.models._find("denoise_step").path.name == "denoise_step.onnx"


@pytest.mark.parametrize("end", ["xml", "bin"])
def test_int8_files_that_changed_after_they_were_checked_are_refused(
    bundle: Path, end: str
) -> None:
    backend: Any = create_backend(dataclasses.replace(AUTO, precision="int8"), bundle)
    with (bundle / f"denoise_step.int8.{end}").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match="has changed since it was checked"):
        backend.models.get("denoise_step")


def test_int8_of_a_bundle_without_is_refused_with_the_command_that_builds_it(
    tiny_bundle_folder: Path,
) -> None:
    with pytest.raises(ParameterError, match=r"--target openvino --precision int8"):
        create_backend(OpenVINOOptions(precision="int8"), tiny_bundle_folder)


def test_a_verdict_on_a_precision_that_a_bundle_has_not_is_refused(
    tiny_bundle_folder: Path,
) -> None:
    from bootpig_rt.bundle.bundle import open_bundle

    with pytest.raises(BundleError, match="has no variant 'int8'"):
        record_identity(open_bundle(tiny_bundle_folder), GOOD, variant="int8")


@pytest.mark.skipif("onnxruntime" not in available_backends(), reason="no ONNX Runtime")
def test_auto_takes_another_engine_for_a_bundle_whose_manifest_says_that_it_is_near(
    bundle: Path, times: Callable[..., list[set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = "bootpig_rt.backends.onnxruntime.sessions.Sessions.prepare"
    monkeypatch.setattr(prepare, lambda *_: None)  # nothing is drawn
    compared = times(int8=40)
    assert create_backend("auto", bundle).name == "onnxruntime"  # nothing passed yet
    assert not compared
    with_int8(bundle, PASSED, GOOD)
    backend = create_backend("auto", bundle)
    assert (backend.name, backend.spec.precision) == ("openvino", "int8")
    assert compared == [{"onnxruntime float32", "openvino int8"}]
    assert create_backend("onnxruntime", bundle).name == "onnxruntime"


@pytest.mark.slow
def test_steps_are_really_timed(bundle: Path) -> None:
    """Two backends over the same graphs, by the clock: both times are finite and above zero."""
    backends = {
        name: create_backend(dataclasses.replace(AUTO, precision=name), bundle)
        for name in ("float32", "int8")
    }
    measured = step_ms(backends, rounds=2)
    assert set(measured) == {"float32", "int8"}
    assert all(0 < ms < np.inf for ms in measured.values())
