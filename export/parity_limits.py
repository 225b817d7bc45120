"""How far new graphs may be from torch, by precision, and why."""

from __future__ import annotations

from dataclasses import dataclass

from bootpig_rt.backends.host_table import Precision


@dataclass(frozen=True)
class Limits:
    """Most that may differ.

    Attributes:
        graph: Relative error of one launch of a graph.
        end_to_end: Relative error of latents after all steps.
        psnr_db: Least peak signal-to-noise ratio of decoded pictures, by end-to-end runs.
    """

    graph: float
    end_to_end: float
    psnr_db: float


LIMITS: dict[Precision, Limits] = {
    # Both sides compute in float32 and differ in the order of sums: about 5e-7 a launch and 2e-6
    # after 25 steps for the shipped pair. The rest is room for deeper pairs, and for argmax, which
    # may choose another reference for a token whose references are nearly equal. 60 dB is a quarter
    # of one level of 256 on average.
    "float32": Limits(graph=1e-4, end_to_end=1e-3, psnr_db=60.0),
    # float16 keeps 11 bits: 5e-4 for each rounding, and some hundred layers add up to about 5e-3.
    # Guidance of 5 multiplies that in every step. At 25 dB a picture shows the same thing in the
    # same place.
    "float16": Limits(graph=2e-2, end_to_end=1e-1, psnr_db=25.0),
    # bfloat16 keeps 8 bits: 4e-3 for each rounding. A launch of the shipped pair's U-Nets is off by
    # 1e-2 to 2e-2, and guidance multiplies that as above.
    "bfloat16": Limits(graph=8e-2, end_to_end=4e-1, psnr_db=20.0),
    # Rounded products and bfloat16's rounding of everything are of one size: the step graphs of the
    # shipped pair are off by 2e-2. What hurts most stays wide until that is so, see `int8.py`.
    "int8": Limits(graph=8e-2, end_to_end=4e-1, psnr_db=20.0),
}
