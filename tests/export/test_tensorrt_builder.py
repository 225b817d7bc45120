"""Engines built by TensorRT-RTX for a GPU that is not here, from small hand-written graphs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bootpig_rt.backends.tensorrt.flavours import FULL, RTX, TARGETS, flavour_of
from bootpig_rt.bundle.bundle import Profile
from bootpig_rt.errors import BackendUnavailable, CheckpointError, EngineError, ParameterError
from bootpig_rt.export.tensorrt_builder import build_trt_engine
from bootpig_rt.export.tensorrt_layers import layer_report, parse_layers
from bootpig_rt.export.tensorrt_profiles import PairShape, input_ranges, pair_shape
from bootpig_rt.export.tensorrt_progress import PhaseClock

if TYPE_CHECKING:
    import onnx

PROFILE = Profile(resolution_px=(64, 64, 128), max_batch=2, max_references=3, max_steps=50)
SHAPE = PairShape(pixels_per_latent=8, text_length=77, level_of_layer=(0, 1, 0))

needs_rtx = pytest.mark.skipif(not RTX.is_installed(), reason="tensorrt_rtx is not installed")
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None, reason="onnx is not installed"
)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The configurations of a pair, all that a build reads beside the graph."""
    configs: dict[str, dict[str, Any]] = {
        "base_unet": {
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 2,
            "block_out_channels": [8, 8],
        },
        "vae": {"block_out_channels": [8, 8, 8, 8]},
        "text_encoder": {"max_position_embeddings": 77},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def attention_graph(
    *, wide_softmax: bool = True, heads: int = 2, head_dim: int = 16
) -> onnx.ModelProto:
    """Self-attention over the pixels of latents in float16.

    With `wide_softmax` the scores are cast to float32 ahead of the softmax, and its result back.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    half, info, node = TensorProto.FLOAT16, helper.make_tensor_value_info, helper.make_node
    size = (3, head_dim, head_dim)
    weights = np.random.default_rng(0).normal(size=size).astype(np.float16)
    constants = [numpy_helper.from_array(w, n) for w, n in zip(weights, "abc", strict=True)]
    constants += [
        numpy_helper.from_array(np.array(0.25, np.float16), "scale"),
        numpy_helper.from_array(np.array([0, heads, head_dim, -1]), "heads"),
    ]
    softmax = [node("Softmax", ["scores"], ["p"], axis=-1)]
    if wide_softmax:
        softmax = [
            node("Cast", ["scores"], ["wide"], to=TensorProto.FLOAT),
            node("Softmax", ["wide"], ["wide_p"], axis=-1),
            node("Cast", ["wide_p"], ["p"], to=half),
        ]
    nodes = [
        node("Reshape", ["latents", "heads"], ["rows"]),
        node("Transpose", ["rows"], ["tokens"], perm=[0, 1, 3, 2]),
        *(node("MatMul", ["tokens", w], [x]) for w, x in (("a", "q"), ("b", "k"), ("c", "v"))),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("Mul", ["q", "scale"], ["qs"]),
        node("MatMul", ["qs", "kt"], ["scores"]),
        *softmax,
        node("MatMul", ["p", "v"], ["pixels"]),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [info("latents", half, ["N", heads * head_dim, "h", "w"])],
        [info("pixels", half, ["N", heads, "M", head_dim])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(graph: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(graph.SerializeToString())
    return path


@needs_rtx
@needs_onnx
def test_a_graph_becomes_an_engine_without_a_gpu(pair: Path) -> None:
    import tensorrt_rtx

    path = write(attention_graph(), pair / "vae_decoder.onnx")
    shares: list[float] = []
    report = build_trt_engine(
        path,
        pair / "vae_decoder.engine",
        sm="sm_89",
        profile=PROFILE,
        progress=lambda name, share: shares.append(share),
    )
    assert report.size_bytes == (pair / "vae_decoder.engine").stat().st_size > 0
    assert report.inputs["latents"] == ((1, 32, 8, 8), (1, 32, 8, 8), (2, 32, 16, 16))
    assert (report.runtime, report.target) == ("tensorrt_rtx", "sm_89")
    assert report.runtime_version == tensorrt_rtx.__version__
    assert report.activation_bytes
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert json.loads(json.dumps(report.to_dict()))["inputs"]["latents"]["most"] == [2, 32, 16, 16]


@needs_rtx
@needs_onnx
def test_the_report_sees_fused_attention_and_that_scores_are_summed_in_float32(pair: Path) -> None:
    path = write(attention_graph(), pair / "vae_decoder.onnx")
    layers = build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE).layers
    assert (layers.fused_attentions, layers.unfused_attentions) == (1, 0)
    assert layers.float32_layers == ()
    assert (layers.score_types, layers.half_scores) == (("fp32",), 0)


@needs_rtx
@needs_onnx
def test_an_attention_that_sums_scores_in_float16_is_refused(pair: Path) -> None:
    path = write(attention_graph(wide_softmax=False), pair / "vae_decoder.onnx")
    with pytest.raises(EngineError, match="scores of 1 attentions of vae_decoder in float16"):
        build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE)
    assert not (pair / "e.engine").exists()


@needs_rtx
@needs_onnx
def test_float32_work_is_named(pair: Path) -> None:
    """The second product, of probabilities and values, in float32: then nothing is fused."""
    from onnx import TensorProto, helper

    model = cast_ahead(attention_graph())
    product = model.graph.node[-1]
    kept = [node for node in model.graph.node[:-1] if list(node.output) != ["p"]]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.node.append(helper.make_node("Cast", ["v"], ["wide_v"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("MatMul", ["wide_p", "wide_v"], ["wide_pixels"]))
    model.graph.node.append(
        helper.make_node("Cast", ["wide_pixels"], [*product.output], to=TensorProto.FLOAT16)
    )
    path = write(model, pair / "vae_decoder.onnx")
    layers = build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE).layers
    assert len(layers.float32_layers) == 2
    assert (layers.fused_attentions, layers.unfused_attentions) == (0, 1)
    assert layers.unfused_half_scores == 0


def cast_ahead(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with queries and keys cast to float32, as our graphs have them."""
    from onnx import TensorProto, helper

    nodes = []
    for node in model.graph.node:
        if list(node.output) == ["scores"]:
            for i, name in enumerate(list(node.input)):
                wide = f"{name}_32"
                nodes.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
                node.input[i] = wide
            node.output[0] = "wide"
        if node.op_type != "Cast" or list(node.output) != ["wide"]:
            nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


@needs_rtx
@needs_onnx
def test_casts_ahead_of_scores_are_moved_so_that_attention_is_fused(pair: Path) -> None:
    from onnx import checker

    from bootpig_rt.export.tensorrt_attention import cast_behind_scores

    model = cast_ahead(attention_graph())
    path = write(model, pair / "vae_decoder.onnx")
    layers = build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE).layers
    assert (layers.fused_attentions, layers.score_types) == (1, ("fp32",))
    assert cast_behind_scores(model) == 1
    checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert cast_behind_scores(model) == 0


@needs_rtx
@needs_onnx
@pytest.mark.parametrize("knows_sizes", [False, True])
@pytest.mark.parametrize(("heads", "head_dim", "is_fused"), [(2, 64, True), (1, 512, False)])
def test_scores_are_summed_and_kept_in_float32_whether_attention_is_fused_or_not(
    pair: Path,
    caplog: pytest.LogCaptureFixture,
    heads: int,
    head_dim: int,
    *,
    is_fused: bool,
    knows_sizes: bool,
) -> None:
    """One head of 512 channels is what the autoencoder of Stable Diffusion has."""
    from onnx import TensorProto, helper

    model = cast_ahead(attention_graph(heads=heads, head_dim=head_dim))
    if knows_sizes:  # as the exporter's graphs do
        shape: list[str | int | None] = ["N", heads, "M", head_dim]
        value = helper.make_tensor_value_info("qs_32", TensorProto.FLOAT, shape)
        model.graph.value_info.append(value)
    path = write(model, pair / "vae_decoder.onnx")
    with caplog.at_level("INFO", "bootpig_rt"):
        layers = build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE).layers
    assert (layers.fused_attentions, layers.unfused_attentions) == (is_fused, not is_fused)
    assert layers.score_types == (("fp32",) if is_fused else ())
    assert len(layers.float32_layers) == (0 if is_fused else 1)
    assert layers.half_scores == 0
    # Where the graph says how wide its heads are, there is no need to try.
    assert ("building it again" in caplog.text) == (not is_fused and not knows_sizes)


@needs_rtx
@needs_onnx
def test_an_attention_whose_scores_reach_memory_in_float16_is_refused(pair: Path) -> None:
    path = write(attention_graph(heads=1, head_dim=512), pair / "vae_decoder.onnx")
    with pytest.raises(EngineError, match="scores of 1 attentions of vae_decoder in float16"):
        build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE)
    assert not (pair / "e.engine").exists()


@needs_rtx
@needs_onnx
@pytest.mark.parametrize("target", [target for target in RTX.targets if target != "sm_89"])
def test_every_named_target_builds(target: str, pair: Path) -> None:
    path = write(attention_graph(), pair / "vae_decoder.onnx")
    assert build_trt_engine(path, pair / "e.engine", sm=target, profile=PROFILE).target == target


@needs_rtx
@needs_onnx
def test_a_callback_that_raises_ends_the_build_and_leaves_nothing(pair: Path) -> None:
    path = write(attention_graph(), pair / "vae_decoder.onnx")

    def stop(name: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_trt_engine(path, pair / "e.engine", sm="sm_89", profile=PROFILE, progress=stop)
    assert not list(pair.glob("*engine*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("build ")]


@needs_rtx
@needs_onnx
def test_graphs_that_cannot_be_read_are_refused(pair: Path) -> None:
    good = attention_graph()
    path = write(good, pair / "vae_decoder.onnx")
    target = pair / "e.engine"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or no ONNX graph|cannot read the graph"):
        build_trt_engine(path, target, sm="sm_89", profile=PROFILE)
    good.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(CheckpointError, match="NoSuchOperator"):
        build_trt_engine(write(good, path), target, sm="sm_89", profile=PROFILE)
    with pytest.raises(CheckpointError, match="is missing"):
        build_trt_engine(pair / "vae_encoder.onnx", target, sm="sm_89", profile=PROFILE)
    assert not target.exists()


def test_an_unknown_target_and_a_missing_package_are_refused(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParameterError, match="sm_90.*expected one of: sm_75"):
        build_trt_engine(pair / "a.onnx", pair / "a.engine", sm="sm_90", profile=PROFILE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install tensorrt-rtx"):
        build_trt_engine(pair / "a.onnx", pair / "a.engine", sm="sm_89", profile=PROFILE)
    with pytest.raises(BackendUnavailable, match="pip install tensorrt$"):
        build_trt_engine(pair / "a.onnx", pair / "a.engine", sm="local", profile=PROFILE)


def test_a_package_whose_libraries_do_not_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match="is installed but does not load"):
        FULL.load()


def test_each_target_has_one_flavour() -> None:
    assert len(set(TARGETS)) == len(TARGETS)
    assert {flavour_of(target).name for target in TARGETS} == {"TensorRT-RTX", "TensorRT"}


STEP_INPUTS = {
    "state": (-1, -1, 4, -1, -1),
    "matrices": (-1, -1, -1, -1),
    "x0": (-1, -1, 2),
    "canvas": (3, -1, 4, -1, -1),
    "canvas_weights": (-1, -1, 2),
    "mask": (-1, 1, -1, -1),
    "ref_of_row": (-1, -1, 1),
    "pair_of_row": (-1,),
    "picture_of_pair": (-1,),
    "ref_of_pair": (-1, -1, 1),
    "text_k_0": (-1, 77, 16),
    "k_0": (-1, 2, -1, 8),
    "v_1": (-1, 4, -1, 8),
}


def test_open_axes_of_a_step_get_the_ranges_of_the_profile() -> None:
    ranges = input_ranges("denoise_step_argmax", STEP_INPUTS, profile=PROFILE, shape=SHAPE)
    assert ranges["state"] == ((1, 1, 4, 8, 8), (4, 1, 4, 8, 8), (4, 2, 4, 16, 16))
    assert ranges["matrices"] == ((1, 1, 1, 2), (25, 1, 4, 5), (50, 2, 4, 5))
    assert ranges["canvas"] == ((3, 1, 4, 8, 8), (3, 1, 4, 8, 8), (3, 2, 4, 16, 16))
    assert ranges["canvas_weights"] == ((1, 1, 2), (25, 1, 2), (50, 2, 2))
    assert ranges["mask"] == ((1, 1, 8, 8), (1, 1, 8, 8), (2, 1, 16, 16))
    assert ranges["text_k_0"] == ((1, 77, 16), (3, 77, 16), (6, 77, 16))
    assert ranges["picture_of_pair"] == ((1,), (2,), (4,))
    assert ranges["ref_of_pair"] == ((1, 0, 1), (25, 1, 1), (50, 2, 1))
    assert ranges["ref_of_row"] == ((1, 0, 1), (25, 2, 1), (50, 4, 1))
    # 64 and 128 px are 8 and 16 latents; the second layer sees a quarter of them.
    assert ranges["k_0"] == ((1, 2, 64, 8), (25, 2, 64, 8), (300, 2, 256, 8))
    assert ranges["v_1"] == ((1, 4, 16, 8), (25, 4, 16, 8), (300, 4, 64, 8))
    least, usual, most = zip(*(range_ for range_ in ranges.values()), strict=True)
    for low, middle, high in zip(least, usual, most, strict=True):
        assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))


def test_engines_of_the_autoencoder_are_built_for_tiles_of_large_pictures() -> None:
    sizes = {"latents": (-1, 4, -1, -1)}
    profile = Profile((512, 1024, 2048), 2, 1, 50)
    for graph in ("vae_decoder", "tiny_decoder"):
        ranges = input_ranges(graph, sizes, profile=profile, shape=SHAPE)
        # Sides of 64 to 256 latents are run in tiles of 61, just above the limit, to 96 latents.
        assert ranges["latents"] == ((1, 4, 61, 61), (1, 4, 76, 76), (2, 4, 96, 96))
    fixed = Profile((1024, 1024, 1024), 1, 1, 50)
    ranges = input_ranges("vae_decoder", sizes, profile=fixed, shape=SHAPE)
    assert {shape[2:] for shape in ranges["latents"]} == {(76, 76)}
    ranges = input_ranges("vae_encoder", {"pixels": (-1, 3, -1, -1)}, profile=fixed, shape=SHAPE)
    assert {shape[2:] for shape in ranges["pixels"]} == {(608, 608)}


def test_a_step_without_deep_blocks_has_the_ranges_of_a_step() -> None:
    inputs = {"features": (-1, 64, -1, -1), "state": (-1, -1, 4, -1, -1), "k_2": (-1, 2, -1, 8)}
    ranges = input_ranges("shallow_step_mean", inputs, profile=PROFILE, shape=SHAPE)
    assert ranges["features"] == ((1, 64, 8, 8), (3, 64, 8, 8), (6, 64, 16, 16))
    assert ranges["state"] == ((1, 1, 4, 8, 8), (4, 1, 4, 8, 8), (4, 2, 4, 16, 16))
    assert ranges["k_2"] == ((1, 2, 64, 8), (25, 2, 64, 8), (300, 2, 256, 8))


@pytest.mark.parametrize(
    ("graph", "inputs", "message"),
    [
        ("upscaler", {}, "graph is 'upscaler'"),
        ("vae_decoder", {"pictures": (-1, 3)}, "'pictures' of shape [-1, 3] is not part"),
        ("vae_decoder", {"latents": (-1, 4)}, "is not part of the graph's interface"),
        ("vae_decoder", {"latents": (-1, -1, 8, 8)}, "an open axis where a fixed one"),
        ("denoise_step", {"k_3": (-1, 2, -1, 8)}, "'k_3'"),
    ],
)
def test_inputs_outside_the_interface_are_refused(
    graph: str, inputs: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        input_ranges(graph, inputs, profile=PROFILE, shape=SHAPE)


def test_levels_follow_the_blocks_of_the_unet(pair: Path) -> None:
    assert pair_shape(pair) == PairShape(8, 77, (0, 0, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1, 1))
    (pair / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lacks a field"):
        pair_shape(pair)


def test_layers_without_a_fused_attention_are_counted() -> None:
    message = (
        "Layers:\n"
        "Name: conv_1, LayerType: correlation, Inputs: [ { Name: a, Datatype: Float, } ], "
        "Outputs: [ { Name: b, Datatype: Half } ], TacticName: , StreamId: 0\n"
        "Name: __myl_MulMaxrSubExpSumDivMul_myl0_4, LayerType: kgen, Inputs: [ { Name: s, "
        "Datatype: Float } ], Outputs: [ { Name: p, Datatype: Float } ], TacticName: \n"
        "Name: __myl_SlicCastMaxrSubExpSumDiv_myl0_5, LayerType: kgen, Inputs: [ { Name: s, "
        "Datatype: Half } ], Outputs: [ { Name: p, Datatype: Float } ], TacticName: \n"
        "Name: __myl_SqrtReshSeleMaxrSubExpSumDivMul_myl0_6, LayerType: kgen, Inputs: [ { Name: s, "
        "Datatype: Half } ], Outputs: [ { Name: p, Datatype: Float } ], TacticName: \n"
    )
    report = layer_report(parse_layers(message), b"")
    # The last one weighs references by their norms, and is no attention.
    assert (report.num_layers, report.fused_attentions, report.unfused_attentions) == (4, 0, 2)
    assert (report.unfused_half_scores, report.half_scores) == (1, 1)
    assert report.float32_layers == ("conv_1",)
    assert report.score_types == ()


def test_progress_of_nested_phases_never_falls() -> None:
    clock = PhaseClock()
    shares = []
    clock.start("Building engine", None, 2)
    for step in range(2):
        clock.start("inner", "Building engine", 4)
        for inner in range(4):
            clock.step("inner", inner)
            shares.append(clock.share)
        clock.finish("inner")
        clock.step("Building engine", step)
        shares.append(clock.share)
    assert shares == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.625, 0.75, 0.875, 1, 1])
