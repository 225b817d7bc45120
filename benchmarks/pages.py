"""Results as pages of the documentation: Markdown, with plots by matplotlib beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bootpig_rt.benchmarks.result import Check, Row, SuiteResult
from bootpig_rt.benchmarks.serving.plots import plots_of
from bootpig_rt.benchmarks.tables import NAMES, markdown, targets_markdown
from bootpig_rt.files.atomic import atomic_write_text

_FULL_SIZE = (
    "Both U-Nets, text encoder and autoencoder have the size of Stable Diffusion 2.1 and random "
    "weights: drawing with them costs what drawing with trained ones costs. Two such pairs do not "
    "fit into memory, so each way had a process of its own, one after the other; intervals are of "
    "medians that were drawn anew by themselves. PSNR is that of the pixels to the float32 picture "
    "of the published way; of text to image to that of diffusers, of the peer to its own: OpenVINO "
    "GenAI draws with DDIM, the others with UniPC. Mapped files count once for each model that "
    "maps them, and the system takes their pages back where somebody needs room: what a process "
    "cannot do without is the memory without them."
)

ABOUT = {
    "baselines": (
        "A picture and a step beside the ways that people would otherwise take",
        "All ways draw from the same weights, one after the other in each round. Ratios are to the "
        "strongest form of the published way that runs on this machine: as it is, through "
        "`torch.compile`, recorded as a CUDA graph, or in bfloat16 where the processor has it. A "
        "time runs from reference image and prompt to pixels; loading is not in it. Nothing that "
        "computes three full rows a step can be quicker than the floors; ours shares rows.",
    ),
    "full-size": (
        "A pair of Stable Diffusion 2.1's size on a CPU, 256 px",
        _FULL_SIZE,
    ),
    "full-size-512": (
        "A pair of Stable Diffusion 2.1's size on a CPU, 512 px",
        _FULL_SIZE,
    ),
    "shares": (
        "Where the time of a step goes, by operator",
        "What the runtimes themselves say of a step: profiling slows it a little, so only shares "
        "are shown. A runtime names what it fused after what it fused it into.",
    ),
    "reference": (
        "What the reference costs and gives",
        "How the reference is read decides time and bytes. `exact` computes what the published way "
        "does. Pictures are judged on subjects that were held out from training; changes are to "
        "`exact`, picture by picture.",
    ),
    "quality": (
        "Time against how good pictures are",
        "Every change that is not exact: fewer steps, other solvers, features that are kept for "
        "some steps, guidance or reference for part of them, a student. Changes are to 25 steps "
        "of `dpmpp_2m`, picture by picture, on subjects that were held out from training.",
    ),
    "inpaint": (
        "Subjects drawn into given scenes",
        "The renderer draws a scene, and the same scene with the subject in it. The pair is given "
        "the first with a mask around the subject's place. Judges see all of the picture; the seam "
        "is the mean distance to the renderer's picture, in levels of 255, in the three pixels "
        "inside the mask's border. Pixels outside the mask that changed are counted. Changes are "
        "to the subject's own reference, picture by picture.",
    ),
    "control": (
        "Pictures that follow depth maps",
        "The renderer's depth of a held-out subject in a scene is given beside prompt and "
        "reference. A small estimator, trained on the renderer's pictures, tells the depth of what "
        "was drawn: `depth` is its mean distance to the picture's own map, `chance` to that of "
        "another picture, `followed` to the map that was given; the row `renderer` is the "
        "estimator's own error. Changes are to no map, picture by picture.",
    ),
    "latency": (
        "From process start to picture",
        "Whole processes, with and without their files in the system's cache, then every part of a "
        "picture and what it is varied by.",
    ),
    "kernels": (
        "Attention with references, of all layers of a step",
        "Every way gives the same numbers, compared with float32 before a clock starts.",
    ),
    "serving": (
        "Services under load",
        "Requests come by themselves, as those of strangers do, whatever became of earlier ones. "
        "Each server is offered more and more until it draws no more pictures in time; then all "
        "take turns at the rate that was best for each, on the same pair, cores and client. A time "
        "is that between pictures that came in time, so a ratio is one of goodput. Ours draws with "
        "the schedule `exact`, and takes as many pictures as it draws in 70 % of the limit.",
    ),
    "soak": (
        "A service for long, with faults",
        "Load at 70 % of what it can do. Clients leave, inputs are bad, the disk is full for a "
        "while, the process is killed and started again by its supervisor.",
    ),
    "builds": (
        "Building engines",
        "Each build in a process of its own, once: these times have no interval.",
    ),
}

_COMPARED = (
    "## Compared before a clock started",
    "What latents differ from the published way's by, as a share of what the references change in "
    "them, or attention from float32, and the limit: at most five times what is known for it.",
)
_CHECKED = {
    "serving": (
        "## Checked",
        "How many values of pictures differ by more than rounding from those of the first server, "
        "before a load; and what was lost under it.",
    ),
    "soak": ("## Checked", "What must not happen."),
}

_JUDGED = (
    "Subject PSNR compares the subject's pixels with the renderer's drawing of it at the view that "
    "fits best; the perceptual distance compares features of an ImageNet network there, lower is "
    "better. Identity by the network is the share of pictures whose subject is nearest to its own "
    "reference among all drawings of its concept."
)


def write_pages(results: Sequence[SuiteResult], folder: Path) -> list[Path]:
    """Write a page for each result, named by suite and device.

    Args:
        results: Of suites.
        folder: Of the pages.

    Returns:
        The pages.
    """
    return [write_page(each, folder, f"{each.suite}-{each.device}") for each in results]


def write_page(result: SuiteResult, folder: Path, name: str) -> Path:
    """Write the page of a result, and its plots beside it.

    Args:
        result: What to show.
        folder: Is made if it is not there.
        name: Of the page, without its ending; plots are NAME-1.svg and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{name}.md"
    atomic_write_text(page, page_of(result, draw_plots(result, folder, name)))
    return page


def page_of(result: SuiteResult, plots: Sequence[str] = ()) -> str:
    """The page of a suite.

    Args:
        result: What to show.
        plots: Names of the pictures beside the page.
    """
    title, about = ABOUT[result.suite]
    parts = [f"# {title}", about, _measured_on(result)]
    parts += [f"**{remark}**" for remark in result.remarks]
    if result.targets:
        parts += ["## Targets", *_targets_for(result), targets_markdown(result)]
    parts += [f"![{title}]({plot})" for plot in plots]
    if any("psnr_db" in row.values for row in result.rows):
        parts.append(_JUDGED)
    for group in dict.fromkeys(row.group for row in result.rows):
        parts += [f"## {group[:1].upper()}{group[1:]}"] if group else []
        parts.append(markdown([row for row in result.rows if row.group == group]))
    if result.checks:
        parts += [
            *_CHECKED.get(result.suite, _COMPARED),
            _checks(result.checks),
        ]
    return "\n\n".join(parts) + "\n"


def _targets_for(result: SuiteResult) -> list[str]:
    """That they were meant for another processor, where they were."""
    seen = result.machine
    if result.device != "cpu" or seen is None or "amx" in seen.arithmetic:
        return []
    return ["They were set for processors with AMX, and this one has none."]


def _measured_on(result: SuiteResult) -> str:
    asked = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    if result.machine is None:
        return f"Not measured on a known machine. {asked}."
    seen = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in seen.versions.items())
    busy = " **The machine was busy: ratios suffer little, times are not worth quoting.**"
    where = f"{seen.name}, {seen.threads} threads of {seen.cores} cores, noise {seen.noise:.0%}"
    if seen.arithmetic:
        where += f" ({seen.arithmetic})"
    if seen.gpu:
        known = seen.gpu
        where = (
            f"{seen.name}, {known.get('architecture')}, CUDA {known.get('cuda')}, driver "
            f"{known.get('driver_version', 'unknown')}"
        )
    return (
        f"{where}; {versions}; commit {seen.commit or 'unknown'}; {seen.started}. "
        f"`{seen.command}`. {asked[:1].upper()}{asked[1:]}.{busy if seen.is_busy else ''}"
    )


def _checks(checks: Sequence[Check]) -> str:
    lines = [f"| {each.name} | {each.value} | {each.limit:g} |" for each in checks]
    return "\n".join(["| | measured | limit |", "|---|---:|---:|", *lines])


def draw_plots(result: SuiteResult, folder: Path, name: str) -> list[str]:
    """Draw what a suite's rows can show; names of the files."""
    groups: dict[str, list[Row]] = {}
    for row in result.rows:
        groups.setdefault(row.group, []).append(row)
    plots: list[tuple[Callable[[Any], None], float]] = []
    if result.suite in ("baselines", "kernels", "latency", "full-size", "full-size-512"):
        timed = [[row for row in rows if row.samples_ms] for rows in groups.values()]
        shown = [rows for rows in timed if len(rows) > 1][: 4 if result.suite == "kernels" else 2]
        plots += [(partial(bars, rows=rows), len(rows)) for rows in shown]
    if result.suite == "quality":
        judged = [row for row in result.rows if row.samples_ms and "psnr_db" in row.values]
        measures = ("psnr_db", "perceptual") if judged else ()
        plots += [(partial(scatter, rows=judged, y=y), 12.0) for y in measures]
    plots += plots_of(result)
    files = []
    for number, (draw, size) in enumerate(plots, 1):
        file = f"{name}-{number}.svg"
        _save(draw, size, folder / file)
        files.append(file)
    return files


def _save(draw: Callable[[Any], None], size: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(8, 1.0 + 0.28 * size), layout="constrained")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def bars(axes: Any, rows: Sequence[Row]) -> None:
    """Median times, lying bars; whiskers from the 25th to the 75th percentile."""
    for place, row in enumerate(rows):
        middle = row.median_ms or 0.0
        low, _, high = (
            statistics.quantiles(row.samples_ms, n=4)
            if len(row.samples_ms) > 1
            else (middle, middle, middle)
        )
        is_ours = row.name.startswith("ours") or " ours" in row.name
        axes.barh(place, middle, color="#2b6cb0" if is_ours else "#a0aec0")
        axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(rows[0].group, loc="left", fontsize=9)


def scatter(axes: Any, rows: Sequence[Row], y: str) -> None:
    """A measure against the median time of a picture, with its 95 % interval."""
    for row in rows:
        value = row.values.get(y)
        if value is None or row.median_ms is None:
            continue
        ends = [abs((row.values.get(f"{y}_{end}") or value) - value) for end in ("low", "high")]
        bar = axes.errorbar(
            row.median_ms, value, yerr=[[ends[0]], [ends[1]]], fmt="o", markersize=4
        )
        axes.annotate(row.label, (row.median_ms, value), textcoords="offset points",
                      xytext=(5, 3), fontsize=7, color=bar[0].get_color())  # fmt: skip
    axes.set_xlabel("ms a picture")
    axes.set_ylabel(NAMES[y])
