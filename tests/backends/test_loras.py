"""LoRAs at load: which backends take them, and that tables of other weights are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends import create_backend
from bootpig_rt.backends.options import OnnxRuntimeOptions, TorchOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.errors import ParameterError, SubjectMismatch
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.storage.store import SubjectStore


@pytest.fixture
def lora(tiny_pair_folder: Path, tmp_path: Path, make_lora: Any) -> Path:
    """Of the key and value weights of self-attentions alone."""
    path = tmp_path / "style.safetensors"
    make_lora(path, tiny_pair_folder, modules=r"base_unet/.*attn1\.to_[kv]")
    return path


def test_tables_of_a_pair_with_a_lora_are_its_own(
    pipeline: Pipeline, tiny_pair_folder: Path, lora: Path, red: Image.Image
) -> None:
    store = SubjectStore()
    plain = Pipeline(tiny_pair_folder, backend="torch", device="cpu", tables=store)
    styled = Pipeline(
        tiny_pair_folder, backend="torch", device="cpu", tables=store, pair=PairOptions(lora=lora)
    )
    weaker = Pipeline(
        tiny_pair_folder,
        backend="torch",
        device="cpu",
        tables=store,
        pair=PairOptions(lora=f"{lora}:0.5"),
    )
    tables = []
    for pipe in (plain, styled, weaker):
        subject = pipe.encode_subject(
            red, "a photo of a dog", keep_table=True, reference_schedule="clean"
        )
        tables.append(subject.tables[0])
    assert len({table.key for table in tables}) == 3
    assert len({table.key.pair for table in tables}) == 3
    assert {table.key.pixels for table in tables} == {tables[0].key.pixels}
    keys = [table.data.entry(0)[0][0] for table in tables]
    assert not np.allclose(keys[0], keys[1])
    assert not np.allclose(keys[1], keys[2])
    assert plain.spec.fingerprint == pipeline.spec.fingerprint
    assert [each.scale for each in weaker.spec.config.loras] == [0.5]


def test_a_subject_of_the_pair_without_is_refused(
    tiny_pair_folder: Path, lora: Path, dog: Any
) -> None:
    styled = Pipeline(
        tiny_pair_folder, backend="torch", device="cpu", pair=PairOptions(lora=[Lora(lora, 0.8)])
    )
    with pytest.raises(SubjectMismatch, match="was encoded with pair"):
        styled("a photo of a dog", subject=dog)


def test_auto_takes_torch_for_a_bundle_with_a_lora(tiny_bundle_folder: Path, lora: Path) -> None:
    backend = create_backend("auto", tiny_bundle_folder, pair=PairOptions(lora=lora))
    assert backend.name == "torch"
    chosen: Any = create_backend(
        TorchOptions(precision="bfloat16"),
        tiny_bundle_folder,
        device="cpu",
        pair=PairOptions(lora=lora),
    )
    assert chosen.spec.fingerprint == backend.spec.fingerprint
    assert chosen.spec.precision == "bfloat16"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", OnnxRuntimeOptions()])
def test_graphs_take_no_lora_when_they_are_loaded(
    tiny_bundle_folder: Path, lora: Path, backend: Any
) -> None:
    with pytest.raises(ParameterError, match="build a bundle with bootpig-rt build-engine --lora"):
        create_backend(backend, tiny_bundle_folder, pair=PairOptions(lora=lora))


def test_a_lora_that_nobody_signed_is_refused_beside_a_key(
    tiny_bundle_folder: Path, lora: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="nobody signed it"):
        create_backend(
            "torch",
            tiny_bundle_folder,
            pair=PairOptions(trust=tmp_path / "key.pem", lora=lora),
        )
