"""The ablation: from the published way to ours, one optimisation a rung."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.backends.options import TorchOptions
from bootpig_rt.benchmarks.gpu.our_way import KnownSubject, OurWay, Subject, make_backend
from bootpig_rt.benchmarks.gpu.picture_inputs import PictureWay
from bootpig_rt.benchmarks.gpu.plan import Plan
from bootpig_rt.benchmarks.gpu.published_way import Mode, PublishedWay
from bootpig_rt.benchmarks.gpu.random_pair import copy_unets, make_pair
from bootpig_rt.benchmarks.gpu.shapes import HEAD_DIM
from bootpig_rt.benchmarks.gpu.timer import NotAvailable
from bootpig_rt.errors import ParameterError
from bootpig_rt.kernels import choose
from bootpig_rt.models.load import Pair

PUBLISHED = "published"
OURS = "shared_rows"
"""The rung that is what a user gets: the defaults of the torch backend on CUDA."""

TEXT_TO_IMAGE = "text_to_image"


@dataclass(frozen=True)
class Rung:
    """One optimisation and all before it.

    Attributes:
        name: Stable identifier.
        label: What this rung adds.
        mode: Of the published way; None for ours.
        options: Of the torch backend.
        attention: `auto` or `eager`.
        rows_per_launch: Of the reference pass; None: one timestep at a time.
        is_channels_last: Layout of weights and activations.
        shares_rows: Rows of a picture are computed once until they meet their text.
        needs_s: About what its warm-up takes, where that is long.
        cuda_only: Why it does not run on a CPU; empty where it does.
        on_cpu: What it is on a CPU, where it is not the same there.
        is_aside: Beside the ladder: later rungs do not build on it.
    """

    name: str
    label: str
    mode: Mode | None = None
    options: dict[str, Any] = field(default_factory=dict)
    attention: str = "auto"
    rows_per_launch: int | None = 16
    is_channels_last: bool = False
    shares_rows: bool = False
    needs_s: float = 0.0
    cuda_only: str = ""
    on_cpu: str = ""
    is_aside: bool = False

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What is measured of it: a new and a known subject; the published way knows none."""
        return ("cold",) if self.mode is not None else ("cold", "warm")


_HOST = {"cuda_graph": False, "compile": False}
_GRAPH = {"cuda_graph": True, "compile": False}

LADDER = (
    Rung(PUBLISHED, "published way, eager attention", mode="eager"),
    Rung("sdpa", "+ SDPA in all attentions", mode="sdpa"),
    Rung("single", "+ no double attention", mode="single"),
    Rung(
        "table",
        "+ reference and text read once, ahead of the steps",
        options=_HOST,
        attention="eager",
        rows_per_launch=None,
    ),
    Rung("batched_pass", "+ timesteps of the reference batched", options=_HOST, attention="eager"),
    Rung(
        "fused",
        "+ fused kernels: attention, layer norms, GEGLU",
        options=_HOST,
        on_cpu="eager on a CPU",
    ),
    Rung(
        "channels_last",
        "+ channels-last, group norms and sums fused",
        options=_HOST,
        is_channels_last=True,
    ),
    Rung(
        "cuda_graph",
        "+ CUDA graphs",
        options=_GRAPH,
        is_channels_last=True,
        on_cpu="the buffers of the graphs, without a recording, on a CPU",
    ),
    Rung(
        OURS,
        "+ rows shared before text = ours",
        options=_GRAPH,
        is_channels_last=True,
        shares_rows=True,
    ),
    Rung(
        "compile",
        "ours + torch.compile of the U-Nets",
        options={"cuda_graph": True, "compile": True},
        is_channels_last=True,
        shares_rows=True,
        needs_s=150.0,
        cuda_only="torch.compile takes a minute a shape; measured on CUDA alone",
        is_aside=True,
    ),
)
RUNGS = {rung.name: rung for rung in LADDER}


class Builder:
    """Makes ways over pairs on the device: one a layout of memory, made when first needed.

    Recordings hold the addresses of weights, so no way may change the layout of another's.

    Args:
        plan: Device, type and size.
    """

    def __init__(self, plan: Plan) -> None:
        """Make the pair."""
        self._plan = plan
        self.pair = make_pair(
            plan.device, plan.dtype, size_px=plan.size_px, is_toy=plan.is_rehearsal
        )
        self._channels_last: Pair | None = None
        self.known = KnownSubject()
        # Latents of the published arithmetic and of text-to-image, by number of references: what
        # cases compare with that do not draw them.
        self.expected: dict[int, tuple[FloatArray, FloatArray]] = {}

    def way(self, rung: Rung, subject: Subject) -> PictureWay:
        """A way of a rung.

        Raises:
            NotAvailable: It cannot run here, or the backend lacks its option.
        """
        device = self._plan.device
        if rung.name == "fused" and device.startswith("cuda"):
            _require_fused(device, self._plan.dtype)
        if rung.mode is not None:
            return PublishedWay(self.pair, device, self._plan.dtype, rung.mode)
        pair = self.pair
        if rung.is_channels_last:
            if self._channels_last is None:
                self._channels_last = copy_unets(self.pair, torch.channels_last)
            pair = self._channels_last
        backend = make_backend(
            pair,
            device,
            torch_options(rung.options),
            channels_last=rung.is_channels_last,
            shares_rows=rung.shares_rows,
        )
        return OurWay(
            backend,
            subject,
            self.known,
            rows_per_launch=rung.rows_per_launch,
            attention=rung.attention,
        )


def _require_fused(device: str, dtype: torch.dtype) -> None:
    """Say so where this rung would be the same as the one before it."""
    if not choose.is_fused(torch.empty(1, 1, 1, HEAD_DIM, device=device, dtype=dtype)):
        raise NotAvailable("the fused kernels do not run here; the log says why")


def torch_options(wanted: dict[str, Any]) -> TorchOptions:
    """Options of the torch backend by name.

    Raises:
        NotAvailable: This version has no such option.
    """
    known = {each.name for each in fields(TorchOptions)}
    missing = sorted(set(wanted) - known)
    if missing:
        raise NotAvailable(f"the torch backend has no option {missing[0]}")
    return TorchOptions(**wanted)


def ways_of(is_ladder: bool) -> Iterator[tuple[Rung, Subject]]:
    """What is drawn in a case, in the order of the table."""
    order = [rung for rung in LADDER if not rung.is_aside] if is_ladder else [RUNGS[OURS]]
    for rung in order:
        for subject in rung.subjects:
            yield rung, subject
    yield RUNGS[OURS], "none"


def asides() -> Iterator[tuple[Rung, Subject]]:
    """What is drawn last: what takes long to warm up, after what it is compared with."""
    yield RUNGS[OURS], "warm"
    yield RUNGS[OURS], "none"
    for rung in LADDER:
        if rung.is_aside:
            yield rung, "warm"


def wanted_ways(
    ways: Iterator[tuple[Rung, Subject]], names: tuple[str, ...]
) -> list[tuple[Rung, Subject]]:
    """Those of the rungs that were asked for, all where none was."""
    return [each for each in ways if not names or each[0].name in names]


def check_names(names: tuple[str, ...]) -> None:
    """Refuse a rung that there is not.

    Raises:
        ParameterError: Says which there are.
    """
    unknown = [name for name in names if name not in RUNGS]
    if unknown:
        raise ParameterError(
            f"--ways has {unknown[0]!r}, expected one or more of {', '.join(RUNGS)}"
        )


def way_name(rung: Rung, subject: Subject) -> str:
    """Name of the row of a way."""
    if subject == "none":
        return TEXT_TO_IMAGE
    return rung.name if rung.mode is not None else f"{rung.name}_{subject}"


def without_subject(label: str) -> str:
    """A row's label where columns tell new and known subjects apart."""
    return label.removesuffix(", known subject").removesuffix(", new subject")


def way_label(rung: Rung, subject: Subject) -> str:
    """The same for people."""
    if subject == "none":
        return "text-to-image on our runtime"
    if rung.mode is not None:
        return rung.label
    return f"{rung.label}, {'new' if subject == 'cold' else 'known'} subject"
