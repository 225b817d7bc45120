"""What a precision of a bundle does to identity: judged beside the same pictures in float32."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from bootpig_rt.benchmarks.judged import Jury
from bootpig_rt.benchmarks.ours import OurWay
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.bundle.bundle import Bundle
from bootpig_rt.bundle.manifest import Identity
from bootpig_rt.errors import ParameterError
from bootpig_rt.training.evaluation.statistics import rate

_MEASURE = "network"


def judge_identity(bundle: Bundle, precision: str, settings: Settings) -> Identity:
    """Draw the subjects held out in float32 and in a precision, with OpenVINO, and judge both.

    Args:
        bundle: For OpenVINO, with that precision.
        precision: Of `bundle.manifest.variants`.
        settings: Where drawings lie, threads, and how progress is shown. Pictures and verdicts are
            kept in `settings.work`: a run that was interrupted goes on from them.

    Raises:
        ParameterError: There are no drawings in `settings.data`, or no such variant.
    """
    variant = bundle.manifest.variant(precision)
    if variant is None:
        raise ParameterError(f"{bundle.folder} has no {precision} variant to judge")
    # Pictures of other graphs of the same pair are other pictures.
    graphs = " ".join(graph.sha256 for graph in (*bundle.manifest.graphs, *variant.graphs))
    work = settings.work / hashlib.sha256(graphs.encode()).hexdigest()[:16]
    jury = Jury(replace(settings, work=work), bundle_side_px(bundle))
    said: dict[str, tuple[float, ...]] = {}
    whose: tuple[int, ...] = ()
    for one in ("float32", precision):
        options: dict[str, Any] = {"precision": one, "threads": settings.threads}
        way = OurWay(bundle.folder, backend="openvino", backend_options=options)
        quality = jury.judge(way, one)
        said[one], whose = quality.said[_MEASURE], quality.whose
    change = rate(np.subtract(said[precision], said["float32"]).tolist(), whose)
    if change is None:
        raise ParameterError("no pictures to judge")
    return Identity(
        change_points=round(100 * change["value"], 2),
        low_points=round(100 * change["low"], 2),
        high_points=round(100 * change["high"], 2),
        pictures=len(whose),
    )


def bundle_side_px(bundle: Bundle) -> int:
    """The side of the pictures that a bundle usually draws."""
    return bundle.manifest.profile.resolution_px[1]
