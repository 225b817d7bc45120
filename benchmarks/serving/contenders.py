"""The servers that are compared: how each is started, and asked."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bootpig_rt.benchmarks.serving.dialects import Dialect, OurDialect, PlainDialect
from bootpig_rt.benchmarks.serving.process import ServerProcess
from bootpig_rt.benchmarks.serving.target import Pace, Target
from bootpig_rt.benchmarks.serving.workload import Mix
from bootpig_rt.benchmarks.settings import Settings
from bootpig_rt.benchmarks.way import Unavailable

EXACT = {"reference_schedule": "exact"}
"""The schedule with which ours computes the numbers of the published way."""

MAX_BATCH = 4
"""Of ours and of LitServe: on a CPU larger batches draw no more, and hold up who is in them."""

_SHARE_OF_LIMIT = 0.7
"""Ours takes as many pictures, drawn and waiting, as it draws in this share of the limit: the rest
is for requests that ask for more than others."""


@dataclass(frozen=True)
class Contender:
    """A server that is compared.

    Attributes:
        name: Of its row.
        label: Of its row.
        begin: Starts it, warm; given the limit in s, which is None for the first of all.
    """

    name: str
    label: str
    begin: Callable[[float | None], Target]


@dataclass(frozen=True)
class Contenders:
    """Makes them.

    Attributes:
        settings: Of the run.
        mix: What they are asked for.
        pace: How.
        logs: Folder for what they write.
        stack: Ends them, whatever happens.
    """

    settings: Settings
    mix: Mix
    pace: Pace
    logs: Path
    stack: ExitStack

    def all(self) -> list[Contender]:
        """The one that others are compared with comes first."""
        return [
            Contender("fastapi", "published way behind FastAPI, one at a time", self._fastapi),
            Contender(
                "litserve", f"published way in LitServe, batches of {MAX_BATCH}", self._litserve
            ),
            Contender("ours_unbatched", "ours, without batching", partial(self.ours, max_batch=1)),
            Contender("ours", f"ours, batches of {MAX_BATCH}", self.ours),
        ]

    def ours(self, limit_s: float | None = None, *, max_batch: int = MAX_BATCH) -> Target:
        """`bootpig-rt serve`, with as many places to wait as the limit allows."""
        words = [
            "bootpig_rt", "serve", str(self.settings.pair), "--port", "{port}", "--threads",
            str(self.settings.threads), "--max-batch", str(max_batch), "--no-page",
        ]  # fmt: skip
        name = f"ours-{max_batch}"
        target = self._begin(name, words, OurDialect(EXACT), ready="/readyz")
        if limit_s is None:
            return target
        pictures = _SHARE_OF_LIMIT * limit_s / statistics.mean(target.alone())
        target.stop()
        words += ["--max-waiting", str(max(1, round(pictures) - max_batch))]
        return self._begin(name, words, OurDialect(EXACT), ready="/readyz")

    def _fastapi(self, limit_s: float | None) -> Target:
        return self._begin("fastapi", self._module("fastapi"), PlainDialect("/draw"))

    def _litserve(self, limit_s: float | None) -> Target:
        if importlib.util.find_spec("litserve") is None:
            raise Unavailable('litserve is not installed; pip install "bootpig-rt[bench]"')
        # It gives up what waited for longer than a client does.
        words = [*self._module("litserve"), "--timeout", f"{limit_s or 30.0:g}"]
        words += ["--max-batch", str(MAX_BATCH)]
        return self._begin("litserve", words, PlainDialect("/predict"))

    def _module(self, name: str) -> list[str]:
        settings = self.settings
        return [
            f"bootpig_rt.benchmarks.serving.{name}_server", str(settings.pair.resolve()),
            "--port", "{port}", "--threads", str(settings.threads),
        ]  # fmt: skip

    def _begin(
        self, name: str, words: Sequence[str], dialect: Dialect, *, ready: str = "/health"
    ) -> Target:
        start = partial(
            ServerProcess, words, ready=ready, log=self.logs / f"{name}.log",
            environment={"OMP_NUM_THREADS": str(self.settings.threads)},
        )  # fmt: skip
        target = Target(dialect, start=start, mix=self.mix, pace=self.pace)
        self.stack.callback(target.stop)
        target.begin()
        return target
