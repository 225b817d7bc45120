"""The torch backend on a CUDA GPU: recorded steps, narrow precision, memory, threads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.backends.torch.graphs import Lane
from bootpig_rt.errors import OutOfDeviceMemory
from bootpig_rt.pipeline import Pipeline

pytestmark = pytest.mark.gpu

PROMPT = "a photo of a dog, on a beach"


def pipeline_of(folder: Path, **options: Any) -> Pipeline:
    return Pipeline(folder, backend=TorchOptions(**options), device="cuda")


def pixels(result: Any) -> Any:
    return np.stack([np.asarray(image, dtype=np.float32) for image in result.images])


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("merge", ["argmax", "concat"])
def test_recorded_steps_draw_what_plain_ones_draw(
    tiny_pair_folder: Path, red: Image.Image, blue: Image.Image, precision: str, merge: str
) -> None:
    manner: dict[str, Any] = {
        "reference_images": [red, blue],
        "seed": 1,
        "num_images_per_prompt": 2,
        "num_inference_steps": 4,
        "merge": merge,
    }
    drawn = [
        pixels(
            pipeline_of(tiny_pair_folder, precision=precision, cuda_graph=graph)(PROMPT, **manner)
        )
        for graph in (False, True)
    ]
    np.testing.assert_allclose(drawn[1], drawn[0], atol=2.0)


def test_a_recording_keeps_what_it_reads() -> None:
    """Tensors that the recorded function alone refers to are still there at a replay."""
    lane = Lane("cuda", records=True)
    found = torch.zeros(1000, device="cuda")

    def with_own_tensor() -> Callable[[], object]:
        own = torch.full((1000,), 3.0, device="cuda")
        return lambda: found.copy_(own)

    with lane.work():
        replay = lane.record(with_own_tensor())
        fresh = [torch.full((1000,), 7.0, device="cuda") for _ in range(100)]
        found.zero_()
        replay()
    torch.cuda.synchronize()
    assert len(fresh) == 100
    assert (found == 3.0).all()


def test_downloads_of_other_threads_are_no_part_of_a_recording() -> None:
    lane = Lane("cuda", records=True)
    source, found = torch.ones(1000, device="cuda"), torch.zeros(1000, device="cuda")
    recording, finished = Event(), Event()

    def slow() -> None:
        found.add_(source)
        if torch.cuda.is_current_stream_capturing():
            recording.set()
            assert finished.wait(20)

    def download() -> Any:
        assert recording.wait(20)
        try:
            with torch.inference_mode(), lane.on_stream():
                return lane.download(source)
        finally:
            finished.set()

    with ThreadPoolExecutor(1) as pool:
        downloaded = pool.submit(download)
        with lane.work():
            replay = lane.record(slow)
            found.zero_()
            replay()
        assert (downloaded.result() == 1).all()
    torch.cuda.synchronize()
    assert (found == 1).all()


def test_later_requests_record_nothing_and_take_no_more_memory(
    tiny_pair_folder: Path, red: Image.Image, blue: Image.Image
) -> None:
    pipeline = pipeline_of(tiny_pair_folder)
    backend: Any = pipeline._backend
    pipeline.warmup(batch_sizes=(1, 2), num_references=(1, 2))
    for _ in range(2):  # tables of the user's own
        pipeline(PROMPT, reference_images=red, seed=0)
    count, reserved = backend.num_recordings, torch.cuda.memory_reserved()
    for seed in range(4):
        pipeline(PROMPT, reference_images=red, seed=seed, num_images_per_prompt=1 + seed % 2)
    assert backend.num_recordings == count
    assert torch.cuda.memory_reserved() == reserved
    pipeline(PROMPT, reference_images=[red, blue], seed=0)
    assert backend.num_recordings == count


def test_steps_wait_for_nothing(tiny_pair_folder: Path, red: Image.Image) -> None:
    pipeline = pipeline_of(tiny_pair_folder)
    backend: Any = pipeline._backend
    subject = pipeline.encode_subject(red, "a photo of a dog")
    pipeline(PROMPT, subject=subject, seed=0)
    given: list[Any] = []
    start = backend.start

    def keep(*arguments: Any) -> Any:
        given.append(arguments)
        return start(*arguments)

    backend.start = keep
    pipeline(PROMPT, subject=subject, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does not find all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        run = start(*given[0])
        for index in range(2):
            run.step(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(run.state()).all()


def test_32_threads_draw_what_one_draws(tiny_pair_folder: Path, dog: Any, cat: Any) -> None:
    pipeline = pipeline_of(tiny_pair_folder)

    def draw(number: int) -> Any:
        return pixels(pipeline(PROMPT, subject=(dog, cat)[number % 2], seed=number % 4))

    expected = [draw(number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(draw, range(32)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2.0)


def test_after_a_request_that_is_too_large_a_smaller_one_works(
    tiny_pair_folder: Path, dog: Any
) -> None:
    pipeline = pipeline_of(tiny_pair_folder)
    expected = pixels(pipeline(PROMPT, subject=dog, seed=0))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (8 << 20)) / total)
    try:
        with pytest.raises(OutOfDeviceMemory, match="MiB free"):
            pipeline._backend.decode(np.zeros((16, 4, 128, 128), np.float32))
        drawn = pixels(pipeline(PROMPT, subject=dog, seed=0))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(drawn, expected, atol=2.0)
