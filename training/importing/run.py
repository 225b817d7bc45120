"""Shards from a source of foreign samples: in order, resumable, with every refusal counted.

The samples are numbered in the order of the source, so the shards are the same whatever the number
of processes and however often a run was interrupted. Beside the shards, `places.json` says where in
the source each of them ends: a later run goes on from there, or makes one shard again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.folder_claim import only_writer
from bootpig_rt.training.importing.candidate import (
    Place,
    Source,
    SourceFiles,
)
from bootpig_rt.training.importing.cut import Cut
from bootpig_rt.training.importing.fit import Fit
from bootpig_rt.training.importing.places import End, Ends
from bootpig_rt.training.importing.stream import (
    Progress,
    Results,
    Stream,
    encoded,
    fit_found,
    prepare,
)
from bootpig_rt.training.shards import (
    EncodedSample,
    claim_settings,
    kept_record,
    write_manifest,
    write_shard,
)
from bootpig_rt.training.workers import spread

MIN_SIZE_PX, MAX_SIZE_PX = 8, 2048


@dataclass(frozen=True)
class ImportConfig:
    """What becomes of a source.

    `licence` and `attribution` go into the manifest, for whoever trains on the samples.
    `max_samples` is 0 for all. `cut` finds subjects where the candidates have no mask; `fit` leaves
    them to it then.
    """

    fit: Fit
    licence: str
    attribution: str = ""
    shard_size: int = 1000
    max_samples: int = 0
    cut: Cut | None = None


def import_samples(
    folder: Path,
    source: Source,
    config: ImportConfig,
    *,
    num_workers: int = 1,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> dict[str, Any]:
    """Write all candidates of a source that can be used as shards, and return the manifest.

    A second call with the same settings goes on where the first stopped.

    Raises:
        ConfigError: A number is out of range, the folder holds other samples, or no candidate at
            all could be used.
        InputError: A file of the source is damaged; what was written before is kept.
        StorageError: The folder cannot be written, or another run writes it.
    """
    _check(config, num_workers)
    files = source.describe()
    settings = _settings(files, config)
    with only_writer(folder):
        claim_settings(folder, settings)
        ends = Ends(folder, files)
        shards = _Shards(folder, source, config, ends, num_workers, on_progress)
        try:
            shards.write()
        finally:
            shards.end_stream()
        return write_manifest(folder, shards.records, settings, source=_about(files, config, ends))


class _Shards:
    """The shards of one import: those that are whole are kept, the others are written."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        config: ImportConfig,
        ends: Ends,
        num_workers: int,
        on_progress: Callable[[Progress], object],
    ) -> None:
        self._folder, self._source, self._config, self._ends = folder, source, config, ends
        self._num_workers, self._on_progress = num_workers, on_progress
        self._stream: Stream | None = None
        self.records: list[dict[str, Any]] = []

    def write(self) -> None:
        """Fill `records`.

        Raises:
            InputError: There is no sample at all.
        """
        at, so_far, most = Place(0, 0), Progress(0, 0), self._config.max_samples
        while not most or so_far.samples < most:
            number = len(self.records)
            is_known = number < len(self._ends.of_shard)
            record = kept_record(self._folder, number) if is_known else None
            if record is not None:
                self.end_stream()
            else:
                if self._stream is None:
                    self._stream = Stream(self._results(at), at, so_far, self._on_progress)
                if not self._stream.has_more():
                    break
                record, end = _write_next(
                    self._folder, number, so_far.samples, self._stream, self._config
                )
                self._ends.add(number, end)
            at = self._ends.of_shard[number].place
            self.records.append(record)
            rejects = sum(record["rejects"].values())
            so_far = Progress(so_far.samples + record["samples"], so_far.refused + rejects)
            self._on_progress(so_far)
        if not self.records:
            raise _nothing(self._stream)

    def end_stream(self) -> None:
        """End the processes, if there are any."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _results(self, start: Place) -> Results:
        fit = self._config.fit
        found, cut = self._source.read(start), self._config.cut
        if cut is None:
            return spread(partial(prepare, fit), found, self._num_workers)
        cut_out = cut(spread(partial(fit_found, fit), found, self._num_workers))
        return ((place, encoded(result)) for place, result in cut_out)


def _check(config: ImportConfig, num_workers: int) -> None:
    if config.shard_size < 1 or num_workers < 1 or config.max_samples < 0:
        raise ConfigError(
            f"shard_size and num_workers must be at least 1 and max_samples 0 or more, got "
            f"{config.shard_size}, {num_workers}, {config.max_samples}"
        )
    if not MIN_SIZE_PX <= config.fit.size_px <= MAX_SIZE_PX:
        raise ConfigError(
            f"size_px is {config.fit.size_px}, expected {MIN_SIZE_PX} to {MAX_SIZE_PX}"
        )
    if not 0.1 <= config.fit.subject_share <= 1:
        raise ConfigError(f"subject_share is {config.fit.subject_share}, expected 0.1 to 1")
    if not config.licence.strip():
        raise ConfigError("the licence is empty; say under which the pictures may be used")


def _settings(files: SourceFiles, config: ImportConfig) -> dict[str, Any]:
    """All that decides what the samples are; a correction of the licence changes none."""
    told = {
        "fit": asdict(config.fit),
        "shard_size": config.shard_size,
        "max_samples": config.max_samples,
        "cut": config.cut.settings if config.cut else None,
        "kind": files.kind,
        "names": files.names_digest,
        "read_as": dict(files.settings),
    }
    settings: dict[str, Any] = json.loads(json.dumps(told))
    return settings


def _write_next(
    folder: Path, number: int, first: int, stream: Stream, config: ImportConfig
) -> tuple[dict[str, Any], End]:
    """Write one shard; what is refused after its last sample is counted with it."""
    limit = config.shard_size
    if config.max_samples:
        limit = min(limit, config.max_samples - first)
    counts: Counter[str] = Counter()

    def samples() -> Iterator[EncodedSample]:
        for index in range(first, first + limit):
            ready = stream.take()
            if ready is None:
                return
            counts.update(ready.counts)
            yield EncodedSample(index, ready.parts)
        if not config.max_samples or first + limit < config.max_samples:
            stream.has_more()

    record = write_shard(folder, number, samples(), first=first, rejects=stream.rejects)
    stream.rejects.clear()
    return record, End(stream.place, dict(sorted(counts.items())))


def _about(files: SourceFiles, config: ImportConfig, ends: Ends) -> dict[str, Any]:
    """What the manifest says of where the samples come from."""
    return {
        "kind": files.kind,
        "files": files.count,
        "bytes": sum(files.sizes),
        "licence": config.licence,
        "attribution": config.attribution,
        "counts": ends.counts(),
    }


def _nothing(stream: Stream | None) -> InputError:
    rejects = stream.rejects if stream is not None else Counter[str]()
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejects.most_common())
    example = ""
    if stream is not None and rejects:
        example = f" (such as {stream.examples[rejects.most_common(1)[0][0]]})"
    return InputError(
        f"no sample of the source could be used: {reasons or 'it holds none'}{example}; "
        "see docs/how-to/import-data.md for the layouts"
    )
