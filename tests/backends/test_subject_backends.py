"""Subjects that go from one backend to another, and what a warm one launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.backends.onnxruntime.sessions import Sessions
from bootpig_rt.backends.openvino.models import Models
from bootpig_rt.backends.options import OnnxRuntimeOptions
from bootpig_rt.cli.main import main
from bootpig_rt.pipeline import Pipeline
from tests.compiled import OPENVINO

PROMPT = "a photo of a dog, on a beach"
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "reference_schedule": "exact"}


@pytest.fixture(scope="module")
def pipelines(tiny_bundle_folder: Path) -> dict[str, Pipeline]:
    """The same pair in each backend."""
    threads = OnnxRuntimeOptions(intra_op_threads=1, spinning=False)
    float32 = OPENVINO
    return {
        "torch": Pipeline(tiny_bundle_folder, backend="torch", device="cpu"),
        "onnxruntime": Pipeline(tiny_bundle_folder, backend=threads, device="cpu"),
        "openvino": Pipeline(tiny_bundle_folder, backend=float32),
    }


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that ONNX Runtime launches, and of those that OpenVINO is asked for."""
    names: list[str] = []
    launch = Sessions.launch

    def count(self: Sessions, graph: str, *rest: Any, **options: Any) -> Any:
        names.append(graph)
        return launch(self, graph, *rest, **options)

    get = Models.get

    def count_model(self: Models, graph: str, *rest: Any, **options: Any) -> Any:
        names.append(graph)
        return get(self, graph, *rest, **options)

    monkeypatch.setattr(Sessions, "launch", count)
    monkeypatch.setattr(Models, "get", count_model)
    return names


@pytest.mark.parametrize("form", ["light", "full"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("torch", "onnxruntime"),
        ("onnxruntime", "torch"),
        ("torch", "openvino"),
        ("openvino", "onnxruntime"),
    ],
)
def test_a_subject_of_one_backend_draws_the_same_picture_in_the_other(
    pipelines: dict[str, Pipeline],
    launches: list[str],
    red: Image.Image,
    tmp_path: Path,
    source: str,
    target: str,
    form: str,
) -> None:
    subject = pipelines[source].encode_subject(red, "a dog", keep_table=True, **SETTINGS)
    subject.save(tmp_path / "dog.subject", form=form)
    read = pipelines[target].load_subject(tmp_path / "dog.subject")
    launches.clear()
    pictures = []
    for name, its in ((source, subject), (target, read)):
        pipelines[name].store.clear()
        result = pipelines[name](PROMPT, subject=its, seed=1, **SETTINGS)
        pictures.append(np.asarray(result.images[0], np.int64))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 1  # a picture, not one colour
    # The last result is that of the other backend: a full file leaves it nothing to compute.
    assert result.reference_passes == (0 if form == "full" else 3)
    assert ("reference_kv" in launches) == (form == "light" and target != "torch")


def test_a_table_on_the_host_outlives_that_on_the_device(
    pipelines: dict[str, Pipeline], red: Image.Image
) -> None:
    """What the store moves down, or a subject takes along, must not be a view of freed memory."""
    pipe = pipelines["onnxruntime"]
    subject = pipe.encode_subject(red, "a cat", keep_table=True, **SETTINGS)
    backend, host = pipe._backend, subject.tables[0].data
    data: Any = backend.upload_table(host, is_resident=True)
    copy = backend.download_table(data)
    assert copy.layers[0][0].values.ctypes.data != data.layers["k_0"].data_ptr()
    for ours, theirs in zip(copy.layers, host.layers, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.values, other.values)


def test_a_warm_store_launches_no_reference_graph(
    tiny_bundle_folder: Path,
    launches: list[str],
    dog_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: str) -> Any:
        shared = ["--model", str(tiny_bundle_folder), "--backend", "onnxruntime", "--json"]
        assert (
            main([command, *words, *shared, "--store", "kept", "--steps", "3", "--threads", "1"])
            == 0
        )
        return json.loads(capsys.readouterr().out)

    encoded = run(
        "encode-subject",
        *("--reference", str(dog_file), "--reference-prompt", "a dog", "-o", "dog.subject"),
    )
    assert (encoded["form"], launches.count("reference_kv")) == ("light", 1)
    launches.clear()
    drawn = run("generate", "--subject", "dog.subject", "--prompt", PROMPT)
    assert drawn["reference_passes"] == 0
    assert "reference_kv" not in launches
    assert "vae_decoder" in launches  # the counter sees what is launched
