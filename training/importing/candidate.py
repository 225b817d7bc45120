"""What a source of foreign samples gives: candidates, still as files, each at its place.

A source knows where samples lie and what they say, and decodes no picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

from bootpig_rt.errors import ConfigError

Role = Literal["target", "mask", "reference", "caption", "subject"]
"""What a file or a column may be; `subject` is a noun such as "red panda"."""

ROLES: tuple[Role, ...] = get_args(Role)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Half = Literal["left", "right"]
PictureFile = bytes | Path


class Place(NamedTuple):
    """Where a candidate lies: the number of its file, and its number in that file."""

    file: int
    number: int


@dataclass(frozen=True)
class Candidate:
    """A sample of somebody else.

    `name` says where it lies, for people. With `half`, `target` holds two pictures side by side,
    and the sample's target is that one; the other one is the subject once more, described by
    `other_caption`. `references` are pictures of the subject that came with it.
    """

    name: str
    target: PictureFile
    caption: str
    subject: str
    mask: PictureFile | None = None
    references: tuple[PictureFile, ...] = ()
    half: Half | None = None
    other_caption: str = ""


@dataclass(frozen=True)
class Refused:
    """A candidate that cannot become a sample: `reason` to count by, `detail` for people."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Found:
    """What lies at a place, and the place that follows it."""

    what: Candidate | Refused
    next: Place


class Source(Protocol):
    """Samples of others, in an order that stays."""

    def describe(self) -> SourceFiles:
        """The files, for the manifest and to see that they are still the same."""

    def read(self, start: Place) -> Iterator[Found]:
        """Candidates from a place on.

        Raises:
            InputError: A file is not what it should be, or is damaged.
            ConfigError: The files lack what the settings ask for.
        """


@dataclass(frozen=True)
class SourceFiles:
    """Files of a source.

    `names_digest` is of all names, `sizes` are the bytes of each file by the number that places
    give it (empty where places have none), `settings` what decides how the files are read.
    """

    kind: str
    count: int
    names_digest: str
    sizes: tuple[int, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def describe_files(kind: str, folder: Path, files: list[Path], **settings: str) -> SourceFiles:
    """What `Source.describe` gives for a list of files that places number."""
    names = [path.relative_to(folder).as_posix() for path in files]
    sizes = tuple(path.stat().st_size for path in files)
    return SourceFiles(kind, len(files), digest_of_names(names), sizes, settings)


def digest_of_names(names: list[str]) -> str:
    """Sha256 of a list of names."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def parse_roles(words: list[str]) -> dict[Role, str]:
    """Roles of a command line: `["target=jpg", "caption=json:prompt"]`.

    Raises:
        ConfigError: Not of that form, no such role, or one given twice.
    """
    roles: dict[Role, str] = {}
    for word in words:
        name, is_pair, where = word.partition("=")
        role = next((each for each in ROLES if each == name.strip()), None)
        if role is None or not is_pair or not where.strip():
            raise ConfigError(
                f"--map is {word!r}, expected ROLE=NAME with one of: {', '.join(ROLES)}"
            )
        if role in roles:
            raise ConfigError(f"--map {role} is given twice; give it once")
        roles[role] = where.strip()
    return roles


def subject_of(caption: str) -> str:
    """The noun of a caption such as "A photo of a red panda, in a park"; "" where there is none.

    What stands before the first comma, without "a photo of" and the article, as in the data of the
    paper; a longer one is a sentence, no noun.
    """
    noun = caption.partition(",")[0].strip().rstrip(".")
    for prefix in ("a photo of ", "a picture of ", "an image of ", "photo of "):
        if noun.lower().startswith(prefix):
            noun = noun[len(prefix) :]
            break
    for article in ("a ", "an ", "the ", "one "):
        if noun.lower().startswith(article):
            noun = noun[len(article) :]
            break
    return noun if 0 < len(noun.split()) <= MAX_SUBJECT_WORDS else ""


MAX_SUBJECT_WORDS = 6
MAX_TEXT_CHARS = 2000
