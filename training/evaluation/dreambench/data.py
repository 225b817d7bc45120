"""DreamBench's subjects, photographs and prompts, as its public repository holds them.

The prompts file says each subject's class noun and has one list of prompts for objects and one for
live subjects; which subjects are live follows from the noun. Prompts are taken without the unique
token that fine-tuned methods put before the noun: "a dog in the snow".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError, describe_os_error

PromptKind = Literal["recontext", "accessory", "property"]

PROMPTS_FILE = "prompts_and_classes.txt"
NUM_SUBJECTS = 30
NUM_PROMPTS = 25
PICTURES_PER_PROMPT = 4
LIVE_NOUNS = ("cat", "dog")
"""Nouns of the nine live subjects; the other twenty-one are objects."""

_MAX_FILE_BYTES = 1 << 20
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
_PROMPT = re.compile(r"(['\"])(?P<text>.*)\1\.format\(unique_token, class_token\),?")
_FETCH = "fetch it with: bootpig-rt fetch-data --set dreambench"


@dataclass(frozen=True)
class BenchPrompt:
    """What is asked for, and which sort of change that is."""

    text: str
    kind: PromptKind


@dataclass(frozen=True)
class BenchSubject:
    """One subject.

    Attributes:
        name: Of its folder, "dog2".
        noun: Its class, "dog".
        photographs: Two or more, sorted by name.
        prompts: Twenty-five, or the first of them.
    """

    name: str
    noun: str
    photographs: tuple[Path, ...]
    prompts: tuple[BenchPrompt, ...]

    @property
    def is_live(self) -> bool:
        """Whether it has the prompts of live subjects."""
        return self.noun in LIVE_NOUNS

    @property
    def reference_prompt(self) -> str:
        """What its photographs show."""
        return f"a photo of a {self.noun}"


@dataclass(frozen=True)
class DreamBench:
    """The benchmark, or a part of it; `digest` is of the prompts file and the photographs."""

    folder: Path
    subjects: tuple[BenchSubject, ...]
    digest: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the subjects."""
        return tuple(subject.name for subject in self.subjects)

    @property
    def num_prompts(self) -> int:
        """Of a subject."""
        return len(self.subjects[0].prompts)


@dataclass(frozen=True)
class _PromptsFile:
    """Class noun by subject, and the templates: `{0}` the unique token, `{1}` the noun."""

    nouns: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]


def load_dreambench(
    folder: Path, *, names: Sequence[str] | None = None, num_prompts: int = NUM_PROMPTS
) -> DreamBench:
    """Read the benchmark.

    Args:
        folder: A copy of the repository, or its folder `dataset`.
        names: Of the subjects to take, all by default.
        num_prompts: How many of the twenty-five prompts to take, from the first.

    Raises:
        ConfigError: The prompts file is missing or malformed, a subject has no photographs, or a
            name is not one of a subject.
    """
    folder = folder / "dataset" if (folder / "dataset").is_dir() else folder
    path = folder / PROMPTS_FILE
    told = _parse(_read(path), path)
    unknown = [name for name in names or () if name not in told.nouns]
    if unknown:
        raise ConfigError(
            f"subject {unknown[0]!r} is not in {path}, expected some of: {', '.join(told.nouns)}"
        )
    chosen = [name for name in told.nouns if names is None or name in names]
    photographs = {name: _photographs(folder / name) for name in chosen}
    lacking = [name for name, found in photographs.items() if len(found) < 2]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConfigError(
            f"{folder / lacking[0]}{more} of {len(chosen)} subjects have fewer than two "
            f"photographs; {_FETCH}, or name the subjects that there are with --subjects"
        )
    digest = hashlib.sha256(path.read_bytes())
    subjects = []
    for name in chosen:
        for photograph in photographs[name]:
            digest.update(f"{name}/{photograph.name} {measure(photograph)[1]}\n".encode())
        subject = BenchSubject(name, told.nouns[name], photographs[name], ())
        templates = told.live if subject.is_live else told.objects
        prompts = [
            BenchPrompt(" ".join(each.format("", subject.noun).split()), _kind(row, subject))
            for row, each in enumerate(templates)
        ]
        subjects.append(replace(subject, prompts=tuple(prompts[:num_prompts])))
    return DreamBench(folder, tuple(subjects), digest.hexdigest())


def _kind(row: int, subject: BenchSubject) -> PromptKind:
    """Sort of a prompt by its place in the list, section 4.1."""
    if row >= NUM_PROMPTS - 5:
        return "property"
    return "accessory" if subject.is_live and row >= 10 else "recontext"


def _photographs(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(each for each in folder.iterdir() if each.suffix.lower() in _SUFFIXES))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} has over 1 MiB, expected 4 kB of prompts; {_FETCH}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing, expected DreamBench; {_FETCH}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; {_FETCH}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {describe_os_error(error)}") from error


def _parse(text: str, path: Path) -> _PromptsFile:
    nouns: dict[str, str] = {}
    lists: dict[str, list[str]] = {"Object Prompts": [], "Live Subject Prompts": []}
    section = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line in ("Classes", "Prompts", *lists):
            section = line
        elif line in ("", "subject_name,class", "prompt_list = [", "]"):
            continue
        elif section == "Classes" and line.count(",") == 1:
            name, noun = (part.strip() for part in line.split(","))
            if not _NAME.fullmatch(name) or not noun or name in nouns:
                raise _malformed(path, number, line, "a new subject's name, a comma and a noun")
            nouns[name] = noun
        elif section in lists:
            lists[section].append(_template(line, path, number))
        else:
            raise _malformed(path, number, line, "a section, a subject or a prompt")
    for name, found in lists.items():
        if len(found) != NUM_PROMPTS:
            raise ConfigError(
                f"{path} has {len(found)} lines under {name!r}, expected {NUM_PROMPTS}; {_FETCH}"
            )
    if not nouns:
        raise ConfigError(f"{path} names no subject under 'Classes'; {_FETCH}")
    return _PromptsFile(nouns, tuple(lists["Object Prompts"]), tuple(lists["Live Subject Prompts"]))


def _template(line: str, path: Path, number: int) -> str:
    match = _PROMPT.fullmatch(line)
    fields = [] if match is None else re.findall(r"\{[^}]*\}?|\}", match["text"])
    if match is None or "{1}" not in fields or not set(fields) <= {"{0}", "{1}"}:
        raise _malformed(path, number, line, "'a {0} {1} ...'.format(unique_token, class_token)")
    return match["text"]


def _malformed(path: Path, number: int, line: str, expected: str) -> ConfigError:
    return ConfigError(f"{path}, line {number} is {line[:60]!r}, expected {expected}; {_FETCH}")
