"""Steps of the TensorRT backend, rehearsed without a GPU.

Device memory is the host's, and engines are the graphs that they would be built from, in ONNX
Runtime: what is bound where, in which order and within which limits, is the backend's own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from bootpig_rt import backends
from bootpig_rt.backends.cuda import memory as cuda_memory
from bootpig_rt.backends.cuda.memory import Cuda
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.backends.tensorrt import backend as tensorrt_backend
from bootpig_rt.bundle.bundle import Bundle, open_bundle
from bootpig_rt.export.tensorrt_profiles import input_ranges, pair_shape
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

TYPES = {"tensor(float)": ("FLOAT", "float32"), "tensor(int64)": ("INT64", "int64")}


class HostRuntime:
    """The runtime of `cuda-python` whose device memory is the host's."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9
    )

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaDeviceGetAttribute(self, which: int, _: int) -> tuple[int, int]:
        return 0, which

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 1

    def cudaMalloc(self, nbytes: int) -> tuple[int, int]:
        block = (ctypes.c_uint8 * nbytes)()
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    def cudaMemcpyAsync(
        self, target: int, source: int, nbytes: int, kind: int, stream: int
    ) -> tuple[int]:
        ctypes.memmove(target, source, nbytes)
        return (0,)

    def cudaSetDevice(self, _: int) -> tuple[int]:
        return (0,)

    cudaStreamSynchronize = cudaStreamDestroy = cudaSetDevice


class HostEngine:
    """A graph as `ICudaEngine`."""

    device_memory_size_v2 = 256

    def __init__(self, path: Path, bundle: Bundle) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        # They run a few times: made over, they would not pay for it.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.tensors = self.inputs | {value.name: value for value in self.session.get_outputs()}
        self.num_io_tensors = len(self.tensors)
        sizes = {name: self.get_tensor_shape(name) for name in self.inputs}
        shape = pair_shape(bundle.folder)
        profile = bundle.manifest.profile
        self._ranges = input_ranges(path.stem, sizes, profile=profile, shape=shape)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES[self.tensors[name].type][0])

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.tensors[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, _: int) -> Any:
        return self._ranges[name]

    def create_execution_context(self, _: Any) -> HostContext:
        return HostContext(self)


class HostContext:
    """A session as `IExecutionContext`; its sizes follow from what is bound."""

    def __init__(self, engine: HostEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert address
        assert nbytes

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._made()[name].shape
        return shape

    def execute_async_v3(self, stream: int) -> bool:
        for name, array in self._made().items():
            ctypes.memmove(self._addresses[name], array.ctypes.data, array.nbytes)
        return True

    def _made(self) -> dict[str, np.ndarray]:
        given = {}
        for name, value in self._engine.inputs.items():
            array = np.empty(self._shapes[name], TYPES[value.type][1])
            ctypes.memmove(array.ctypes.data, self._addresses[name], array.nbytes)
            given[name] = array
        names = [name for name in self._engine.tensors if name not in self._engine.inputs]
        return dict(zip(names, self._engine.session.run(names, given), strict=True))


@pytest.fixture(scope="module")
def tensorrt_pipeline(tiny_bundle_folder: Path) -> Iterator[Pipeline]:
    bundle = open_bundle(tiny_bundle_folder)

    def runtime(_: Any) -> Any:
        paths = {path.read_bytes(): path for path in bundle.folder.glob("*.onnx")}
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: HostEngine(paths[plan], bundle))

    logger: Any = lambda _: None  # noqa: E731
    logger.WARNING = 0
    trt = SimpleNamespace(
        __version__="1",
        Runtime=runtime,
        Logger=logger,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0),
    )
    flavour = SimpleNamespace(
        name="TensorRT", package="tensorrt", compiles_at_load=False, load=lambda: trt
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_missing", lambda entry: [])
        patch.setattr(Bundle, "check_runtime", lambda *_: None)
        patch.setattr(cuda_memory, "_cuda_runtime", HostRuntime)
        patch.setattr(Cuda, "capture", lambda _, work: SimpleNamespace(launch=work))
        patch.setattr(tensorrt_backend, "flavour_of", lambda _: flavour)
        yield Pipeline(tiny_bundle_folder, backend="tensorrt", device="cuda", max_batch=4)


def requests(pipeline: Pipeline, red: Image.Image, blue: Image.Image) -> list[Request]:
    """Pictures that keep features and such as do not, of one reference, two and none."""
    dog = pipeline.encode_subject(red, "a photo of a dog")
    cat = pipeline.encode_subject([red, blue], "a photo of a cat")
    return [
        Request(
            prompt="a dog, in snow",
            subject=(dog, cat, None)[number % 3],
            seed=number,
            num_inference_steps=5 + number % 2,
            approximation=approximation,
            guidance_interval=((0.0, 1.0), (0.25, 0.75))[number % 2],
            reference_schedule=("clean", "exact")[number % 2],
            solver=("ddim", "unipc")[number % 2],
        )
        for number, approximation in enumerate(("cache:2", "none", "cache:3", "cache:2", "cache:4"))
    ]


def pixels_of(pipeline: Pipeline, given: list[Request]) -> np.ndarray:
    return np.stack([np.asarray(image, int) for image in pipeline.generate(given).images])


def test_pictures_that_keep_features_are_those_of_onnx_runtime_alone_and_in_company(
    tensorrt_pipeline: Pipeline, tiny_bundle_folder: Path, red: Image.Image, blue: Image.Image
) -> None:
    options = OnnxRuntimeOptions(intra_op_threads=1)
    other = Pipeline(tiny_bundle_folder, backend=options, device="cpu", max_batch=4)
    expected = pixels_of(other, requests(other, red, blue))
    wanted = requests(tensorrt_pipeline, red, blue)
    assert np.abs(pixels_of(tensorrt_pipeline, wanted) - expected).max() <= 1
    for request, picture in zip(wanted, expected, strict=True):
        assert np.abs(pixels_of(tensorrt_pipeline, [request])[0] - picture).max() <= 1
