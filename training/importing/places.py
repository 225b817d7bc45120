"""Where in the source each shard of an import ends, kept beside the shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.importing.candidate import Place, SourceFiles
from bootpig_rt.training.shards import write_json

PLACES = "places.json"


@dataclass(frozen=True)
class End:
    """The place after a shard, and what is known of its samples, by name."""

    place: Place
    counts: dict[str, int]


class Ends:
    """`places.json`: the end of each shard, and the sizes of the files before the last one.

    Raises:
        InputError: It is damaged.
        ConfigError: A file that was read to its end has changed since.
    """

    def __init__(self, folder: Path, files: SourceFiles) -> None:
        self._path, self._files = folder / PLACES, files
        self.of_shard: list[End] = []
        if not self._path.exists():
            return
        try:
            told = json.loads(self._path.read_text())
            sizes = list(told["sizes"])
            self.of_shard = [End(Place(*end["place"]), end["counts"]) for end in told["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._path} is damaged ({error}); delete it and run the same command again, "
                "which writes all shards anew"
            ) from error
        for number, size in enumerate(sizes):
            if size != files.sizes[number]:
                raise ConfigError(
                    f"file {number} of the source has {files.sizes[number]} bytes and had {size} "
                    f"when {folder} was begun; choose another output, or delete it to start anew"
                )

    def add(self, number: int, end: End) -> None:
        """Keep the end of a shard."""
        self.of_shard[number:] = [end, *self.of_shard[number + 1 :]]
        done = max(each.place.file for each in self.of_shard)
        shards = [{"place": list(each.place), "counts": each.counts} for each in self.of_shard]
        write_json(self._path, {"sizes": list(self._files.sizes[:done]), "shards": shards})

    def counts(self) -> dict[str, int]:
        """Sums over all shards."""
        total: Counter[str] = Counter()
        for each in self.of_shard:
            total.update(each.counts)
        return dict(sorted(total.items()))
