"""Precision, compilation and lack of memory in the torch backend."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.host_table import PRECISIONS, Precision
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch import memory as torch_memory
from bootpig_rt.errors import OutOfDeviceMemory, ParameterError
from bootpig_rt.models.load import load_pair
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request

PROMPT = "a photo of a dog, on a beach"
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 5.00 MiB is free."
)


def pixels(result: Any) -> Any:
    return np.asarray(result.images[0], dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "precision is .float8., expected one of: float32, float16"),
        ({"cuda_graph": 1}, "cuda_graph is 1, expected True or False"),
        ({"graphs_kept": 0}, r"graphs_kept is 0, expected 1\.\.1024"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        TorchOptions(**options)


def test_the_precision_follows_the_device_unless_it_is_said() -> None:
    assert TorchOptions().on("cpu") == TorchOptions("float32", False, False)
    assert TorchOptions().on("cuda:1") == TorchOptions("float16", True, True)
    said = TorchOptions(precision="bfloat16", cuda_graph=False, channels_last=False)
    assert said.on("cuda") == said


MANNER: dict[str, Any] = {
    "seed": 1,
    "num_inference_steps": 3,
    "merge": "softmax",
    "image_guidance_scale": 2.0,
    "text_guidance_scale": 3.0,
}


@pytest.fixture(scope="module")
def wide(pipeline: Pipeline, red: Any, blue: Any) -> Any:
    """A picture in float32."""
    return pixels(pipeline(PROMPT, reference_images=[red, blue], **MANNER))


@pytest.mark.parametrize(("precision", "difference"), [("float16", 2.0), ("bfloat16", 12.0)])
@pytest.mark.parametrize("graph", [False, True])
def test_narrow_precisions_draw_about_the_same_picture(
    tiny_pair_folder: Path,
    wide: Any,
    red: Any,
    blue: Any,
    precision: str,
    difference: float,
    graph: bool,
) -> None:
    options = TorchOptions(precision=cast("Precision", precision), cuda_graph=graph)
    narrow = Pipeline(tiny_pair_folder, backend=options, device="cpu")
    found = narrow(PROMPT, reference_images=[red, blue], **MANNER)
    apart = np.abs(pixels(found) - wide).mean()
    assert 0 < apart < difference
    # Tables are kept in the type that the steps read.
    assert found.parameters[0].table_dtype == precision
    assert narrow.table_dtype == precision


@pytest.mark.parametrize("graph", [False, True])
def test_channels_last_changes_the_layout_and_not_the_picture(
    tiny_pair_folder: Path, pipeline: Pipeline, cat: Any, graph: bool
) -> None:
    options = TorchOptions(channels_last=True, cuda_graph=graph)
    other = Pipeline(tiny_pair_folder, backend=options, device="cpu")
    backend: Any = other._backend
    seen: list[bool] = []
    resnet = backend.pair.base.unet.down_blocks[1].resnets[0]
    resnet.conv2.register_forward_hook(
        lambda _, inputs, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    found, expected = (one(PROMPT, subject=cat, seed=3) for one in (other, pipeline))
    assert seen
    assert all(seen)
    assert np.abs(pixels(found) - pixels(expected)).max() <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_latents_guidance_and_solver_stay_in_float32(
    tiny_pair_folder: Path, precision: Precision
) -> None:
    options = TorchOptions(precision=precision)
    pipeline = Pipeline(tiny_pair_folder, backend=options, device="cpu")
    backend: Any = pipeline._backend
    states = backend.encode_text(np.zeros((2, 24), dtype=np.int64))
    assert str(states.dtype) == f"torch.{precision}"
    assert backend.download_states(states).dtype == np.float32
    assert {str(one.dtype) for one in backend.pair.base.parameters()} == {f"torch.{precision}"}
    seen: list[Any] = []
    start = backend.start

    def keep(*given: Any) -> Any:
        seen.append(start(*given))
        return seen[-1]

    backend.start = keep
    pipeline.generate([Request(prompt=PROMPT, subject=None, seed=0)])
    tensors = vars(seen[0].tensors)
    narrow = {name for name, one in tensors.items() if one.dtype in (torch.float16, torch.bfloat16)}
    assert narrow == (set() if precision == "float32" else {"text", "added", "features"})


@pytest.mark.parametrize(
    ("force_upcast", "precision", "expected"),
    [
        (True, "float16", torch.float32),
        (None, "float16", torch.float32),  # diffusers' default
        (False, "float16", torch.float16),
        (True, "bfloat16", torch.bfloat16),  # has the range of float32
    ],
)
def test_the_autoencoder_keeps_its_range(
    tiny_pair_folder: Path, tmp_path: Path, force_upcast: Any, precision: Precision, expected: Any
) -> None:
    folder = shutil.copytree(tiny_pair_folder, tmp_path / "pair")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("force_upcast", None)
    if force_upcast is not None:
        config["force_upcast"] = force_upcast
    path.write_text(json.dumps(config))
    backend: Any = create_backend(TorchOptions(precision=precision), folder, device="cpu")
    assert {one.dtype for one in backend.pair.vae.parameters()} == {expected}
    # 1e4 in the middle of a decoder is far too large for the squares of a norm in float16.
    with torch.no_grad():
        backend.pair.vae.decoder.conv_in.weight.mul_(1e4)
    latents = np.ones((1, 4, 8, 8), dtype=np.float32)
    if expected is torch.float32:
        assert np.isfinite(backend.decode(latents)).all()
    assert backend.decode(0 * latents).dtype == np.float32


def test_a_pair_loaded_as_it_is_has_one_precision(tiny_pair_folder: Path) -> None:
    pair = load_pair(tiny_pair_folder, dtype=torch.float16)
    vae: Any = pair.vae
    assert {one.dtype for one in vae.parameters()} == {torch.float16}


def test_one_error_tells_the_numbers_and_the_next_smaller_request_works(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch, dog: Any
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend=TorchOptions(cuda_graph=True), device="cpu")
    backend: Any = pipeline._backend
    expected = pixels(pipeline(PROMPT, subject=dog, seed=0))
    draw_rows = backend.pair.base.draw
    held: list[Any] = []

    def too_large(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        if latents.shape[-1] > 8:
            work = torch.zeros(16)
            held.append(weakref.ref(work))
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return draw_rows(latents, *given, **named)

    monkeypatch.setattr(backend.pair.base, "draw", too_large)
    monkeypatch.setattr(torch_memory, "_free_and_total", lambda device: (5 << 20, 80 << 30))
    with pytest.raises(OutOfDeviceMemory) as caught:
        pipeline(PROMPT, subject=dog, seed=0, width=64)
    error = caught.value
    assert (error.asked_bytes, error.free_bytes, error.total_bytes) == (20 << 20, 5 << 20, 80 << 30)
    assert str(error) == (
        "out of device memory (asked for 20 MiB, 5 of 81920 MiB free) while drawing 1 pictures of "
        "64 x 32 in 3 rows, 1 references; draw fewer or smaller pictures at once (max_batch, "
        "width, height), or give tables less room with TableOptions (dtype, budget_bytes, "
        "device_bytes, rows_per_launch)"
    )
    assert error.__context__ is None  # whose frames would hold what the call had allocated
    assert held
    gc.collect()
    assert held[0]() is None
    assert len(backend.recorded.slots) == 0
    np.testing.assert_array_equal(pixels(pipeline(PROMPT, subject=dog, seed=0)), expected)


def test_pictures_for_which_there_is_no_room_together_are_drawn_one_by_one(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch, dog: Any
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend="torch", device="cpu")
    backend: Any = pipeline._backend
    draw_rows = backend.pair.base.draw

    def too_large(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        if len(latents) > 1:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return draw_rows(latents, *given, **named)

    monkeypatch.setattr(backend.pair.base, "draw", too_large)
    alone = [pixels(pipeline(PROMPT, subject=dog, seed=seed)) for seed in range(3)]
    together = pipeline(PROMPT, subject=dog, seed=0, num_images_per_prompt=3)
    for image, expected in zip(together.images, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("inner", "call", "what"),
    [
        ("_run_text", "encode_text", "encoding 2 prompts"),
        ("_run_decoder", "decode", "decoding 2 pictures of 32 x 32"),
        ("_run_encoder", "encode_image", "encoding 2 pictures of 8 x 8"),
    ],
)
def test_every_part_reports_a_lack_of_memory(
    tiny_pair_folder: Path, inner: str, call: str, what: str
) -> None:
    backend: Any = create_backend("torch", tiny_pair_folder, device="cpu")
    function = {"_run_text": "_text", "_run_decoder": "_decoder", "_run_encoder": "_encoder"}[inner]

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    getattr(backend, function)._function = fail
    argument = (
        np.zeros((2, 24), np.int64) if call == "encode_text" else np.zeros((2, 4, 8, 8), np.float32)
    )
    with pytest.raises(OutOfDeviceMemory, match=f"out of device memory while {what};"):
        getattr(backend, call)(argument)


def test_a_reference_pass_without_room_leaves_a_backend_that_works(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = create_backend("torch", tiny_pair_folder, device="cpu")
    states = backend.encode_text(np.zeros((1, 24), np.int64))
    latents, t = np.zeros((3, 1, 4, 8, 8), np.float32), np.array([9, 5, 1])
    run = backend._pass._function

    def only_few(rows: torch.Tensor, *given: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED")
        return run(rows, *given)

    monkeypatch.setattr(backend._pass, "_function", only_few)
    with pytest.raises(OutOfDeviceMemory, match="reading 1 references at 3 timesteps, 16 at once"):
        backend.reference_kv(latents, t, states)
    made = backend.reference_kv(latents, t, states, rows_per_launch=1)
    assert made.num_passes == 3


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny_pair_folder: Path) -> None:
    backend: Any = create_backend("torch", tiny_pair_folder, device="cpu")

    def fail(*_: Any) -> Any:
        raise RuntimeError("a size does not match")

    backend._decoder._function = fail
    with pytest.raises(RuntimeError, match="a size does not match"):
        backend.decode(np.zeros((1, 4, 8, 8), np.float32))


def test_threads_go_on_beside_one_that_runs_out_of_memory(
    tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch, dog: Any
) -> None:
    pipeline = Pipeline(tiny_pair_folder, backend=TorchOptions(cuda_graph=True), device="cpu")
    backend: Any = pipeline._backend
    draw_rows = backend.pair.base.draw

    def too_large(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        if latents.shape[-1] > 8:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return draw_rows(latents, *given, **named)

    monkeypatch.setattr(backend.pair.base, "draw", too_large)
    expected = [pixels(pipeline(PROMPT, subject=dog, seed=seed)) for seed in range(8)]

    def draw(number: int) -> Any:
        if number % 2:
            with pytest.raises(OutOfDeviceMemory):
                pipeline(PROMPT, subject=dog, seed=0, width=64)
            return None
        return pixels(pipeline(PROMPT, subject=dog, seed=number // 2))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(draw, range(16)))
    for number in range(8):  # alone and in batches: other kernels, which round otherwise
        np.testing.assert_allclose(found[2 * number], expected[number], rtol=0, atol=1)
