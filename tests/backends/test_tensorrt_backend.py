"""What of the TensorRT backend can be checked without a GPU: sizes, limits, layout, refusals."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from bootpig_rt import backends
from bootpig_rt.backends import PairOptions, create_backend
from bootpig_rt.backends.base import DenoiseBatch
from bootpig_rt.backends.bundle_spec import bundle_spec
from bootpig_rt.backends.cuda import memory as cuda_memory
from bootpig_rt.backends.cuda.memory import ALIGNMENT, Cuda, aligned
from bootpig_rt.backends.step_inputs import graph_name, step_inputs
from bootpig_rt.backends.tensorrt.backend import device_index
from bootpig_rt.backends.tensorrt.engine import (
    TensorSpec,
    arena_bytes,
    check_input,
    plan_inputs,
)
from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.diffusion.noise_schedule import NoiseSchedule
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.errors import (
    BackendUnavailable,
    BundleError,
    CheckpointError,
    EngineError,
    OutOfDeviceMemory,
    ParameterError,
)

SCHEDULE = NoiseSchedule.from_config({"beta_schedule": "scaled_linear"})
NONE = -1


def tables_of(*entries: int) -> list[Any]:
    """Tables of some entries each, as they lie in a flat one."""
    tables = sorted((SimpleNamespace() for _ in entries), key=id)
    for table, count in zip(tables, entries, strict=True):
        table.entries = count
    return tables


def batch(
    ref_of_row: list[list[int]],
    *,
    num_references: tuple[int, ...] = (),
    entry_of_step: list[list[int]] | None = None,
    steps: int = 3,
    tables: Sequence[object] = (),
) -> DenoiseBatch:
    """One picture of three rows."""
    solver = BatchSolver.of([solver_table("dpmpp_2m", SCHEDULE, steps)])
    rows = len(ref_of_row)
    return DenoiseBatch(
        state=np.ones((1, 1, 4, 8, 8), np.float32),
        prompt_embeds=None,
        text_of_row=np.arange(rows) % 2,
        picture_of_row=np.zeros(rows, np.int64),
        ref_of_row=np.array(ref_of_row, dtype=np.int64).reshape(rows, -1),
        rows_of_picture=np.array([[0], [1], [2]]) % rows,
        image_guidance_scale=np.array([4.0], np.float32),
        text_guidance_scale=np.array([6.5], np.float32),
        tables=tuple(tables),
        num_references=num_references,
        entry_of_step=np.array(entry_of_step or [], np.int64).reshape(-1, steps),
        solver=solver,
        merge="argmax",
    )


def test_rows_that_read_references_come_last_and_branches_follow_them() -> None:
    made = step_inputs(
        batch(
            [[0], [NONE], [0]], num_references=(1,), entry_of_step=[[0, 1, 2]], tables=tables_of(3)
        )
    )
    arrays = made.arrays
    assert made.text_of_row.tolist() == [1, 0, 0]
    assert arrays["rows_of_picture"].tolist() == [[1], [0], [2]]
    assert arrays["ref_of_row"].tolist() == [[[0], [0]], [[1], [1]], [[2], [2]]]
    assert (made.num_steps, made.slots) == (3, 1)


def test_rows_of_a_picture_that_read_the_same_are_one_pair() -> None:
    arrays = step_inputs(
        batch(
            [[0], [NONE], [0]], num_references=(1,), entry_of_step=[[0, 1, 2]], tables=tables_of(3)
        )
    ).arrays
    assert arrays["pair_of_row"].tolist() == [0, 1, 1]  # plain rows first
    assert arrays["picture_of_pair"].tolist() == [0, 0]
    assert arrays["ref_of_pair"].tolist() == [[[0]], [[1]], [[2]]]


def test_flat_indices_count_through_entries_references_and_subjects() -> None:
    made = step_inputs(
        batch(
            [[0, 1, NONE], [NONE, NONE, NONE], [NONE, 2, NONE]],
            num_references=(2, 1),
            entry_of_step=[[0, 1, 2], [0, 0, 0]],
            tables=tables_of(3, 1),
        )
    )
    # Subject 0 has passes 0 to 5, two an entry; subject 1 has pass 6. Gaps close up.
    assert made.arrays["ref_of_row"].tolist() == [
        [[0, 1], [6, NONE]],
        [[2, 3], [6, NONE]],
        [[4, 5], [6, NONE]],
    ]
    assert made.slots == 2


def test_a_table_that_several_slots_read_lies_in_the_flat_one_once() -> None:
    dog, cat = tables_of(3, 1)
    made = step_inputs(
        batch(
            [[0, 1], [2, NONE], [3, 4]],
            num_references=(2, 1, 2),
            entry_of_step=[[0, 1, 2], [0, 0, 0], [1, 2, 2]],
            tables=(dog, cat, dog),
        )
    )
    assert made.tables == [dog, cat]
    # The dog has passes 0 to 5, two an entry, for both of its slots; the cat has pass 6.
    assert made.arrays["ref_of_row"].tolist() == [
        [[0, 1], [6, NONE], [2, 3]],
        [[2, 3], [6, NONE], [4, 5]],
        [[4, 5], [6, NONE], [4, 5]],
    ]


class _Calls:
    """The runtime of `cuda-python` with one device; writes down what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.made = 0

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda") or name[4:5].islower():
            raise AttributeError(name)
        if name in ("cudaMemcpyKind", "cudaEventDisableTiming"):
            return SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToDevice="on")

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if "Create" in name or "Malloc" in name:
                self.made += 1
                return 0, self.made
            return (0,)

        return call


def test_copies_ahead_go_to_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    api = _Calls()
    monkeypatch.setattr(cuda_memory, "_cuda_runtime", lambda: api)
    cuda = Cuda(0)
    assert cuda.stream == 1
    event = cuda.event()
    api.calls.clear()
    cuda.copy(10, 20, 4)
    cuda.copy_ahead(30, 40, 8)
    cuda.mark(event, ahead=True)
    cuda.hold(event, ahead=False)
    cuda.mark(event, ahead=False)
    cuda.hold(event, ahead=True)
    cuda.wait_for(event)
    assert api.calls == [
        ("cudaMemcpyAsync", (20, 10, 4, "on", 1)),
        ("cudaMemcpyAsync", (40, 30, 8, "in", 2)),
        ("cudaEventRecord", (3, 2)),
        ("cudaStreamWaitEvent", (1, 3, 0)),
        ("cudaEventRecord", (3, 1)),
        ("cudaStreamWaitEvent", (2, 3, 0)),
        ("cudaEventSynchronize", (3,)),
    ]


def test_streams_go_with_the_last_of_what_was_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    api = _Calls()
    monkeypatch.setattr(cuda_memory, "_cuda_runtime", lambda: api)
    cuda = Cuda(0)
    array = cuda.empty((2,), np.float32)
    del cuda
    assert "cudaStreamDestroy" not in {name for name, _ in api.calls}
    del array
    gone = [call for call in api.calls if call[0] in ("cudaFree", "cudaStreamDestroy")]
    assert gone == [("cudaFree", (3,)), ("cudaStreamDestroy", (1,)), ("cudaStreamDestroy", (2,))]


def test_no_room_on_the_device_is_said_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(_Calls):
        def cudaMalloc(self, nbytes: int) -> tuple[int, int]:
            return 2, 0

        def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
            return 0, b"out of memory"

    monkeypatch.setattr(cuda_memory, "_cuda_runtime", Full)
    with pytest.raises(OutOfDeviceMemory, match="asked for 8 MiB") as caught:
        Cuda(0).empty((1 << 21,), np.float32)
    assert caught.value.asked_bytes == 8 << 20


def test_a_batch_without_references_has_no_reading_rows() -> None:
    made = step_inputs(batch([[], [], []]))
    assert made.arrays["ref_of_row"].shape == (3, 0, 1)
    assert made.arrays["ref_of_pair"].shape == (3, 0, 1)
    assert made.arrays["pair_of_row"].tolist() == [0, 0, 0]
    assert made.arrays["rows_of_picture"].tolist() == [[0], [1], [2]]
    assert made.arrays["clip_range"].tolist() == [pytest.approx(3e38)]


def test_the_state_starts_as_noise_without_history_or_goes_on() -> None:
    one = batch([[], [], []])
    state = step_inputs(one).arrays["state"]
    assert state.shape == (2, 1, 4, 8, 8)
    assert np.all(state[0] == one.state[0])
    assert np.all(state[1] == 0)
    later = np.full((2, 1, 4, 8, 8), 7, np.float32)
    np.testing.assert_array_equal(step_inputs(replace(one, state=later)).arrays["state"], later)


@pytest.mark.parametrize("entry", [-1, 2])
def test_an_entry_outside_the_table_is_refused(entry: int) -> None:
    wrong = batch([[0]], num_references=(1,), entry_of_step=[[0, 1, entry]], tables=tables_of(2))
    with pytest.raises(ParameterError, match="of a reference table, which has 2"):
        step_inputs(wrong)


def test_one_reference_needs_no_merge() -> None:
    assert graph_name("argmax", 1) == "denoise_step"
    assert graph_name("argmax", 3) == "denoise_step_argmax"


STATE = TensorSpec("state", "float32", (-1, -1, 4, -1, -1), True, (1, 1, 4, 8, 8), (4, 2, 4, 16, 8))
STEPS = TensorSpec("timesteps", "int64", (-1, -1), True, (1, 1), (50, 2))
RESULT = TensorSpec("next_state", "float32", (-1, -1, 4, -1, -1), False)


@pytest.mark.parametrize(
    ("graph", "spec", "shape", "message"),
    [
        ("denoise_step", STATE, (2, 3, 4, 8, 8), "3 pictures at once.*built for 1 to 2"),
        ("denoise_step_argmax", STATE, (2, 1, 4, 32, 8), "32 latents in height.*8 to 16"),
        ("denoise_step", STEPS, (51, 1), "51 steps.*1 to 50.*--steps"),
        ("denoise_step", STEPS, (3,), r"timesteps has shape \[3\], expected \[-1, -1\]"),
        ("text_encoder", STEPS, (51, 1), "51 along axis 0 of timesteps"),
    ],
)
def test_sizes_outside_the_profile_are_refused_with_the_option_to_build_for_them(
    graph: str, spec: TensorSpec, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        check_input(graph, spec, shape)


def test_inputs_are_planned_in_the_order_of_the_engine() -> None:
    given = {
        "timesteps": ((3, 1), "int64"),
        "state": ((2, 1, 4, 16, 8), "float32"),
        "folded_away": ((1,), "float32"),
    }
    assert plan_inputs("denoise_step", (STATE, STEPS, RESULT), given) == {
        "state": (2, 1, 4, 16, 8),
        "timesteps": (3, 1),
    }


def test_tensors_that_do_not_fit_the_engine_are_refused() -> None:
    with pytest.raises(EngineError, match="reads 'timesteps', which this version does not know"):
        plan_inputs("denoise_step", (STEPS,), {})
    with pytest.raises(EngineError, match="timesteps is float32, expected int64"):
        plan_inputs("denoise_step", (STEPS,), {"timesteps": ((3, 1), "float32")})


def test_one_arena_serves_the_largest_engine() -> None:
    assert arena_bytes([]) == 0
    assert arena_bytes([1000, 70_001, 256]) == aligned(70_001) == 70_144
    assert [aligned(size) for size in (0, 1, ALIGNMENT)] == [0, ALIGNMENT, ALIGNMENT]


def test_devices_are_named_as_for_torch() -> None:
    assert [device_index(name) for name in ("auto", "cuda", "cuda:3")] == [0, 0, 3]
    with pytest.raises(BackendUnavailable, match="--target cpu"):
        device_index("cpu")


class _NoDevices:
    """The runtime of `cuda-python` on a machine with `count` devices."""

    def __init__(self, status: int, count: int) -> None:
        self._answer = status, count

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return self._answer

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"driver is too old"


@pytest.mark.parametrize(
    ("status", "count", "message"),
    [
        (35, 0, "no CUDA device can be used .driver is too old.; install the NVIDIA driver"),
        (0, 1, "device is cuda:2, but there are 1 CUDA devices"),
    ],
)
def test_a_missing_gpu_is_said_with_the_way_out(
    status: int, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "_cuda_runtime", lambda: _NoDevices(status, count))
    with pytest.raises(BackendUnavailable, match=message):
        Cuda(2)


def test_a_missing_cuda_python_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install cuda-python"):
        Cuda(0)


@pytest.fixture
def with_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `cuda-python` were installed; no device is looked for before a bundle was checked."""
    monkeypatch.setattr(backends, "_missing", lambda entry: [])


@pytest.mark.usefixtures("with_cuda_python")
def test_a_pair_that_is_no_bundle_and_a_base_model_are_refused(tiny_pair_folder: Path) -> None:
    with pytest.raises(BundleError, match="manifest"):
        create_backend("tensorrt", tiny_pair_folder, device="cuda")
    with pytest.raises(BundleError, match="leave out the base model"):
        create_backend(
            "tensorrt",
            tiny_pair_folder,
            device="cuda",
            pair=PairOptions(base_model=tiny_pair_folder),
        )


def test_what_the_pipeline_must_know_is_read_without_weights(
    tiny_bundle_folder: Path, pipeline: Any, tmp_path: Path
) -> None:
    for name in ("pair.json", "base_unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        source, target = tiny_bundle_folder / name, tmp_path / name
        if source.is_file():
            target.write_bytes(source.read_bytes())
            continue
        target.mkdir()
        for path in source.glob("*.json"):
            (target / path.name).write_bytes(path.read_bytes())
    bundle = replace(open_bundle(tiny_bundle_folder), folder=tmp_path)
    spec = bundle_spec(bundle)
    assert spec == replace(
        pipeline.spec,
        tokenizer_folder=tmp_path / "tokenizer",
        noise_schedule=spec.noise_schedule,
        runtime="",  # of whoever loads the bundle
        joins_tables=True,
        max_batch=4,
        max_references=3,
        max_steps=200,
        sides_px=(16, 64),
    )
    deep = [graph for graph in bundle.manifest.graphs if not graph.name.startswith("shallow")]
    older = msgspec.structs.replace(bundle.manifest, graphs=tuple(deep))
    assert not bundle_spec(replace(bundle, manifest=older)).keeps_features
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lacks a field"):
        bundle_spec(bundle)


def test_tables_are_of_the_type_and_the_precision_that_the_graphs_compute_in(
    tiny_bundle_folder: Path,
) -> None:
    bundle = open_bundle(tiny_bundle_folder)
    assert (bundle_spec(bundle).precision, bundle_spec(bundle).table_dtype) == ("float32",) * 2
    half = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, precision="float16"))
    assert (bundle_spec(half).precision, bundle_spec(half).table_dtype) == ("float16",) * 2


@pytest.mark.trt
def test_engines_draw_what_torch_draws(tiny_pair_folder: Path, tmp_path: Path) -> None:
    """On the GPU of this machine, with the TensorRT that is installed for it."""
    from PIL import Image, ImageDraw

    from bootpig_rt.backends.tensorrt.flavours import FULL
    from bootpig_rt.cli.main import main
    from bootpig_rt.pipeline import Pipeline

    target = "local" if FULL.is_installed() else Cuda(0).architecture()
    words = ["build-engine", "--pair", str(tiny_pair_folder), "--target", target, "--quiet"]
    words += ["--precision", "float32", "--max-batch", "2", "--max-references", "2"]
    assert main([*words, "-o", str(tmp_path / "bundle")]) == 0
    disc = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(disc).ellipse((8, 8, 56, 56), fill="red")
    pictures = [
        np.asarray(
            Pipeline(folder, backend=backend, device=device)(
                ["a photo of a dog, on a beach", "a photo of a dog, in snow"],
                reference_images=[disc, disc.rotate(90)],
                reference_prompt="a photo of a dog",
                num_inference_steps=3,
                seed=1,
            ).images[1],
            dtype=np.int64,
        )
        for folder, backend, device in (
            (tmp_path / "bundle", "tensorrt", "cuda"),
            (tiny_pair_folder, "torch", "cpu"),
        )
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 2
