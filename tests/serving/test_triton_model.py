"""What Triton's Python backend asks of a model, by its documented interface.

`test_triton_server.py` runs the same model in a real Triton, where one is installed.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import BackendUnavailable
from bootpig_rt.images.control import Control
from bootpig_rt.images.read_marks import read_parameters
from bootpig_rt.request import Request
from bootpig_rt.serving.triton_model import TritonPythonModel
from bootpig_rt.serving.triton_tensors import INPUTS, text_tensor

WAIT_S = 60.0


def map_file(value: int) -> bytes:
    """A PNG file of a map: a slope that ends in a value."""
    rows = np.linspace(0, value, 32).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.repeat(rows[:, None], 32, axis=1)).save(file, "PNG")
    return file.getvalue()


MAP = map_file(200)


class Tensor:
    """A tensor of Triton; strings are read as arrays of bytes."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array

    def to_dlpack(self) -> npt.NDArray[Any]:
        return self._array

    @staticmethod
    def from_dlpack(name: str, capsule: npt.NDArray[Any]) -> Tensor:
        return Tensor(name, capsule)


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Response:
    def __init__(
        self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None
    ) -> None:
        self.outputs = {one.name(): one.as_numpy() for one in output_tensors or []}
        self.error = error


class Sender:
    """Keeps what is sent, and refuses anything after the last response as Triton does."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.is_closed = threading.Event()
        self.wants_no_more = False

    def send(self, response: Response, flags: int = 0) -> None:
        assert not self.is_closed.is_set()
        self.responses.append(response)
        if flags:
            self.is_closed.set()

    def is_cancelled(self) -> bool:
        return self.wants_no_more


class Asked:
    """A request; its tensors are gone when `execute` has returned, as Triton's are."""

    def __init__(
        self, tensors: Mapping[str, Any], wanted: tuple[str, ...] = (), timeout_us: int = 0
    ) -> None:
        kinds = {one.name: one.kind for one in INPUTS}
        kind = {"TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_FP32": np.float32}
        self.tensors: dict[str, Tensor] | None = {}
        for name, value in tensors.items():
            values = value if isinstance(value, list) else [value]
            if kinds[name] == "TYPE_STRING":
                array: npt.NDArray[Any] = text_tensor(values)
            else:
                array = np.array(values, dtype=kind[kinds[name]])
            self.tensors[name] = Tensor(name, array)
        self.sender, self._wanted, self._timeout_us = Sender(), wanted, timeout_us

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> list[str]:
        return list(self._wanted)

    def timeout(self) -> int:
        return self._timeout_us

    def request_id(self) -> str:
        return "7"

    def answer(self) -> Response:
        """The last response, when it is there."""
        assert self.sender.is_closed.wait(WAIT_S)
        return self.sender.responses[-1]


def input_tensor(request: Asked, name: str) -> Tensor | None:
    assert request.tensors is not None, "read after execute returned"
    return request.tensors.get(name)


@pytest.fixture(scope="module", autouse=True)
def _triton_utils() -> Iterator[types.ModuleType]:
    module = types.ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        get_input_tensor_by_name=input_tensor,
        using_decoupled_model_transaction_policy=lambda config: config["model_transaction_policy"][
            "decoupled"
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        yield module


def started(
    folder: Path, *, is_decoupled: bool, pair: Path | None = None, **parameters: str
) -> TritonPythonModel:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "pair").symlink_to(pair or default_model())
    told = {"model": "pair", "max_batch": "4", "max_waiting": "8", "threads": "1"} | parameters
    config = {
        "model_transaction_policy": {"decoupled": is_decoupled},
        "parameters": {name: {"string_value": value} for name, value in told.items()},
    }
    model = TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonPythonModel]:
    """A model that answers once."""
    model = started(tmp_path_factory.mktemp("triton"), is_decoupled=False)
    yield model
    model.finalize()


@pytest.fixture(scope="module")
def streaming(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle_folder: Path
) -> Iterator[TritonPythonModel]:
    """A model that answers several times."""
    folder = tmp_path_factory.mktemp("triton")
    model = started(folder, is_decoupled=True, pair=tiny_bundle_folder)
    yield model
    model.finalize()


@pytest.fixture(scope="module")
def frog(root: Path) -> bytes:
    """A file of a reference image."""
    return (root / "bootpig_rt" / "assets" / "subjects" / "frog.png").read_bytes()


def executed(model: TritonPythonModel, *requests: Asked) -> Any:
    returned = model.execute(requests)
    for request in requests:
        request.tensors = None
    return returned


TWO_STEPS = {"NUM_INFERENCE_STEPS": 2, "SEED": 5}


def test_a_picture_of_a_subject_comes_with_all_outputs(
    model: TritonPythonModel, frog: bytes
) -> None:
    asked = Asked(
        {
            "PROMPT": b"a photo of a frog, on a beach",
            "REFERENCE_IMAGES": frog,
            "REFERENCE_PROMPT": b"a photo of a frog",
            "NUM_IMAGES": 2,
            **TWO_STEPS,
        }
    )
    assert executed(model, asked) == [None]  # the answer comes by the sender
    outputs = asked.answer().outputs
    side = read_pair_config(default_model() / "pair.json").sample_size_px
    assert outputs["IMAGES"].shape == (2, side, side, 3)
    assert outputs["IMAGES"].dtype == np.uint8
    first, second = (json.loads(text) for text in outputs["PARAMETERS"])
    assert (first["seed"], second["seed"], first["num_references"]) == (5, 6, 1)
    assert outputs["PROGRESS"].tolist() == [4, 4]
    assert len(asked.sender.responses) == 1


@pytest.fixture(scope="module")
def controlled(
    tmp_path_factory: pytest.TempPathFactory, controlled_bundle_folder: Path
) -> Iterator[TritonPythonModel]:
    """A model whose pair has controls of depth and outlines."""
    folder = tmp_path_factory.mktemp("triton")
    model = started(folder, is_decoupled=False, pair=controlled_bundle_folder)
    yield model
    model.finalize()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [("depth", 1.0, (0.0, 1.0)), ("outline", 1.0, (0.0, 1.0))]),
        (
            {"CONTROL_SCALES": 0.7, "CONTROL_INTERVALS": [[0.0, 0.6]]},
            [("depth", 0.7, (0.0, 0.6)), ("outline", 0.7, (0.0, 0.6))],
        ),
        (
            {"CONTROL_SCALES": [2.0, 0.5], "CONTROL_INTERVALS": [[0.0, 0.5], [0.5, 1.0]]},
            [("depth", 0.5, (0.5, 1.0)), ("outline", 2.0, (0.0, 0.5))],
        ),
    ],
)
def test_a_picture_follows_maps(
    controlled: TritonPythonModel, more: dict[str, Any], expected: list[Any]
) -> None:
    maps = {
        "CONTROL_KINDS": [b"outline", b"depth"],
        "CONTROL_IMAGES": [map_file(255), map_file(90)],
    }
    tensors = {"PROMPT": b"a dog", "NUM_INFERENCE_STEPS": 4, "SEED": 5}
    plain, asked = Asked(tensors), Asked({**tensors, **maps, **more})
    executed(controlled, plain, asked)
    outputs = asked.answer().outputs
    (told,) = (json.loads(text) for text in outputs["PARAMETERS"])
    found = [(one["kind"], one["scale"], tuple(one["interval"])) for one in told["controls"]]
    assert found == expected
    assert (outputs["IMAGES"] != plain.answer().outputs["IMAGES"]).any()
    files = dict(zip(("outline", "depth"), maps["CONTROL_IMAGES"], strict=True))
    controls = tuple(
        Control.load(kind, files[kind], scale=scale, interval=interval)
        for kind, scale, interval in expected
    )
    request = Request(prompt="a dog", num_inference_steps=4, seed=5, controls=controls)
    result = controlled._pipeline.generate([request])
    np.testing.assert_array_equal(outputs["IMAGES"][0], np.asarray(result.images[0]))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"CONTROL_KINDS": b"depth"}, "CONTROL_KINDS is given without CONTROL_IMAGES"),
        ({"CONTROL_SCALES": 0.5}, "CONTROL_SCALES is given without CONTROL_IMAGES"),
        ({"CONTROL_IMAGES": b"x"}, "CONTROL_KINDS has 0 names for 1 CONTROL_IMAGES"),
        ({"CONTROL_IMAGES": b"x", "CONTROL_KINDS": b"depth"}, "control_image depth is not a pict"),
        ({"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"Depth!"}, "the kind of a control is 'Depth!'"),
        ({"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"normal"}, "no such control: it has depth, out"),
        (
            {"CONTROL_IMAGES": [MAP, MAP], "CONTROL_KINDS": [b"depth", b"depth"]},
            "controls are depth, depth, expected at most",
        ),
        (
            {"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"depth", "CONTROL_SCALES": [0.5, 1.0]},
            "CONTROL_SCALES has shape [2], expected [1] or [1]",
        ),
        (
            {"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"depth", "CONTROL_INTERVALS": [0.5]},
            "CONTROL_INTERVALS has shape [1], expected [1, 2]",
        ),
        (
            {"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"depth", "CONTROL_INTERVALS": [[0.5, 0.1]]},
            "control_interval is (0.5, 0.1)",
        ),
        ({"CONTROL_IMAGES": MAP, "CONTROL_KINDS": b"depth", "WIDTH": 64}, "control_image is 32x32"),
    ],
)
def test_maps_that_cannot_be_followed_are_an_invalid_argument(
    controlled: TritonPythonModel, tensors: dict[str, Any], told: str
) -> None:
    asked = Asked({"PROMPT": b"a dog", **TWO_STEPS} | tensors)
    executed(controlled, asked)
    error = asked.answer().error
    assert error is not None
    assert told in error.message()
    assert error.code() == TritonError.INVALID_ARG


def test_only_what_is_asked_for_is_made_and_a_png_says_how(
    model: TritonPythonModel, tmp_path: Path
) -> None:
    asked = Asked({"PROMPT": b"a red ball", **TWO_STEPS}, wanted=("PNG",))
    executed(model, asked)
    outputs = asked.answer().outputs
    assert list(outputs) == ["PNG"]
    (tmp_path / "out.png").write_bytes(outputs["PNG"][0])
    parameters = read_parameters(tmp_path / "out.png")
    assert parameters is not None
    assert parameters["prompt"] == "a red ball"


def test_the_same_images_again_are_not_encoded_again_and_a_file_gives_the_same_picture(
    model: TritonPythonModel, frog: bytes, tmp_path: Path
) -> None:
    tensors = {
        "PROMPT": b"a frog, on a beach",
        "REFERENCE_IMAGES": frog,
        "REFERENCE_PROMPT": b"a frog",
        **TWO_STEPS,
    }
    once, again = Asked(tensors), Asked(tensors)
    executed(model, once)
    first = once.answer().outputs["IMAGES"]
    executed(model, again)
    kept = len(model._subjects)
    np.testing.assert_array_equal(again.answer().outputs["IMAGES"], first)
    assert len(model._subjects) == kept

    model._pipeline.encode_subject(frog, "a frog").save(tmp_path / "frog.subject")
    by_file = {"PROMPT": tensors["PROMPT"], "SUBJECT": (tmp_path / "frog.subject").read_bytes()}
    filed = Asked(by_file | TWO_STEPS)
    executed(model, filed)
    answer = filed.answer().outputs
    np.testing.assert_array_equal(answer["IMAGES"], first)
    assert answer["REFERENCE_PASSES"].tolist() == [0]


def test_a_short_request_passes_a_long_one(model: TritonPythonModel) -> None:
    long = Asked({"PROMPT": b"a red ball", "NUM_INFERENCE_STEPS": 400})
    short = Asked({"PROMPT": b"a blue ball", "NUM_INFERENCE_STEPS": 2})
    executed(model, long)
    executed(model, short)
    assert short.answer().error is None
    assert not long.sender.is_closed.is_set()
    long.sender.wants_no_more = True  # and one that its client gave up ends within a step
    error = long.answer().error
    assert error is not None
    assert error.code() == TritonError.CANCELLED


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"NUM_INFERENCE_STEPS": 0}, "num_inference_steps is 0"),
        ({"SOLVER": b"euler"}, "solver"),
        ({"WIDTH": 63}, "width is 63"),
        ({"PROMPT": b"\xff\xfe"}, "PROMPT is no text"),
        ({"PROMPT": b"x" * 50_000}, "PROMPT has 50000 bytes"),
        ({"SEED": [1, 2]}, "SEED has shape [2]"),
        ({"PREVIEW_EVERY": 0}, "PREVIEW_EVERY is 0"),
        ({"REFERENCE_PROMPT": b"a dog"}, "go together"),
        ({"MASK_IMAGE": b"x"}, "MASK_IMAGE is given without IMAGE"),
        ({"IMAGE": b"no image"}, "image is not a picture"),
        ({"STRENGTH": 0.5}, "strength is given without an image"),
        ({"REFERENCE_IMAGES": b"no image", "REFERENCE_PROMPT": b"a dog"}, "image"),
        ({"SUBJECT": b"no subject"}, "request.subject"),
        ({"SUBJECT": b"x", "REFERENCE_PROMPT": b"a dog"}, "one or the other"),
    ],
)
def test_what_cannot_be_drawn_is_an_invalid_argument(
    model: TritonPythonModel, tensors: dict[str, Any], told: str
) -> None:
    asked = Asked({"PROMPT": b"a red ball"} | tensors)
    executed(model, asked)
    error = asked.answer().error
    assert error is not None
    assert told in error.message()
    assert error.code() == TritonError.INVALID_ARG


@pytest.mark.parametrize("broken", ["decode", "encode_image"])
def test_what_nobody_foresaw_is_answered_without_its_text(
    model: TritonPythonModel, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a path of the server")

    if broken == "decode":
        monkeypatch.setattr(model._pipeline._backend, "decode", fail)
    else:
        monkeypatch.setattr("bootpig_rt.serving.triton_model.encode_image", fail)
    asked = Asked({"PROMPT": b"a ball", **TWO_STEPS})
    executed(model, asked)
    error = asked.answer().error
    assert error is not None
    assert error.code() == TritonError.INTERNAL
    assert "path" not in error.message()


def test_a_full_engine_is_unavailable(model: TritonPythonModel) -> None:
    crowd = [Asked({"PROMPT": b"a ball", "NUM_IMAGES": 8, **TWO_STEPS}) for _ in range(4)]
    executed(model, *crowd)
    errors = [error for one in crowd if (error := one.answer().error) is not None]
    assert errors
    for error in errors:
        assert error.code() == TritonError.UNAVAILABLE
        assert "places to wait are free" in error.message()


def test_the_timeout_of_a_request_is_its_deadline(model: TritonPythonModel) -> None:
    late = Asked({"PROMPT": b"a ball", "NUM_INFERENCE_STEPS": 400}, timeout_us=20_000)
    executed(model, late)
    error = late.answer().error
    assert error is not None
    assert error.code() == TritonError.UNAVAILABLE
    assert "ran out of its 0.02 s" in error.message()


def test_a_stream_has_previews_in_order_and_the_picture_last(
    streaming: TritonPythonModel,
) -> None:
    asked = Asked(
        {"PROMPT": b"a red ball", "NUM_INFERENCE_STEPS": 4, "PREVIEW_EVERY": 2, "SEED": 1}
    )
    assert executed(streaming, asked) is None
    asked.answer()
    told = [response.outputs["PROGRESS"].tolist() for response in asked.sender.responses]
    assert told == [[2, 4], [4, 4], [4, 4]]
    assert ["PNG" in response.outputs for response in asked.sender.responses] == [
        False,
        False,
        True,
    ]


def test_a_model_that_ends_answers_what_it_took(tmp_path: Path, tiny_bundle_folder: Path) -> None:
    model = started(tmp_path, is_decoupled=False, pair=tiny_bundle_folder)
    asked = [Asked({"PROMPT": b"a red ball", "NUM_INFERENCE_STEPS": 40}) for _ in range(3)]
    executed(model, *asked)
    model.finalize()
    assert all(one.sender.is_closed.is_set() for one in asked)
    assert [one.answer().error for one in asked] == [None] * 3


def test_a_triton_that_was_built_for_another_numpy_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Tensor, "from_dlpack", staticmethod(lambda name, _: Tensor(name, np.zeros(6, np.int32)))
    )
    with pytest.raises(BackendUnavailable, match="built for another numpy"):
        started(tmp_path, is_decoupled=False)
