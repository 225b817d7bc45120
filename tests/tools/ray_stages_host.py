"""A program of the tests: stages of the bootstrap on a Ray of this machine, with two workers.

    python ray_stages_host.py FOLDER

It reads lines of JSON, {"do": name of a function below}, and prints one line of JSON for each. Ray
is in a process of its own so that whatever it leaves behind ends with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bootpig_rt.errors import BootPIGError, ConfigError, InputError
from bootpig_rt.training.bootstrap.config import (
    BootstrapConfig,
    CaptionsConfig,
    FiltersConfig,
    MasksConfig,
    PicturesConfig,
)
from bootpig_rt.training.bootstrap.ray_stages import RayOptions, RayRunner
from bootpig_rt.training.bootstrap.run import bootstrap
from bootpig_rt.training.bootstrap.stage import (
    Item,
    Items,
    MakeStage,
    Outcome,
    Reject,
    Runner,
    View,
    run_here,
)
from bootpig_rt.training.shards import read_manifest, read_samples

ITEMS = 40


class MarkStage:
    """Says of each item whose process it met; may end its process once, or always."""

    name = "mark"
    batch_size = 3

    def __init__(self, folder: Path, *, dies_at: int = -1, dies_again: bool = False) -> None:
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}, expected one; make it")
        self._folder, self._dies_at, self._dies_again = folder, dies_at, dies_again
        with (folder / "built").open("a") as stream:
            stream.write(f"{os.getpid()}\n")

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """Reject every fifth item, and turn the picture of the others."""
        with (self._folder / "pids").open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        if any(item.index == self._dies_at for item in items):
            self._die()
        return [(self._outcome(item),) for item in items]

    def _outcome(self, item: Item) -> Outcome:
        if item.index % 5 == 0:
            return Reject(item.index, self.name, "fifth", f"item {item.index}")
        turned = tuple(View(view.picture[::-1].copy()) for view in item.views)
        return replace(item, noun=f"thing {item.index}", views=turned)

    def _die(self) -> None:
        flag = self._folder / "died"
        if self._dies_again or not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def some_items() -> list[Item]:
    """Items with a picture each."""
    found = []
    for index in range(ITEMS):
        picture = np.full((16, 16, 3), index, np.uint8)
        picture[0] = 255
        found.append(Item(index, caption=f"caption {index}", views=(View(picture),)))
    return found


class TornItems:
    """Items that cannot be read to their end."""

    def __len__(self) -> int:
        return ITEMS

    def __iter__(self) -> Iterator[Item]:
        yield from some_items()[: ITEMS // 2]
        raise InputError("a part is damaged; make it again")


class Dying:
    """A stage that ends its process once, in the middle of its work."""

    def __init__(self, make_stage: MakeStage, folder: Path, *, name: str, dies_at: int) -> None:
        self._stage, self._dies = make_stage(), (folder / "died", name, dies_at)
        self.name, self.batch_size = self._stage.name, self._stage.batch_size

    def __call__(self, items: Sequence[Item]) -> list[tuple[Outcome, ...]]:
        """What the stage makes, if it lives."""
        flag, name, dies_at = self._dies
        if self.name == name and not flag.exists() and any(i.index == dies_at for i in items):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._stage(items)


def plain(outcomes: Sequence[Outcome]) -> list[Any]:
    """What can be compared of outcomes."""
    return [
        (type(each).__name__, each.index, each.caption)
        + (
            (each.noun, [view.picture.tobytes().hex()[:200] for view in each.views])
            if isinstance(each, Item)
            else (each.reason,)
        )
        for each in outcomes
    ]


def compare(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """A worker dies in the middle; what comes back is what one process makes."""
    (folder / "quiet").mkdir(exist_ok=True)
    make = partial(MarkStage, folder, dies_at=17)
    got = list(runner(make, some_items()))
    expected = dict(run_here(partial(MarkStage, folder / "quiet"), some_items()))
    return {
        "counts": sorted(Counter(index for index, _ in got).values()),
        "same": {i: plain(o) for i, o in got} == {i: plain(o) for i, o in expected.items()},
        "died": (folder / "died").exists(),
        "processes": len(set((folder / "pids").read_text().split())),
        "built": len((folder / "built").read_text().split()),
    }


def samples(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """A bootstrap of real stages, here and on Ray, where a worker dies while it draws."""
    tables: dict[str, Any] = {
        "captions": CaptionsConfig(source="world", count=12),
        "pictures": PicturesConfig(source="pair", steps=3, batch_size=2),
        "masks": MasksConfig(source="grabcut"),
        "filters": FiltersConfig(border_px=0, min_area=0.01, max_area=1.0, min_largest=0.1),
    }

    def dying(make_stage: MakeStage, items: Items) -> Iterator[Any]:
        make = partial(Dying, make_stage, folder / "samples", name="pictures", dies_at=5)
        return runner(make, items)

    (folder / "samples").mkdir()
    runners: dict[str, Runner] = {"here": run_here, "ray": dying}
    for name, each in runners.items():
        output = str(folder / "samples" / name)
        config = BootstrapConfig(output, size_px=64, shard_size=5, part_size=4, **tables)
        bootstrap(config, runner=each)
    return {
        "died": (folder / "samples" / "died").exists(),
        "manifests": [read_manifest(folder / "samples" / name) for name in runners],
        "indices": [
            [sample.index for sample in read_samples(folder / "samples" / name)] for name in runners
        ],
    }


def poison(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """An item that ends every process that meets it."""
    return told(runner, partial(MarkStage, folder, dies_at=8, dies_again=True))


def broken(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """A stage that cannot be built."""
    return told(runner, partial(MarkStage, folder / "gone"))


def torn(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """Items that end in an error of this side."""
    done: list[int] = []
    try:
        done.extend(index for index, _ in runner(partial(MarkStage, folder), TornItems()))
    except BootPIGError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {"done": done}


def too_many(folder: Path, runner: RayRunner) -> dict[str, Any]:
    """More workers than there are CPUs."""
    try:
        RayRunner(RayOptions(workers=99))
    except BootPIGError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def told(runner: RayRunner, make: Any) -> dict[str, Any]:
    """The error that a stage's run ends with."""
    try:
        list(runner(make, some_items()))
    except BootPIGError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def main() -> None:
    """Do what is asked until there is nothing more, or whoever started this is gone."""
    import ray

    folder = Path(sys.argv[1])
    answers_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes to stdout when it likes to
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        _temp_dir=os.environ["RAY_HOST_FOLDER"],
        log_to_driver=False,
    )
    try:
        # Room for so few bytes that items wait for those before them.
        runner = RayRunner(RayOptions(workers=2, retries=2, window_bytes=20_000))
        for line in sys.stdin:
            answer = globals()[json.loads(line)["do"]](folder, runner)
            print(json.dumps(answer), file=answers_to, flush=True)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
