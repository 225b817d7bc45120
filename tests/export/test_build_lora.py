"""Bundles with LoRAs in them: pairs of their own, that say what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.bundle import open_bundle, read_manifest
from bootpig_rt.bundle.files import measure
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.bundle.manifest import ParityReport, Profile
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.cli.main import main
from bootpig_rt.errors import CheckpointError
from bootpig_rt.export import gate, onnx_export
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import BuildOptions
from bootpig_rt.export.gate import GateRun
from bootpig_rt.export.parity import Plan
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from tests.tools.measure_style import colours_apart
from tests.tools.style_lora import STYLE

SMALL = BuildOptions(
    target="cpu", precision="float32", profile=Profile((16, 16, 32), 1, 2, 2), merges=()
)


@pytest.fixture
def lora(tiny_pair_folder: Path, tmp_path: Path, make_lora: Any) -> Path:
    """Of what attends and of a convolution."""
    modules = r"base_unet/.*(attn1\.to_[kvq]|conv1)|text_encoder/.*v_proj"
    make_lora(tmp_path / "style.safetensors", tiny_pair_folder, modules=modules, alpha=1.0)
    return tmp_path / "style.safetensors"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tiny_bundle_folder: Path) -> None:
    """Graphs of another pair and a gate that lets all through: these tests are about weights."""

    def export(name: str, _pair: Any, folder: Path, **_: Any) -> Path:
        source = tiny_bundle_folder / f"{name}.onnx"
        (folder / source.name).write_bytes(source.read_bytes())
        return folder / source.name

    def record(backend: Any, **_: Any) -> gate.Reference:
        return gate.Reference(Plan(16, ()), {}, backend.spec.fingerprint)

    def compare(
        folder: Path, place: gate.Place, reference: gate.Reference, *_: Any, **__: Any
    ) -> GateRun:
        return GateRun(ParityReport("passed"), reference.recording)

    monkeypatch.setattr(onnx_export, "export_graph", export)
    monkeypatch.setattr(gate, "record_reference", record)
    monkeypatch.setattr(gate, "compare_backend", compare)


@pytest.mark.slow
def test_a_bundle_draws_what_torch_draws_with_the_lora(
    tiny_pair_folder: Path, lora: Path, tmp_path: Path, red: Image.Image
) -> None:
    build_engine(tiny_pair_folder, tmp_path / "out", SMALL, loras=(Lora(lora, 0.8),))
    styled = Pipeline(
        tiny_pair_folder, backend="torch", device="cpu", pair=PairOptions(lora=f"{lora}:0.8")
    )
    bundle = Pipeline(tmp_path / "out", backend="onnxruntime", device="cpu")
    plain = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    pictures = [
        np.asarray(
            pipe("a photo of a dog", reference_images=red, seed=0).images[0], dtype=np.float64
        )
        for pipe in (styled, bundle, plain)
    ]
    near, far = (float(np.abs(pictures[0] - other).mean()) for other in pictures[1:])
    assert 5 * near < far  # weights of the bundle are rounded to float16


@pytest.mark.slow
def test_a_bundle_of_the_packaged_pair_has_the_style_that_it_was_built_with(
    tmp_path: Path,
) -> None:
    """The LoRA of the documentation, whose numbers were trained."""
    options = BuildOptions(
        target="cpu", precision="float32", profile=Profile((64, 64, 64), 1, 1, 25), merges=()
    )
    pair = default_model()
    owl = Image.open(pair.parent / "subjects" / "owl.png")
    build_engine(pair, tmp_path / "out", options, loras=(Lora(STYLE),))
    pictures = [
        np.asarray(
            pipe(
                "a photo of an owl, in the middle of a green meadow",
                reference_images=owl,
                reference_prompt="a photo of an owl",
                num_inference_steps=5,
                seed=1,
            ).images[0]
        )
        for pipe in (
            Pipeline(tmp_path / "out", backend="onnxruntime", device="cpu"),
            Pipeline(backend="torch", device="cpu", pair=PairOptions(lora=str(STYLE))),
            Pipeline(backend="torch", device="cpu"),
        )
    ]
    drawn, styled, plain = (picture.astype(np.float64) for picture in pictures)
    assert 5 * np.abs(drawn - styled).mean() < np.abs(drawn - plain).mean()
    drawn_apart, _, plain_apart = (colours_apart(each[None])[0] for each in pictures)
    assert drawn_apart < 0.6 * plain_apart


def test_a_bundle_says_which_loras_are_in_it_and_keeps_saying_it(
    tiny_pair_folder: Path,
    lora: Path,
    tmp_path: Path,
    quick: None,
    make_lora: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = load_pair(tiny_pair_folder)
    build_engine(tiny_pair_folder, tmp_path / "one", SMALL, loras=(Lora(lora, 0.8),))
    pair = open_bundle(tmp_path / "one").manifest.pair
    assert [(each.name, each.scale) for each in pair.loras] == [("style.safetensors", 0.8)]
    assert pair.loras[0].sha256 == measure(lora)[1]
    loaded = load_pair(tmp_path / "one")
    assert loaded.fingerprint == pair.fingerprint != plain.fingerprint
    styled = load_pair(tiny_pair_folder, loras=[Lora(lora, 0.8)])
    assert pair.source_fingerprint == styled.fingerprint
    mine, theirs = (each.base.unet.state_dict() for each in (loaded, styled))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-3)

    # A pair that is fused already is built for something else, with one more.
    other = tmp_path / "other.safetensors"
    make_lora(other, tiny_pair_folder, seed=1, modules=r"base_unet/.*to_q")
    words = ["build-engine", "--pair", str(tmp_path / "one"), "-o", str(tmp_path / "two")]
    words += ["--resolution", "16:32", "--steps", "2", "--max-references", "1", "--quiet"]
    assert main([*words, "--lora", f"{other}:-1"]) == 0
    capsys.readouterr()
    both = read_manifest(tmp_path / "two").pair.loras
    assert [each.scale for each in both] == [0.8, -1.0]
    assert main(["inspect", str(tmp_path / "two")]) == 0
    told = capsys.readouterr().out
    assert f"LoRA       style.safetensors at 0.8, sha256 {measure(lora)[1]}" in told
    assert f"LoRA       other.safetensors at -1, sha256 {measure(other)[1]}" in told
    assert main(["inspect", str(tmp_path / "two"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pair"]["loras"]) == 2


def test_a_lora_that_does_not_fit_leaves_no_bundle(
    tiny_pair_folder: Path,
    lora: Path,
    tmp_path: Path,
    quick: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora.write_bytes(lora.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        build_engine(tiny_pair_folder, tmp_path / "out", SMALL, loras=(Lora(lora),))
    assert [path.name for path in tmp_path.iterdir()] == [lora.name]
    words = ["build-engine", "--pair", str(tiny_pair_folder), "-o", str(tmp_path / "out")]
    assert main([*words, "--lora", "style.safetensors:0"]) == 2
    assert "scale of LoRA style.safetensors is 0.0" in capsys.readouterr().err


def test_a_dry_run_counts_weights_that_are_written_anew(
    tiny_pair_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["build-engine", "--pair", str(tiny_pair_folder), "-o", str(tmp_path / "out")]
    free = []
    for more in ([], ["--lora", "style.safetensors"]):
        assert main([*words, *more, "--dry-run", "--json"]) == 0
        free.append(json.loads(capsys.readouterr().out)["estimate"]["free_bytes"])
    assert free[1] > free[0]
