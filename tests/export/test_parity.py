"""The parity gate: what it runs, what it lets pass, and what it leaves when it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends.host_table import Precision
from bootpig_rt.backends.torch.backend import TorchBackend
from bootpig_rt.bundle.manifest import PRECISIONS, ParityReport, Profile
from bootpig_rt.export import gate
from bootpig_rt.export.gate import describe_worst, record_reference, worst
from bootpig_rt.export.parity import PICTURE, Plan, Recording, compare, make_plan, record
from bootpig_rt.export.parity_limits import LIMITS
from bootpig_rt.export.parity_report import write_report
from bootpig_rt.models.load import load_pair

PROFILE = Profile((8, 32, 64), 4, 4, 50)


@pytest.fixture(scope="module")
def backend(tiny_pair_folder: Path) -> TorchBackend:
    return TorchBackend(load_pair(tiny_pair_folder), "cpu")


@pytest.fixture(scope="module")
def plan(backend: TorchBackend) -> Plan:
    return make_plan(backend, profile=PROFILE, merges=("argmax", "mean"))


@pytest.fixture(scope="module")
def recording(backend: TorchBackend, plan: Plan) -> Recording:
    return record(backend, plan)


def test_each_graph_and_each_merge_is_run_and_the_default_with_all_its_steps(
    backend: TorchBackend, plan: Plan, recording: Recording
) -> None:
    assert plan.cases[0].steps == backend.spec.config.default_steps
    assert plan.cases[0].with_plain_picture
    assert {case.merge for case in plan.cases if case.references > 1} == {"argmax", "mean"}
    assert {case.schedule.mode for case in plan.cases} == {"exact", "clean"}
    graphs = {"text_encoder", "vae_encoder", "reference_kv", "vae_decoder"}
    assert graphs < set(recording)
    for case in plan.cases:
        parts = {"first_step", "latents", "picture"}
        assert {f"{case.name}.{part}" for part in parts} < set(recording)
    assert len(recording["one_reference.picture"][0]) == 2


def test_a_bundle_for_one_reference_and_one_picture_is_asked_for_no_more(
    backend: TorchBackend,
) -> None:
    plan = make_plan(backend, profile=Profile((32, 32, 32), 1, 1, 1), merges=())
    assert {case.references for case in plan.cases} == {1}
    assert {case.steps for case in plan.cases} == {1}
    assert not any(case.with_plain_picture for case in plan.cases)


def test_a_bundle_with_shallow_steps_is_asked_for_them_by_every_graph(
    backend: TorchBackend,
) -> None:
    profile = Profile((32, 32, 32), 2, 2, 50)
    plan = make_plan(backend, profile=profile, merges=("mean", "concat"), keeps_features=True)
    kept = [case for case in plan.cases if case.keeps_features]
    assert {(case.references, case.merge) for case in kept} >= {(2, "mean"), (2, "concat")}
    assert any(case.references == 1 for case in kept)
    assert all(case.steps > 1 for case in kept)  # the second one is shallow


def test_a_bundle_that_takes_masks_is_asked_for_one(backend: TorchBackend) -> None:
    profile = Profile((32, 32, 32), 2, 1, 50)
    plan = make_plan(backend, profile=profile, merges=(), takes_masks=True)
    (masked,) = [case for case in plan.cases if case.has_mask]
    recorded = record(backend, Plan(plan.side_px, (masked,)))
    (latents,) = recorded["masked.latents"]
    half = latents[-1, :, :4, :4], latents[-1, :, 4:, 4:]
    given = record(backend, Plan(plan.side_px, (replace(masked, steps=1),)))
    (others,) = given["masked.latents"]
    np.testing.assert_array_equal(half[1], others[-1, :, 4:, 4:])
    assert not np.array_equal(half[0], others[-1, :, :4, :4])


def test_large_pictures_are_run_for_few_steps_unless_asked(backend: TorchBackend) -> None:
    profile = Profile((256, 512, 512), 1, 2, 50)
    plan = make_plan(backend, profile=profile, merges=("mean",))
    assert plan.side_px == 256
    assert [(case.steps, case.is_decoded) for case in plan.cases] == [(2, True), (1, False)]
    fixed = Profile((512, 512, 512), 1, 2, 50)
    assert make_plan(backend, profile=fixed, merges=()).side_px == 512
    assert make_plan(backend, profile=profile, merges=(), steps=7).cases[0].steps == 7


def test_two_recordings_of_one_pair_are_equal_and_pass(
    backend: TorchBackend, plan: Plan, recording: Recording
) -> None:
    told: list[float] = []
    again = record(backend, plan, lambda _what, share: told.append(share))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    results = compare(recording, again, LIMITS["float32"])
    assert [result.name for result in results] == list(recording)
    for result in results:
        assert (result.relative_error, result.largest_error, result.psnr_db) == (0.0, 0.0, None)
        assert result.passed


def test_the_reference_knows_its_pair(backend: TorchBackend) -> None:
    profile = Profile((32, 32, 32), 1, 1, 1)
    reference = record_reference(backend, profile=profile, merges=(), steps=1)
    assert reference.fingerprint == backend.spec.fingerprint


@pytest.mark.parametrize(
    ("name", "precision", "graphs", "reason"),
    [
        ("openvino", "float32", (), ""),
        ("openvino", "bfloat16", ("reference_kv",), "in float32: reference_kv"),
        ("openvino", "int8", ("reference_kv", "text_kv"), "in float32: reference_kv, text_kv"),
        ("tensorrt", "float16", None, ""),
    ],
)
def test_a_report_says_which_graphs_a_precision_leaves_in_float32(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: Precision,
    graphs: tuple[str, ...] | None,
    reason: str,
) -> None:
    backend = SimpleNamespace(name=name, device="cpu")
    if graphs is not None:
        backend.float32_graphs = graphs
    monkeypatch.setattr(gate, "create_backend", lambda *_, **__: backend)
    monkeypatch.setattr(gate, "record", lambda *_: {})
    place = gate.Place(name, "cpu", is_target=True)
    reference = gate.Reference(Plan(32, ()), {}, "ab")
    report = gate.compare_backend(tmp_path, place, reference, precision).report
    assert (report.status, report.reason) == ("passed", reason)


@pytest.mark.parametrize(("free_gib", "is_folded"), [(5, False), (12, True), (None, True)])
def test_a_large_graph_that_would_not_fit_widened_is_compared_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int | None, is_folded: bool
) -> None:
    for part, gib in (("base_unet", 2), ("vae", 1)):
        (tmp_path / part).mkdir()
        with (tmp_path / part / "weights.safetensors").open("wb") as stream:
            stream.truncate(gib << 30)  # a hole
    free = None if free_gib is None else free_gib << 30
    monkeypatch.setattr(gate, "free_memory_bytes", lambda: free)
    asked: list[Any] = []

    def create(options: Any, *_: Any, **__: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(name="onnxruntime", device="cpu")

    monkeypatch.setattr(gate, "create_backend", create)
    monkeypatch.setattr(gate, "record", lambda *_: {})
    place = gate.Place("onnxruntime", "cpu", is_target=True)
    gate.compare_backend(tmp_path, place, gate.Reference(Plan(32, ()), {}, "ab"), "float16")
    (options,) = asked
    assert (options.sessions_kept, options.arena, options.fold_constants) == (1, False, is_folded)


@pytest.mark.parametrize(
    ("part", "factor", "fails"),
    [
        ("vae.decoder.conv_out.weight", 1.01, {"vae_decoder", "one_reference.picture"}),
        ("text_encoder.final_layer_norm.weight", 1.01, {"text_encoder"}),
        ("reference.unet.conv_in.weight", 1.1, {"reference_kv", "two_references_mean.first_step"}),
        ("base.unet.conv_out.weight", 1.001, {"one_reference.first_step"}),
    ],
)
def test_a_pair_that_computes_something_else_fails_where_it_differs(
    tiny_pair_folder: Path,
    plan: Plan,
    recording: Recording,
    part: str,
    factor: float,
    fails: set[str],
) -> None:
    pair = load_pair(tiny_pair_folder)
    module = getattr(pair, part.partition(".")[0])
    name = part.partition(".")[2]
    parameters = dict(module.named_parameters())
    found = [key for key in parameters if key.endswith(name)]
    with torch.no_grad():
        parameters[found[0]].mul_(factor)
    results = compare(recording, record(TorchBackend(pair, "cpu"), plan), LIMITS["float32"])
    assert fails <= {result.name for result in results if not result.passed}
    assert not worst(results).passed


def spoiled(recording: Recording, name: str, change: str) -> Recording:
    arrays = recording[name]
    if change == "NaN":
        first = arrays[0].copy()
        first.flat[0] = np.nan
        return {**recording, name: (first, *arrays[1:])}
    if change == "missing":
        return {key: value for key, value in recording.items() if key != name}
    if change == "fewer":
        return {**recording, name: arrays[:-1]}
    return {**recording, name: (arrays[0][..., :-1], *arrays[1:])}


@pytest.mark.parametrize("change", ["NaN", "missing", "fewer", "other shape"])
@pytest.mark.parametrize("name", ["reference_kv", "one_reference.picture"])
def test_what_cannot_be_compared_fails(recording: Recording, name: str, change: str) -> None:
    results = compare(recording, spoiled(recording, name, change), LIMITS["float16"])
    (failed,) = (result for result in results if not result.passed)
    assert failed.name == name
    assert failed.relative_error is None
    assert "not finite" in describe_worst(results)


def test_a_picture_is_judged_by_its_signal_to_noise_ratio_too(recording: Recording) -> None:
    name = "one_reference.picture"
    noise = np.random.default_rng(0).standard_normal(recording[name][0].shape)
    new = {**recording, name: (recording[name][0] + 0.02 * noise,)}
    limits = replace(LIMITS["float32"], end_to_end=10.0)
    (failed,) = (result for result in compare(recording, new, limits) if not result.passed)
    assert failed.psnr_db == pytest.approx(20 * np.log10(2 / 0.02), abs=0.3)
    text = describe_worst(compare(recording, new, limits))
    assert "one_reference.picture" in text
    assert "dB, expected at least 60" in text


def test_every_precision_has_limits() -> None:
    assert set(LIMITS) > set(PRECISIONS)  # engines compute in more than graphs are stored in
    assert LIMITS["float32"].graph < LIMITS["float16"].graph < LIMITS["bfloat16"].graph
    assert LIMITS["float32"].psnr_db > LIMITS["float16"].psnr_db


def test_a_report_holds_the_numbers_and_pictures_beside_each_other(
    recording: Recording, tmp_path: Path
) -> None:
    name = "one_reference.picture"
    changed = recording[name][0].copy()
    changed[0, :, :8, :8] += 0.05
    new = {**recording, name: (changed,)}
    results = compare(recording, new, LIMITS["float32"])
    report = ParityReport("failed", "", "torch", "cpu", results)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "old.png").touch()
    files = write_report(folder, report, recording, new)
    assert sorted(files) == sorted(folder.iterdir())
    values = json.loads((folder / "report.json").read_text())
    assert values["failed"] == [name]
    assert len(values["results"]) == len(recording)
    (picture,) = folder.glob("one_reference_0_difference_x20.png")
    with Image.open(picture) as image:
        side = recording[name][0].shape[-1]
        assert image.size == (3 * side + 8, side)
        difference = np.asarray(image)[:, -side:]
    # Where nothing differs it is grey; 0.05 amplified 20 times is white.
    assert (difference[-8:] == 128).all()
    assert (difference[:8, :8] > 250).all()
    assert len(list(folder.glob("*.png"))) == sum(
        len(arrays[0]) for key, arrays in recording.items() if key.endswith(PICTURE)
    )


def test_a_picture_of_nan_is_still_reported(recording: Recording, tmp_path: Path) -> None:
    new = spoiled(recording, "one_reference.picture", "NaN")
    report = ParityReport("failed", "", "torch", "cpu", compare(recording, new, LIMITS["float32"]))
    write_report(tmp_path / "report", report, recording, new)
    text = (tmp_path / "report" / "report.json").read_text()
    assert "NaN" not in text
    assert len(list((tmp_path / "report").glob("one_reference_0_*.png"))) == 1
