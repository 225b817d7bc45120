"""The parts of one stage: those that are there are kept, the others are made by a runner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bootpig_rt.errors import EngineLost
from bootpig_rt.training.bootstrap.parts import kept_part, write_part
from bootpig_rt.training.bootstrap.stage import Item, MakeStage, Outcome, Runner


class Work:
    """One stage's folder, and who does its work.

    Args:
        folder: Of the parts.
        make_stage: Builds the stage; it is not built if there is nothing to do.
        runner: Who puts items through it.
        name: For the progress bar.
    """

    def __init__(self, folder: Path, make_stage: MakeStage, runner: Runner, name: str) -> None:
        self.folder = folder
        self.records: dict[int, dict[str, Any]] = {}
        self._make_stage, self._runner, self._name = make_stage, runner, name

    def run(self, sizes: Mapping[int, int], items_of: Callable[[int], Iterable[Item]]) -> None:
        """Make the parts that are not there.

        A part is written as soon as all its items are done, in whatever order they come.

        Args:
            sizes: How many items each part has, by its number.
            items_of: Reads the items of a part; called when it is their turn.

        Raises:
            EngineLost: The runner gave up before all items were done.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = []
        for number, size in sizes.items():
            if record := kept_part(self.folder, number, size):
                self.records[number] = record
            else:
                missing.append(number)
        open_parts: dict[int, _OpenPart] = {}
        part_of: dict[int, int] = {}

        def items() -> Iterator[Item]:
            for number in missing:
                part = list(items_of(number))
                open_parts[number] = _OpenPart({item.index: item for item in part})
                part_of.update((item.index, number) for item in part)
                if not part:
                    self._close(open_parts, number)
                yield from part

        if not missing:
            return
        total, left = sum(sizes.values()), sum(sizes[number] for number in missing)
        with tqdm(total=total, desc=self._name, unit="item", disable=None) as bar:
            bar.update(total - left)
            for index, outcomes in self._runner(self._make_stage, _Coming(items, left)):
                number = part_of.pop(index)
                open_parts[number].done[index] = outcomes
                if len(open_parts[number].done) == len(open_parts[number].items):
                    self._close(open_parts, number)
                bar.update()
        if part_of:
            raise EngineLost(
                f"{len(part_of)} items of stage {self._name!r} were never done; run the same "
                "command again: what is done is kept"
            )

    def totals(self) -> dict[str, Any]:
        """The stage's record: `items`, and `rejects` by reason, over all parts."""
        rejects: dict[str, int] = {}
        for record in self.records.values():
            for reason, count in record["rejects"].items():
                rejects[reason] = rejects.get(reason, 0) + count
        items = sum(record["items"] for record in self.records.values())
        return {"items": items, "rejects": dict(sorted(rejects.items()))}

    def _close(self, open_parts: dict[int, _OpenPart], number: int) -> None:
        part = open_parts.pop(number)
        outcomes = [each for index in sorted(part.done) for each in part.done[index]]
        self.records[number] = write_part(self.folder, number, outcomes, part.items)


class _OpenPart:
    """A part whose items are on their way."""

    def __init__(self, items: dict[int, Item]) -> None:
        self.items = items
        self.done: dict[int, tuple[Outcome, ...]] = {}


@dataclass(frozen=True)
class _Coming:
    """See `Items`."""

    read: Callable[[], Iterator[Item]]
    count: int

    def __iter__(self) -> Iterator[Item]:
        return self.read()

    def __len__(self) -> int:
        return self.count
