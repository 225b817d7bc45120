"""Checks of numbers, names, seeds and prompts that a user gives.

Every check raises an error of one line: what was wrong, what was got, what is expected and what to
do. This file knows nothing about models; limits that depend on one are checked by the engine.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Sequence
from typing import Any

from bootpig_rt.errors import ParameterError, PromptError, shown

MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
MAX_PROMPT_CHARS = 10_000

_KIND = re.compile(r"[a-z][a-z0-9]{0,31}")


def check_int(name: str, value: object, low: int, high: int, fix: str = "") -> int:
    """Return `value` as an int in `low..high`.

    Args:
        name: How the user calls the parameter.
        value: Anything; numpy integers are accepted, bools and floats are not.
        low: Smallest value allowed.
        high: Largest value allowed.
        fix: What to do, the end of the message, if there is anything to say.

    Raises:
        ParameterError: Not an integer, or out of range.
    """
    fix = fix and f"; {fix}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParameterError(
            f"{name} is {shown(value)}, expected a whole number {low}..{high}{fix}"
        )
    number = operator.index(value)
    if not low <= number <= high:
        raise ParameterError(f"{name} is {shown(number)}, expected {low}..{high}{fix}")
    return number


def check_flag(name: str, value: object) -> None:
    """Refuse anything but True and False.

    Raises:
        ParameterError: Says what was got.
    """
    if not isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}, expected True or False")


def check_steps(value: object) -> int:
    """Return a number of steps, 1 to 1000.

    Raises:
        ParameterError: Not an integer, or out of range.
    """
    return check_int("num_inference_steps", value, 1, MAX_STEPS, "25 is usual")


def check_guidance(name: str, value: object) -> float:
    """Return a guidance scale as a float.

    Raises:
        ParameterError: Not a number, not finite, negative or above 100.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParameterError(f"{name} is {value!r}, expected a number 0..{MAX_GUIDANCE:g}")
    number = float(value)
    if not math.isfinite(number) or not 0.0 <= number <= MAX_GUIDANCE:
        raise ParameterError(
            f"{name} is {number:g}, expected a finite number 0..{MAX_GUIDANCE:g}; "
            "1 means no guidance"
        )
    return number


def check_share(name: str, value: Any) -> tuple[float, float]:
    """Return a share of the steps, two numbers 0 <= a < b <= 1.

    Raises:
        ParameterError: Anything else.
    """
    ends: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else ()
    is_share = len(ends) == 2 and all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in ends
    )
    if not is_share or not ends[0] < ends[1]:
        raise ParameterError(
            f"{name} is {value!r}, expected two numbers 0 <= a < b <= 1 such as (0.0, 0.6)"
        )
    return float(ends[0]), float(ends[1])


def check_kind(kind: object) -> str:
    """Return a kind of control, `depth` or another word of small letters and digits.

    Raises:
        ParameterError: It is none.
    """
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ParameterError(
            f"the kind of a control is {shown(kind)}, expected a word such as depth or canny: up "
            "to 32 small letters and digits, a letter first"
        )
    return kind


def check_sizes(value: object) -> tuple[int, ...]:
    """Return what a picture's sizes are said to be, six whole numbers 0..16384.

    Raises:
        ParameterError: Anything else.
    """
    numbers_given: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else ()
    if len(numbers_given) != 6 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 16384 for n in numbers_given
    ):
        raise ParameterError(
            f"sizes is {value!r:.80}, expected six whole numbers 0..16384: height and width of the "
            "original, top and left of the crop, height and width of the target, such as "
            "(1024, 1024, 0, 0, 1024, 1024)"
        )
    return numbers_given


def check_strength(value: object) -> float:
    """Return how much of a given picture is drawn anew, over 0 up to 1.

    Raises:
        ParameterError: Anything else.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0.0 < float(value) <= 1.0:  # type: ignore[arg-type]
        raise ParameterError(
            f"strength is {shown(value)}, expected a number over 0 up to 1: 1 draws all anew, "
            "0.3 changes a little"
        )
    return float(value)  # type: ignore[arg-type]


def check_name(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a name that is not in the list.

    Raises:
        ParameterError: Lists what is allowed.
    """
    if value not in allowed:
        raise ParameterError(f"{name} is {shown(value)}, expected one of: {', '.join(allowed)}")


def check_seed(value: object, name: str = "seed") -> int:
    """Return a seed in 0..2**63 - 1.

    Raises:
        ParameterError: Not an integer, or out of range.
    """
    return check_int(name, value, 0, MAX_SEED, "leave it out for a random one")


def wrap_seed(seed: int) -> int:
    """A seed counted on from another, kept in 0..2**63 - 1."""
    return seed % (MAX_SEED + 1)


def check_prompt(value: Any, name: str = "prompt", *, allow_empty: bool = False) -> str:
    """Return a prompt without surrounding white space.

    Args:
        value: Anything.
        name: How the user calls the parameter.
        allow_empty: A negative prompt may be empty.

    Raises:
        PromptError: Missing, not text, empty, too long, or with characters that are not text.
    """
    if not isinstance(value, str):
        got = "missing" if value is None else f"of type {type(value).__name__}"
        raise PromptError(f"{name} is {got}, expected text such as 'a photo of a dog, on a beach'")
    text = value.strip()
    if not text and not allow_empty:
        raise PromptError(f"{name} is empty, expected text such as 'a photo of a dog, on a beach'")
    if len(text) > MAX_PROMPT_CHARS:
        raise PromptError(
            f"{name} has {len(text)} characters, expected at most {MAX_PROMPT_CHARS}; shorten it"
        )
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise PromptError(f"{name} holds a NUL or a lone surrogate, expected plain text; remove it")
    return text
