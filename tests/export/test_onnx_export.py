"""Graphs as files: what is in them, where their weights are, and that ONNX Runtime runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.export.graphs import GRAPH_NAMES
from bootpig_rt.export.onnx_export import METADATA_KEY, export_graph
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.save import save_pair

STEPS = [name for name in GRAPH_NAMES if "_step" in name]


def graph_of(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(str(folder / f"{name}.onnx"), load_external_data=False)


@pytest.fixture(scope="module")
def own_folder(tiny_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: builds of other tests link to the shared files, and onnx refuses what is linked."""
    return shutil.copytree(tiny_bundle_folder, tmp_path_factory.mktemp("onnx") / "bundle")


def location(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_a_graph_is_a_small_file_that_onnx_accepts(own_folder: Path, name: str) -> None:
    path = own_folder / f"{name}.onnx"
    assert path.stat().st_size < 400_000
    onnx.checker.check_model(str(path))


@pytest.fixture(scope="module")
def weights(tiny_pair_folder: Path) -> set[bytes]:
    """Sorted numbers of each weight of the tiny pair, but of those of one value."""
    pair = load_pair(tiny_pair_folder)
    modules: tuple[Any, ...] = (pair.base, pair.reference, pair.vae, pair.text_encoder)
    return {
        np.sort(p.detach().numpy(), axis=None).tobytes()
        for module in modules
        for p in module.parameters()
        if len(p.unique()) > 1
    }


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_no_weight_is_stored_twice(
    tiny_bundle_folder: Path, name: str, weights: set[bytes]
) -> None:
    initializers = graph_of(tiny_bundle_folder, name).graph.initializer
    external = [t for t in initializers if t.data_location == TensorProto.EXTERNAL]
    assert external
    places = {(location(t)["location"], location(t)["offset"]) for t in external}
    assert len(places) == len(external)
    # No constant of the graph equals a weight, as it is or transposed, but those of one value.
    for tensor in initializers:
        if tensor.data_location != TensorProto.EXTERNAL:
            array = onnx.numpy_helper.to_array(tensor)
            assert array.nbytes < 1 << 16
            assert np.sort(array, axis=None).tobytes() not in weights


def test_external_data_is_where_the_safetensors_file_has_it(tiny_bundle_folder: Path) -> None:
    pair = load_pair(tiny_bundle_folder)
    parameters = dict(pair.base.unet.named_parameters())
    for tensor in graph_of(tiny_bundle_folder, "denoise_step").graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = location(tensor)
        assert place["location"] == "base_unet/diffusion_pytorch_model.safetensors"
        with (tiny_bundle_folder / place["location"]).open("rb") as stream:
            stream.seek(int(place["offset"]))
            stored = np.frombuffer(stream.read(int(place["length"])), np.float32)
        expected = parameters[tensor.name.removeprefix("base.unet.")].detach().numpy()
        np.testing.assert_array_equal(stored.reshape(tuple(tensor.dims)), expected)


def test_what_follows_the_last_self_attention_is_pruned_from_the_reference_graph(
    tiny_bundle_folder: Path,
) -> None:
    names = {t.name for t in graph_of(tiny_bundle_folder, "reference_kv").graph.initializer}
    assert not any("conv_out" in name or "conv_norm_out" in name for name in names)
    # Of the base only the projections of its self-attentions are read.
    assert {name.split(".")[-2] for name in names if name.startswith("base.")} == {"to_k", "to_v"}


@pytest.mark.parametrize("name", STEPS)
def test_a_graph_for_a_cpu_holds_standard_operators_alone(own_folder: Path, name: str) -> None:
    """Reference attention is written out: some runtimes read no functions."""
    model = graph_of(own_folder, name)
    assert list(model.functions) == []
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(str(own_folder / f"{name}.onnx"))


@pytest.mark.slow
def test_reference_attention_elsewhere_is_one_operator_with_a_body(
    shallow_pair_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(shallow_pair_folder, tmp_path / "pair")
    pair = load_pair(folder)
    model = onnx.load(str(export_graph("denoise_step_argmax", pair, folder)))
    (function,) = model.functions
    assert (function.domain, function.name) == ("bootpig_rt", "ReferenceAttention")
    assert {node.domain for node in function.node} == {""}
    nodes = [node for node in model.graph.node if node.domain == "bootpig_rt"]
    assert len(nodes) == pair.base.num_layers
    for node in nodes:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert found["merge"] == b"argmax"
        assert found["scale"] == pytest.approx(8**-0.5)
        assert len(node.input) == len(function.input) == 7


def test_a_graph_says_what_it_was_made_for(tiny_bundle_folder: Path) -> None:
    model = graph_of(tiny_bundle_folder, "denoise_step_mean")
    values = json.loads({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    assert values["graph"] == "denoise_step_mean"
    assert (values["merge"], values["precision"]) == ("mean", "float32")
    assert values["layers"] == [[2, 8, 0], *[[4, 8, 1]] * 4, *[[2, 8, 0]] * 2]


def test_no_path_of_the_builder_is_in_a_graph(tiny_bundle_folder: Path) -> None:
    for name in GRAPH_NAMES:
        content = (tiny_bundle_folder / f"{name}.onnx").read_bytes()
        assert b".py" not in content
        assert str(tiny_bundle_folder).encode() not in content


@pytest.fixture(scope="module")
def half_folder(shallow_pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair with float16 weights."""
    source = tmp_path_factory.mktemp("half")
    return save_pair(load_pair(shallow_pair_folder), source / "pair", dtype=torch.float16)


def test_float16_weights_are_cast_in_a_float32_graph(half_folder: Path) -> None:
    path = export_graph("text_encoder", load_pair(half_folder), half_folder)
    model = onnx.load(str(path), load_external_data=False)
    weights = {t.name: t for t in model.graph.initializer if t.external_data}
    assert {t.data_type for t in weights.values()} == {TensorProto.FLOAT16}
    casts = {n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    assert set(weights) <= casts
    ids = np.array([[514, 3, 4, *[515] * 21]], np.int64)
    (states,) = ort.InferenceSession(str(path)).run(None, {"ids": ids})
    with torch.inference_mode():
        expected = load_pair(half_folder).text_encoder(torch.tensor(ids)).last_hidden_state
    np.testing.assert_allclose(states, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_float16_graph_reads_the_weights_as_they_are_and_scores_in_float32(
    half_folder: Path,
) -> None:
    path = export_graph("denoise_step", load_pair(half_folder), half_folder, precision="float16")
    model = onnx.load(str(path), load_external_data=False)
    weights = {t.name for t in model.graph.initializer if t.external_data}
    assert not weights & {n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    assert {types[n] for n in ("k_0", "v_0", "text_k_0")} == {TensorProto.FLOAT16}
    assert types["state"] == TensorProto.FLOAT
    # Ahead of every softmax there is a product of what was cast to float32.
    (function,) = model.functions
    for nodes in (list(model.graph.node), list(function.node)):
        made_by = {output: node for node in nodes for output in node.output}
        softmaxes = [node for node in nodes if node.op_type == "Softmax"]
        assert softmaxes
        for softmax in softmaxes:
            product = made_by[softmax.input[0]]
            assert product.op_type == "MatMul"
            for name in product.input:
                cast = made_by[name]
                assert cast.op_type == "Cast"
                assert cast.attribute[0].i == TensorProto.FLOAT


@pytest.mark.slow
def test_scores_too_large_for_float16_do_not_overflow(half_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(half_folder, tmp_path / "large")
    pair = load_pair(folder)
    with torch.no_grad():
        for name, parameter in pair.base.unet.named_parameters():
            if "attn" in name and ("to_q" in name or "to_k" in name):
                parameter.mul_(3000.0)  # scores of about 1e7
    save_pair(pair, folder, dtype=torch.float16, overwrite=True)
    pair = load_pair(folder)
    path = export_graph("denoise_step", pair, folder, precision="float16")
    session = ort.InferenceSession(str(path))
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "step": np.zeros(1, np.int64),
        "state": rng.standard_normal((1, 1, 4, 8, 8)),
        "timesteps": np.full((1, 1), 500),
        "matrices": np.array([[[[0.0, 1.0]]]]),
        "x0": np.array([[[0.0, 1.0]]]),
        "clip_weight": np.zeros((1, 1)),
        "clip_range": np.array([3e38]),
        "canvas": np.zeros((3, 1, 4, 8, 8)),
        "canvas_weights": np.zeros((1, 1, 2)),
        "mask": np.ones((1, 1, 8, 8)),
        "picture_of_row": [0],
        "rows_of_picture": [[0], [0], [0]],
        "image_guidance_scale": [1.0],
        "text_guidance_scale": [0.0],
        "ref_of_row": [[[0]]],
        "pair_of_row": [0],
        "picture_of_pair": [0],
        "ref_of_pair": [[[0]]],
    }
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    for value in session.get_inputs():
        if value.name.startswith("text_"):
            inputs[value.name] = rng.standard_normal((1, *value.shape[1:])) * 100
        elif value.name not in inputs:
            inputs[value.name] = rng.standard_normal((1, value.shape[1], 4, value.shape[3])) * 100
        inputs[value.name] = np.asarray(inputs[value.name]).astype(kinds[value.type])
    state, estimate, _ = session.run(None, inputs)
    assert np.isfinite(state).all()
    assert np.isfinite(estimate).all()


def test_a_folder_without_the_pairs_weights_is_refused(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    pair = load_pair(tiny_pair_folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        export_graph("text_encoder", pair, tmp_path)
    other = shutil.copytree(tiny_pair_folder, tmp_path / "other")
    shutil.copyfile(
        other / "vae" / "diffusion_pytorch_model.safetensors",
        other / "base_unet" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(CheckpointError, match="must be written into the folder of the pair"):
        export_graph("denoise_step", pair, other)


def test_wrong_names_are_refused(tiny_pair_folder: Path) -> None:
    pair = load_pair(tiny_pair_folder)
    with pytest.raises(ParameterError, match="graph is 'unet', expected one of text_encoder"):
        export_graph("unet", pair, tiny_pair_folder)
    with pytest.raises(ParameterError, match="precision is 'int4', expected float32 or float16"):
        export_graph("text_encoder", pair, tiny_pair_folder, precision="int4")  # type: ignore[arg-type]


def test_graphs_for_a_cpu_are_of_float32_alone(half_folder: Path) -> None:
    pair = load_pair(half_folder)
    with pytest.raises(ParameterError, match="expected float32"):
        export_graph("vae_decoder", pair, half_folder, precision="float16", dialect="cpu")


def test_no_unmasked_attention_is_written_out_for_onnx_runtime(tiny_bundle_folder: Path) -> None:
    for name in ("vae_encoder", "vae_decoder", "reference_kv", "denoise_step"):
        kinds = {node.op_type for node in graph_of(tiny_bundle_folder, name).graph.node}
        assert "Softmax" not in kinds
    # The text encoder's attention is causal: with a mask ONNX Runtime holds all scores anyway.
    kinds = {node.op_type for node in graph_of(tiny_bundle_folder, "text_encoder").graph.node}
    assert "Softmax" in kinds


@pytest.fixture(scope="module")
def shallow_graphs_folder(shallow_pair_folder: Path, share: Any) -> Path:
    """A shallow pair with a step for a CPU and the graph of its texts."""

    def fill(folder: Path) -> None:
        shutil.copytree(shallow_pair_folder, folder, dirs_exist_ok=True)
        for name in ("text_kv", "denoise_step"):
            export_graph(name, load_pair(folder), folder, dialect="cpu")

    folder: Path = share("shallow_graphs", fill)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["portable", "cpu-large"])
def test_a_step_is_the_same_in_every_dialect(
    shallow_graphs_folder: Path, tmp_path: Path, dialect: Any
) -> None:
    folder = shutil.copytree(shallow_graphs_folder, tmp_path / "pair")
    expected = run_step(folder)
    assert opset_of(folder) == 23
    export_graph("denoise_step", load_pair(folder), folder, dialect=dialect)
    assert opset_of(folder) == 20
    assert expected[0].std() > 0.1
    for ours, theirs in zip(run_step(folder), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "reading"), [([0], 0), ([1, 2], 2)], ids=["no reference", "all with a reference"]
)
def test_a_step_for_a_cpu_takes_rows_of_one_kind(
    tiny_bundle_folder: Path, rows: list[int], reading: int
) -> None:
    """ONNX Runtime's `Attention` refuses a batch of no rows."""
    last = len(rows) - 1
    alone = run_step(
        tiny_bundle_folder,
        text_of_row=np.array([0, 0, 1])[rows],
        pair_of_row=np.zeros(len(rows), np.int64),
        picture_of_pair=np.zeros(1, np.int64),
        ref_of_pair=np.ones((1, min(1, reading), 1), np.int64),
        picture_of_row=np.zeros(len(rows), np.int64),
        rows_of_picture=np.full((3, 1), last),
        ref_of_row=np.ones((1, reading, 1), np.int64),
    )
    among = run_step(tiny_bundle_folder, rows_of_picture=np.full((3, 1), rows[last]))
    for ours, theirs in zip(alone[:2], among[:2], strict=True):  # features are those of all rows
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def opset_of(folder: Path) -> int:
    model = graph_of(folder, "denoise_step")
    return int(max(opset.version for opset in model.opset_import if opset.domain == ""))


def run_step(folder: Path, **changed: Any) -> list[np.ndarray[Any, Any]]:
    """A step of one picture: a row without its reference, and two with."""
    session = ort.InferenceSession(folder / "denoise_step.onnx")
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    texts = normal(2, 24, 16)
    text_of_row = changed.pop("text_of_row", np.array([0, 0, 1]))
    text_kv = ort.InferenceSession(folder / "text_kv.onnx")
    inputs = {
        "step": np.zeros(1, np.int64),
        "state": normal(1, 1, 4, 8, 8),
        "timesteps": np.full((1, 1), 500),
        "matrices": np.array([[[[0.3, 0.7]]]], np.float32),
        "x0": np.array([[[0.2, 0.8]]], np.float32),
        "clip_weight": np.zeros((1, 1), np.float32),
        "clip_range": np.array([3e38], np.float32),
        "canvas": np.zeros((3, 1, 4, 8, 8), np.float32),
        "canvas_weights": np.zeros((1, 1, 2), np.float32),
        "mask": np.ones((1, 1, 8, 8), np.float32),
        "picture_of_row": np.zeros(3, np.int64),
        "rows_of_picture": np.arange(3)[:, None],
        "image_guidance_scale": np.array([2.0], np.float32),
        "text_guidance_scale": np.array([3.0], np.float32),
        "ref_of_row": np.ones((1, 2, 1), np.int64),
        "pair_of_row": np.array([0, 1, 1]),
        "picture_of_pair": np.zeros(2, np.int64),
        "ref_of_pair": np.ones((1, 1, 1), np.int64),
        **dict(
            zip(
                [output.name for output in text_kv.get_outputs()],
                text_kv.run(None, {"prompt_embeds": texts, "text_of_row": text_of_row}),
                strict=True,
            )
        ),
    }
    for value in session.get_inputs():
        if value.name not in inputs:
            inputs[value.name] = normal(2, value.shape[1], 5, value.shape[3])
    found: list[np.ndarray[Any, Any]] = session.run(None, inputs | changed)
    return found
