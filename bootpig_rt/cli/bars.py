"""Progress bars of commands that do several things one after another."""

from __future__ import annotations

from typing import Any


class Bars:
    """One progress bar after the other, by what is being done.

    Args:
        totals: How many pictures each thing has, by its name.
        is_shown: False for commands whose output machines read.
    """

    def __init__(self, totals: dict[str, int], *, is_shown: bool) -> None:
        self._totals, self._is_shown = totals, is_shown
        self._name = ""
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, name: str, count: int) -> None:
        """Move the bar of a name on."""
        from tqdm import tqdm

        if name != self._name:
            if self._bar is not None:
                self._bar.close()
            self._name = name
            self._bar = tqdm(
                desc=name,
                total=self._totals.get(name),
                unit="picture",
                disable=None if self._is_shown else True,
            )
        self._bar.update(count)
