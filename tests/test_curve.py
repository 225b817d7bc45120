"""Curves as files: what is read is what was written, and what is no curve says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.curve import (
    Curve,
    CurvePoint,
    Measure,
    curve_path,
    load_curve,
    save_curve,
    settings_of,
)
from bootpig_rt.errors import CheckpointError, ParameterError

ONE = Measure(1.0, 0.9, 1.1)


def point(name: str, **changes: Any) -> CurvePoint:
    fields: dict[str, Any] = {
        "name": name, "label": name, "fingerprint": "ab", "model": "small", "settings": {},
        "work": 1.0, "time": ONE, "measures": {"psnr_db": ONE}, "changes": {"psnr_db": ONE},
        "difference_db": 40.0, "fidelity": 1.0,
    }  # fmt: skip
    return CurvePoint(**{**fields, **changes})


def curve(*points: CurvePoint) -> Curve:
    return Curve("small", "ab", "full", 5, 10, {"processor": "one"}, "tune", points)


CURVE = curve(
    point("full"),
    point("cache:2", settings={"approximation": "cache:2", "guidance_interval": (0.0, 0.5)}),
)


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = curve_path(tmp_path / "pair")
    assert path.name == "pair.curve.json"
    save_curve(CURVE, path)
    assert load_curve(path) == CURVE
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    settings = settings_of(load_curve(path).point("cache:2"))
    assert dict(settings) == {"approximation": "cache:2", "guidance_interval": (0.0, 0.5)}


def test_without_a_curve_it_says_how_to_measure_one(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no curve .*measure one with: bootpig-rt tune"):
        load_curve(tmp_path / "none.curve.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(points=[]),
        lambda file: file.update(full="another"),
        lambda file: file.update(format=2),
        lambda file: file.update(more=1),
        lambda file: file["points"][0].update(work=0),
        lambda file: file["points"][0].update(fidelity="much"),
        lambda file: file["points"][0].update(settings={"prompt": "a dog"}),
        lambda file: file["points"][0].update(settings={"approximation": "cache:0"}),
        lambda file: file["points"][0].update(settings={"num_inference_steps": 0}),
        lambda file: file["points"][0]["time"].pop("low"),
    ],
)
def test_a_file_that_is_no_curve_is_refused_with_what_to_do(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "pair.curve.json"
    save_curve(CURVE, path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"is no curve of a pair: .*measure it again"):
        load_curve(path)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"points":1e999}']
)
def test_bytes_that_are_no_curve_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "pair.curve.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is no curve of a pair"):
        load_curve(path)
