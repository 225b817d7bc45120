"""The curve of the shipped pair in the documentation: a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.curve import Curve, CurvePoint, Measure, curve_path, load_curve

PLOT = "cheaper-pictures.svg"


def shipped_curve() -> Curve | None:
    """That of the pair inside the package; None where it was not measured."""
    path = curve_path(default_model())
    return load_curve(path) if path.is_file() else None


def markdown_of(curve: Curve) -> str:
    """The points as a table, the cheapest last, and what they were measured on."""
    lines = [
        "| | work | time | fidelity | subject, dB | perceptual | identity | scene | apart, dB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    full = curve.point(curve.full)
    for point in sorted(curve.points, key=lambda point: -point.work):
        shown = full.measures if point is full else point.changes
        sign = "" if point is full else "+"
        judged = " | ".join(
            _shown(shown[name], f"{sign}.{digits}f")
            for name, digits in (("psnr_db", 2), ("perceptual", 3), ("network", 2), ("scene", 2))
        )
        apart = "" if point is full else f"{point.difference_db:.1f}"
        lines.append(
            f"| {point.label} | {point.work:.2f} | {point.time.value:.2f} | {point.fidelity:.3f} "
            f"| {judged} | {apart} |"
        )
    seen = curve.machine
    where = ", ".join(f"{name} {seen[name]}" for name in ("processor", "threads", "busy", "noise")
                      if name in seen)  # fmt: skip
    return "\n".join([
        *lines,
        "",
        f"`{curve.pair}`, {curve.num_pictures} pictures a line, {curve.rounds} rounds; {where}. "
        f"The first line says what judges say of it, the others what they say more or less, with "
        f"95 % intervals.",
    ])  # fmt: skip


def _shown(measure: Measure, form: str) -> str:
    return f"{measure.value:{form}} ({measure.low:{form}} to {measure.high:{form}})"


def draw(curve: Curve, path: Path) -> None:
    """Fidelity against work: a mark a point, the best that each work gives as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        for place, (kind, points) in enumerate(_kinds(curve).items()):
            axes.plot(
                [point.work for point in points],
                [point.fidelity for point in points],
                "o^sDvPX*"[place % 8],
                label=kind,
                markersize=5,
            )
            for point in points:
                axes.annotate(point.name, (point.work, point.fidelity), fontsize=6,
                              textcoords="offset points", xytext=(4, 3))  # fmt: skip
        best = _front(curve)
        axes.plot(
            [point.work for point in best],
            [point.fidelity for point in best],
            color="#a0aec0",
            linewidth=1,
            zorder=0,
        )
        axes.set_xlabel("work of a picture's steps, 1 is the full setting")
        axes.set_ylabel("fidelity to the subject")
        axes.legend(fontsize=7, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _kinds(curve: Curve) -> dict[str, list[CurvePoint]]:
    """Points by what is cheaper in them."""
    found: dict[str, list[CurvePoint]] = {}
    for point in curve.points:
        names = set(point.settings) - {"solver"}
        kind = "several at once"
        if point.fingerprint != curve.fingerprint:
            kind = "student"
        elif names <= {"num_inference_steps"}:
            kind = "fewer steps"
        elif len(names) == 1:
            kind = {
                "approximation": "kept features",
                "guidance_interval": "guidance in part of the steps",
                "reference_schedule": "reference in part of the steps",
            }[names.pop()]
        elif names == {"image_guidance_scale", "text_guidance_scale"}:
            kind = "one scale"
        found.setdefault(kind, []).append(point)
    return found


def _front(curve: Curve) -> list[CurvePoint]:
    """Points that none beats in both."""
    best: list[CurvePoint] = []
    for point in sorted(curve.points, key=lambda point: (point.work, -point.fidelity)):
        if not best or point.fidelity > best[-1].fidelity:
            best.append(point)
    return best
