"""What a run measures: in full on a GPU, or the same paths at toy size on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from bootpig_rt.benchmarks.gpu.shapes import KernelCase, sd21_cases, toy_cases
from bootpig_rt.errors import BackendUnavailable, ParameterError

PARTS = ("kernel", "picture")


@dataclass(frozen=True)
class PictureCase:
    """Pictures of one subject that are drawn at once.

    Attributes:
        references: R.
        batch: B.
        is_ladder: All ways of the ablation; otherwise ours and text-to-image alone.
    """

    references: int
    batch: int
    is_ladder: bool

    @property
    def name(self) -> str:
        """Stable identifier."""
        return f"r{self.references}-b{self.batch}"


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Attributes:
        is_rehearsal: At toy size on a CPU.
        device: `cuda` or `cpu`.
        dtype: Of all ways.
        kernel_cases: Shapes of attention, the most important first.
        kernel_rounds: Rounds of each shape.
        gemm_size: Side of the matrices of the roofline.
        picture_cases: Pictures, the most important first.
        picture_rounds: Rounds of each case.
        steps: T of a picture.
        size_px: Side of a picture.
        seconds: Time budget.
        parts: `kernel`, `picture`.
        ways: Rungs of the ablation that are drawn, by name; all where empty.
        progress: Told what is measured next.
    """

    is_rehearsal: bool
    device: str
    dtype: torch.dtype
    kernel_cases: tuple[KernelCase, ...]
    kernel_rounds: int
    gemm_size: int
    picture_cases: tuple[PictureCase, ...]
    picture_rounds: int
    steps: int
    size_px: int
    seconds: float
    parts: tuple[str, ...] = PARTS
    ways: tuple[str, ...] = ()
    progress: Callable[[str], object] = field(default=lambda what: None, compare=False)

    @property
    def kernel_share(self) -> float:
        """Share of the budget at which the part `kernel` ends."""
        return 0.45 if "picture" in self.parts else 1.0


def make_plan(
    *,
    rehearse: bool,
    minutes: float = 9.0,
    parts: tuple[str, ...] = PARTS,
    ways: tuple[str, ...] = (),
    cases: tuple[str, ...] = (),
    progress: Callable[[str], object] | None = None,
) -> Plan:
    """The plan of a command.

    Args:
        rehearse: At toy size on a CPU.
        minutes: Time budget.
        parts: Of `PARTS`.
        ways: Rungs of the ablation by name; empty for all.
        cases: Pictures by name, `r1-b1` for one reference and a batch of one; empty for all.
        progress: Told what is measured next.

    Raises:
        BackendUnavailable: No CUDA device and no rehearsal.
        ParameterError: A part or the minutes make no sense.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        got = unknown[0] if unknown else ""
        raise ParameterError(f"--only is {got!r}, expected one or more of {', '.join(PARTS)}")
    if not 0 < minutes <= 24 * 60:
        raise ParameterError(f"--minutes is {minutes:g}, expected above 0, up to 1440; 9 is usual")
    told = progress or (lambda what: None)
    if rehearse:
        plan = Plan(
            is_rehearsal=True,
            device="cpu",
            dtype=torch.float32,
            kernel_cases=tuple(toy_cases()),
            kernel_rounds=2,
            gemm_size=64,
            picture_cases=(
                PictureCase(1, 1, is_ladder=True),
                PictureCase(4, 1, is_ladder=True),
                PictureCase(1, 2, is_ladder=False),
            ),
            picture_rounds=1,
            steps=3,
            size_px=64,
            seconds=60 * minutes,
            parts=parts,
            ways=ways,
            progress=told,
        )
        return _with_cases(plan, cases)
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"bench-gpu needs a CUDA GPU, and torch {torch.__version__} sees none; run "
            "`bootpig-rt bench-gpu --rehearse` to try all paths on the CPU, or install a build of "
            "torch for your CUDA with: pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126"
        )
    plan = Plan(
        is_rehearsal=False,
        device="cuda",
        dtype=torch.float16,
        kernel_cases=tuple(sd21_cases()),
        kernel_rounds=15,
        gemm_size=8192,
        picture_cases=(
            PictureCase(1, 1, is_ladder=True),
            PictureCase(4, 1, is_ladder=True),
            *(PictureCase(r, b, is_ladder=False) for b in (4, 2) for r in (1, 4)),
        ),
        picture_rounds=5,
        steps=25,
        size_px=512,
        seconds=60 * minutes,
        parts=parts,
        ways=ways,
        progress=told,
    )
    return _with_cases(plan, cases)


def _with_cases(plan: Plan, names: tuple[str, ...]) -> Plan:
    known = [case.name for case in plan.picture_cases]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ParameterError(
            f"--cases has {unknown[0]!r}, expected one or more of {', '.join(known)}"
        )
    kept = tuple(case for case in plan.picture_cases if not names or case.name in names)
    return replace(plan, picture_cases=kept)
