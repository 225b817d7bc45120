"""Bundles in ONNX Runtime and OpenVINO: the numbers of torch, in every mix of rows."""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from msgspec import structs
from numpy.testing import assert_equal
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
from PIL import Image

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import Backend, DenoiseBatch
from bootpig_rt.backends.onnxruntime import steps as onnxruntime_steps
from bootpig_rt.backends.onnxruntime import tables as onnxruntime_tables
from bootpig_rt.backends.onnxruntime.sessions import Sessions, empty, to_device
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.bundle.bundle import open_bundle, write_manifest
from bootpig_rt.diffusion.solver import BatchSolver, solver_table
from bootpig_rt.errors import (
    BackendUnavailable,
    BundleError,
    EngineError,
    NumericalError,
    OutOfDeviceMemory,
    ParameterError,
)
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.compiled import ANY_SHAPE, OPENVINO

OPTIONS = OnnxRuntimeOptions(intra_op_threads=1, spinning=False)
MERGES = ("argmax", "softmax", "mean", "concat")


@pytest.fixture(scope="module")
def onnxruntime_backend(tiny_bundle_folder: Path) -> Any:
    return create_backend(OPTIONS, tiny_bundle_folder, device="cpu")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest, tiny_bundle_folder: Path) -> Any:
    options = OPTIONS if request.param == "onnxruntime" else ANY_SHAPE
    return create_backend(options, tiny_bundle_folder, device="cpu")


@pytest.fixture
def nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are created when they are asked for: tests that draw nothing need few."""
    for name in ("prepare", "begin"):
        monkeypatch.setattr(Sessions, name, lambda *_: None)


@pytest.fixture(scope="module")
def plain(tiny_bundle_folder: Path) -> tuple[npt.NDArray[Any], int]:
    """A picture with one reference, and how many sessions drew it."""
    pipeline = Pipeline(tiny_bundle_folder, backend=OPTIONS, device="cpu")
    return picture_of(pipeline), len(pipeline._backend.sessions._futures)  # type: ignore[attr-defined]


def picture_of(pipeline: Pipeline) -> npt.NDArray[Any]:
    dog = np.full((32, 32, 3), 90, np.uint8)
    result = pipeline(
        "a dog", reference_images=dog, reference_prompt="a dog", seed=1, num_inference_steps=2
    )
    return np.asarray(result.images[0], int)


@pytest.fixture(scope="module")
def torch_backend(tiny_bundle_folder: Path) -> Any:
    return create_backend("torch", tiny_bundle_folder, device="cpu")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def bundle_pipeline(request: pytest.FixtureRequest, tiny_bundle_folder: Path) -> Pipeline:
    options = OPTIONS if request.param == "onnxruntime" else OPENVINO
    return Pipeline(tiny_bundle_folder, backend=options)


def texts(backend: Backend, count: int = 3) -> Any:
    ids = np.random.default_rng(1).integers(0, 500, (count, 24))
    return backend.encode_text(ids)


def table(backend: Backend, entries: int, references: int, seed: int, **options: Any) -> Any:
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((entries, references, 4, 8, 8)).astype(np.float32)
    t = np.linspace(900, 0, entries).astype(np.int64)
    return backend.reference_kv(latents, t, texts(backend, references), **options).data


class Rows:
    """What the rows of a batch read; branches and pictures of `DenoiseBatch`."""

    def __init__(self, refs: list[list[int]], text: list[int], picture: list[int]) -> None:
        self.refs, self.text, self.picture = refs, text, picture

    def of_picture(self) -> list[list[int]]:
        """First, middle and last row of each picture as its three branches."""
        owned = [[r for r, p in enumerate(self.picture) if p == b] for b in sorted({*self.picture})]
        return [
            [rows[0] for rows in owned],
            [rows[len(rows) // 2] for rows in owned],
            [rows[-1] for rows in owned],
        ]


ONE = Rows([[-1], [0], [0]], [0, 0, 1], [0, 0, 0])


def batch(
    backend: Backend,
    rows: Rows,
    tables: list[tuple[int, int]],
    *,
    solver: Any = "dpmpp_2m",
    steps: int = 3,
    size: tuple[int, int] = (8, 8),
    merge: Any = "argmax",
    **options: Any,
) -> DenoiseBatch:
    """A batch with tables of (entries, references)."""
    count = len({*rows.picture})
    one = solver_table(solver, backend.spec.noise_schedule, steps)
    noise = np.random.default_rng(5).standard_normal((count, 4, *size)).astype(np.float32)
    return DenoiseBatch(
        state=noise[None],
        prompt_embeds=texts(backend),
        text_of_row=np.array(rows.text),
        picture_of_row=np.array(rows.picture),
        ref_of_row=np.array(rows.refs, np.int64),
        rows_of_picture=np.array(rows.of_picture()),
        image_guidance_scale=np.linspace(2, 4, count).astype(np.float32),
        text_guidance_scale=np.linspace(5, 3, count).astype(np.float32),
        tables=tuple(table(backend, *shape, seed, **options) for seed, shape in enumerate(tables)),
        num_references=tuple(references for _, references in tables),
        entry_of_step=np.array(
            [np.arange(steps) if entries > 1 else np.zeros(steps) for entries, _ in tables],
            dtype=np.int64,
        ).reshape(len(tables), steps),
        solver=BatchSolver.of([one] * count),
        merge=merge,
    )


def drawn(backend: Backend, given: DenoiseBatch) -> npt.NDArray[Any]:
    """States and estimates after each step."""
    run = backend.start(given)
    found = []
    for index in range(given.solver.num_steps):
        run.step(index)
        found += [*run.state(), run.estimate()]
    return np.stack(found)


def relative(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


TWO = Rows([[-1], [0], [0], [-1], [1], [1]], [0, 0, 1, 0, 0, 2], [0, 0, 0, 1, 1, 1])


def test_tables_and_texts_are_made_again_only_when_their_set_changes(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture joins and leaves, subjects change places, another subject comes."""
    backend: Any = create_backend(OPTIONS, tiny_bundle_folder)
    launch, launches = backend.sessions.launch, []

    def watch(name: str, *args: Any, **options: Any) -> Any:
        launches.append(name)
        return launch(name, *args, **options)

    monkeypatch.setattr(backend.sessions, "launch", watch)
    both = batch(backend, TWO, [(3, 1), (3, 1)])
    (dog, cat), other = both.tables, table(backend, 3, 1, seed=9)
    swapped = replace(
        both, tables=(cat, dog), ref_of_row=np.where(both.ref_of_row < 0, -1, 1 - both.ref_of_row)
    )
    three = Rows([*TWO.refs, [1]], [*TWO.text, 2], [*TWO.picture, 2])
    joined = replace(
        batch(backend, three, [(3, 1), (3, 1)]),
        tables=both.tables,
        prompt_embeds=both.prompt_embeds,
    )
    changed = replace(both, tables=(dog, other))
    launches.clear()
    expected = drawn(backend, both)
    for given in (joined, both, swapped):
        found = drawn(backend, given)
        if given is not joined:
            np.testing.assert_array_equal(found, expected)
    assert launches.count("text_kv") == 1
    assert (backend.shared.tables.num_made, backend.shared.texts.num_made) == (1, 1)
    assert not np.array_equal(drawn(backend, changed), expected)
    drawn(backend, replace(both, prompt_embeds=texts(backend)))
    assert backend.shared.tables.num_made == 3  # with the other subject, and without again
    assert backend.shared.texts.num_made == 2


def test_tables_side_by_side_go_when_one_of_them_goes(tiny_bundle_folder: Path) -> None:
    backend: Any = create_backend(OPTIONS, tiny_bundle_folder)
    given = batch(backend, TWO, [(3, 1), (3, 1)])
    kept = given.tables[0]
    run = backend.start(given)
    side_by_side = weakref.ref(run._joined)
    del run
    assert side_by_side() is not None  # the next run may read the same
    del given
    assert side_by_side() is None
    assert kept.nbytes


def test_at_most_one_copy_is_kept_that_no_run_reads(tiny_bundle_folder: Path) -> None:
    backend: Any = create_backend(OPTIONS, tiny_bundle_folder)
    first, second = (batch(backend, TWO, [(3, 1), (3, 1)]) for _ in range(2))
    one = backend.start(first)
    backend.start(second)
    assert backend.start(first)._joined is one._joined  # a run that is not over holds its own
    gone = weakref.ref(one._joined)
    del one
    backend.start(second)
    assert gone() is None


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        (
            "Failed to allocate memory for requested buffer",
            OutOfDeviceMemory,
            "out of device memory",
        ),
        ("CUDA failure 2: out of memory", OutOfDeviceMemory, "running the graph denoise_step"),
        ("std::bad_alloc", OutOfDeviceMemory, "max_batch"),
        ("Non-zero status code returned", EngineError, "running the graph denoise_step: Non-zero"),
    ],
)
def test_failures_of_a_launch_are_of_our_kinds(
    onnxruntime_backend: Any, message: str, kind: type[Exception], told: str
) -> None:
    run = onnxruntime_backend.start(batch(onnxruntime_backend, ONE, [(1, 1)]))

    class Failing:
        def run_with_iobinding(self, *_: Any) -> None:
            raise ort_state.Fail(message)

    run._session = Failing()
    with pytest.raises(kind, match=told) as caught:
        run.step(0)
    assert type(caught.value) is kind


def test_the_runtime_and_the_precision_are_named(backend: Any, torch_backend: Any) -> None:
    package = importlib.import_module(backend.name)
    assert backend.spec.runtime == f"{backend.name} {package.__version__.partition('-')[0]}"
    assert torch_backend.spec.runtime.startswith("torch 2.")
    assert backend.spec.precision == torch_backend.spec.precision == "float32"


def test_guidance_rows_are_weighed_by_the_scale_of_their_own_branch(
    backend: Any, torch_backend: Any
) -> None:
    """Three different rows, and scales that must not change places: 3 and 1, 1 and 3."""
    rows = Rows([[-1], [0], [0]], [0, 1, 2], [0, 0, 0])
    for one in (backend, torch_backend):
        given = batch(one, rows, [(1, 1)], solver="ddim", steps=1)

        def output(branch: int, one: Any = one, given: DenoiseBatch = given) -> Any:
            alone = replace(given, rows_of_picture=np.full((3, 1), branch))
            return drawn(one, alone)[0]

        uncond, image, text_image = (output(branch) for branch in range(3))
        for s_image, s_text in ((3.0, 1.0), (1.0, 3.0), (0.5, 4.0)):
            scaled = replace(
                given,
                image_guidance_scale=np.array([s_image], np.float32),
                text_guidance_scale=np.array([s_text], np.float32),
            )
            # The solver is linear in the guided output.
            expected = uncond + s_image * (image - uncond) + s_text * (text_image - image)
            assert relative(drawn(one, scaled)[0], expected) < 1e-5


def test_text_and_pictures_are_encoded_as_in_torch(backend: Any, torch_backend: Any) -> None:
    expected = torch_backend.download_states(texts(torch_backend))
    assert relative(backend.download_states(texts(backend)), expected) < 1e-5
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (2, 3, 32, 48)).astype(np.float32)
    assert relative(backend.encode_image(pixels), torch_backend.encode_image(pixels)) < 1e-5
    latents = rng.standard_normal((17, 4, 8, 8)).astype(np.float32)  # more than one launch
    assert relative(backend.decode(latents), torch_backend.decode(latents)) < 1e-5


def test_what_is_known_of_the_pair_is_the_same(backend: Any, torch_backend: Any) -> None:
    ours, torchs = backend.spec, torch_backend.spec
    for name in ("alphas_cumprod", "prediction_type"):
        assert_equal(getattr(ours.noise_schedule, name), getattr(torchs.noise_schedule, name))
    same = {name: getattr(ours, name) for name in ("noise_schedule", "tokenizer_folder", "runtime")}
    assert re.fullmatch(r"(onnxruntime 1|openvino 2026)\.\d+\.\d+", ours.runtime)
    assert re.match(r"torch 2\.\d+", torchs.runtime)
    limits = {"max_batch": 4, "max_references": 3, "max_steps": 200, "sides_px": (16, 64)}
    # torch draws what memory holds, and reads several tables entry by entry
    assert ours == replace(torchs, joins_tables=True, **same, **limits)


@pytest.mark.parametrize("entries", [1, 3], ids=["clean", "exact"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
def test_every_solver_and_schedule_draws_what_torch_draws(
    backend: Any, torch_backend: Any, solver: str, entries: int
) -> None:
    got, expected = (
        drawn(one, batch(one, ONE, [(entries, 1)], solver=solver))
        for one in (backend, torch_backend)
    )
    assert relative(got, expected) < 2e-5


MIXES = {
    "three references": (Rows([[-1] * 3, [0, 1, 2], [0, 1, 2]], [0, 0, 1], [0] * 3), [(1, 3)]),
    "several subjects": (
        Rows(
            [[-1, -1], [-1, -1], [0, -1], [0, -1], [1, 2], [1, 2]],
            [0, 0, 0, 1, 0, 2],
            [0, 1, 0, 0, 1, 1],
        ),
        [(1, 1), (3, 2)],
    ),
    "unsorted rows": (Rows([[0, 1], [-1, -1], [-1, 1]], [0, 1, 2], [0, 0, 0]), [(3, 2)]),
    "every row reads": (Rows([[0, 1], [1, 0]], [0, 1], [0, 0]), [(1, 2)]),
}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("mix", MIXES)
def test_every_merge_of_every_mix_of_rows_is_that_of_torch(
    backend: Any, torch_backend: Any, mix: str, merge: str
) -> None:
    rows, tables = MIXES[mix]
    got, expected = (
        drawn(one, batch(one, rows, tables, merge=merge)) for one in (backend, torch_backend)
    )
    assert relative(got, expected) < 1e-4


def test_a_batch_without_references_needs_no_table(backend: Any, torch_backend: Any) -> None:
    rows = Rows([[-1], [-1], [-1]], [0, 1, 2], [0, 0, 1])
    got, expected = (drawn(one, batch(one, rows, [])) for one in (backend, torch_backend))
    assert relative(got, expected) < 2e-5


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside another subject"])
def test_a_subject_at_several_steps_is_read_where_it_lies(
    onnxruntime_backend: Any, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Three pictures of one subject, each at another step of it: one table, three slots."""
    rows = Rows([[0], [1], [2], [-1]], [0, 1, 2, 0], [0, 1, 2, 3])
    given = batch(onnxruntime_backend, rows, [(3, 1)] + [(2, 1)] * others, steps=1)
    dog, *rest = given.tables
    slots = (dog, dog, dog, *rest)
    entries = [[0], [1], [2], *([1] for _ in rest)]
    if others:
        rows = Rows([[0], [1], [2], [3]], [0, 1, 2, 0], [0, 1, 2, 3])
    shared = replace(
        given,
        tables=slots,
        ref_of_row=np.array(rows.refs),
        num_references=(1,) * len(slots),
        entry_of_step=np.array(entries),
    )
    apart = replace(
        shared,
        tables=tuple(
            onnxruntime_backend.upload_table(
                onnxruntime_backend.download_table(t), is_resident=True
            )
            for t in slots
        ),
    )
    expected = onnxruntime_backend.start(apart)
    joined: list[int] = []

    def count(tables: Any, device: str) -> Any:
        joined.append(len(tables))
        return onnxruntime_tables.join(tables, device)

    monkeypatch.setattr(onnxruntime_steps, "join", count)
    run = onnxruntime_backend.start(shared)
    assert joined == ([2] if others else [])
    if not others:
        assert all(run._inputs[name] is value for name, value in dog.layers.items())
    for one in (expected, run):
        one.step(0)
    np.testing.assert_allclose(run.state(), expected.state(), rtol=1e-5, atol=1e-5)
    states = run.state()[0]
    assert len({states[b].tobytes() for b in range(3)}) == 3


def test_arrays_are_joined_on_the_device_by_plain_copies(onnxruntime_backend: Any) -> None:
    """On a GPU; here its memory is the host's."""

    class Copies:
        waited = False

        def activate(self) -> None: ...

        def copy(self, source: int, target: int, nbytes: int) -> None:
            ctypes.memmove(target, source, nbytes)

        def wait(self) -> None:
            self.waited = True

    arrays = [np.random.default_rng(n).random((n, 2, 3)).astype(np.float16) for n in (1, 4, 2)]
    copies = Copies()
    whole = onnxruntime_tables.copied_in_a_row(
        [to_device(array, "cpu") for array in arrays], "cpu", copies
    )
    assert copies.waited
    np.testing.assert_array_equal(whole.numpy(), np.concatenate(arrays))


@pytest.mark.parametrize("size", [(4, 4), (12, 8), (16, 6)])
def test_any_size_of_the_profile_can_be_drawn(
    backend: Any, torch_backend: Any, size: tuple[int, int]
) -> None:
    got, expected = (
        drawn(one, batch(one, ONE, [(1, 1)], size=size)) for one in (backend, torch_backend)
    )
    assert relative(got, expected) < 2e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8", "int8"])
def test_tables_in_narrow_types_are_read_entry_by_entry(
    backend: Any, torch_backend: Any, dtype: Any
) -> None:
    rows = Rows([[-1, -1], [0, 1], [1, 0]], [0, 0, 1], [0, 0, 0])
    got, expected = (
        drawn(one, batch(one, rows, [(3, 2)], dtype=dtype)) for one in (backend, torch_backend)
    )
    assert relative(got, expected) < 1e-3


def test_a_table_goes_to_the_host_and_back(backend: Any) -> None:
    given = batch(backend, ONE, [(3, 1)])
    expected = drawn(backend, given)
    host = backend.download_table(given.tables[0])
    assert host.dtype == "float32"
    assert host.shapes()[0] == (3, 1, 2, 64, 8)
    for is_resident in (True, False):
        there = backend.upload_table(host, is_resident=is_resident)
        np.testing.assert_array_equal(drawn(backend, replace(given, tables=(there,))), expected)


def test_a_table_is_the_same_in_one_launch_and_in_many(backend: Any) -> None:
    told: list[tuple[int, int]] = []
    whole = backend.download_table(table(backend, 5, 2, 0))
    parts = backend.download_table(
        table(backend, 5, 2, 0, rows_per_launch=3, progress=lambda *at: told.append(at))
    )
    assert told == [(3, 10), (6, 10), (9, 10), (10, 10)]
    for ours, theirs in zip(whole.layers, parts.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-5)


def test_a_table_with_nan_is_refused(backend: Any) -> None:
    latents = np.full((1, 1, 4, 8, 8), np.nan, np.float32)
    with pytest.raises(NumericalError, match="NaN or Inf in the reference table"):
        backend.reference_kv(latents, np.array([0]), texts(backend, 1))


def test_a_run_goes_on_from_its_state(backend: Any) -> None:
    given = batch(backend, ONE, [(3, 1)], solver="unipc")
    whole = backend.start(given)
    for index in range(3):
        whole.step(index)
    first = backend.start(given)
    first.step(0)
    second = backend.start(replace(given, state=first.state()))
    second.step(1)
    second.step(2)
    np.testing.assert_array_equal(second.state(), whole.state())


def test_a_picture_is_the_same_alone_and_in_a_batch(
    bundle_pipeline: Pipeline, red: Image.Image
) -> None:
    subject = bundle_pipeline.encode_subject(red, "a photo of a dog")
    both = bundle_pipeline(["a dog", "a dog do"], subject=subject, seed=[7, 8])
    alone = bundle_pipeline("a dog do", subject=subject, seed=8)
    a, b = (np.asarray(image, np.int16) for image in (both.images[1], alone.images[0]))
    assert np.abs(a - b).max() <= 1


@pytest.mark.usefixtures("nothing_ahead")
def test_auto_runs_a_bundle_without_torch_and_says_so(
    tiny_bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "bootpig_rt"):
        create_backend("auto", tiny_bundle_folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"backend onnxruntime on cpu, pair {tiny_bundle_folder}"
    ]


def test_threads_that_share_a_pipeline_get_their_own_pictures(
    bundle_pipeline: Pipeline, red: Image.Image, blue: Image.Image
) -> None:
    subjects = [bundle_pipeline.encode_subject(image, "a photo of a dog") for image in (red, blue)]

    def draw(number: int) -> npt.NDArray[Any]:
        result = bundle_pipeline("a dog", subject=subjects[number % 2], seed=number % 4)
        return np.asarray(result.images[0])

    expected = [draw(number) for number in range(4)]
    assert len({picture.tobytes() for picture in expected}) == 4
    with ThreadPoolExecutor(32) as pool:
        pictures = list(pool.map(draw, range(64)))
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(picture, expected[number % 4])


def test_generating_imports_no_torch(tiny_bundle_folder: Path, tmp_path: Path, root: Path) -> None:
    script = f"""
import sys
from PIL import Image
import bootpig_rt
image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
image.paste((200, 0, 0, 255), (8, 8, 32, 32))
pipeline = bootpig_rt.Pipeline({str(tiny_bundle_folder)!r})
result = pipeline("a dog, do", reference_images=[image, image], num_inference_steps=2, seed=1)
result.images[0].save({str(tmp_path / "out.png")!r})
heavy = {{"torch", "diffusers", "transformers", "onnx", "onnxscript", "tensorrt", "triton"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intra_op_threads": -1}, r"intra_op_threads is -1, expected 0\.\.1024; 0 leaves it"),
        ({"intra_op_threads": True}, "intra_op_threads is True, expected a whole number"),
        ({"arena": 1}, "arena is 1, expected True or False"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        OnnxRuntimeOptions(**options)


def test_options_reach_the_sessions(tiny_bundle_folder: Path) -> None:
    bundle = open_bundle(tiny_bundle_folder)
    options = OnnxRuntimeOptions(intra_op_threads=1, arena=False, spinning=False, portable=True)
    sessions = Sessions(bundle.folder, bundle.read_graph, device="cpu", options=options)
    used = sessions.get("text_encoder").get_session_options()
    assert used.intra_op_num_threads == 1
    assert used.enable_cpu_mem_arena is False
    assert used.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert used.get_session_config_entry("session.force_spinning_stop") == "1"


def test_few_sessions_can_be_kept_and_draw_the_same(
    tiny_bundle_folder: Path, plain: tuple[npt.NDArray[Any], int]
) -> None:
    options = replace(OPTIONS, sessions_kept=1)
    pipeline = Pipeline(tiny_bundle_folder, backend=options, device="cpu")
    drawn = picture_of(pipeline)
    loaded = pipeline._backend.sessions._futures  # type: ignore[attr-defined]
    assert (len(loaded), plain[1]) == (1, 6)
    assert (drawn == plain[0]).all()


def test_weights_that_each_launch_widens_draw_the_same(
    tiny_bundle_folder: Path, plain: tuple[npt.NDArray[Any], int]
) -> None:
    options = replace(OPTIONS, fold_constants=False)
    with Pipeline(tiny_bundle_folder, backend=options, device="cpu") as pipeline:
        drawn = picture_of(pipeline)
    assert np.abs(drawn - plain[0]).max() <= 1


@pytest.mark.parametrize(("device", "looked_at"), [("cpu", 4), ("cuda:0", 2)])
def test_on_a_gpu_only_the_last_layer_of_a_table_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, device: str, looked_at: int
) -> None:
    monkeypatch.setattr(
        onnxruntime_tables, "empty", lambda shape, dtype, _: empty(shape, dtype, "cpu")
    )
    shapes = ((1, 2, 4), (1, 2, 4))
    writer = onnxruntime_tables.TableWriter(
        shapes,
        entries=1,
        references=1,
        dtype="float16",
        graph_type=np.dtype(np.float16),
        device=device,
    )
    read: list[str] = []

    class Made:
        def __init__(self, name: str, value: float) -> None:
            self.name, self.value = name, value

        def numpy(self) -> Any:
            read.append(self.name)
            return np.full((1, 1, 2, 4), self.value, np.float16)

    names = ("k_0", "v_0", "k_1", "v_1")
    writer.take(slice(0, 1), {name: Made(name, 1) for name in names})
    assert read == list(names[-looked_at:])
    with pytest.raises(NumericalError, match="NaN or Inf"):
        writer.take(slice(0, 1), {name: Made(name, np.nan) for name in names})


def rebuilt(folder: Path, target: Path, **profile: Any) -> Path:
    """The bundle with another profile in its manifest."""
    shutil.copytree(folder, target)
    manifest = open_bundle(target).manifest
    write_manifest(
        target, structs.replace(manifest, profile=structs.replace(manifest.profile, **profile))
    )
    return target


def test_a_bundle_for_two_pictures_draws_five_in_batches(
    tiny_bundle_folder: Path, tmp_path: Path, red: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rebuilt(tiny_bundle_folder, tmp_path / "small", max_batch=2)
    small = Pipeline(folder, backend=OPTIONS)
    assert (small.max_batch, small.spec.max_batch) == (2, 2)
    subject = small.encode_subject(red, "a photo of a dog")
    sizes: list[int] = []
    backend: Any = small._backend
    start = backend.start

    def watch(batch: Any) -> Any:
        sizes.append(batch.state.shape[1])
        return start(batch)

    monkeypatch.setattr(backend, "start", watch)
    requests = [Request(prompt="a dog", subject=subject, seed=seed) for seed in range(5)]
    result = small.generate(requests)
    assert len(result.images) == 5
    assert sizes == [2, 2, 1]


@pytest.mark.usefixtures("nothing_ahead")
@pytest.mark.parametrize(
    ("profile", "settings", "message"),
    [
        ({"max_steps": 2}, {"num_inference_steps": 3}, r"steps is 3, expected 1\.\.2.*--steps 3"),
        ({"max_references": 1}, {}, r"references is 2, expected 1, .*--max-references 2"),
        ({"resolution_px": (16, 32, 32)}, {"width": 64}, r"width is 64.*--resolution 16:64"),
    ],
)
def test_what_a_bundle_was_not_built_for_is_refused_ahead_of_any_launch(
    tiny_bundle_folder: Path,
    tmp_path: Path,
    red: Image.Image,
    blue: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    profile: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    small = Pipeline(rebuilt(tiny_bundle_folder, tmp_path / "small", **profile), backend=OPTIONS)
    subject = small.encode_subject([red, blue][: small.spec.max_references], "a photo of a dog")
    if "max_references" in profile:
        subject = replace(subject, latents=np.concatenate([subject.latents] * 2))
    launched: list[str] = []
    sessions = small._backend.sessions  # type: ignore[attr-defined]
    monkeypatch.setattr(sessions, "launch", lambda name, *_, **__: launched.append(name))
    with pytest.raises(ParameterError, match=message):
        small("a dog", subject=subject, **settings)
    steps = settings.get("num_inference_steps")
    if steps is not None:  # of one request alone
        late = Request(prompt="a dog", subject=None, num_inference_steps=steps)
        with pytest.raises(ParameterError, match=message):
            small.generate([Request(prompt="a dog", subject=subject), late])
        with pytest.raises(ParameterError, match=message):
            small.engine.submit(late)
    assert launched == []


def test_a_device_that_is_not_there_is_refused(tiny_bundle_folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"was built without CUDA; use\s+cpu, or: pip"):
        create_backend("onnxruntime", tiny_bundle_folder, device="cuda:0")


def test_a_pair_without_graphs_is_refused(tiny_pair_folder: Path) -> None:
    with pytest.raises(ParameterError, match="holds no graphs for onnxruntime; build them with"):
        create_backend("onnxruntime", tiny_pair_folder)


def sessions_of(folder: Path) -> Sessions:
    """Sessions of graphs whose hashes nobody checks."""
    return Sessions(
        folder,
        lambda name: (folder / f"{name}.onnx").read_bytes(),
        device="cpu",
        options=OPTIONS,
    )


def test_a_truncated_graph_is_refused(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "copy")
    path = folder / "vae_decoder.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="vae_decoder"):  # the hash finds it first
        create_backend("onnxruntime", folder)
    with pytest.raises(BundleError, match="graph vae_decoder .* is truncated, damaged or wrong"):
        sessions_of(folder).get("vae_decoder")


def test_a_graph_of_a_newer_opset_is_refused(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "copy")
    path = folder / "text_encoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"is of an opset that onnxruntime .* does not know"):
        sessions_of(folder).get("text_encoder")


def test_weights_that_are_cut_short_are_refused(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "copy")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(BundleError, match="graph vae_encoder"):
        sessions_of(folder).get("vae_encoder")


def test_a_warm_up_draws_a_batch_of_each_shape(
    bundle_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = bundle_pipeline._backend
    start, drawn = backend.start, []

    def watch(batch: Any) -> Any:
        drawn.append((batch.state.shape[1], sum(batch.num_references)))
        return start(batch)

    monkeypatch.setattr(backend, "start", watch)
    assert bundle_pipeline.warmup(batch_sizes=(1, 2), num_references=(0, 2)) > 0
    assert drawn == [(1, 0), (2, 0), (1, 2), (2, 2)]


def test_a_request_with_several_references_loads_their_step_alone(
    tiny_bundle_folder: Path,
) -> None:
    pipe = Pipeline(tiny_bundle_folder, backend=OPTIONS, device="cpu")
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    pipe("a dog", reference_images=images, reference_prompt="a dog", num_inference_steps=1)
    loaded = set(pipe._backend.sessions._futures)  # type: ignore[attr-defined]
    assert "denoise_step_argmax" in loaded
    assert "denoise_step" not in loaded
