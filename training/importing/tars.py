"""WebDataset tar files of others: members that share a name up to its first dot are one sample.

Which member is what is found by the end of its name. `roles` says otherwise: `target=jpg`,
`caption=json:prompt` for a value inside a JSON member, `reference=ref*.jpg` for several.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bootpig_rt.errors import ConfigError, InputError, describe_os_error
from bootpig_rt.training.importing.candidate import (
    MAX_TEXT_CHARS,
    PICTURE_SUFFIXES,
    Candidate,
    Found,
    Place,
    Refused,
    Role,
    SourceFiles,
    describe_files,
    subject_of,
)

MAX_MEMBER_BYTES = 256 << 20
_PICTURES = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)

# Tried in this order. The first line of each is how our own shards call it.
USUAL: dict[Role, tuple[str, ...]] = {
    "target": (*(f"target.{kind}" for kind in _PICTURES), *_PICTURES),
    "mask": (
        *(f"mask.{kind}" for kind in _PICTURES),
        *(f"seg.{kind}" for kind in _PICTURES),
    ),
    "reference": tuple(f"ref*.{kind}" for kind in _PICTURES),
    "caption": ("json:caption", "txt", "caption", "caption.txt", "json:text", "json:prompt"),
    "subject": ("json:subject", "json:noun", "subject.txt", "cls.txt", "json:class"),
}


class TarSource:
    """Tar files of a folder, or one tar file.

    Args:
        path: A folder with `*.tar` at any depth, or a file.
        roles: Which member is what, where it is not found by itself.

    Raises:
        ConfigError: There is no tar file, or a picture is looked for in a JSON member.
    """

    def __init__(self, path: Path, roles: Mapping[Role, str] | None = None) -> None:
        self.folder = path if path.is_dir() else path.parent
        self.files = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
        if not self.files or not self.files[0].is_file():
            raise ConfigError(f"{path} is no tar file and holds none; check the path")
        self.roles = dict(roles or {})
        for role in ("target", "mask", "reference"):
            if self.roles.get(role, "").startswith("json:"):
                raise ConfigError(
                    f"--map {role}={self.roles[role]}: a picture is a member of its own, not a "
                    "value in a JSON; name the end of the member's name, such as 'jpg'"
                )

    def describe(self) -> SourceFiles:
        """The files; see `Source`."""
        return describe_files("webdataset", self.folder, self.files, **self.roles)

    def read(self, start: Place) -> Iterator[Found]:
        """Candidates from a place on; see `Source`."""
        for file in range(start.file, len(self.files)):
            skipped = start.number if file == start.file else 0
            path = self.files[file]
            shown = path.relative_to(self.folder).as_posix()
            number = -1
            for number, (key, parts) in enumerate(_groups(path)):
                if number >= skipped:
                    yield Found(self._candidate(f"{shown}:{key}", parts), Place(file, number + 1))
            if number < 0:
                raise InputError(f"{path} holds no members; copy it again, or take it away")

    def _candidate(self, name: str, parts: dict[str, bytes]) -> Candidate | Refused:
        targets = self._members("target", parts)
        if not targets:
            found = ", ".join(sorted(parts))
            return Refused(name, "no_target", f"only {found}; say which with --map target=...")
        caption = self._text("caption", parts)
        if not caption:
            return Refused(name, "no_caption", "no text; say where it is with --map caption=...")
        masks = self._members("mask", parts)
        return Candidate(
            name,
            parts[targets[0]],
            caption,
            self._text("subject", parts) or subject_of(caption),
            parts[masks[0]] if masks else None,
            tuple(parts[each] for each in self._members("reference", parts)),
        )

    def _members(self, role: Role, parts: Mapping[str, bytes]) -> list[str]:
        """Members that are what the role says, in order of their names."""
        patterns = [self.roles[role]] if role in self.roles else USUAL[role]
        for pattern in patterns:
            found = [part for part in parts if fnmatchcase(part.lower(), pattern.lower())]
            if found:
                if role == "reference":  # of whatever kinds
                    found = [p for p in parts if any(fnmatchcase(p.lower(), e) for e in patterns)]
                return sorted(found, key=lambda part: (len(part), part))
        return []

    def _text(self, role: Role, parts: Mapping[str, bytes]) -> str:
        for pattern in [self.roles[role]] if role in self.roles else USUAL[role]:
            member, is_inside, keys = pattern.partition(":")
            data = parts.get(member)
            if data is None:
                continue
            try:
                text = _inside(data, keys) if is_inside else data.decode("utf-8")
            except (UnicodeDecodeError, ValueError):
                continue
            if isinstance(text, str) and text.strip():
                return text.strip().partition("\n")[0][:MAX_TEXT_CHARS]
        return ""


def _inside(data: bytes, keys: str) -> Any:
    """A value in a JSON member, by its keys with dots between."""
    value = json.loads(data)
    for key in keys.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members of each sample, by what follows the first dot of their names.

    Only plain files are read; a foreign tar is never unpacked to the disk.

    Raises:
        InputError: The file is damaged or cut short.
    """
    key, parts = None, dict[str, bytes]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise InputError(
                        f"{path}: {member.name} has {member.size} bytes, expected at most "
                        f"{MAX_MEMBER_BYTES}; take it out of the tar file"
                    )
                folder, slash, name = member.name.rpartition("/")
                stem, _, part = name.partition(".")
                this = folder + slash + stem
                if key is not None and this != key:
                    yield key, parts
                    parts = {}
                stream = tar.extractfile(member)
                data = stream.read() if stream is not None else b""
                if len(data) < member.size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                key, parts[part] = this, data
            _check_end(tar, path)
    except (OSError, tarfile.TarError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"cannot read {path} ({reason}); expected an uncompressed tar file: copy it again, "
            "then run the same command again: it goes on where it stopped"
        ) from error
    if key is not None:
        yield key, parts


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """A tar that was cut between two members reads like a shorter one, but has no end mark."""
    with path.open("rb") as stream:
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no end mark, so it was cut short")
