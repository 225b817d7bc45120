"""Fills the marked lines of README.md and of the documentation from the result files.

What lies between the lines `<!-- figures:NAME -->` and `<!-- /figures -->` is written.

python -m bootpig_rt.benchmarks.figures [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bootpig_rt.benchmarks import curve_figure
from bootpig_rt.benchmarks.pages import ABOUT, write_page
from bootpig_rt.benchmarks.result import SuiteResult, load_results
from bootpig_rt.benchmarks.tables import line, markdown, targets_markdown
from bootpig_rt.errors import ParameterError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "results"

_MARK = re.compile(r"(<!-- figures:(\S+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_OTHERS = ("mutants",)
"""Marks that something else fills."""
_NOT_YET = "Not measured yet: `make figures` measures it."


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with its marked lines written from result files.

    Raises:
        ParameterError: A mark has a name that there is not.
    """

    def replaced(found: re.Match[str]) -> str:
        name = found[2]
        if name in _OTHERS:
            return found[0]
        if name not in FIGURES:
            raise ParameterError(
                f"<!-- figures:{name} --> is no figure, expected one of {', '.join(FIGURES)}"
            )
        return f"{found[1]}{FIGURES[name](results)}\n{found[3]}"

    return _MARK.sub(replaced, text)


def texts(root: Path = ROOT) -> list[Path]:
    """Files with marked lines."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in found if path.is_file() and _MARK.search(path.read_text("utf-8"))]


def _result(results: Path, name: str) -> SuiteResult | None:
    path = results / f"{name}.json"
    return load_results(path)[0] if path.is_file() else None


def _headline(results: Path, device: str) -> str:
    """A small table: the strongest published way, and ours beside it."""
    result = _result(results, f"baselines-{device}")
    if result is None:
        return _NOT_YET
    names = {row.ratio.to for row in result.rows if row.ratio is not None}
    seen = result.machine
    where = "" if seen is None else f"{seen.name}, commit {seen.commit}. "
    if not names:  # too few rounds for a ratio: times alone tell nothing of the present code
        page = f"[All ways]({_RESULTS}/baselines-{device}.md)."
        return f"{where}{' '.join(result.remarks[:1])} {page}"
    chosen = [
        row
        for row in result.rows
        if row.samples_ms
        and (row.name in names or row.name in _SHOWN)
        and row.group == result.rows[0].group
    ]
    table = markdown([_bare(row) for row in chosen])
    page = f"{where}[All ways, and how it was measured]({_RESULTS}/baselines-{device}.md)."
    return "\n\n".join([table, " ".join([*result.remarks[:1], page])])


_RESULTS = "docs/results"
_SHOWN = (
    "published",
    "diffusers_text_to_image",
    "ours_text",
    "ours_new",
    "ours_known",
    "ours_four",
)
_SHOWN_CPU = (
    *(name for name in _SHOWN if name not in ("published", "ours_four")),
    "ours_openvino_bf16_new", "ours_openvino_bf16_known", "ours_openvino_bf16_streams",
)  # fmt: skip
_SHOWN_FULL = (
    "diffusers_text_bf16", "genai_text_bf16", "ours_onnxruntime_known",
    "ours_openvino_bf16_known",
)  # fmt: skip


def _bare(row: Any) -> Any:
    return msgspec.structs.replace(row, values={})


_CPU_BLOCKS = (
    ("baselines-cpu", "The small pair, {size_px} px", _SHOWN_CPU),
    ("full-size-cpu", "Size of Stable Diffusion 2.1, 256 px", _SHOWN_FULL),
)


def _cpu(results: Path) -> str:
    """One table: a block for each size, each against the strongest published way of its run."""
    lines = ["| | ms | faster than the strongest published way |", "|---|---:|---:|"]
    told: list[tuple[str, str]] = []
    is_busy = False
    for file, title, names in _CPU_BLOCKS:
        result = _result(results, file)
        if result is None:
            continue
        title = title.format(size_px=result.settings.get("size_px", "?"))
        lines.append(f"| **{title}** | | |")
        strongest = {row.ratio.to for row in result.rows if row.ratio is not None}
        group = result.rows[0].group
        for row in result.rows:
            if row.group == group and row.samples_ms and row.name in strongest | set(names):
                lines.append(f"| {' | '.join(line(row))} |")
        seen = result.machine
        if seen is not None:
            about = ", ".join(filter(None, (seen.name, f"{seen.threads} threads", seen.arithmetic)))
            page = f"[{title[:1].lower()}{title[1:]}](docs/results/{file}.md)"
            told.append((f"{about}, commit {seen.commit}", page))
            is_busy |= seen.is_busy
    if len(lines) == 2:
        return _NOT_YET
    where = [
        f"{about}. All ways: {', '.join(page for other, page in told if other == about)}."
        for about in dict.fromkeys(about for about, _ in told)
    ]
    busy = " The machine was busy or uneven: ratios suffer little, times are not worth quoting."
    return "\n\n".join(["\n".join(lines), " ".join(where) + busy * is_busy])


def _targets(results: Path) -> str:
    """What was aimed at on CPUs, and what came of it."""
    found = [
        result
        for name in ("baselines-cpu", "full-size-cpu", "quality-cpu")
        if (result := _result(results, name)) is not None and result.targets
    ]
    if not found:
        return _NOT_YET
    told = []
    for result in found:
        where = "" if result.machine is None else f" {result.machine.arithmetic}."
        told.append(f"Suite `{result.suite}`.{where}\n\n{targets_markdown(result)}")
    return "\n\n".join(told)


def _shares(results: Path) -> str:
    """How far a step is from its floor, and its operators."""
    result = _result(results, "shares-cpu")
    if result is None:
        return _NOT_YET
    floors = [row for row in result.rows if row.name.startswith("floor")]
    steps = [row for row in result.rows if row.samples_ms and not row.name.startswith("floor")]
    named = [msgspec.structs.replace(row, label=row.group) for row in steps]
    parts = [markdown([*floors, *named])]
    for group in dict.fromkeys(row.group for row in steps):
        shares = [row for row in result.rows if row.group == group and "share" in row.values]
        parts += [f"{group[:1].upper()}{group[1:]}:", markdown(shares)]
    return "\n\n".join([*parts, _page("shares-cpu")])


def _latency(results: Path) -> str:
    result = _result(results, "latency-cpu")
    if result is None:
        return _NOT_YET
    process = result.row("process generate onnxruntime").median_ms or 0.0
    imported = result.row("process import").median_ms or 0.0
    return (
        f"`bootpig-rt generate` with one reference and {result.settings['steps']} steps takes "
        f"{process / 1e3:.1f} s from process start to PNG, of which the import is "
        f"{imported / 1e3:.2f} s (files cached)."
    )


def _serving(results: Path) -> str:
    """What servers drew in time, each at its best rate."""
    result = _result(results, "serving-cpu")
    if result is None:
        return _NOT_YET
    keep = ("goodput_per_s", "p50_ms", "p99_ms", "refused_share", "lost", "batch_mean")
    shown = []
    for row in result.rows:
        if row.group == result.rows[0].group:
            values = {name: row.values[name] for name in keep if name in row.values}
            shown.append(msgspec.structs.replace(row, samples_ms=(), ratio=None, values=values))
    return "\n\n".join([*result.remarks, markdown(shown), _page("serving-cpu")])


def _soak(results: Path) -> str:
    """What changed in a service over a long load."""
    result = _result(results, "soak-cpu")
    if result is None:
        return _NOT_YET
    group = result.rows[-1].group
    table = markdown([row for row in result.rows if row.group == group])
    return "\n\n".join([*result.remarks, table, _page("soak-cpu")])


def _judged(name: str, keep: tuple[str, ...]) -> Callable[[Path], str]:
    """The table of a suite that judges pictures beside controls, with some of its values."""

    def table(results: Path) -> str:
        result = _result(results, f"{name}-cpu")
        if result is None:
            return _NOT_YET
        kept = [each + end for each in keep for end in ("", "_low", "_high")]
        shown = []
        for row in result.rows:
            values = {key: row.values[key] for key in kept if key in row.values}
            shown.append(msgspec.structs.replace(row, values=values))
        return "\n\n".join([markdown(shown), _page(f"{name}-cpu")])

    return table


_inpaint = _judged(
    "inpaint", ("network", "scene", "psnr_db", "perceptual", "seam_levels", "changed_outside")
)
_control = _judged("control", ("depth", "chance", "network", "psnr_db", "scene"))


def _page(name: str) -> str:
    return f"[All of it, with plots](../results/{name}.md)."


def _evaluation(results: Path) -> str:
    """Rates and measures of the shipped pair on subjects that it never saw."""
    path = results / "evaluation-small.json"
    if not path.is_file():
        return _NOT_YET
    found = json.loads(path.read_text(encoding="utf-8"))
    groups = found["groups"]
    lines = ["| | held-out drawings | held-out concepts |", "|---|---:|---:|"]
    for label, key in (("identity, by pixels", "pixels"), ("identity, by the network", "network")):
        rates = [_rate(groups[group]["identity"].get(key)) for group in groups]
        lines.append(f"| {label} | {' | '.join(rates)} |")
    scenes = [_rate(groups[group]["scene"]) for group in groups]
    lines.append(f"| scene | {' | '.join(scenes)} |")
    for key, label in (("psnr_db", "subject PSNR, dB"), ("perceptual", "perceptual distance")):
        measured = [groups[group].get("fidelity", {}).get(key) for group in groups]
        if all(measured):
            shown = [_rate(each, ".1f" if key == "psnr_db" else ".3f") for each in measured]
            lines.append(f"| {label} | {' | '.join(shown)} |")
    chance = [f"{groups[group]['chance']:.2f}" for group in groups]
    return "\n".join([*lines, f"| chance of identity | {' | '.join(chance)} |"])


def _rate(found: dict[str, float] | None, digits: str = ".2f") -> str:
    if found is None:
        return ""
    value, low, high = (format(found[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _pages(results: Path) -> str:
    """A list of the pages, with what they were measured on."""
    lines = []
    for path in sorted(results.glob("*-c*.json")):
        for result in load_results(path):
            seen = result.machine
            about = "" if seen is None else f": {seen.name}, {seen.started[:10]}, {seen.commit}"
            lines.append(f"- [{ABOUT[result.suite][0]}]({path.stem}.md), {result.device}{about}")
    return "\n".join(lines) or _NOT_YET


def _curve(_: Path) -> str:
    """What cheaper settings of the shipped pair cost and keep."""
    curve = curve_figure.shipped_curve()
    if curve is None:
        return "Not measured yet: `bootpig-rt tune --measure --data data` measures it."
    return curve_figure.markdown_of(curve)


FIGURES: dict[str, Callable[[Path], str]] = {
    "cpu": _cpu,
    "gpu": lambda results: _headline(results, "cuda"),
    "latency": _latency,
    "shares": _shares,
    "targets": _targets,
    "serving": _serving,
    "soak": _soak,
    "inpaint": _inpaint,
    "control": _control,
    "evaluation": _evaluation,
    "pages": _pages,
    "curve": _curve,
}
"""What can be filled in, by the name of its mark."""


def main(words: list[str]) -> int:
    """Write the pages and the marked lines; with `--check` only say which differ."""
    stale = []
    if "--check" not in words:
        for path in sorted(RESULTS.glob("*-c*.json")):
            for result in load_results(path):
                write_page(result, PAGES, path.stem)
        curve = curve_figure.shipped_curve()
        if curve is not None:
            curve_figure.draw(curve, ROOT / "docs" / "explanation" / curve_figure.PLOT)
    for path in texts():
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in words:
                path.write_text(after, encoding="utf-8")
    if "--check" in words and stale:
        sys.stderr.write(f"error: other than the result files: {', '.join(stale)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
