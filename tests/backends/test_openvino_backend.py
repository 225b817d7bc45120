"""OpenVINO alone: fused attention, models of fixed shapes, precisions, compiled models in files."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from bootpig_rt.backends import PairOptions, backend_settings, create_backend
from bootpig_rt.backends.onnxruntime.sessions import Sessions
from bootpig_rt.backends.openvino import backend as openvino_backend
from bootpig_rt.backends.openvino import cache as openvino_cache
from bootpig_rt.backends.openvino import models as models_module
from bootpig_rt.backends.openvino import precision as openvino_precision
from bootpig_rt.backends.openvino.launch import Launch
from bootpig_rt.backends.openvino.models import Models
from bootpig_rt.backends.openvino.parts import parts_of
from bootpig_rt.backends.options import OnnxRuntimeOptions, OpenVINOOptions, TorchOptions
from bootpig_rt.bundle import shipped
from bootpig_rt.bundle.bundle import open_bundle, record_parity, write_manifest
from bootpig_rt.bundle.manifest import ParityReport, RuntimeInfo, Variant, VariantPrecision
from bootpig_rt.errors import (
    BackendUnavailable,
    BundleError,
    EngineError,
    OutOfDeviceMemory,
    ParameterError,
)
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from tests.compiled import ANY_SHAPE, OPENVINO

ov = pytest.importorskip("openvino")

FLOAT32 = OpenVINOOptions(precision="float32", threads=1, cache=False)
STEPS = ("denoise_step", *(f"denoise_step_{m}" for m in ("argmax", "softmax", "mean", "concat")))
HAS_BFLOAT16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16")


@pytest.fixture(autouse=True)
def nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are made when they are asked for: most tests here need one of them."""
    monkeypatch.setattr(Models, "begin", lambda *_: None)
    monkeypatch.setattr(Sessions, "prepare", lambda *_: None)


def drawn(pipeline: Pipeline, *images: Image.Image, **settings: Any) -> Any:
    result = pipeline(
        "a dog",
        reference_images=list(images),
        reference_prompt="a dog",
        num_inference_steps=2,
        seed=1,
        **settings,
    )
    return np.asarray(result.images[0], np.int16)


@pytest.mark.parametrize("name", STEPS)
def test_every_attention_is_read_as_the_operator_of_openvino(
    tiny_bundle_folder: Path, name: str
) -> None:
    """In seven layers: rows without references, rows with, and the text; some merges ask twice."""
    model = ov.Core().read_model(tiny_bundle_folder / f"{name}.onnx")
    kinds = [node.get_type_name() for node in model.get_ops()]
    has_mask = name.endswith("concat")  # which is written out
    a_layer = 4 if name.endswith(("argmax", "softmax")) else 2 if has_mask else 3
    assert kinds.count("ScaledDotProductAttention") == 7 * a_layer
    assert kinds.count("Softmax") == 7 * (has_mask or name.endswith("softmax"))


@pytest.mark.parametrize(
    "precision", ["f32", pytest.param("bf16", marks=[needs_bfloat16, pytest.mark.slow])]
)
@pytest.mark.parametrize(
    "name",
    [
        one if one.endswith(("argmax", "softmax")) else pytest.param(one, marks=pytest.mark.slow)
        for one in STEPS
    ],
)
def test_what_is_executed_holds_no_scores(
    tiny_bundle_folder: Path, name: str, precision: str
) -> None:
    """The plugin runs an attention as one node, of the operator or of a fusion of its own."""
    options = replace(ANY_SHAPE, precision="bfloat16" if precision == "bf16" else "float32")
    backend: Any = create_backend(options, tiny_bundle_folder)
    compiled = backend.models.get(name)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [node["layerType"].astype(str) for node in nodes]
    assert kinds.count("Softmax") == 7 * name.endswith("softmax")  # the weights of that merge
    assert kinds.count("MatMul") == 2  # the solver's


@needs_bfloat16
def test_a_table_in_bfloat16_is_read_where_it_lies_and_not_converted_each_step(
    tiny_bundle_folder: Path,
) -> None:
    backend: Any = create_backend(replace(FLOAT32, precision="bfloat16"), tiny_bundle_folder)
    assert (backend.spec.precision, backend.spec.table_dtype) == ("bfloat16", "bfloat16")
    model = backend.models.get("denoise_step")
    for node in model.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        if kind in ("Reorder", "Convert"):
            name = node.input_value(0).get_node().get_friendly_name()
            assert not name.startswith(("k_", "v_", "text_k_", "text_v_")), name


def arithmetic_of(model: Any) -> set[str]:
    """What the products of a compiled model are computed in."""
    infos = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    products = ("FullyConnected", "Convolution")
    return {
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in products
    }


@needs_bfloat16
@pytest.mark.parametrize("graph", ["text_encoder", "vae_decoder", "denoise_step"])
def test_bfloat16_computes_graphs_in_bfloat16(tiny_bundle_folder: Path, graph: str) -> None:
    backend: Any = create_backend(replace(FLOAT32, precision="bfloat16"), tiny_bundle_folder)
    assert arithmetic_of(backend.models.get(graph)) == {"bf16"}


@needs_bfloat16
def test_bfloat16_reads_references_in_float32_and_keeps_their_tables_in_bfloat16(
    tiny_bundle_folder: Path,
) -> None:
    """What a table loses every step of every picture of its subject would inherit."""
    narrow, wide = (
        create_backend(replace(FLOAT32, precision=precision), tiny_bundle_folder)
        for precision in ("bfloat16", "float32")
    )
    assert arithmetic_of(narrow.models.get("reference_kv")) == {"f32"}  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    states = rng.standard_normal((1, 24, 16), dtype=np.float32)
    read = [
        backend.download_table(
            backend.reference_kv(latents, np.array([0, 500]), states, dtype="bfloat16").data
        )
        for backend in (narrow, wide)
    ]
    assert [table.dtype for table in read] == ["bfloat16", "bfloat16"]
    for one, other in zip(*(table.layers for table in read), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            # Bits, of which the last may be rounded the other way.
            assert np.abs(mine.values.astype(int) - theirs.values.astype(int)).max() <= 1


@needs_bfloat16
def test_models_of_one_precision_are_not_taken_for_those_of_another(
    tiny_bundle_folder: Path, tmp_path: Path
) -> None:
    """Both compute `reference_kv` in float32; what it writes differs."""
    options = replace(CACHED, cache_folder=str(tmp_path / "models"))
    latents = np.zeros((1, 1, 4, 8, 8), dtype=np.float32)
    states = np.zeros((1, 24, 16), dtype=np.float32)
    for precision in ("float32", "bfloat16"):
        backend = create_backend(replace(options, precision=precision), tiny_bundle_folder)
        made = backend.reference_kv(latents, np.array([0]), states, dtype="bfloat16").data
        assert backend.download_table(made).dtype == "bfloat16"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_references_are_read_in_float32_unless_the_gate_or_the_user_says_otherwise(
    tiny_bundle_folder: Path, tmp_path: Path, precision: VariantPrecision
) -> None:
    folder = shutil.copytree(tiny_bundle_folder, tmp_path / "bundle")
    bundle = open_bundle(folder)
    wide = openvino_precision.float32_graphs
    assert wide(bundle, OpenVINOOptions(), precision) == ("reference_kv",)
    assert wide(bundle, OpenVINOOptions(), "float32") == ()
    variant = Variant(precision, ParityReport("passed"), float32_graphs=())
    write_manifest(folder, structs.replace(bundle.manifest, variants=(variant,)))
    told = open_bundle(folder)
    assert wide(told, OpenVINOOptions(), precision) == ()
    options = OpenVINOOptions(float32_graphs=("text_kv",))
    assert wide(told, options, precision) == ("text_kv",)


@needs_bfloat16
def test_graphs_are_computed_as_wide_as_they_are_asked_for(tiny_bundle_folder: Path) -> None:
    options = replace(FLOAT32, precision="bfloat16", float32_graphs=("text_encoder",))
    backend: Any = create_backend(options, tiny_bundle_folder)
    assert arithmetic_of(backend.models.get("reference_kv")) == {"bf16"}
    assert arithmetic_of(backend.models.get("text_encoder")) == {"f32"}


@pytest.mark.parametrize(
    ("buckets", "precision"),
    [
        ((1,), "float32"),
        pytest.param((1,), "bfloat16", marks=[needs_bfloat16, pytest.mark.slow]),
        pytest.param((), "bfloat16", marks=[needs_bfloat16, pytest.mark.slow]),
        pytest.param((1, 2), "bfloat16", marks=[needs_bfloat16, pytest.mark.slow]),
        pytest.param((), "float32", marks=pytest.mark.slow),
        pytest.param((1, 2), "float32", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_picture_is_that_of_torch_and_the_same_to_the_last_bit_in_any_company(
    tiny_bundle_folder: Path,
    pipeline: Pipeline,
    red: Image.Image,
    blue: Image.Image,
    buckets: tuple[int, ...],
    precision: Any,
) -> None:
    """Beside other solvers, subjects, approximations, prompts alone, several references, and
    pictures that are drawn into others."""
    options = replace(OPENVINO, precision=precision, buckets=buckets)
    drawer = Pipeline(tiny_bundle_folder, backend=options)
    dog = drawer.encode_subject(red, "a dog")
    both = drawer.encode_subject([red, blue], "a dog")
    given = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    one = Request(
        prompt="a dog",
        subject=dog,
        seed=1,
        num_inference_steps=4,
        solver="ddim",
        approximation="cache:3",
    )
    requests = [
        one,
        replace(one, prompt="do", seed=2, num_inference_steps=3, solver="unipc"),
        Request(prompt="dog do", seed=3, num_inference_steps=2, solver="unipc"),
        Request(prompt="dog", subject=both, seed=4, num_inference_steps=2),
        replace(one, seed=5, solver="unipc", canvas=Canvas.load(given), strength=0.5),
    ]
    alone = [drawer.generate([request]).images[0] for request in requests]
    together = drawer.generate(requests).images
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    if precision == "float32":
        for image, request in zip(alone, requests, strict=True):
            wanted = np.asarray(pipeline.generate([request]).images[0], int)
            assert np.abs(np.asarray(image, int) - wanted).max() <= 1


@pytest.mark.slow
def test_usual_pictures_have_models_of_fixed_shapes_and_all_others_share_one(
    tiny_bundle_folder: Path, red: Image.Image, blue: Image.Image
) -> None:
    pipeline = Pipeline(tiny_bundle_folder, backend=FLOAT32)
    models = pipeline._backend.models  # type: ignore[attr-defined]

    def made() -> list[bool]:
        """Of the models for steps: whether its shapes are fixed."""
        return sorted(bool(shapes) for name, shapes in models._futures if "denoise" in name)

    drawn(pipeline, red)
    assert made() == [True]
    drawn(pipeline, red, num_images_per_prompt=3)
    assert made() == [True]
    drawn(pipeline, red, width=48)
    drawn(pipeline, red, width=16)
    assert made() == [False, True]
    drawn(pipeline, red, blue)
    assert made() == [False, False, True]
    state = models.get("denoise_step", next(s for n, s in models._futures if s and "step" in n))
    assert list(state.input("state").shape) == [2, 1, 4, 8, 8]


@pytest.mark.slow
def test_few_models_can_be_kept_and_draw_the_same(
    tiny_bundle_folder: Path, red: Image.Image
) -> None:
    expected = drawn(Pipeline(tiny_bundle_folder, backend=FLOAT32), red)
    pipeline = Pipeline(tiny_bundle_folder, backend=replace(FLOAT32, models_kept=1))
    np.testing.assert_array_equal(drawn(pipeline, red), expected)
    assert len(pipeline._backend.models._futures) == 1  # type: ignore[attr-defined]


def test_models_that_are_unused_make_room_for_one_that_is_needed(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt="a dog", seed=1, num_inference_steps=2)
    (expected,) = Pipeline(tiny_bundle_folder, backend=OPENVINO).generate([request]).images
    free = [1]

    def told() -> int:
        free[0] += 200_000  # as if each model that was let go gave as much back
        return free[0]

    monkeypatch.setattr(models_module, "free_memory_bytes", told)
    pipeline = Pipeline(tiny_bundle_folder, backend=FLOAT32)
    (image,) = pipeline.generate([request]).images
    assert image.tobytes() == expected.tobytes()
    models: Any = pipeline._backend.models  # type: ignore[attr-defined]
    before = set(models._futures)
    free[0] = -300_000
    models.get("vae_decoder")
    assert ("vae_decoder", ()) in models._futures
    assert before - set(models._futures)  # the longest unused are gone
    free[0] = -(10**9)
    with pytest.raises(OutOfDeviceMemory, match="ahead"):
        models.get("text_kv", (("prompt_embeds", (3, 24, 16)),), is_urgent=False)


def test_a_graph_that_found_no_room_ahead_of_need_is_loaded_by_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, joined, loaded = threading.Event(), threading.Event(), object()

    class Futures(OrderedDict[Any, Any]):
        def move_to_end(self, key: Any, last: bool = True) -> None:
            super().move_to_end(key, last)
            if began.is_set():
                joined.set()

    def make(self: Models, name: str, shapes: Any, *, is_urgent: bool) -> Any:
        if is_urgent:
            return loaded
        began.set()
        assert joined.wait(60)
        raise OutOfDeviceMemory("loading it ahead")

    monkeypatch.setattr(Models, "_make", make)
    nothing: Any = None
    models = Models(nothing, nothing, config=nothing, narrow=None, cache=None)
    models._futures = Futures()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(models.get, "vae_decoder", is_urgent=False)
        assert began.wait(60)
        assert models.get("vae_decoder") is loaded
    with pytest.raises(OutOfDeviceMemory, match="ahead"):
        ahead.result()


@pytest.mark.slow
def test_a_batch_that_fills_no_bucket_shares_one_launch(
    tiny_bundle_folder: Path, red: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five pictures with models for two: two, two, and one of free shapes."""
    pipeline = Pipeline(tiny_bundle_folder, backend=replace(FLOAT32, buckets=(2,)), max_batch=5)
    cut: list[list[tuple[int, bool]]] = []

    def watch(*args: Any, **options: Any) -> Any:
        parts = parts_of(*args, **options)
        cut.append([(len(part.pictures), part.is_fixed) for part in parts])
        return parts

    expected = drawn(Pipeline(tiny_bundle_folder, backend=FLOAT32), red)
    monkeypatch.setattr("bootpig_rt.backends.openvino.steps.parts_of", watch)
    found = drawn(pipeline, red, num_images_per_prompt=4)
    assert cut[-1] == [(2, True), (2, True)]
    assert np.abs(found - expected).max() <= 1


def test_inputs_that_are_read_only_are_read_where_they_lie(tiny_bundle_folder: Path) -> None:
    backend: Any = create_backend(FLOAT32, tiny_bundle_folder)
    ids = np.arange(24, dtype=np.int64)[None]
    expected = backend.encode_text(ids)
    ids.flags.writeable = False
    np.testing.assert_array_equal(backend.encode_text(ids), expected)


@pytest.mark.parametrize(
    ("message", "kind"),
    [("bad_alloc", OutOfDeviceMemory), ("Check 'shape' failed", EngineError)],
)
def test_failures_of_a_launch_are_of_our_kinds(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, message: str, kind: type[Exception]
) -> None:
    backend: Any = create_backend(FLOAT32, tiny_bundle_folder)
    backend.models.get("vae_decoder")

    def fail(_: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(Launch, "wait", fail)
    with pytest.raises(kind) as caught:
        backend.decode(np.zeros((1, 4, 4, 4), np.float32))
    assert type(caught.value) is kind


# Compiled models in files


@pytest.fixture
def bundle(tiny_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle, and a cache folder of nobody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = shutil.ignore_patterns(".*")  # by tests that share the bundle
    return shutil.copytree(tiny_bundle_folder, tmp_path / "bundle", ignore=kept)


CACHED = replace(FLOAT32, cache=True)


def encoded(folder: Path, options: OpenVINOOptions = CACHED, **settings: Any) -> Any:
    """What a text encoder makes that was loaded anew."""
    backend: Any = create_backend(options, folder, **settings)
    return backend.encode_text(np.arange(24, dtype=np.int64)[None])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> list[str]:
    """Graphs of the bundle that are read in order to be compiled."""
    names: list[str] = []
    read = Models._read

    def watch(self: Any, file: Any, shapes: Any) -> Any:
        if file.path.is_relative_to(bundle):
            names.append(file.path.stem)
        return read(self, file, shapes)

    monkeypatch.setattr(Models, "_read", watch)
    return names


def test_a_compiled_model_is_kept_in_the_bundle_and_used_again(
    bundle: Path, compiled: list[str], tmp_path: Path
) -> None:
    first = encoded(bundle)
    assert compiled == ["text_encoder"]
    (blob,) = (bundle / ".openvino").iterdir()
    assert blob.name.startswith("text_encoder-")
    np.testing.assert_array_equal(encoded(bundle), first)
    assert compiled == ["text_encoder"]
    assert not (tmp_path / "cache").exists()
    open_bundle(bundle)  # it is no part of what the manifest lists


@pytest.mark.parametrize("where", [0, 30, -1], ids=["first byte", "header", "last byte"])
def test_a_damaged_compiled_model_is_built_again_with_a_word(
    bundle: Path, compiled: list[str], caplog: pytest.LogCaptureFixture, where: int
) -> None:
    first = encoded(bundle)
    (blob,) = (bundle / ".openvino").iterdir()
    data = bytearray(blob.read_bytes())
    data[where] ^= 1
    blob.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING, "bootpig_rt"):
        np.testing.assert_array_equal(encoded(bundle), first)
    (record,) = caplog.records
    assert record.getMessage() == f"kept file {blob} is damaged; made again"
    encoded(bundle)
    assert compiled == ["text_encoder"] * 2


@pytest.mark.parametrize("cut", [0, 10, 5000])
def test_a_compiled_model_that_is_cut_short_is_built_again(
    bundle: Path, compiled: list[str], cut: int
) -> None:
    encoded(bundle)
    (blob,) = (bundle / ".openvino").iterdir()
    blob.write_bytes(blob.read_bytes()[:cut])
    encoded(bundle)
    assert compiled == ["text_encoder"] * 2


def test_another_version_processor_or_precision_has_models_of_its_own(
    bundle: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(bundle)
    encoded(bundle, replace(CACHED, threads=2))
    if HAS_BFLOAT16:
        encoded(bundle, replace(CACHED, precision="bfloat16"))
    monkeypatch.setattr(openvino_backend, "processor", lambda _: "another")
    encoded(bundle)
    monkeypatch.setattr(ov, "__version__", "2026.9.9-1")
    encoded(bundle)
    count = 4 + HAS_BFLOAT16
    assert compiled == ["text_encoder"] * count
    assert len(list((bundle / ".openvino").iterdir())) == count


def test_where_the_bundle_cannot_be_written_to_the_users_cache_is_used(
    bundle: Path, compiled: list[str], tmp_path: Path
) -> None:
    (bundle / ".openvino").write_text("in the way, as a read-only folder is, also for root")
    first = encoded(bundle)
    np.testing.assert_array_equal(encoded(bundle), first)
    assert compiled == ["text_encoder"]
    (blob,) = (tmp_path / "cache").rglob("*.blob")
    assert blob.parent.parent == tmp_path / "cache" / "bootpig-rt" / "openvino"


def test_where_nothing_can_be_written_to_it_is_said_and_drawn_all_the_same(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    options = replace(CACHED, cache_folder=tmp_path / "file")
    with caplog.at_level(logging.INFO, "bootpig_rt"):
        encoded(bundle, options)
    assert any("text_encoder is not kept" in record.getMessage() for record in caplog.records)


def test_a_folder_that_is_named_is_used_alone(bundle: Path, tmp_path: Path) -> None:
    encoded(bundle, replace(CACHED, cache_folder=str(tmp_path / "named")))
    assert list((tmp_path / "named").glob("text_encoder-*.blob"))
    assert not (bundle / ".openvino").exists()


def test_without_a_cache_nothing_is_written(bundle: Path, tmp_path: Path) -> None:
    encoded(bundle, FLOAT32)
    assert not (bundle / ".openvino").exists()
    assert not (tmp_path / "cache").exists()


def test_a_model_that_nobody_signed_is_not_read_beside_a_signed_bundle(
    bundle: Path, compiled: list[str], tmp_path: Path
) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (tmp_path / "key.pub.pem").write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    encoded(bundle)
    write_manifest(bundle, open_bundle(bundle).manifest, key=tmp_path / "key.pem")
    encoded(bundle, pair=PairOptions(trust=tmp_path / "key.pub.pem"))
    assert compiled == ["text_encoder"] * 2


def test_what_was_put_together_for_this_process_is_kept_with_the_users_caches(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "is_put_together", lambda folder: folder == bundle)
    monkeypatch.setattr(openvino_cache, "is_put_together", shipped.is_put_together)
    encoded(bundle)
    assert not (bundle / ".openvino").exists()
    assert list((tmp_path / "cache").rglob("text_encoder-*.blob"))


# What is asked for and cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "precision is 'float16', expected one of"),
        ({"threads": -1}, r"threads is -1, expected 0\.\.1024; 0 leaves it to OpenVINO"),
        ({"models_kept": -1}, r"models_kept is -1, expected 0\.\.1024; 0 keeps all that fit"),
        ({"streams": -1}, r"streams is -1, expected 0\.\.1024; 0 leaves it to the pair"),
        ({"buckets": [1]}, r"buckets is \[1\], expected numbers of pictures such as \(1, 4\)"),
        ({"buckets": (0,)}, r"buckets is 0, expected 1\.\.1024"),
        ({"float32_graphs": "text_kv"}, "float32_graphs is 'text_kv', expected names of graphs"),
        ({"cache": "no"}, "cache is 'no', expected True or False"),
        ({"cache_folder": 3}, "cache_folder is 3, expected a folder"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        OpenVINOOptions(**options)


def test_another_device_than_a_cpu_is_refused(tiny_bundle_folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="openvino runs on CPUs; choose cpu, or the"):
        create_backend("openvino", tiny_bundle_folder, device="cuda:0")


def test_a_pair_without_graphs_is_refused(tiny_pair_folder: Path) -> None:
    with pytest.raises(ParameterError, match="holds no graphs for openvino; build them with"):
        create_backend("openvino", tiny_pair_folder)


def test_without_the_package_the_command_that_installs_it_is_told(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    with pytest.raises(BackendUnavailable, match=r"pip install \"bootpig-rt\[openvino\]\""):
        create_backend("openvino", tiny_bundle_folder)


@pytest.mark.parametrize(("missing", "taken"), [("onnxruntime", "openvino"), ("", "onnxruntime")])
def test_auto_runs_a_bundle_for_cpus_in_what_is_installed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, missing: str, taken: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert create_backend("auto", bundle).name == taken


def of_openvino(folder: Path, version: str, minimum: str | None) -> Path:
    """The bundle as one that was built for OpenVINO."""
    manifest = open_bundle(folder).manifest
    runtime = RuntimeInfo("openvino", version, minimum)
    write_manifest(folder, structs.replace(manifest, target="openvino", runtime=runtime))
    return folder


def test_a_bundle_of_an_older_openvino_is_run_and_one_of_a_newer_is_refused(bundle: Path) -> None:
    assert create_backend("auto", of_openvino(bundle, "2026.4.0", "2026.4")).name == "openvino"
    with pytest.raises(BundleError, match="needs openvino 2031.1 or newer, .*--upgrade openvino"):
        create_backend("openvino", of_openvino(bundle, "2031.1.0", "2031.1"))


def test_other_backends_refuse_a_bundle_for_openvino(bundle: Path) -> None:
    of_openvino(bundle, "2026.4.1", "2026.4")
    with pytest.raises(BundleError, match="was built for openvino .*this is onnxruntime"):
        create_backend("onnxruntime", bundle)


def test_graphs_for_a_gpu_are_refused(bundle: Path) -> None:
    write_manifest(bundle, structs.replace(open_bundle(bundle).manifest, target="cuda"))
    with pytest.raises(BundleError, match="was built for onnxruntime .*this is openvino"):
        create_backend("openvino", bundle)


def test_a_graph_that_openvino_cannot_read_is_refused_by_name(
    bundle: Path, write_tiny_manifest: Callable[[Path], None]
) -> None:
    onnx = pytest.importorskip("onnx")
    path = bundle / "text_encoder.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.node[-1].op_type = "Nonsense"
    path.write_bytes(model.SerializeToString())
    write_tiny_manifest(bundle)
    with pytest.raises(
        BundleError, match="graph text_encoder in .* build-engine --target openvino"
    ):
        encoded(bundle)


def test_int8_is_refused_where_a_bundle_has_no_such_graphs(tiny_bundle_folder: Path) -> None:
    with pytest.raises(ParameterError, match="holds no int8 graphs"):
        create_backend(replace(FLOAT32, precision="int8"), tiny_bundle_folder)


@pytest.mark.parametrize(
    ("capabilities", "status", "taken", "left_out"),
    [
        (["FP32", "BF16"], "passed", ["float32", "bfloat16"], []),
        (["FP32", "BF16"], "failed", ["float32"], ["bfloat16 is too far from torch"]),
        (["FP32"], "passed", ["float32"], []),
    ],
)
def test_auto_may_take_what_the_processor_has_and_what_is_near_enough_to_torch(
    bundle: Path, capabilities: list[str], status: Any, taken: list[str], left_out: list[str]
) -> None:
    class Core:
        def get_property(self, _: str, name: str) -> Any:
            return capabilities if name == "OPTIMIZATION_CAPABILITIES" else " Some CPU "

    record_parity(open_bundle(bundle), ParityReport(status), variant="bfloat16")
    found = openvino_precision.precisions_unasked(Core(), open_bundle(bundle))
    assert found == (taken, left_out)


def test_bfloat16_is_refused_on_a_processor_without_it(
    tiny_bundle_folder: Path,
) -> None:
    class Core:
        def get_property(self, _: str, name: str) -> Any:
            return ["FP32"] if name == "OPTIMIZATION_CAPABILITIES" else "Old CPU"

    with pytest.raises(BackendUnavailable, match="Old CPU has no such arithmetic; choose float32"):
        openvino_precision.check_precision(Core(), open_bundle(tiny_bundle_folder), "bfloat16")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("auto", None, None), "auto"),
        (("auto", 2, None), OnnxRuntimeOptions(intra_op_threads=2)),
        (("openvino", 2, "bfloat16"), OpenVINOOptions(threads=2, precision="bfloat16")),
        (("torch", None, "bfloat16"), TorchOptions(precision="bfloat16")),
    ],
)
def test_threads_and_precision_of_a_command_become_options(asked: Any, expected: Any) -> None:
    backend, threads, precision = asked
    assert backend_settings(backend, threads=threads, precision=precision) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("tensorrt", 2, None), "threads is for ONNX Runtime and OpenVINO"),
        (("onnxruntime", None, "bfloat16"), "precision is for the backends openvino and torch"),
        (("auto", None, "bfloat16"), "precision is for the backends openvino and torch"),
        (("torch", 2, "bfloat16"), "precision is for .* 'torch' and threads"),
    ],
)
def test_options_of_another_backend_are_refused(asked: Any, message: str) -> None:
    backend, threads, precision = asked
    with pytest.raises(ParameterError, match=message):
        backend_settings(backend, threads=threads, precision=precision)


@pytest.mark.slow
def test_pictures_of_a_batch_that_run_beside_each_other_are_as_they_are_alone(
    tiny_bundle_folder: Path, red: Image.Image
) -> None:
    options = OpenVINOOptions(precision="float32", threads=2, cache=False)
    with Pipeline(tiny_bundle_folder, backend=options) as pipe:
        dog = pipe.encode_subject(red, "a dog")
        call: dict[str, Any] = {"subject": dog, "num_inference_steps": 2}
        together = pipe("a dog", seed=1, num_images_per_prompt=3, **call).images
        alone = pipe("a dog", seed=2, **call).images[0]
        backend: Any = pipe._backend
    assert together[1].tobytes() == alone.tobytes()
    assert backend.beside is not backend.models


@pytest.mark.parametrize(
    ("asked", "weights_bytes", "expected"),
    [
        ({"threads": 2}, 1 << 20, 2),
        ({"threads": 64}, 1 << 20, 8),
        ({"threads": 1}, 1 << 20, 1),
        ({"threads": 2}, 1 << 30, 1),
        ({"threads": 2, "streams": 2}, 1 << 30, 2),
        ({"threads": 2, "streams": 1}, 1 << 20, 1),
        ({"threads": 2, "models_kept": 1}, 1 << 20, 1),
    ],
)
def test_batches_of_small_pairs_run_on_a_core_for_each_picture(
    asked: dict[str, Any],
    weights_bytes: int,
    expected: int,
    tiny_bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "bootpig_rt.backends.openvino.backend.weights_bytes", lambda bundle: weights_bytes
    )
    assert (
        openvino_backend.streams_of(open_bundle(tiny_bundle_folder), OpenVINOOptions(**asked))
        == expected
    )
