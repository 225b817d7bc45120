"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bootpig_rt.benchmarks.gpu.launches import KINDS
from bootpig_rt.benchmarks.gpu.report import GpuRow, Report
from bootpig_rt.benchmarks.gpu.targets import Target

NO_NUMBER = "-"


def text_of(report: Report, targets: Sequence[Target]) -> str:
    """All tables of a report."""
    lines = [*_heading(report)]
    for section, title, rows in (
        ("kernel", "attention with references", _kernel_rows(report)),
        ("merge", "merge of several references", _merge_rows(report)),
        ("attention", "attention of a step, 16 layers", _attention_rows(report)),
        ("picture", "pictures", _picture_rows(report)),
        ("part", "text and autoencoder", _part_rows(report)),
        ("profile", "one step, profiled", _profile_rows(report)),
    ):
        if any(report.of(section)):
            lines += ["", f"{title}:", *aligned(rows)]
    lines += ["", "targets:", *aligned(target_rows(targets))]
    return "\n".join(lines)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns of equal width; the first and the last to the left, numbers to the right."""
    table = [list(row) for row in rows]
    columns = max((len(row) for row in table), default=0)
    table = [row + [""] * (columns - len(row)) for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(columns)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if column in (0, 1, columns - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def target_rows(targets: Sequence[Target]) -> list[list[str]]:
    """Targets next to what was measured."""
    rows = [["target", "wanted", "measured", "", "remark"]]
    for target in targets:
        found = target.to_dict()
        measured = found["measured"]
        shown = NO_NUMBER if measured is None else f"{measured:g} {target.unit}"
        rows.append([target.name, target.wanted, shown, target.verdict, target.remark])
    return rows


def _heading(report: Report) -> list[str]:
    device = report.device
    lines = []
    if report.is_rehearsal:
        lines.append("REHEARSAL on a CPU at toy size: all paths ran, no time below means anything")
    details = [str(device.get("name", "")), str(device.get("architecture", ""))]
    lines.append(f"device: {' '.join(filter(None, details))}")
    lines += [f"{name}: {value}" for name, value in report.settings.items()]
    for row in report.of("roofline"):
        rate = row.values.get("tflops")
        shown = f"{rate:.4g} TFLOP/s" if rate is not None else f"{row.status}, {row.reason}"
        lines.append(f"roofline, {row.label}: {shown}")
    return lines


def _remark(row: GpuRow) -> str:
    """Why there is no time, or what to know about it."""
    return row.reason if row.status == "ok" else f"{row.status}: {row.reason}"


def _number(value: float | None, form: str = ".4g") -> str:
    return NO_NUMBER if value is None else format(value, form)


def _kernel_rows(report: Report) -> list[list[str]]:
    rows = [["shape", "way", "ms", "TFLOP/s", "of roofline", "ours is", "error", ""]]
    for row in report.of("kernel"):
        ours = report.ms("kernel", row.case, "fused")
        ratio = None if not ours or row.ms is None else row.ms / ours
        share = row.values.get("share_of_roofline")
        rows.append(
            [
                row.case,
                row.label,
                _number(row.ms),
                _number(row.values.get("tflops")),
                _number(share, ".0%"),
                NO_NUMBER if ratio is None else f"{ratio:.2f}x",
                _number(row.error, ".0e"),
                _remark(row),
            ]
        )
    return rows


def _merge_rows(report: Report) -> list[list[str]]:
    rows = [["shape", "way", "ms", "error", ""]]
    for row in report.of("merge"):
        rows.append([row.case, row.label, _number(row.ms), _number(row.error, ".0e"), _remark(row)])
    return rows


def _attention_rows(report: Report) -> list[list[str]]:
    rows = [["rows", "way", "ms", "first layer shared, ms", ""]]
    for row in report.of("attention"):
        shared = row.values.get("shared_first_ms")
        rows.append([row.case, row.label, _number(row.ms), _number(shared), _remark(row)])
    return rows


def _picture_rows(report: Report) -> list[list[str]]:
    rows = [["case", "way", "ms", "ms a picture", "ms a step", "peak GiB", "error", ""]]
    for row in report.of("picture"):
        rows.append(
            [
                row.case,
                row.label,
                _number(row.ms),
                _number(row.values.get("ms_a_picture")),
                _number(row.values.get("step_ms")),
                gib(row.values),
                _number(row.error, ".0e"),
                _remark(row),
            ]
        )
    return rows


def _part_rows(report: Report) -> list[list[str]]:
    rows = [["case", "part", "ms", ""]]
    for row in report.of("part"):
        rows.append([row.case, row.label, _number(row.ms), _remark(row)])
    return rows


def _profile_rows(report: Report) -> list[list[str]]:
    rows = [["case", "way", "kernels", "launches", "busy ms", *KINDS, ""]]
    for row in report.of("profile"):
        values = row.values
        rows.append(
            [
                row.case,
                row.label,
                _number(values.get("kernels"), ".0f"),
                _number(values.get("launches"), ".0f"),
                _number(values.get("busy_ms")),
                *(_number(values.get(f"{kind}_share"), ".0%") for kind in KINDS),
                _remark(row),
            ]
        )
    return rows


def gib(values: Mapping[str, float]) -> str:
    """Peak memory of a row."""
    found = values.get("peak_bytes")
    return NO_NUMBER if found is None else f"{found / 2**30:.2f}"
