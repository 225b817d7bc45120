"""Writes the measured parts and the plots of README.md from the files in `benchmarks/results/`.

    python -m bootpig_rt.benchmarks.readme

`make figures` measures first, then runs this; a test asserts that the README says what the files
say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bootpig_rt.benchmarks.gpu import readme_tables as gpu
from bootpig_rt.benchmarks.report.figures import figures
from bootpig_rt.benchmarks.report.svg import as_file
from bootpig_rt.benchmarks.result import Row, SuiteResult, load_results
from bootpig_rt.errors import ParameterError
from bootpig_rt.export.golden import END_TO_END, END_TO_END_LIMIT, STEP_LIMIT
from bootpig_rt.files.atomic import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
PLOT = "docs/identity-against-time.svg"
GPU_PLOT = "docs/gpu-time-of-a-picture.svg"

_COSTS = 5
_NOT_YET = "Not measured yet: `make figures` measures it."

_BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def fill(text: str, root: Path = ROOT) -> str:
    """The README with each block between `<!-- figures: NAME -->` and its end written anew.

    Raises:
        ParameterError: A block that is not known, or results that are not there.
    """

    def table(found: re.Match[str]) -> str:
        start, name, end = found.groups()
        if name not in _TABLES:
            raise ParameterError(
                f"README.md asks for figures {name!r}, expected one of {', '.join(_TABLES)}"
            )
        return f"{start}{_TABLES[name](root / RESULTS)}\n{end}"

    return _BLOCK.sub(table, text)


def plot(root: Path = ROOT) -> str:
    """Identity against time of the reference schedules and storage types, as an SVG file."""
    found = figures("quality", [_suite(root / RESULTS, "reference")])
    return as_file(next(each.wide for each in found if each.name == "identity-against-time"))


def _baselines(folder: Path) -> str:
    rows = _suite(folder, "baselines").rows
    lines = ["| | ms a picture | at best | faster | 95 % interval |", "|---|---|---|---|---|"]
    for row in rows:
        if row.ratio_to != "published" or row.median_ms is None:
            continue
        label = f"**{row.label}**" if row.name.startswith("ours") else row.label
        times = f"{row.median_ms:.0f} | {min(row.samples_ms, default=row.median_ms):.0f}"
        lines.append(f"| {label} | {times} | {_ratio(row)} | {_interval(row)} |")
    return "\n".join(lines)


def _step(folder: Path) -> str:
    result = _suite(folder, "baselines")
    ours, bare = (result.row(name) for name in ("ours_step", "bare_unet_step"))
    if ours.ratio is None:
        raise ParameterError("ours_step has no ratio; measure bare_unet_step in the same run")
    low, high = 1 / ours.ratio.high, 1 / ours.ratio.low
    return (
        f"A step of three rows takes {ours.median_ms:.1f} ms, {1 / ours.ratio.value:.2f} times "
        f"({low:.2f} to {high:.2f}) that of\nthe U-Net alone, {bare.median_ms:.1f} ms. Before a "
        "clock starts, the ways draw the same picture:\nours and the published one differ by "
        f"{result.checks[0].value:.1g} of 255."
    )


def _latency(folder: Path) -> str:
    result = _suite(folder, "latency")
    whole, starts = (result.row(f"process {name}") for name in ("generate onnxruntime", "import"))
    share = next(
        row.values["share"] or 0.0
        for row in result.rows
        if row.group.startswith("onnxruntime") and "share" in row.values
    )
    return (
        "`bootpig-rt generate` with one reference and 25 steps takes "
        f"{(whole.median_ms or 0) / 1e3:.2f} s from process start to PNG,\nof which the import is "
        f"{(starts.median_ms or 0) / 1e3:.2f} s (files cached). Text encoder and decoder are "
        f"{share:.1%} of a picture."
    )


def _scale(folder: Path) -> str:
    result = _suite(folder, "scale")
    time, memory = (
        result.row(name).values["worst_error_share"] for name in ("worst", "memory worst")
    )
    return (
        "The cost model of `bootpig-rt bench --suite scale` predicts settings that it was not "
        f"fitted to: its worst error\nis {time:.0%} in time and {memory:.0%} in memory (goal: "
        "15 %)."
    )


def _reference(folder: Path) -> str:
    result = _suite(folder, "reference")
    rows = {row.name: row for row in result.rows}
    head = "known subject | new subject | four pictures | table | identity | scene | from `exact`"
    lines = [f"| schedule, storage | {head} |", "|" + "---|" * 8]
    for row in result.rows:
        if "latents_db" not in row.values:
            continue
        far = row.values["pixels_db"] or 0.0
        cells = [
            _ratio(row),
            _ratio(rows.get(f"{row.name}/cold")),
            _ratio(rows.get(f"{row.name}/four")),
            f"{(row.values['table_bytes'] or 0) / 1e6:.2f} MB",
            *_rates(row),
            "the same" if far >= 200 else f"{far:.0f} dB",
        ]
        lines.append(f"| `{row.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _merges(folder: Path) -> str:
    rows = _suite(folder, "reference").rows
    lines = ["| references | identity | scene |", "|---|---|---|"]
    lines += [
        f"| {row.label} | {' | '.join(_rates(row))} |"
        for row in rows
        if row.name.startswith("merge/")
    ]
    mixed = [row for row in rows if row.name.startswith("mixed/")]
    if mixed:
        lines += ["", "| two drawings mixed | nearest to own | to the other | to neither |"]
        lines.append("|---|---|---|---|")
    for row in mixed:
        cells = [_rate(row, f"nearest_to_{name}") for name in ("own", "other", "neither")]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _quality(folder: Path) -> str:
    rows = [
        row
        for row in _suite(folder, "quality").rows
        if row.values.get("identity") is not None and row.median_ms is not None
    ]
    lines = ["| | ms a picture | faster | identity | scene |", "|---|---|---|---|---|"]
    has_changes = any("identity_change" in row.values for row in rows)
    if has_changes:
        heads = ("", "ms a picture", "faster", "identity", "change", "by the network", "scene")
        lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|" + "---|" * len(heads)]
    for row in rows:
        identity, scene = _rates(row)
        rates = [identity, scene]
        if has_changes:
            rates = [identity, _change(row, "identity"), _rate(row, "identity_network"), scene]
        cells = [f"{row.median_ms:.0f}", _ratio(row), *rates]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _options(folder: Path) -> str:
    """Settings of the runtime that change no picture."""
    rows = [row for row in _suite(folder, "quality").rows if row.group == "exact changes"]
    if not rows:
        return _NOT_YET
    lines = ["| | ms a picture | faster | 95 % interval |", "|---|---|---|---|"]
    for row in rows:
        cells = [f"{row.median_ms or 0:.0f}", _ratio(row), _interval(row)]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _operations(folder: Path) -> str:
    """The ceiling by arithmetic."""
    rows = [row for row in _suite(folder, "reference").rows if row.name == "operations"]
    if not rows:
        return _NOT_YET
    values = rows[0].values
    return (
        f"A picture takes {values['published_gflop']:.0f} billion multiplications and additions "
        f"the published way. With `exact` it takes\n{values['fewer_known']:.2f} times fewer for a "
        f"known subject and {values['fewer_new']:.2f} times fewer for a new one: the rest of a "
        "ratio is engine and kernels."
    )


def _costs(folder: Path) -> str:
    """The largest costs of a step."""
    if not (folder / "profile-cpu.json").is_file():
        return _NOT_YET
    every = _suite(folder, "profile").rows
    rows = [row for row in every if row.group == every[0].group][:_COSTS]
    lines = ["| operator | share of a step | ms a step | calls a step |", "|---|---|---|---|"]
    for row in rows:
        share, ms, calls = (row.values[name] or 0.0 for name in ("share", "self_ms", "calls"))
        lines.append(f"| {row.label} | {share:.0%} | {ms:.2f} | {calls:.0f} |")
    return "\n".join(lines)


def _golden(folder: Path) -> str:
    path = folder / "golden-cpu.jsonl"
    if not path.is_file():
        return _NOT_YET
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ends = [e for line in lines for key, e in line["errors"].items() if key == END_TO_END]
    steps = [e for line in lines for key, e in line["errors"].items() if key != END_TO_END]
    if None in ends or None in steps:
        raise ParameterError(f"{path} holds an error that is no number; mend the pair first")
    return (
        "`bootpig-rt verify-golden DIR` checks the pair's arithmetic against tensors recorded from "
        f"the published pipeline:\nat most {max(steps):.1e} relative error within a step and "
        f"{max(ends):.1e} end to end (float32, CPU; limits {STEP_LIMIT:.0e} and\n"
        f"{END_TO_END_LIMIT:.0e})."
    )


def _evaluation(folder: Path) -> str:
    report = json.loads((folder / "evaluation-small.json").read_text())
    groups, controls = report["groups"], report["controls"]
    drawings, concepts = groups["identities"], groups["concepts"]
    networks = report["judges"]["network"]["renderer"]["value"]
    lines = ["| | rate | 95 % interval | chance or ceiling |", "|---|---|---|---|"]

    def add(label: str, found: Sequence[dict[str, Any]], last: str) -> None:
        rates = ", ".join(_short(each["value"]) for each in found)
        spans = ", ".join(f"{_short(each['low'])} to {_short(each['high'])}" for each in found)
        lines.append(f"| {label} | {rates} | {spans} | {last} |")

    both = ", ".join(_short(group["chance"]) for group in (drawings, concepts))
    ceiling = f"{both}; {_short(networks)} on real renders"
    suite = report["suite"]
    for group, name in (
        (drawings, f"{suite['identities']} held-out drawings of known concepts"),
        (concepts, f"{suite['concepts']} held-out concepts"),
    ):
        chance = f"{_short(group['chance'])} by chance"
        add(f"identity, {name}", [group["identity"]["pixels"]], chance)
    for judge, name, last in (
        ("grey_pixels", "the same without colours: drawings, concepts", both),
        ("network", "by an ImageNet network: drawings, concepts", ceiling),
    ):  # fmt: skip
        add(name, [group["identity"][judge] for group in (drawings, concepts)], last)
    for key, name in (("wrong_reference", "wrong reference"), ("no_reference", "no reference")):
        chance = _short(controls[key]["chance"])
        add(f"control: {name}", [controls[key]["identity"]["pixels"]], chance)
    renderer = report["judges"]["pixels"]["renderer"]
    add("control: the renderer's own picture", [renderer], "")
    add("scene, held-out drawings", [drawings["scene"]], "")
    return "\n".join(lines)


def _references(folder: Path) -> str:
    found = json.loads((folder / "evaluation-small.json").read_text())["references"]
    lines = ["| references | identity | 95 % interval |", "|---|---|---|"]
    for count, group in found.items():
        rate = group["identity"]["pixels"]
        span = f"{_short(rate['low'])} to {_short(rate['high'])}"
        lines.append(f"| {count} | {_short(rate['value'])} | {span} |")
    return "\n".join(lines)


def _parity(folder: Path) -> str:
    results = _packaged_manifest(folder)["parity"]["results"]
    runs = [each for each in results if each["relative_limit"] > 1e-4]
    graphs = max(each["relative_error"] for each in results if each not in runs)
    worst = max(each["relative_error"] for each in runs)
    pictures = min(each["psnr_db"] for each in runs if each.get("psnr_db") is not None)
    return (
        "For the pair inside the package the gate measured a relative error of at most "
        f"{graphs:.1e} for a graph or a step and\n{worst:.1e} end to end, in float32 (limits "
        f"1e-4 and 1e-3), and {pictures:.0f} dB or more between the pictures."
    )


def _packaged_manifest(folder: Path) -> Any:
    return json.loads((folder.parents[1] / "bootpig_rt/assets/pair/manifest.json").read_text())


def _manifest(folder: Path) -> str:
    found = _packaged_manifest(folder)
    result = next(r for r in found["parity"]["results"] if r["name"] == "one_reference.latents")
    step = next(f for f in found["files"] if f["path"] == "denoise_step.onnx")
    shown = {
        "target": found["target"], "precision": found["precision"], "opset": found["opset"],
        "runtime": found["runtime"],
        "pair": {
            "name": found["pair"]["name"],
            "fingerprint": f"{found['pair']['fingerprint'][:12]}...",
        },
        "profile": found["profile"],
        "parity": {
            "status": found["parity"]["status"],
            "results": [{
                "name": result["name"],
                "relative_error": float(f"{result['relative_error']:.1e}"),
                "relative_limit": result["relative_limit"],
            }],
        },
        "files": [step | {"sha256": f"{step['sha256'][:12]}..."}],
    }  # fmt: skip
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in shown.items())
    return "```json\n{\n" + ",\n".join(lines) + "\n}\n```"


def _builds(folder: Path) -> str:
    lines = ["| build | seconds | most memory | bundle |", "|---|---|---|---|"]
    for row in _suite(folder, "builds").rows:
        if row.median_ms is None:
            continue
        memory, size = (row.values.get(name) for name in ("peak_bytes", "bundle_bytes"))
        cells = [f"{value / 1e9:.2f} GB" if value else "" for value in (memory, size)]
        lines.append(f"| {row.label} | {row.median_ms / 1e3:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured(folder: Path) -> str:
    lines = ["| suite | measured (UTC) | commit | noise |", "|---|---|---|---|"]
    for path in sorted(folder.glob("*-cpu.json")):
        for result in load_results(path):
            machine = result.machine
            if machine is None:
                continue
            started = machine.started.replace("T", " ").rpartition(":")[0]
            busy = ", busy" if machine.is_busy else ""
            commit = machine.commit.removesuffix("-dirty")
            noise = f"{machine.noise:.0%}{busy}" if machine.noise is not None else ""
            lines.append(f"| `{result.suite}` | {started} | {commit} | {noise} |")
    return "\n".join(lines)


_TABLES: dict[str, Callable[[Path], str]] = {
    "baselines": _baselines,
    "step": _step,
    "latency": _latency,
    "scale": _scale,
    "reference": _reference,
    "merges": _merges,
    "quality": _quality,
    "options": _options,
    "operations": _operations,
    "costs": _costs,
    "golden": _golden,
    "evaluation": _evaluation,
    "references": _references,
    "parity": _parity,
    "manifest": _manifest,
    "builds": _builds,
    "measured": _measured,
    "gpu-pictures": gpu.pictures,
    "gpu-host": gpu.host,
    "gpu-attention": gpu.attention,
    "gpu-targets": gpu.targets,
}


def _suite(folder: Path, name: str) -> SuiteResult:
    path = folder / f"{name}-cpu.json"
    return next(each for each in load_results(path) if each.suite == name)


def _ratio(row: Row | None) -> str:
    return "" if row is None or row.ratio is None else f"{row.ratio.value:.2f}x"


def _interval(row: Row) -> str:
    if row.ratio is None or row.name == row.ratio_to:
        return ""
    return f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"


def _rates(row: Row) -> Iterator[str]:
    yield from (_rate(row, what) for what in ("identity", "scene"))


def _rate(row: Row, what: str) -> str:
    value, low, high = (row.values.get(f"{what}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return ""
    return f"{_short(value)} ({_short(low)} to {_short(high)})"


def _change(row: Row, what: str) -> str:
    """In points of a hundred, with the sign."""
    ends = [row.values.get(f"{what}_change{end}") for end in ("", "_low", "_high")]
    value, low, high = (None if each is None else 100 * each + 0.0 for each in ends)
    if value is None or low is None or high is None:
        return ""
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _short(value: float) -> str:
    return f"{value:.2f}"


def main() -> None:
    """Write README.md and its plots."""
    readme = ROOT / "README.md"
    atomic_write_text(readme, fill(readme.read_text(encoding="utf-8")))
    atomic_write_text(ROOT / PLOT, plot())
    atomic_write_text(ROOT / GPU_PLOT, gpu.plot(ROOT / RESULTS))


if __name__ == "__main__":
    main()
