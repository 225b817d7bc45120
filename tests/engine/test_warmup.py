"""`Pipeline.warmup` does all that is done once for a shape, and leaves nothing else behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.errors import ParameterError
from bootpig_rt.pipeline import Pipeline

RECORDED = TorchOptions(cuda_graph=True, graphs_kept=16)
"""On a CPU: the buffers and the bookkeeping of recordings, without a recording."""


@pytest.fixture
def recorded(tiny_pair_folder: Path) -> Pipeline:
    return Pipeline(tiny_pair_folder, backend=RECORDED, device="cpu")


def test_after_a_warm_up_requests_of_its_shapes_record_nothing(
    recorded: Pipeline, red: Any, blue: Any
) -> None:
    backend: Any = recorded._backend
    took = recorded.warmup(batch_sizes=(1, 3), num_references=(0, 1, 2))
    assert took > 0
    before = backend.num_recordings
    assert before > 6
    for images in (red, [red, blue]):
        recorded("a photo of a dog, on a beach", reference_images=images, seed=1)
        recorded(
            "a photo of a dog, on a beach", reference_images=images, seed=1, num_images_per_prompt=3
        )
    assert backend.num_recordings == before
    recorded("a photo of a dog, on a beach", reference_images=red, seed=1, num_images_per_prompt=2)
    assert backend.num_recordings > before  # that shape was not asked for


def test_a_warm_up_leaves_the_store_as_it_was(recorded: Pipeline) -> None:
    before = recorded.store.stats()
    recorded.warmup()
    assert recorded.store.stats() == before


def test_a_warm_up_writes_nothing_into_the_folder_that_the_environment_names(
    recorded: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOTPIG_RT_STORE", str(tmp_path / "store"))
    recorded.warmup()
    assert list(tmp_path.rglob("*.table")) == []


def test_steps_and_size_come_from_the_settings(recorded: Pipeline, dog: Any) -> None:
    backend: Any = recorded._backend
    recorded.warmup(num_inference_steps=3, width=40, height=32)
    before = backend.num_recordings
    recorded("a photo of a dog", subject=dog, num_inference_steps=3, width=40, height=32)
    assert backend.num_recordings == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": (9,)}, "batch_sizes is 9"),
        ({"batch_sizes": (0,)}, "batch_sizes is 0"),
        ({"num_references": (5,)}, "num_references is 5"),
        ({"num_references": (-1,)}, "num_references is -1"),
    ],
)
def test_shapes_that_no_request_can_have_are_refused(
    pipeline: Pipeline, arguments: Any, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        pipeline.warmup(**arguments)
