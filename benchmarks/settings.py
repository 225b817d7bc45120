"""What a run of a suite is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from bootpig_rt.errors import ParameterError

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with (what is done, done so far, in all)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Settings:
    """What a run of a suite is asked for.

    Attributes:
        pair: Folder of the pair under test.
        device: `cpu` or `cuda`.
        rounds: Rounds in which all ways run in turn, after one that warms up.
        threads: Of torch and of ONNX Runtime, pinned.
        is_smoke: Small numbers, to see that everything runs; times mean nothing then.
        data: Folder that `fetch-data` made, for suites that judge pictures.
        work: Folder for intermediate files, such as drawn pictures; kept between runs.
        student: A pair that stage `distill` wrote, or a bundle of it; None: there is none.
        only: Names of rows, or beginnings of them, that are run; empty: all.
        baseline: The row that suite `baselines` divides by; empty: the strongest published way.
        url: Of a service that runs already, for suite `serving`; empty: servers are started.
        minutes: Of suite `soak`.
        references: Numbers of them that suite `baselines` draws with on a GPU; empty: 1 and 4.
        subjects: That judges see pictures of; three of five are held-out drawings of known things.
        prompts: Of each subject, which judges see a picture of.
        progress: Told what is done.
    """

    pair: Path
    device: str = "cpu"
    rounds: int = 20
    threads: int = 2
    is_smoke: bool = False
    data: Path = Path("data")
    work: Path = Path("bench")
    student: Path | None = None
    only: tuple[str, ...] = ()
    baseline: str = ""
    url: str = ""
    minutes: int = 30
    references: tuple[int, ...] = ()
    subjects: int = 50
    prompts: int = 4
    progress: Progress = field(default=no_progress, compare=False, repr=False)

    @property
    def is_cuda(self) -> bool:
        """Is the device a GPU?"""
        return self.device.startswith("cuda")

    def is_wanted(self, name: str) -> bool:
        """Should the row `name` be measured?"""
        return not self.only or any(name.startswith(start) for start in self.only)

    def check_only(self, names: Iterable[str]) -> None:
        """Refuse an `--only` that none of the names of a suite begins with.

        Raises:
            ParameterError: Says which names there are.
        """
        names = list(dict.fromkeys(names))
        if names and not any(map(self.is_wanted, names)):
            raise ParameterError(
                f"--only {' '.join(self.only)} matches no row, expected the beginning of one of: "
                f"{', '.join(names)}"
            )


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar that a suite's `progress` moves; nothing where stderr is no terminal."""
    with tqdm(desc=name, disable=None, leave=False) as shown:

        def progress(what: str, done: int, total: int) -> None:
            shown.total, shown.n = total, done
            shown.set_description(f"{name}: {what}")

        yield progress
