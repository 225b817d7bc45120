"""The curve of a pair, made of what suite `quality` measured; see `bootpig_rt.curve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bootpig_rt.benchmarks.judged import MEASURES
from bootpig_rt.benchmarks.result import Row, SuiteResult
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.suites import run_suite
from bootpig_rt.benchmarks.suites.quality import BASE, NO_SUBJECT, Case, cases_of
from bootpig_rt.bundle.bundle import read_manifest
from bootpig_rt.curve import Curve, CurvePoint, Measure
from bootpig_rt.errors import ParameterError

_EQUAL_DB = 200.0


def measure_curve(settings: Settings) -> Curve:
    """Run the suite and make the curve of its rows; goes on where an interrupted run stopped.

    Raises:
        ParameterError: `settings.pair` is no bundle, or the drawings that judges need are missing.
    """
    names = settings.only or tuple(case.name for case in _settings_cases(settings))
    return curve_of(run_suite("quality", replace(settings, only=names)), settings)


def curve_of(result: SuiteResult, settings: Settings) -> Curve:
    """The curve that a result of suite `quality` holds.

    Raises:
        ParameterError: The result is of another suite, or lacks the control.
    """
    rows = {row.name: row for row in result.rows}
    if result.suite != "quality" or BASE not in rows or NO_SUBJECT not in rows:
        raise ParameterError(
            f"suite is {result.suite!r}, expected 'quality' with its rows {BASE!r} and "
            f"{NO_SUBJECT!r}; run bootpig-rt tune --measure"
        )
    cases = {case.name: case for case in _settings_cases(settings)}
    names = {bundle: _pair_of(bundle) for bundle in {case.bundle for case in cases.values()}}
    points = [
        _point(row, cases[name], names, rows)
        for name, row in rows.items()
        if name in cases and name != NO_SUBJECT and row.samples_ms
    ]
    mine = names[settings.pair]
    machine = result.machine
    about = {} if machine is None else {
        "processor": machine.processor,
        "threads": f"{machine.threads} of {machine.cores} cores",
        "commit": machine.commit,
        "started": machine.started,
        "versions": ", ".join(f"{name} {text}" for name, text in sorted(machine.versions.items())),
        "busy": "unknown" if machine.busy_share is None else f"{machine.busy_share:.0%} by others",
        "noise": f"{machine.noise:.0%}",
    }  # fmt: skip
    return Curve(
        pair=mine[0],
        fingerprint=mine[1],
        full=BASE,
        num_pictures=int(rows[BASE].values["pictures"] or 0),
        rounds=len(rows[BASE].samples_ms),
        machine=about,
        command="" if machine is None else machine.command,
        points=tuple(points),
    )


def _settings_cases(settings: Settings) -> list[Case]:
    """Cases that differ by what a picture asks for: a precision is chosen with the backend."""
    return [case for case in cases_of(settings) if not case.openvino]


def _pair_of(bundle: Path) -> tuple[str, str]:
    """Name and fingerprint."""
    pair = read_manifest(bundle).pair
    return pair.name, pair.fingerprint


def _point(
    row: Row, case: Case, names: Mapping[Path, tuple[str, str]], rows: Mapping[str, Row]
) -> CurvePoint:
    base, control = rows[BASE], rows[NO_SUBJECT]
    is_base = row.name == BASE
    changes = {} if is_base else {name: _measure(row, f"{name}_change") for name in MEASURES}
    name, fingerprint = names[case.bundle]
    ratio = row.ratio
    time = Measure(1.0, 1.0, 1.0)
    if ratio is not None and not is_base:  # of the baseline's time over the row's
        time = Measure(*(_digits(1 / each) for each in (ratio.value, ratio.high, ratio.low)))
    return CurvePoint(
        name=row.name,
        label=row.label,
        fingerprint=fingerprint,
        model=name,
        settings=case.options,
        work=_digits((row.values["work"] or 0) / (base.values["work"] or 1)),
        time=time,
        measures={name: _measure(row, name) for name in MEASURES},
        changes=changes,
        difference_db=_EQUAL_DB if is_base else _digits(row.values["from_base_db"] or 0),
        fidelity=round(fidelity(row, base, control), 4),
    )


def fidelity(row: Row, base: Row, control: Row) -> float:
    """1 as faithful as the full setting, 0 as a picture that never saw its subject.

    By the judge that finds the most lost: pixels and perceptual distance of the subject between the
    two, scenes as a share of the full setting's.
    """

    def value(of: Row, name: str) -> float:
        return float(of.values[name] or 0.0)

    found = [
        (value(row, name) - value(control, name)) / (value(base, name) - value(control, name))
        for name in ("psnr_db", "perceptual")
        if value(base, name) != value(control, name)
    ]
    scene = value(base, "scene")
    return min([*found, value(row, "scene") / scene if scene else 1.0])


def _measure(row: Row, name: str) -> Measure:
    ends = (row.values[f"{name}{end}"] for end in ("", "_low", "_high"))
    return Measure(*(_digits(float("nan") if each is None else each) for each in ends))


def _digits(value: float) -> float:
    return float(f"{float(np.nan_to_num(value)):.4g}")
