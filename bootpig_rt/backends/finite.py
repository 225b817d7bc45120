"""No picture and no table is ever made from NaN."""

from __future__ import annotations

import numpy as np

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.errors import NumericalError


def check_finite(array: FloatArray, after: str) -> FloatArray:
    """Return the array if all of it is finite: no picture is ever made from NaN.

    Args:
        array: float32 [B, ...], one entry a picture.
        after: What made it, for the message.

    Raises:
        NumericalError: Says which pictures of the batch are affected.
    """
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        bad = ", ".join(str(index) for index in np.flatnonzero(~finite))
        raise NumericalError(
            f"NaN or Inf in picture {bad} of the batch after {after}, expected finite numbers; "
            "lower the guidance scales, take another solver or check the weights"
        )
    return array
