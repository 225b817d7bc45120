"""Which repositories the models, panoramas and textures come from: pinned, with licences.

`sources.json` has the table. A source's sha256 is of the lines `sha256  path` of its files, in
order of their paths, so that it is the same from any copy of the commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

SOURCES_FILE = Path(__file__).with_name("sources.json")


@dataclass(frozen=True)
class Source:
    """Files of one commit of a public repository.

    Attributes:
        key: Name of its folder.
        repository: `owner/name` on GitHub.
        commit: Forty hex digits.
        include: Patterns of paths that are taken; `*` matches slashes too.
        exclude: Patterns of paths that are not.
        num_files: How many files that makes.
        sha256: See above.
        author, author_url, licence, licence_url: Who made them, and on what terms.
    """

    key: str
    repository: str
    commit: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    num_files: int
    sha256: str
    author: str
    author_url: str
    licence: str
    licence_url: str

    def takes(self, path: str) -> bool:
        """Whether a file of the repository is one of the source's."""
        return any(fnmatchcase(path, pattern) for pattern in self.include) and not any(
            fnmatchcase(path, pattern) for pattern in self.exclude
        )


def load_model_sources() -> tuple[Source, ...]:
    """Read the table."""
    entries = json.loads(SOURCES_FILE.read_text(encoding="utf-8"))["sources"]
    return tuple(
        Source(
            **entry
            | {"include": tuple(entry["include"]), "exclude": tuple(entry.get("exclude", ()))}
        )
        for entry in entries
    )


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 of (path, content), in order of their paths."""
    lines = sorted(f"{path}\0{hashlib.sha256(data).hexdigest()}" for path, data in files)
    digest = hashlib.sha256()
    for line in lines:
        path, _, own = line.partition("\0")
        digest.update(f"{own}  {path}\n".encode())
    return digest.hexdigest()
