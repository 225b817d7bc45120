"""The plugin's decisions without TensorRT, and its registration with a stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import load_model_from_string

from bootpig_rt.backends.cuda.devices import CudaDevice
from bootpig_rt.backends.tensorrt.flavours import FULL, RTX
from bootpig_rt.errors import BackendUnavailable, BootPIGError, ParameterError
from bootpig_rt.export import tensorrt_plugin
from bootpig_rt.export.onnx_export import METADATA_KEY
from bootpig_rt.export.reference_op import function_body, needs_out_weight
from bootpig_rt.kernels.compile import without_hidden_pointers
from bootpig_rt.kernels.plugin_numbers import PLUGIN_NUMBERS

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton installed"
)
# q, k, v, ref_k, ref_v, ref_of_row of SD 2.1 at 512 px, three rows, two of which read.
SHAPES = [[3, 5, 4096, 64]] * 3 + [[50, 5, 4096, 64]] * 2 + [[2, 1]]
SETTINGS: dict[str, Any] = {"dtype": "float16", "head_dim": 64, "scale": 0.125}


def _divide_up(number: int, by: int) -> int:
    return -(-number // by)


@needs_triton
def test_every_tactic_fits_without_asking_for_more_shared_memory() -> None:
    assert tensorrt_plugin.tactics(architecture=90, **SETTINGS) == [1, 2, 3]


@needs_triton
def test_a_launch_follows_from_the_shapes() -> None:
    made = tensorrt_plugin.launch(2, SHAPES, architecture=90, divide_up=_divide_up, **SETTINGS)
    assert made.grid == (64, 5, 3)
    assert made.threads == 128
    assert 0 < made.shared_bytes <= 48 * 1024
    # rows, heads, tokens, references, their tokens, rows that read, slots
    assert made.numbers == (3, 5, 4096, 50, 4096, 2, 1)


@needs_triton
def test_the_ptx_takes_inputs_then_numbers_then_the_output(tmp_path: Path) -> None:
    import triton

    made = tensorrt_plugin.launch(3, SHAPES, architecture=80, divide_up=_divide_up, **SETTINGS)
    head = re.search(rf"\.visible \.entry {made.entry}\((.*?)\n\)", made.ptx, re.DOTALL)
    assert head is not None
    sizes = [kind[-2:] for kind in re.findall(r"\.param \.([ubf]\d\d)", head[1])]
    inputs = len(tensorrt_plugin.INPUTS)
    assert sizes == ["64"] * inputs + ["32"] * len(PLUGIN_NUMBERS) + ["64"]
    # What is left is whole: NVIDIA's assembler takes it.
    source = tmp_path / "kernel.ptx"
    source.write_text(made.ptx)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    done = subprocess.run(
        [str(ptxas), "-arch=sm_80", str(source), "-o", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_scratch_pointer_in_use_is_not_taken_away() -> None:
    ptx = (
        ".visible .entry f(\n\t.param .u64 f_param_0,\n\t.param .u64 f_param_1\n)\n{ [f_param_1] }"
    )
    with pytest.raises(BootPIGError, match="reads its scratch pointer f_param_1"):
        without_hidden_pointers(ptx, "f", 1)
    with pytest.raises(BootPIGError, match="has 2 parameters"):
        without_hidden_pointers(ptx, "f", 2)
    assert without_hidden_pointers(ptx.replace("[f_param_1]", ""), "f", 1).count(".param") == 1


def test_mixed_types_and_head_dims_out_of_reach_are_refused() -> None:
    assert tensorrt_plugin.check_inputs(["HALF"] * 5 + ["INT64"], 64) == "float16"
    with pytest.raises(ParameterError, match="expected one of HALF, BF16, FLOAT five times"):
        tensorrt_plugin.check_inputs(["HALF", "FLOAT", *["HALF"] * 3, "INT64"], 64)
    with pytest.raises(ParameterError, match="and INT64"):
        tensorrt_plugin.check_inputs(["HALF"] * 5 + ["INT32"], 64)
    with pytest.raises(ParameterError, match="got head dim 160, expected 16 to 128"):
        tensorrt_plugin.check_inputs(["HALF"] * 5 + ["INT64"], 160)


@needs_triton
def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ParameterError, match="the GPU is sm_75, expected one of sm_80"):
        tensorrt_plugin.tactics(architecture=75, **SETTINGS)


class _Numbers(dict[int, Any]):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


class _Plugin:
    """Records what is registered; the names that the registration uses of `tensorrt.plugin`."""

    class TensorDesc:
        """A tensor of a network."""

    KernelLaunchParams = SimpleNamespace
    SymIntExprs = _Numbers

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in ("register", "autotune", "aot_impl"):
            raise AttributeError(name)

        def decorator(plugin_id: str) -> Any:
            assert plugin_id == "bootpig_rt::ReferenceAttention"
            return lambda function: self.made.setdefault(name, function)

        return decorator

    @staticmethod
    def AutoTuneCombination(types: str, layout: str, tactics: list[int]) -> tuple[Any, ...]:
        return types, layout, tactics

    @staticmethod
    def SymInt32(number: int) -> int:
        return number

    cdiv = staticmethod(_divide_up)


def _descriptions() -> list[Any]:
    names = ["DataType.HALF"] * 5 + ["DataType.INT64"]
    return [
        SimpleNamespace(shape=shape, shape_expr=shape, dtype=dtype, like=lambda: "like q")
        for shape, dtype in zip(SHAPES, names, strict=True)
    ]


@needs_triton
def test_registration_hands_the_decisions_to_tensorrt() -> None:
    plugin = _Plugin()
    tensorrt_plugin.register(90, plugin=plugin)
    tensors = _descriptions()
    assert plugin.made["register"](*tensors, "one", 0.125) == "like q"
    hints = plugin.made["register"].__annotations__
    assert hints["q"] is plugin.TensorDesc
    assert hints["scale"] is float
    ((types, layout, numbers),) = plugin.made["autotune"](*tensors, 0.125, ())
    assert types == "FP16, FP16, FP16, FP16, FP16, INT64, FP16"
    assert (layout, numbers) == ("LINEAR", [1, 2, 3])
    entry, ptx, parameters, extra = plugin.made["aot_impl"](*tensors, 0.125, (), 1)
    assert f".entry {entry}(" in ptx
    assert (parameters.grid_x, parameters.grid_y, parameters.grid_z) == (32, 5, 3)
    assert parameters.block_x == 256
    assert extra.count == len(extra) == 7


def test_merges_of_more_than_one_launch_keep_the_body() -> None:
    plugin = _Plugin()
    tensorrt_plugin.register(90, plugin=plugin)
    assert not tensorrt_plugin.supports("argmax")
    with pytest.raises(ParameterError, match="got merge 'argmax', expected one or concat"):
        plugin.made["register"](*_descriptions(), "argmax", 0.125)


def test_a_tensorrt_without_such_plugins_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="no ahead-of-time plugins, expected 10.9"):
        tensorrt_plugin.register(90, plugin=SimpleNamespace())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_a_missing_tensorrt_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="pip install --upgrade tensorrt"):
        tensorrt_plugin.register(90)


H100 = CudaDevice(0, "H100", "sm_90", 80 << 30)


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plugin, "_registered", {})


@needs_triton
def test_the_full_tensorrt_has_the_plugin_and_registers_it_once() -> None:
    plugin = _Plugin()
    for _ in range(3):
        found = tensorrt_plugin.capability(FULL, [H100], plugin=plugin)
        assert (found.architecture, found.is_there) == (90, True)
    assert set(plugin.made) == {"register", "autotune", "aot_impl"}
    assert str(found) == "plugin bootpig_rt::ReferenceAttention for sm_90"
    # Kernels are for one architecture, and TensorRT knows a name once.
    other = CudaDevice(0, "A100", "sm_80", 80 << 30)
    refused = tensorrt_plugin.capability(FULL, [other], plugin=plugin)
    assert "has registered the plugin for sm_90" in str(refused)


@pytest.mark.parametrize(
    ("flavour", "devices", "is_wanted", "plugin", "reason"),
    [
        (RTX, [H100], True, _Plugin(), "TensorRT-RTX has no ahead-of-time plugins"),
        (FULL, [H100], False, _Plugin(), "it was not asked for"),
        (FULL, [], True, _Plugin(), "there is no GPU"),
        (FULL, [CudaDevice(0, "T4", "sm_75", 1)], True, _Plugin(), "no kernels for sm_75"),
        pytest.param(
            FULL, [H100], True, SimpleNamespace(), "no ahead-of-time plugins", marks=needs_triton
        ),
    ],
)
def test_without_the_plugin_a_build_says_why(
    flavour: Any, devices: Any, is_wanted: bool, plugin: Any, reason: str
) -> None:
    found = tensorrt_plugin.capability(flavour, devices, is_wanted=is_wanted, plugin=plugin)
    assert not found.is_there
    assert reason in found.reason
    assert str(found).startswith("the operator's body, without a plugin: ")


def _graph(*merges: str, head_dims: tuple[int, ...] = (64,)) -> Any:
    """A graph with a reference attention for each merge; its metadata names layers of these D."""
    from onnx import TensorProto, helper

    info, half = helper.make_tensor_value_info, TensorProto.FLOAT16
    nodes = [
        helper.make_node(
            "ReferenceAttention",
            ["q", "k", "v", "ref_k", "ref_v", "refs"] + ["w"] * needs_out_weight(merge),
            [f"out_{index}"],
            domain="bootpig_rt",
            merge=merge,
            scale=0.125,
        )
        for index, merge in enumerate(merges)
    ]
    floats = [info(name, half, [None] * 4) for name in ("q", "k", "v", "ref_k", "ref_v")]
    graph = helper.make_graph(
        nodes,
        "denoise_step",
        [*floats, info("refs", TensorProto.INT64, [None, None]), info("w", half, [None, None])],
        [info(f"out_{index}", half, [None] * 4) for index in range(len(merges))],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("bootpig_rt", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    layers = [[5, head_dim, 0] for head_dim in head_dims]
    helper.set_model_props(model, {METADATA_KEY: json.dumps({"layers": layers})})
    model.functions.append(function_body(merges[0], half=True))  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("merge", ["one", "concat"])
def test_nodes_name_the_plugin_and_the_body_is_gone(merge: str) -> None:
    from onnx import helper

    model = _graph(merge, merge)
    assert tensorrt_plugin.use_plugin(model) == ""
    assert list(model.functions) == []
    for node in model.graph.node:
        values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        assert values == {
            "merge": merge.encode(),
            "scale": 0.125,
            "plugin_namespace": b"bootpig_rt",
            "plugin_version": b"1",
            "aot": 1,
        }


@pytest.mark.parametrize("merge", ["argmax", "softmax", "mean"])
def test_a_graph_of_another_merge_stays_as_it_is(merge: str) -> None:
    model = _graph(merge)
    before = model.SerializeToString()
    assert tensorrt_plugin.use_plugin(model) == "it does not compute this merge"
    assert model.SerializeToString() == before


def test_a_layer_with_a_head_dim_out_of_reach_keeps_the_whole_graph_as_it_is() -> None:
    """Stable Diffusion 1.x has heads of 40, 80 and 160 channels."""
    model = _graph("one", head_dims=(40, 80, 160))
    before = model.SerializeToString()
    assert "16 to 128 in steps of 8, and a layer has 160" in tensorrt_plugin.use_plugin(model)
    assert model.SerializeToString() == before
    assert tensorrt_plugin.use_plugin(_graph("one", head_dims=(40, 80))) == ""


class _FullTensorRT:
    """As much of `tensorrt` as a build takes; asks the plugin for its kernels as TensorRT does.

    Attributes:
        read: What its parser was given.
    """

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = range(3)

    class IProgressMonitor:
        pass

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 0

    MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    ProfilingVerbosity = SimpleNamespace(DETAILED=0)
    __version__ = "10.9"

    def __init__(self, plugin: _Plugin) -> None:
        self.read: list[Any] = []
        self._plugin = plugin
        config = SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: None, add_optimization_profile=lambda made: 0
        )
        self.Builder = lambda log: SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_inputs=0),
            create_builder_config=lambda: config,
            create_optimization_profile=SimpleNamespace,
            build_serialized_network=self._build,
        )
        self.OnnxParser = lambda network, log: SimpleNamespace(parse=self._parse)

    def _parse(self, data: bytes, path: str) -> bool:
        self.read.append(data)
        return True

    def _build(self, network: Any, config: Any) -> bytes:
        for node in load_model_from_string(self.read[-1]).graph.node:
            if any(attribute.name == "aot" for attribute in node.attribute):
                for tactic in (1, 2):
                    self._plugin.made["aot_impl"](*_descriptions(), 0.125, (), tactic)
        return b"plan"


def _write_configs(folder: Path) -> None:
    """The configurations that a build reads beside the graph."""
    configs: dict[str, dict[str, Any]] = {
        "base_unet": {
            "down_block_types": ["CrossAttn"],
            "up_block_types": ["CrossAttn"],
            "block_out_channels": [8],
        },
        "vae": {"block_out_channels": [8, 8, 8, 8]},
        "text_encoder": {"max_position_embeddings": 77},
    }
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))


@needs_triton
@pytest.mark.parametrize(
    ("merge", "head_dim", "is_wanted", "told"),
    [
        ("one", 64, True, "plugin bootpig_rt::ReferenceAttention for sm_90"),
        ("one", 64, False, "the operator's body, without a plugin: it was not asked for"),
        ("argmax", 64, True, "the operator's body, without a plugin: it does not compute this"),
        ("one", 160, True, "the operator's body, without a plugin: it takes head dims 16 to 128"),
    ],
)
def test_a_build_for_this_machine_has_the_plugin_where_it_can_and_names_its_kernels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merge: str,
    head_dim: int,
    is_wanted: bool,
    told: str,
) -> None:
    from onnx import save_model

    from bootpig_rt.bundle.bundle import Profile
    from bootpig_rt.export import tensorrt_builder

    plugin = _Plugin()
    trt = _FullTensorRT(plugin)
    monkeypatch.setattr(tensorrt_plugin, "_plugin_module", lambda: plugin)
    monkeypatch.setattr(tensorrt_builder, "cuda_devices", lambda: (H100,))
    monkeypatch.setattr(type(FULL), "load", lambda flavour: trt)
    _write_configs(tmp_path)
    save_model(_graph(merge, head_dims=(40, head_dim)), tmp_path / "denoise_step.onnx")
    report = tensorrt_builder.build_trt_engine(
        tmp_path / "denoise_step.onnx",
        tmp_path / "e.engine",
        sm="local",
        profile=Profile((64, 64, 64), 1, 1, 2),
        plugin=is_wanted,
    )
    assert report.attention.startswith(told)
    assert (tmp_path / "e.engine").read_bytes() == b"plan"
    assert report.architecture == "sm_90"
    (read,) = trt.read
    has_plugin = told.startswith("plugin")
    assert (len(load_model_from_string(read).functions) == 0) == has_plugin
    assert bool(plugin.made) == is_wanted
    made = [
        tensorrt_plugin.launch(n, SHAPES, architecture=90, divide_up=_divide_up, **SETTINGS).ptx
        for n in (1, 2)
    ]
    hashes = sorted(hashlib.sha256(ptx.encode()).hexdigest() for ptx in made)
    assert report.kernels == (tuple(hashes) if has_plugin else ())
