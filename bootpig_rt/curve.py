"""Curves: what cheaper settings of a pair cost and keep, as `bootpig-rt tune --measure` found it.

A curve is a JSON file beside the folder of a pair or a bundle. This file reads and writes curves;
it measures nothing and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.request import PictureSettings

SUFFIX = ".curve.json"
"""What is appended to the name of a pair's folder."""

FORMAT: Literal[1] = 1

Number = Annotated[float, Meta(ge=-1e9, le=1e9)]


class Measure(Struct, frozen=True, forbid_unknown_fields=True):
    """A mean over pictures and its 95 % interval."""

    value: Number
    low: Number
    high: Number


class CurvePoint(Struct, frozen=True, forbid_unknown_fields=True):
    """One way to draw a picture, beside the full setting of the pair.

    Attributes:
        name: `cache:3`.
        label: For people.
        fingerprint: Of the pair that drew it; a student's differs from the curve's own.
        model: Name of that pair.
        settings: What `pipe(...)` takes: what differs from the defaults of the curve's pair.
        work: Multiplications of the U-Net in all steps, as a share of those of the full setting.
        time: Of a picture of a known subject, as a share of that of the full setting.
        measures: By name of a judge, of the pictures: `psnr_db`, `perceptual`, `network`, `scene`.
        changes: The same as differences to the full setting, picture by picture.
        difference_db: Signal-to-noise ratio of all pixels to the full setting's; 200 where equal.
        fidelity: 1 as faithful as the full setting, 0 as a picture that never saw its subject; by
            the judge that finds the most lost.
    """

    name: str
    label: str
    fingerprint: str
    model: str
    settings: dict[str, str | int | float | tuple[float, float]]
    work: Annotated[float, Meta(gt=0, le=1000)]
    time: Measure
    measures: dict[str, Measure]
    changes: dict[str, Measure]
    difference_db: Number
    fidelity: Number


class Curve(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of one pair.

    Attributes:
        pair: Its name.
        fingerprint: Of its weights and configuration.
        full: Name of the point that the others are compared with.
        num_pictures: That each point was judged by.
        rounds: That each point was timed in.
        machine: Processor, threads, versions, and how busy it was.
        command: That makes the file anew.
        points: In the order of their groups.
        format: Of the file.
    """

    pair: str
    fingerprint: str
    full: str
    num_pictures: int
    rounds: int
    machine: dict[str, str]
    command: str
    points: Annotated[tuple[CurvePoint, ...], Meta(min_length=1)]
    format: Literal[1] = FORMAT

    def point(self, name: str) -> CurvePoint:
        """The point of that name.

        Raises:
            ParameterError: There is none.
        """
        for point in self.points:
            if point.name == name:
                return point
        names = ", ".join(point.name for point in self.points)
        raise ParameterError(f"no point {name!r} in the curve of {self.pair}, expected: {names}")


def curve_path(folder: Path) -> Path:
    """Where the curve of a pair or a bundle lies: beside it, since a bundle holds nothing else."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}{SUFFIX}")


def save_curve(curve: Curve, path: Path) -> None:
    """Write a curve, a point a line, whole or not at all.

    Raises:
        StorageError: The file cannot be written.
    """
    lines = ",\n".join(msgspec.json.encode(point).decode() for point in curve.points)
    head = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(curve, points=())))
    text = head.decode().replace('"points": []', f'"points": [\n{lines}\n]', 1)
    atomic_write_text(path, text + "\n")


def load_curve(path: Path) -> Curve:
    """Read a curve.

    Raises:
        ParameterError: There is none; says how to make one.
        CheckpointError: The file is no curve.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ParameterError(
            f"no curve {path}; measure one with: bootpig-rt tune --measure --data FOLDER"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}", path) from error
    try:
        curve = msgspec.json.decode(data, type=Curve)
        for point in curve.points:
            settings_of(point)
        curve.point(curve.full)
    except (msgspec.MsgspecError, UnicodeDecodeError, ParameterError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no curve of a pair: {error}; measure it again with bootpig-rt tune "
            "--measure",
            path,
        ) from error
    return curve


def settings_of(point: CurvePoint) -> PictureSettings:
    """What `pipe(...)` takes to draw as a point of a curve does.

    Raises:
        ParameterError: The file names a setting that there is not, or a value that it may not have.
    """
    return PictureSettings(**dict(_known(point.settings)))


def _known(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = {field.name for field in fields(PictureSettings)}
    for name, value in given.items():
        if name not in names:
            raise ParameterError(
                f"settings hold {name!r}, expected some of: {', '.join(sorted(names))}"
            )
        yield name, value
