"""Approximations of a picture's steps: named, planned step by step, never chosen silently.

Plain rules over step numbers, as of reference schedules. This file knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bootpig_rt.errors import ParameterError, shown
from bootpig_rt.reference.schedule import WHOLE, parse_share, steps_of_share

BoolArray = npt.NDArray[np.bool_]

FORMS = "none, cache:K or cache:K+window:A-B"
_EXAMPLE = "such as cache:2 or cache:3+window:0.2-1"
_MOST = 100


@dataclass(frozen=True)
class Approximation:
    """What the steps of a picture leave out.

    `cache:K`: the deep blocks of the Base U-Net, all but its last one, are computed in every K-th
    step. The steps between compute the last block alone, on the features that the deep ones gave
    last (Ma et al. 2023, "DeepCache", arXiv 2312.00858). Guidance, reference and solver are those
    of a full step. The last step of a picture is always computed whole: it is what is seen. With a
    window, a share of the steps, features are used again inside it alone.

    Attributes:
        interval: K, 2 or more; 1 leaves out nothing.
        window: First and last of the share of the steps in which features are used again, 0 to 1.
    """

    interval: int = 1
    window: tuple[float, float] = WHOLE

    @classmethod
    def parse(cls, text: object) -> Approximation:
        """Read `none`, `cache:K` or `cache:K+window:A-B`; `cache:1` is `none`.

        Raises:
            ParameterError: Anything else.
        """
        if isinstance(text, Approximation):
            return text
        first, plus, rest = text.partition("+") if isinstance(text, str) else ("", "", "")
        if first == "none" and not plus:
            return cls()
        number = first.removeprefix("cache:")
        is_number = number != first and number.isascii() and number.isdigit() and len(number) < 10
        window = parse_share(rest.removeprefix("window:")) if rest.startswith("window:") else None
        if plus == "":
            window = WHOLE
        if not is_number or not 1 <= int(number) <= _MOST or window is None:
            raise ParameterError(
                f"approximation is {shown(text)}, expected {FORMS}, K 1..{_MOST}, {_EXAMPLE}"
            )
        return cls() if int(number) == 1 else cls(int(number), window)

    @property
    def is_exact(self) -> bool:
        """Nothing is left out."""
        return self.interval == 1

    def deep_steps(self, changes: BoolArray) -> BoolArray:
        """Whether each step computes the deep blocks, bool [T].

        Args:
            changes: bool [T], the picture has other rows than in the step before: those have no
                features yet, so the interval begins anew.

        Raises:
            ParameterError: No step lies in the window.
        """
        steps = steps_of_share(self.window, len(changes))
        if not steps:
            raise ParameterError(
                f"approximation is {self}, but none of {len(changes)} steps lies in its window; "
                "widen it"
            )
        deep = np.ones(len(changes), dtype=np.bool_)
        since = 0
        for step in range(steps.start, min(steps.stop, len(changes) - 1)):
            since = 0 if changes[step] or since == self.interval else since
            deep[step] = since == 0
            since += 1
        return deep

    def __str__(self) -> str:
        """The form that `parse` reads."""
        if self.is_exact:
            return "none"
        if self.window == WHOLE:
            return f"cache:{self.interval}"
        return f"cache:{self.interval}+window:{self.window[0]:g}-{self.window[1]:g}"


NONE = Approximation()
