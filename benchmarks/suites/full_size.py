"""Suite `full-size`: a pair of Stable Diffusion 2.1's size, random weights, 256 px, on a CPU.

Two such pairs do not fit into memory, so each way has a process of its own, one after the other. A
few steps are timed, and a picture of 25 is what follows from them. Interrupted, it goes on with
the next way.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from bootpig_rt.benchmarks.child import run_child
from bootpig_rt.benchmarks.full_size.folders import Folders, make_folders, status_of
from bootpig_rt.benchmarks.full_size.told import Drawn, Order, Told
from bootpig_rt.benchmarks.full_size.ways import KINDS, FullWay, cannot_run, ways
from bootpig_rt.benchmarks.ours import psnr_db
from bootpig_rt.benchmarks.result import Row, SuiteResult, Target
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.stats import ratio_of_medians
from bootpig_rt.benchmarks.way import Journal
from bootpig_rt.errors import BootPIGError

HELP = "a pair of Stable Diffusion 2.1's size at 256 px, each way in a process of its own"

SIDE_PX = 256
STEPS = 25
_LEAST_DB = 40.0
"""Rounding of float32 is far above it; a way that did not read the reference is at about 20."""


class _Kept(msgspec.Struct, frozen=True):
    """What a child told, beside what its process took; or why it could not."""

    status: str = ""
    told: Told | None = None
    peak_bytes: int | None = None
    own_bytes: int | None = None


def run(settings: Settings, journal: Journal) -> SuiteResult:
    """Make the folders, let each way draw in its process, and compare.

    Raises:
        ParameterError: `--only` matches no row.
        BootPIGError: The pair could not be made.
    """
    return measure("full-size", settings, journal, SIDE_PX)


def measure(name: str, settings: Settings, journal: Journal, side_px: int) -> SuiteResult:
    """The suite of that name, at a size; see `run`."""
    side_px = 64 if settings.is_smoke else side_px
    offered = ways(settings.is_smoke)
    settings.check_only([row for way in offered for row in way.rows()])
    wanted = [
        way
        for way in offered
        # A ratio is to the strongest published way, whatever else is asked for; or to that named.
        if any(map(settings.is_wanted, way.rows()))
        or (way.name == settings.baseline if settings.baseline else way.engine == "published")
    ]
    folders = make_folders(settings, side_px, {way.made for way in wanted})
    measured = settings.rounds + 1 if not settings.is_smoke else 3
    kept: dict[str, _Kept] = {}
    with _Folder(journal) as where:
        for done, way in enumerate(wanted):
            settings.progress(f"drawing {way.name}", done, len(wanted))
            kept[way.name] = _drawn(settings, way, folders, side_px, measured, where)
        rows = list(_rows(wanted, kept, measured, side_px, where))
    rows = _with_ratios(rows, settings.baseline)
    return SuiteResult(
        name,
        (*rows, *folders.rows),
        settings={
            "pair": "random, toy" if settings.is_smoke else "random, sd21", "steps": STEPS,
            "steps_measured": measured, "solver": "unipc", "size_px": side_px, "references": 1,
        },
        remarks=(
            f"Of {measured} steps that were drawn, a picture of {STEPS} is computed: what does not "
            "belong to a step is counted once. Each way had a process of its own.",
        ),
        targets=tuple(targets(rows)) if name == "full-size" else (),
    )  # fmt: skip


class _Folder:
    """Where children leave their files: kept until the suite is done, where a journal is."""

    def __init__(self, journal: Journal) -> None:
        self._kept = None if journal.path is None else journal.path.with_suffix("")

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp()) if self._kept is None else self._kept
        self._path.mkdir(parents=True, exist_ok=True)
        return self._path

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None or self._kept is None:
            shutil.rmtree(self._path)


def _drawn(
    settings: Settings, way: FullWay, folders: Folders, side_px: int, steps: int, where: Path
) -> _Kept:
    """What the child of a way tells; of an earlier run, what it told then."""
    file = where / f"{way.name}.json"
    if file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=_Kept)
    status = cannot_run(way, folders)
    if status:
        return _Kept(status)
    order = Order(
        engine=way.engine, precision=way.precision, compiles=way.compiles,
        folder=str(way.folder(folders)), pair=str(folders.pair), side_px=side_px, steps=steps,
        threads=settings.threads, pixels=str(where / f"{way.name}.npz"),
    )  # fmt: skip
    asked, told = where / f"{way.name}.order", where / f"{way.name}.told"
    asked.write_bytes(msgspec.json.encode(order))
    words = ["-m", "bootpig_rt.benchmarks.full_size.child", str(asked), str(told)]
    environment = {"OMP_NUM_THREADS": str(settings.threads), "BOOTPIG_RT_STORE": ""}
    try:
        run = run_child(words, environment=environment, timeout_s=way.limit_s)
    except BootPIGError as error:
        found = _Kept(status_of(error))
    else:
        drawn = msgspec.json.decode(told.read_bytes(), type=Told)
        found = _Kept("", drawn, run.peak_bytes, run.own_bytes)
    file.write_bytes(msgspec.json.encode(found))
    return found


def _rows(
    wanted: list[FullWay], kept: dict[str, _Kept], measured: int, side_px: int, where: Path
) -> list[Row]:
    rows = []
    group = f"picture of {STEPS} steps, {side_px} px"
    for way in wanted:
        found = kept[way.name]
        for kind in way.kinds:
            label = way.label + (KINDS[kind][0] if len(way.kinds) > 1 else "")
            row = Row(way.row(kind), label, group, status=found.status)
            if found.told is not None:
                drawn = found.told.drawn[kind]
                samples = drawn.scaled_ms(STEPS, measured)
                near = _psnr(where, way, kind)
                row = msgspec.structs.replace(row, samples_ms=samples).with_values(
                    **_values(drawn, found, kind, is_first=kind == way.kinds[0]),
                    to_float32_db=near,
                )
                if near is not None and way.precision == "float32" and near < _LEAST_DB:
                    row = msgspec.structs.replace(
                        row, samples_ms=(), status=f"wrong: its pixels are {near:g} dB from the "
                        f"float32 picture, expected {_LEAST_DB:g} or more",
                    )  # fmt: skip
            rows.append(row)
    return rows


def _values(drawn: Drawn, found: _Kept, kind: str, *, is_first: bool) -> dict[str, float | None]:
    """Numbers beside the time; those of the process stand in its first row."""
    step = float(np.median(drawn.steps_ms))
    values: dict[str, float | None] = {"step_ms": step, "per_row_ms": step / KINDS[kind][1]}
    if is_first and found.told is not None:
        values["load_ms"] = found.told.load_ms
        values["cold_ms"] = found.told.load_ms + found.told.first_ms
        values["peak_bytes"] = _number(found.peak_bytes)
        values["own_bytes"] = _number(found.own_bytes)
    return values


def _number(value: int | None) -> float | None:
    return None if value is None else float(value)


def _psnr(where: Path, way: FullWay, kind: str) -> float | None:
    """Of the pixels to those of the float32 way of this kind; None: it is that way."""
    to = way.float32[kind]
    if to == way.name:
        return None
    files = where / f"{way.name}.npz", where / f"{to}.npz"
    if not all(file.is_file() for file in files):
        return None
    with np.load(files[0]) as mine, np.load(files[1]) as theirs:
        return round(psnr_db(mine[kind], theirs[theirs.files[0]]), 1)


def _with_ratios(rows: list[Row], baseline: str) -> list[Row]:
    """Ratios to the strongest published way, or to the row that is named."""
    medians = {row.name: row.median_ms for row in rows if row.median_ms is not None}
    strong = [name for name in medians if name.startswith("published")]
    to = baseline if baseline in medians else min(strong, key=lambda n: medians[n] or 0, default="")
    if not to:
        return rows
    base = next(row for row in rows if row.name == to)
    return [
        msgspec.structs.replace(row, ratio=ratio_of_medians(to, base.samples_ms, row.samples_ms))
        if row.samples_ms
        else row
        for row in rows
    ]


def targets(rows: list[Row]) -> list[Target]:
    """What was aimed at on processors with AMX, of the quickest of ours in each."""
    medians = {row.name: row.median_ms for row in rows if row.median_ms is not None}
    per_row = {row.name: row.values.get("per_row_ms") for row in rows}

    def least(start: str, end: str, of: dict[str, float | None]) -> float | None:
        found = [v for n, v in of.items() if v and n.startswith(start) and n.endswith(end)]
        return min(found, default=None)

    times: dict[str, float | None] = {**medians}
    ours = least("ours_", "_known", times)
    mine, peer = least("ours_", "_known", per_row), least("genai_text", "", per_row)
    float32 = least("published", "", {n: t for n, t in times.items() if "bf16" not in n})
    half = least("published", "bf16", times)
    int8, bf16 = (times.get(f"ours_openvino_{name}_known") for name in ("int8", "bf16"))

    def over(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a / b

    return [
        Target("known subject, times the published way in float32", 7.0, over(float32, ours)),
        Target("known subject, times the published way in bf16", 3.0, over(half, ours)),
        Target("row of a step, over that of OpenVINO GenAI's text to image", 1.25,
               over(mine, peer), is_most=True),
        Target("known subject in int8, over that in bf16", 1.0, over(int8, bf16), is_most=True),
    ]  # fmt: skip
