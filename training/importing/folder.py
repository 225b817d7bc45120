"""A folder of triplets: a folder for each sample, or one `metadata.jsonl` for all.

    dog-01/target.png  mask.png  reference.png  reference1.png  caption.txt  subject.txt

`mask`, `reference` and `subject` may be missing; pictures may have any ending that can be read. In
`metadata.jsonl` each line is an object with `target` (or `file_name`, as in the hub's image
folders), `caption` (or `text`), and if wanted `mask`, `references` and `subject`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bootpig_rt.errors import ConfigError, describe_os_error
from bootpig_rt.training.importing.candidate import (
    MAX_TEXT_CHARS,
    PICTURE_SUFFIXES,
    Candidate,
    Found,
    Place,
    Refused,
    SourceFiles,
    describe_files,
    digest_of_names,
    subject_of,
)

METADATA = "metadata.jsonl"
MAX_LINE_BYTES = 1 << 20


class FolderSource:
    """Triplets in a folder.

    Raises:
        ConfigError: No such folder, or nothing in it that could be a sample.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder, expected one with triplets; check the path")
        self.folder = folder
        self.metadata = folder / METADATA
        self._names = []
        if not self.metadata.is_file():
            self._names = sorted(path.name for path in folder.iterdir() if path.is_dir())
            if not self._names:
                raise ConfigError(
                    f"{folder} has neither {METADATA} nor a folder for each sample; "
                    "see docs/how-to/import-data.md for the layouts"
                )

    def describe(self) -> SourceFiles:
        """The folders of samples, or `metadata.jsonl`; see `Source`."""
        if self._names:
            return SourceFiles("folder", len(self._names), digest_of_names(self._names))
        return describe_files("folder", self.folder, [self.metadata])

    def read(self, start: Place) -> Iterator[Found]:
        """Candidates from a place on; see `Source`."""
        if not self._names:
            yield from self._read_metadata(start)
            return
        for number in range(start.number, len(self._names)):
            yield Found(self._of_folder(self._names[number]), Place(0, number + 1))

    def _of_folder(self, name: str) -> Candidate | Refused:
        folder = self.folder / name
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            return Refused(name, "unreadable", describe_os_error(error))
        pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
        targets = [path for path in pictures if path.stem == "target"]
        if len(targets) != 1:
            return Refused(name, "no_target", f"{len(targets)} files target.*, expected one")
        caption = _text(folder / "caption.txt")
        if not caption:
            return Refused(name, "no_caption", "caption.txt is missing, empty or too long")
        masks = [path for path in pictures if path.stem == "mask"]
        return Candidate(
            name,
            targets[0],
            caption,
            _text(folder / "subject.txt") or subject_of(caption),
            masks[0] if masks else None,
            tuple(path for path in pictures if path.stem.startswith("reference")),
        )

    def _read_metadata(self, start: Place) -> Iterator[Found]:
        with self.metadata.open("rb") as lines:
            number = 0
            while line := lines.readline(MAX_LINE_BYTES + 1):
                is_long = len(line) > MAX_LINE_BYTES
                while is_long and not line.endswith(b"\n"):
                    line = lines.readline(MAX_LINE_BYTES)
                    if not line:
                        break
                if number >= start.number and (is_long or line.strip()):
                    name = f"{METADATA}:{number + 1}"
                    what = (
                        Refused(name, "long_line", f"over {MAX_LINE_BYTES} bytes")
                        if is_long
                        else self._of_line(name, line)
                    )
                    yield Found(what, Place(0, number + 1))
                number += 1

    def _of_line(self, name: str, line: bytes) -> Candidate | Refused:
        try:
            told = json.loads(line)
        except ValueError as error:
            return Refused(name, "not_json", str(error))
        if not isinstance(told, dict):
            return Refused(name, "not_json", f"{type(told).__name__}, expected an object")
        caption = _string(told, "caption") or _string(told, "text")
        if not caption:
            return Refused(name, "no_caption", "no text in `caption` or `text`")
        target = self._file(told.get("target", told.get("file_name")))
        if target is None:
            return Refused(name, "no_target", "`target` names no file in the folder")
        mask, listed = None, told.get("references", [])
        if told.get("mask") is not None:
            mask = self._file(told["mask"])
            if mask is None:
                return Refused(name, "no_mask", f"no file {told['mask']!r} in the folder")
        references = [self._file(each) for each in (listed if isinstance(listed, list) else [None])]
        if None in references:
            return Refused(name, "no_reference", "`references` names a file that is not there")
        subject = _string(told, "subject") or subject_of(caption)
        found = tuple(path for path in references if path is not None)
        return Candidate(name, target, caption, subject, mask, found)

    def _file(self, name: Any) -> Path | None:
        """A file in the folder; None where there is none, or the name leads out of it."""
        if not isinstance(name, str) or not name:
            return None
        pure = PurePosixPath(name)
        path = self.folder / pure
        return None if pure.is_absolute() or ".." in pure.parts or not path.is_file() else path


def _string(told: dict[str, Any], key: str) -> str:
    value = told.get(key)
    return value.strip()[:MAX_TEXT_CHARS] if isinstance(value, str) else ""


def _text(path: Path) -> str:
    """The first line of a text file; "" where there is none that could be one."""
    try:
        with path.open("rb") as stream:
            line = stream.read(MAX_TEXT_CHARS * 4).decode("utf-8").strip().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""
    return line.strip() if len(line) <= MAX_TEXT_CHARS else ""
