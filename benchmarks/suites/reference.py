"""Suite `reference`: what each reference schedule, storage type and merge costs and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from bootpig_rt.backends.torch.backend import load
from bootpig_rt.benchmarks.bare_unet import flops_of
from bootpig_rt.benchmarks.drawing import drawing
from bootpig_rt.benchmarks.judged import Jury, Quality, psnr_db
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.published import PublishedWay
from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.rounds import Way, time_ways
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.threads import torch_threads
from bootpig_rt.errors import NumericalError

NAME = "reference"
HELP = "reference schedules, storage types and merges: time, bytes, identity and scenes"

SCHEDULES = (
    "exact", "stride:2", "stride:5", "stride:13", "clean", "anchor:200",
    "exact+window:0-0.5", "exact+window:0.2-1", "clean+window:0-0.5", "clean+window:0.2-1",
)  # fmt: skip
DTYPES = ("float16", "bfloat16", "float8", "int8")
MERGES = ("argmax", "softmax", "mean", "concat")

_STREAM_BYTES = 4 << 20
"""Less than a table of the packaged pair: its entries are copied step by step."""

_LARGEST_PIXEL = 255.0


@dataclass(frozen=True)
class _Case:
    """A way to read the reference."""

    name: str
    label: str
    schedule: str
    group: str
    options: dict[str, Any]


def run(settings: Settings) -> SuiteResult:
    """Check the tables, time all cases in turn beside the published way, judge their pictures.

    Raises:
        ParameterError: The drawings that the judges need are not there, or no row is wanted.
        NumericalError: A table has other bytes than the formula says, or a known subject was read
            again.
    """
    with torch_threads(settings.threads):
        every = _cases(settings.is_smoke)
        settings.check_only([*(case.name for case in every), "merge", "operations"])
        cases = [c for c in every if settings.is_wanted(c.name) or c is every[0]]
        pipes = _pipes(settings, cases)
        config = pipes[_key(cases[0])].pipe.spec.config
        checks = _table_checks(cases, pipes)
        wrong = [check for check in checks if not check.is_ok]
        if wrong:
            found = "; ".join(f"{check.name} differ by {check.value:g}" for check in wrong)
            raise NumericalError(f"nothing was timed: {found}")
        jury = Jury(
            settings.data,
            settings.work,
            size_px=config.sample_size_px,
            suite="tiny" if settings.is_smoke else "small",
            prompts=2 if settings.is_smoke else 4,
        )
        published = PublishedWay(
            load(settings.pair, "cpu", None),
            steps=config.default_steps,
            solver=config.default_solver,
        )
        published.install()
        measured = _distances(cases, pipes)
        rows = [
            replace(row, values=dict(row.values) | measured.get(row.name, {}))
            for row in _times(settings, cases, pipes, published)
        ]
        if settings.is_wanted("operations"):
            rows.append(_operations(settings, published))
        judged: dict[str, Quality] = {}
        for number, case in enumerate(cases):
            if "table_budget_bytes" in case.options:
                judged[case.name] = judged["exact"]  # the same numbers, see the distance
                continue
            settings.progress(f"judging {case.name}", number, len(cases))
            judged[case.name] = jury.judge(pipes[_key(case)].pipe, reference_schedule=case.schedule)
        rows = [
            replace(row, values=dict(row.values) | _quality(judged, row.name))
            if row.name in judged
            else row
            for row in rows
        ]
        if settings.is_wanted("merge"):
            rows += _merges(settings, jury, pipes[_key(cases[0])])
    return SuiteResult(
        suite=NAME,
        rows=tuple(rows),
        settings={
            "pair": config.name, "steps": config.default_steps, "solver": config.default_solver,
            "size_px": config.sample_size_px, "references": 1, "rounds": _rounds(settings),
        },
        checks=tuple(checks),
    )  # fmt: skip


def _rounds(settings: Settings) -> int:
    """There are many ways here, and each one runs beside the published way: fewer rounds."""
    return max(1, settings.rounds // 2)


def _quality(judged: Mapping[str, Quality], name: str) -> dict[str, float | None]:
    """What the judges say of a case, and how that differs from the pair's own schedule."""
    values = judged[name].values()
    if "clean" in judged and name != "clean":
        values |= judged[name].change_from(judged["clean"])
    return values


def _cases(is_smoke: bool) -> list[_Case]:
    schedules = ("exact", "clean") if is_smoke else SCHEDULES
    dtypes = ("int8",) if is_smoke else DTYPES
    cases = [_Case(name, name, name, "schedule", {}) for name in schedules]
    cases += [
        _Case(
            f"exact {dtype}", f"exact, table in {dtype}", "exact", "storage", {"table_dtype": dtype}
        )
        for dtype in dtypes
    ]
    streamed = {"table_budget_bytes": _STREAM_BYTES}
    return [*cases, _Case("exact streamed", "exact, table streamed", "exact", "storage", streamed)]


def _key(case: _Case) -> str:
    return repr(case.options)


def _pipes(settings: Settings, cases: list[_Case]) -> dict[str, OurWay]:
    return {
        _key(case): OurWay(settings.pair, threads=settings.threads, **case.options)
        for case in cases
    }


def _times(
    settings: Settings, cases: list[_Case], pipes: dict[str, OurWay], published: PublishedWay
) -> Sequence[Row]:
    """A known subject, a new one, and four pictures of a known one, in each case."""
    ways = [Way("published", "published way", lambda: published.picture(drawing()), group="")]
    for case in cases:
        ours = pipes[_key(case)]
        options: dict[str, Any] = {"reference_schedule": case.schedule}
        ways += [
            Way(
                case.name, case.label, partial(ours.warm, **options),
                group=f"{case.group}, known subject",
            ),
            Way(
                f"{case.name}/cold", case.label, partial(ours.cold, **options),
                group=f"{case.group}, new subject",
            ),
            Way(
                f"{case.name}/four", case.label, partial(ours.warm, 4, **options), 4,
                group=f"{case.group}, four pictures",
            ),
        ]  # fmt: skip
    return time_ways(ways, _rounds(settings), baseline="published", progress=settings.progress)


def _operations(settings: Settings, published: PublishedWay) -> Row:
    """Multiplications and additions of a picture: what no engine and no kernel changes.

    Counted as torch runs them: products, convolutions and attention of all parts of the pair.
    """
    ours = OurWay(settings.pair, backend="torch", threads=settings.threads)
    exact: dict[str, Any] = {"reference_schedule": "exact"}
    ours.warm(**exact)  # reads the subject
    theirs = flops_of(lambda: published.picture(drawing()))
    known, new = flops_of(lambda: ours.warm(**exact)), flops_of(lambda: ours.cold(**exact))
    return Row(
        "operations", "operations of a picture, schedule exact", "ceiling by arithmetic",
        values={
            "published_gflop": round(theirs / 1e9, 3),
            "known_gflop": round(known / 1e9, 3),
            "new_gflop": round(new / 1e9, 3),
            "fewer_known": round(theirs / known, 3),
            "fewer_new": round(theirs / new, 3),
        },
    )  # fmt: skip


def _distances(cases: list[_Case], pipes: dict[str, OurWay]) -> dict[str, dict[str, float | None]]:
    """Bytes of each case's table, and how far its latents and pictures are from `exact`."""
    expected, picture = _drawn(pipes[_key(cases[0])], "exact")
    scale = float(expected.max() - expected.min())
    found: dict[str, dict[str, float | None]] = {}
    for case in cases:
        ours = pipes[_key(case)]
        latents, pixels = _drawn(ours, case.schedule)
        found[case.name] = {
            "table_bytes": float(_table_bytes(ours, case.schedule)),
            "latents_db": round(psnr_db(latents, expected, largest=scale), 1),
            "pixels_db": round(psnr_db(pixels, picture, largest=_LARGEST_PIXEL), 1),
        }
    return found


def _drawn(ours: OurWay, schedule: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latents as the decoder gets them, at the end of all steps, and the picture."""
    backend, seen = ours.pipe._backend, []
    decode = backend.decode

    def recorded(latents: NDArray[Any]) -> NDArray[Any]:
        seen.append(np.array(latents))
        return decode(latents)

    with mock.patch.object(backend, "decode", recorded):
        image = ours.warm(reference_schedule=schedule).images[0]
    return np.concatenate(seen), np.asarray(image)


def _table_bytes(ours: OurWay, schedule: str) -> int:
    """What the store holds when it has this one table."""
    ours.pipe.store.clear()
    ours.warm(reference_schedule=schedule)
    stats = ours.pipe.store.stats()
    return stats.device_bytes + stats.host_bytes


def _table_checks(cases: list[_Case], pipes: dict[str, OurWay]) -> list[Check]:
    """Bytes held against the formula that `--dry-run` prints; a known subject is not read again."""
    checks = []
    for case in cases:
        ours = pipes[_key(case)]
        params = ours.pipe.sampling_params(reference_schedule=case.schedule)
        formula = ours.pipe.table_bytes(1, params)
        off = abs(_table_bytes(ours, case.schedule) - formula)
        checks.append(Check(f"table bytes of {case.name}: held, formula", float(off), 0.0))
        again = ours.warm(reference_schedule=case.schedule).reference_passes
        checks.append(Check(f"reference passes of {case.name}, known", float(again), 0.0))
    return checks


def _merges(settings: Settings, jury: Jury, ours: OurWay) -> list[Row]:
    """Merges over several references, and over those of two subjects that are mixed."""
    rows = []
    merges, counts = (MERGES[:1], (2,)) if settings.is_smoke else (MERGES, (2, 3, 4))
    one = jury.judge(ours.pipe, shots=jury.shots_with(1))
    group = "references and merges"
    rows.append(Row("merge/1", "one reference, all merges agree", group, values=one.values()))
    for merge in merges:
        for count in counts:
            settings.progress(f"judging {merge} of {count}", 0, 1)
            quality = jury.judge(ours.pipe, shots=jury.shots_with(count), merge=merge)
            rows.append(
                Row(
                    f"merge/{merge}_{count}", f"{merge} of {count} references", group,
                    values=quality.values() | quality.change_from(one),
                )
            )  # fmt: skip
    # Prompts of this world name one thing, and its pictures show one: two drawings of the same
    # concept are mixed here, one reference each. Two things side by side cannot be asked for.
    for merge in merges:
        settings.progress(f"judging {merge} of two subjects", 0, 1)
        mixed = jury.judge(ours.pipe, shots=jury.shots_with(1), merge=merge, distractors=1)
        rows.append(
            Row(
                f"mixed/{merge}", f"{merge}: own and another drawing, mixed", "two subjects mixed",
                values=mixed.mixture(),
            )
        )  # fmt: skip
    return rows
