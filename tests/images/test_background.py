from __future__ import annotations

import importlib
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bootpig_rt.errors import BackendUnavailable, CheckpointError, ImageError, ParameterError
from bootpig_rt.images.background import GrabCutRemover, OnnxBackgroundRemover, load_remover
from bootpig_rt.images.picture import prepare_reference

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def texture(size: tuple[int, int], tint: tuple[float, float, float], seed: int) -> Image.Image:
    """Cloudy noise of several scales: grass, sand or water, by its tint."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0]))
    for cells in (4, 16, 64):
        values = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        total += np.asarray(values.resize(size, Image.Resampling.BICUBIC), float) / 3
    return Image.fromarray((total[..., None] * tint).clip(0, 255).astype(np.uint8))


def teapot() -> Image.Image:
    image = Image.new("RGBA", (400, 400))
    draw = ImageDraw.Draw(image)
    draw.ellipse([240, 130, 390, 280], outline=(120, 20, 40, 255), width=24)
    draw.polygon([(20, 120), (60, 110), (130, 260), (90, 270)], fill=(150, 30, 50, 255))
    draw.ellipse([70, 90, 330, 350], fill=(180, 40, 60, 255))
    draw.ellipse([110, 150, 190, 210], fill=(235, 170, 180, 255))
    draw.ellipse([170, 50, 230, 110], fill=(240, 200, 70, 255))
    return image


def fish() -> Image.Image:
    image = Image.new("RGBA", (400, 400))
    draw = ImageDraw.Draw(image)
    draw.polygon([(300, 200), (395, 110), (395, 290)], fill=(240, 120, 20, 255))
    draw.ellipse([10, 100, 330, 300], fill=(250, 150, 40, 255))
    for left in (120, 200, 270):
        draw.rectangle([left, 125, left + 24, 275], fill=(250, 250, 245, 255))
    draw.ellipse([60, 160, 100, 200], fill=(20, 20, 30, 255))
    return image


def tree() -> Image.Image:
    image = Image.new("RGBA", (400, 400))
    draw = ImageDraw.Draw(image)
    draw.rectangle([170, 260, 230, 395], fill=(110, 70, 30, 255))
    for top, half in ((20, 90), (90, 130), (170, 170)):
        points = [(200, top), (200 - half, top + 120), (200 + half, top + 120)]
        draw.polygon(points, fill=(20, 110 - top // 4, 50, 255))
    return image


def composite(
    subject: Image.Image, size: tuple[int, int], tint: tuple[float, float, float], seed: int
) -> tuple[Image.Image, Mask]:
    """The subject somewhat off the middle of a texture, and where it is."""
    picture = texture(size, tint, seed)
    side = round(min(size) * 0.72)
    small = subject.resize((side, side), Image.Resampling.LANCZOS)
    where = (round((size[0] - side) * 0.4), round((size[1] - side) * 0.6))
    picture.paste(small, where, small)
    mask = Image.new("L", size)
    mask.paste(small.getchannel("A"), where)
    return picture, np.asarray(mask) > 127


def iou(alpha: Image.Image, expected: Mask) -> float:
    found = np.asarray(alpha) > 127
    return float((found & expected).sum() / (found | expected).sum())


CASES = [
    ("teapot on grass", teapot, (300, 300), (0.5, 1.1, 0.4)),
    ("teapot on water", teapot, (480, 300), (0.4, 0.8, 1.2)),
    ("fish on water", fish, (300, 300), (0.3, 0.7, 1.1)),
    ("fish on slate", fish, (900, 1200), (0.6, 0.6, 0.7)),
    ("tree on sand", tree, (300, 400), (1.3, 1.1, 0.8)),
    ("tree on brick", tree, (256, 256), (1.2, 0.5, 0.4)),
]


@pytest.fixture(scope="module")
def grabcut() -> GrabCutRemover:
    pytest.importorskip("cv2", reason="the extra `background` is not installed")
    return GrabCutRemover()


@pytest.mark.parametrize(
    ("subject", "size", "tint"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_grabcut_finds_the_subject_on_a_texture(
    grabcut: GrabCutRemover, subject: Any, size: tuple[int, int], tint: tuple[float, float, float]
) -> None:
    picture, expected = composite(subject(), size, tint, seed=len(CASES))
    alpha = grabcut(picture)
    assert alpha.mode == "L"
    assert alpha.size == picture.size
    assert iou(alpha, expected) > 0.85


def test_grabcut_gives_the_same_mask_every_time(grabcut: GrabCutRemover) -> None:
    picture, _ = composite(teapot(), (200, 200), (0.5, 1.1, 0.4), seed=1)
    before = picture.tobytes()
    assert grabcut(picture).tobytes() == grabcut(picture).tobytes()
    assert picture.tobytes() == before


def test_grabcut_reference_is_as_good_as_the_cut_out(grabcut: GrabCutRemover) -> None:
    subject = fish()
    picture, _ = composite(subject, (300, 300), (0.3, 0.7, 1.1), seed=3)
    difference = prepare_reference(picture, 64, grabcut) - prepare_reference(subject, 64)
    assert np.abs(difference).mean() < 0.1


@pytest.mark.parametrize("size", [(8, 8), (9, 500), (40, 30)])
def test_picture_of_one_colour_has_no_subject(
    grabcut: GrabCutRemover, size: tuple[int, int]
) -> None:
    with pytest.raises(ImageError, match="all background to the remover"):
        prepare_reference(Image.new("RGB", size, "red"), 64, grabcut)


@pytest.mark.parametrize(
    ("module", "name", "line"),
    [
        ("cv2", "grabcut", "pip install 'bootpig-rt[background]'"),
        ("onnxruntime", "a.onnx", "pip install 'bootpig-rt[cpu]'"),
    ],
)
def test_missing_package_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, line: str
) -> None:
    original = importlib.import_module

    def refuse(wanted: str, package: str | None = None) -> Any:
        if wanted == module:
            raise ImportError(wanted)
        return original(wanted, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BackendUnavailable) as caught:
        load_remover(name)
    assert line in str(caught.value)


def test_unknown_remover_is_refused() -> None:
    with pytest.raises(
        ParameterError, match=r"'magic', expected 'grabcut' or the path of a \.onnx"
    ):
        load_remover("magic")


def test_name_leads_to_the_remover(grabcut: GrabCutRemover) -> None:
    assert isinstance(load_remover("grabcut"), type(grabcut))


# ONNX files are protobuf messages; the few fields that a model of these tests has are written here
# by hand, so that the tests need no further package.


def _field(number: int, value: int | bytes | str) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while True:
            value, low = value >> 7, value & 127
            out.append(low | (128 if value else 0))
            if not value:
                return bytes(out)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def _value(name: str, shape: list[int | str]) -> bytes:
    dims = b"".join(
        _field(1, _field(1, dim) if isinstance(dim, int) else _field(2, dim)) for dim in shape
    )
    tensor = _field(1, 1) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def _node(kind: str, inputs: list[str], outputs: list[str], axis: int | None = None) -> bytes:
    data = b"".join(_field(1, name) for name in inputs)
    data += b"".join(_field(2, name) for name in outputs) + _field(4, kind)
    if axis is not None:
        data += _field(5, _field(1, "axis") + _field(3, axis) + _field(20, 2))
    return data


def _scalar(name: str, value: float) -> bytes:
    return _field(2, 1) + _field(8, name) + _field(9, struct.pack("<f", value))


def write_red_finder(
    path: Path, shape: list[int | str], *, sigmoid: bool = True, second_output: str = ""
) -> Path:
    """A network that takes for subject whatever is redder than blue: 40 (red - blue) - 4."""
    logits = "logits" if sigmoid else "mask"
    nodes = [
        _node("Split", ["image"], ["red", "green", "blue"], axis=1),
        _node("Sub", ["red", "blue"], ["difference"]),
        _node("Mul", ["difference", "scale"], ["scaled"]),
        _node("Sub", ["scaled", "offset"], [logits]),
    ]
    if sigmoid:
        nodes.append(_node("Sigmoid", ["logits"], ["mask"]))
    outputs = [_value("mask", [1, 1, "h", "w"])]
    if second_output:
        nodes.append(_node("Identity", ["mask"], [second_output]))
        nodes.append(_node("Mul", ["mask", "zero"], ["side"]))
        outputs = [_value("side", [1, 1, "h", "w"]), _value(second_output, [1, 1, "h", "w"])]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "g")
    for name, value in (("scale", 40.0), ("offset", 4.0), ("zero", 0.0)):
        graph += _field(5, _scalar(name, value))
    graph += _field(11, _value("image", shape))
    graph += b"".join(_field(12, output) for output in outputs)
    model = _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 12))
    path.write_bytes(model)
    return path


@pytest.fixture
def onnxruntime() -> Any:
    return pytest.importorskip("onnxruntime", reason="the extra `cpu` is not installed")


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize(
    ("shape", "size_px"),
    [([1, 3, 320, 320], None), ([1, 3, 1024, 1024], None), (["n", 3, "h", "w"], 320)],
)
@pytest.mark.usefixtures("onnxruntime")
def test_onnx_file_finds_the_subject(
    tmp_path: Path, shape: list[int | str], size_px: int | None, sigmoid: bool
) -> None:
    path = write_red_finder(tmp_path / "m.onnx", shape, sigmoid=sigmoid)
    picture, expected = composite(fish(), (480, 300), (0.3, 0.7, 1.1), seed=3)
    # The white stripes and the eye are not red: the network misses them by its nature.
    colours = np.asarray(picture, int)
    expected &= colours[..., 0] > colours[..., 2] + 25
    alpha = OnnxBackgroundRemover(path, size_px=size_px)(picture)
    assert alpha.mode == "L"
    assert alpha.size == picture.size
    assert iou(alpha, expected) > 0.9


@pytest.mark.parametrize(
    ("shape", "normalization", "expected"),
    [
        ([1, 3, 320, 320], None, "imagenet"),
        ([1, 3, 1024, 1024], None, "isnet"),
        ([1, 3, 1024, 1024], "imagenet", "imagenet"),
        ([1, 3, 320, 320], "isnet", "isnet"),
    ],
)
@pytest.mark.usefixtures("onnxruntime")
def test_input_is_normalised_as_the_network_was_trained(
    tmp_path: Path, shape: list[int | str], normalization: Any, expected: str
) -> None:
    remover = OnnxBackgroundRemover(
        write_red_finder(tmp_path / "m.onnx", shape), normalization=normalization
    )
    red, blue = 120, 100
    if expected == "isnet":
        difference = (red - blue) / 255
    else:
        difference = (red / 255 - 0.485) / 0.229 - (blue / 255 - 0.406) / 0.225
    mask = 255 / (1 + math.exp(4 - 40 * difference))
    alpha = remover(Image.new("RGB", (10, 10), (red, 110, blue)))
    assert np.asarray(alpha)[5, 5] == pytest.approx(mask, abs=1)


@pytest.mark.usefixtures("onnxruntime")
def test_output_named_output_is_taken_before_the_first(tmp_path: Path) -> None:
    path = write_red_finder(tmp_path / "m.onnx", [1, 3, 320, 320], second_output="output")
    alpha = OnnxBackgroundRemover(path)(Image.new("RGB", (9, 9), "red"))
    assert np.asarray(alpha).min() == 255


@pytest.mark.usefixtures("onnxruntime")
def test_bad_onnx_file_is_refused(tmp_path: Path) -> None:
    whole = write_red_finder(tmp_path / "m.onnx", [1, 3, 320, 320]).read_bytes()
    bad: list[tuple[bytes | None, str]] = [
        (None, "there is no file"),
        (b"", "no ONNX file that can be loaded"),
        (b"hello", "no ONNX file that can be loaded"),
        (whole[: len(whole) // 2], "no ONNX file that can be loaded"),
        (
            write_red_finder(tmp_path / "m.onnx", [3, 320, 320]).read_bytes(),
            "expected one image|no ONNX file",
        ),
    ]
    for index, (contents, expected) in enumerate(bad):
        path = tmp_path / f"{index}.onnx"
        if contents is not None:
            path.write_bytes(contents)
        with pytest.raises(CheckpointError, match=expected) as caught:
            OnnxBackgroundRemover(path)
        assert caught.value.path == path
    path = write_red_finder(tmp_path / "open.onnx", ["n", 3, "h", "w"])
    with pytest.raises(ParameterError, match="leaves the size of its input open; pass size_px"):
        OnnxBackgroundRemover(path)
    with pytest.raises(ParameterError, match="normalization is 'none'"):
        OnnxBackgroundRemover(path, size_px=64, normalization="none")  # type: ignore[arg-type]
