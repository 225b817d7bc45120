"""A pair of Stable Diffusion XL as graphs, as a bundle, and what it will take at full size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.options import OpenVINOOptions
from bootpig_rt.backends.step_inputs import OF_PAIRS, step_inputs
from bootpig_rt.backends.tensorrt.flavours import RTX
from bootpig_rt.bundle.bundle import Profile
from bootpig_rt.cli.main import main
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.export import graph_modules
from bootpig_rt.export.build import build_engine
from bootpig_rt.export.build_options import build_options
from bootpig_rt.export.graphs import build_graph
from bootpig_rt.export.onnx_export import export_graph
from bootpig_rt.export.tensorrt_profiles import input_ranges, pair_shape
from bootpig_rt.images.control import Control
from bootpig_rt.models.attention import join_heads, split_heads
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

RNG = np.random.default_rng(4)
STEPS = 2


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


class Table:
    """A table of one subject, as `step_inputs` asks for its entries."""

    entries = 1


def a_batch(spec: Any, states: Any, data: Any) -> DenoiseBatch:
    """Two pictures, one with a subject and guidance, one without either."""
    table = solver_table("ddim", spec.noise_schedule, STEPS)
    return DenoiseBatch(
        state=normal(1, 2, 4, 8, 8),
        prompt_embeds=states,
        text_of_row=np.array([2, 0, 0, 1]),
        picture_of_row=np.array([1, 0, 0, 0]),
        ref_of_row=np.array([[-1], [-1], [0], [0]]),
        rows_of_picture=np.array([[1, 0], [2, 0], [3, 0]]),
        image_guidance_scale=np.array([3.0, 1.0], np.float32),
        text_guidance_scale=np.array([5.0, 1.0], np.float32),
        tables=(data,),
        num_references=(1,),
        entry_of_step=np.zeros((1, STEPS), np.int64),
        solver=BatchSolver.of([table, table]),
        merge="argmax",
    )


def attend(
    q: Tensor,
    *own: Tensor,
    heads: int,
    ref_k: Tensor,
    ref_v: Tensor,
    ref_of_row: Tensor,
    **_: object,
) -> Tensor:
    """What the operator of the graphs stands for, row by row; the last ones read a reference."""
    q, k, v = (split_heads(part, heads) for part in (q, *own))
    rows = []
    for n in range(len(q)):
        keys, values, reading = k[n], v[n], n - (len(q) - len(ref_of_row))
        if reading >= 0:
            ref = int(ref_of_row[reading, 0])
            keys, values = torch.cat([keys, ref_k[ref]], 1), torch.cat([values, ref_v[ref]], 1)
        rows.append(torch.nn.functional.scaled_dot_product_attention(q[n], keys, values))
    return join_heads(torch.stack(rows))


def test_its_graphs_take_the_steps_of_the_modules(
    xl_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step as the torch backend takes it, and as the modules that are exported take it."""
    monkeypatch.setattr(graph_modules, "reference_attention", attend)
    backend: Any = create_backend("torch", xl_pair_folder, device="cpu")
    pair, spec, tokenizer = backend.pair, backend.spec, backend.spec.tokenizer()
    sizes = [(9, 9, 0, 0, 9, 9), (9, 9, 0, 0, 9, 9), (32, 32, 0, 0, 32, 32)]
    ids = tokenizer(["", "a dog", "a cat"], sizes=sizes)
    with torch.inference_mode():
        states = build_graph("text_encoder", pair).module(torch.from_numpy(ids))
        torch.testing.assert_close(states, backend.encode_text(ids))
        latents, t = torch.from_numpy(normal(1, 4, 8, 8)), torch.tensor([500])
        one, zero = torch.ones(1), torch.zeros(1)
        graph = build_graph("reference_kv", pair)
        layers = graph.module(latents, torch.zeros_like(latents), one, zero, t, states[1:2])
    data = backend.reference_kv(latents[None].numpy(), t.numpy(), states[1:2]).data
    for mine, theirs in zip(layers, [part for layer in data for part in layer], strict=True):
        torch.testing.assert_close(mine, theirs[0])
    batch = a_batch(spec, states, data)
    run = backend.start(batch)
    laid_out = step_inputs(replace(batch, tables=(Table(),)))
    texts, graph = build_graph("text_kv", pair), build_graph("denoise_step", pair)
    assert not set(OF_PAIRS) & set(graph.inputs)
    with torch.inference_mode():
        made = texts.module(states, torch.from_numpy(laid_out.text_of_row))
        given: dict[str, Any] = {
            name: torch.from_numpy(np.array(array)) for name, array in laid_out.arrays.items()
        }
        given |= dict(zip(texts.outputs, made, strict=True))
        given |= dict(zip(build_graph("reference_kv", pair).outputs, layers, strict=True))
        for index in range(STEPS):
            run.step(index)
            given["step"] = torch.tensor([index])
            state, estimate, features = graph.module(*(given[name] for name in graph.inputs))
            np.testing.assert_allclose(run.state(), state[:1], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(run.estimate(), estimate, rtol=1e-4, atol=1e-4)
            given["state"] = state
        shallow = build_graph("shallow_step", pair)
        given["step"], given["features"] = torch.tensor([0]), features
        again, _ = shallow.module(*(given[name] for name in shallow.inputs))
    assert again.shape == state.shape


def test_shapes_of_its_graphs_are_in_an_engines_profile(xl_pair_folder: Path) -> None:
    pair, shape = load_pair(xl_pair_folder), pair_shape(xl_pair_folder)
    assert (shape.text_length, shape.added_rows, shape.ids_length) == (24, 2, 24 + 24 + 6)
    profile = Profile(resolution_px=(16, 32, 64), max_batch=2, max_references=2, max_steps=50)
    for name in ("text_encoder", "text_kv", "reference_kv", "denoise_step", "shallow_step_softmax"):
        graph = build_graph(name, pair)
        sizes = {key: list(tensor.shape) for key, tensor in graph.inputs.items()}
        for key, axes in graph.axes.items():
            for axis in axes:
                sizes[key][axis] = -1
        ranges = input_ranges(name, sizes, profile=profile, shape=shape)
        assert ranges.keys() == graph.inputs.keys()
    assert ranges["added"].most == (6, 64)
    assert ranges["features"].least[0] == 1


def test_a_dry_run_plans_tables_of_a_full_pair_at_1024_px(
    make_xl_headers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of the published sizes, of which the headers alone are there."""
    pair = make_xl_headers(tmp_path / "pair")
    words = ["build-engine", "--pair", str(pair), "-o", str(tmp_path / "bundle"), "--dry-run"]
    words += ["--precision", "float16", "--max-references", "1", "--max-batch", "1", "--json"]
    assert main([*words, "--target", "sm_89"]) == 0
    sizes = json.loads(capsys.readouterr().out)["estimate"]
    # 10 layers of 4096 tokens and 640 channels, 60 of 1024 and 1280; keys and values, 2 bytes.
    entry = (10 * 4096 * 640 + 60 * 1024 * 1280) * 2 * 2
    kept = {table["dtype"]: table for table in sizes["tables"]}
    assert kept["float16"]["whole_bytes"] == 25 * entry == 10_485_760_000
    assert kept["float16"]["step_bytes"] == 2 * entry
    scales = 25 * 2 * 4 * (10 * 10 + 60 * 20)
    assert kept["float8"]["whole_bytes"] == 25 * entry // 2 + scales
    unet, texts = 2_567_463_684, 123_060_480 + 694_659_840
    assert sizes["parameters"] == unet + texts + 83_653_863
    assert sizes["usual"]["total_bytes"] > 24 * 2**30  # exact tables do not fit beside the engines
    assert main([*words, "--target", "sm_89", "--reference-schedule", "clean"]) == 0
    clean = json.loads(capsys.readouterr().out)["estimate"]
    assert clean["tables"][0]["whole_bytes"] == entry


def some_requests(pipeline: Pipeline) -> list[Request]:
    disc = Image.new("RGB", (40, 40), (220, 30, 30))
    subject = pipeline.encode_subject(disc, "a photo of a dog")
    two = pipeline.encode_subject([disc, disc.rotate(90)], "a photo of a dog")
    fields: dict[str, Any] = {"prompt": "a dog, in snow", "seed": 2}
    return [
        Request(**fields, subject=subject, num_inference_steps=3),
        Request(**fields, subject=subject, num_inference_steps=2, sizes=(8, 8, 1, 2, 32, 32)),
        Request(**fields, num_inference_steps=2),
        Request(**fields, subject=two, num_inference_steps=2),
        Request(**fields, subject=subject, num_inference_steps=3, approximation="cache:2"),
    ]


@pytest.mark.slow
def test_a_bundle_of_it_draws_as_torch_does(
    xl_pair_folder: Path, write_controls: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    folder = write_controls(xl_pair_folder, tmp_path / "pair").parent
    config = load_pair(folder).config
    for target in ("cpu", "openvino"):
        options = build_options(
            config, size_multiple_px=8, resolution="16:32", merges=("argmax",), target=target
        )
        bundle = build_engine(folder, tmp_path / target, options).bundle
        assert bundle.manifest.parity.status == "passed"
        assert (tmp_path / target / "tokenizer_2" / "vocab.json").is_file()
    drawn = []
    for pipeline in (
        Pipeline(folder, backend="torch", device="cpu"),
        Pipeline(tmp_path / "cpu", backend="onnxruntime"),
        Pipeline(tmp_path / "openvino", backend=OpenVINOOptions(precision="float32", cache=False)),
    ):
        assert pipeline.spec.reads_sizes
        assert pipeline.spec.text_shape == (26, 40)
        slope = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
        mapped = [
            replace(request, controls=(Control.load("depth", slope),))
            for request in some_requests(pipeline)[:3]
        ]
        made = pipeline.generate([*some_requests(pipeline), *mapped]).images
        drawn.append(np.stack([np.asarray(image, int) for image in made]))
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() <= 2
    assert np.abs(drawn[0][0] - drawn[0][5]).max() > 2  # the map changes a picture


@pytest.mark.slow
@pytest.mark.skipif(not RTX.is_installed(), reason="tensorrt_rtx is not installed")
def test_an_engine_of_its_step_is_built_here(xl_pair_folder: Path, tmp_path: Path) -> None:
    from bootpig_rt.export.tensorrt_builder import build_trt_engine

    folder = shutil.copytree(xl_pair_folder, tmp_path / "pair")
    pair = load_pair(folder)
    profile = Profile(resolution_px=(32, 32, 64), max_batch=2, max_references=1, max_steps=50)
    for name in ("text_encoder", "text_kv", "reference_kv", "denoise_step"):
        graph = export_graph(name, pair, folder, precision="float16")
        layers = build_trt_engine(
            graph, tmp_path / f"{name}.engine", sm="sm_89", profile=profile
        ).layers
        # Heads of 8, which no kernel takes whole; none of their scores is half.
        assert layers.unfused_half_scores == 0
