"""Blocklist: words, phrases and patterns that no prompt may have, from a text file.

It stops those who type a word, not those who wish to hide it: other words for the same thing, other
spellings and other scripts pass. What the pictures show is the safety checker's business.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from bootpig_rt.errors import ConfigError, describe_os_error, one_line

PATTERN_PREFIX = "re:"

# Unicode's characters that show nothing: soft hyphens, joiners, marks of direction, fillers,
# variation selectors, tags. Between the letters of a word they would hide it.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_BEFORE, _AFTER = r"(?<![^\W_])", r"(?![^\W_])"  # no letter and no digit; "_" ends a word
_BETWEEN = r"[\W_]+"


@dataclass(frozen=True)
class Blocklist:
    """Entries that were read; none by default.

    Attributes:
        entries: Number of a line, and the pattern that it means.
    """

    entries: tuple[tuple[int, re.Pattern[str]], ...] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Blocklist:
        """Read a file, UTF-8: an entry on each line; empty lines and those with # are left out.

        An entry is a word or a phrase, and matches whole words, whatever lies between them. With
        `re:` before it, it is a regular expression, which may match anywhere. Both are held against
        the normalised prompt, see `normalised`.

        Raises:
            ConfigError: The file cannot be read; a line is no regular expression, or one that
                matches every prompt.
        """
        shown = repr(os.fspath(path))
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
            raise ConfigError(f"cannot read the blocklist {shown}: {reason}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the blocklist {shown} is not UTF-8; save it as such") from error
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.strip()
            if entry and not entry.startswith("#"):
                entries.append((number, _pattern(entry, f"line {number} of the blocklist {shown}")))
        return cls(tuple(entries))

    def find(self, prompt: str) -> int | None:
        """Number of the first line that a prompt breaks; None if there is none."""
        text = normalised(prompt)
        return next((number for number, entry in self.entries if entry.search(text)), None)


def normalised(text: str) -> str:
    """Text without differences that do not show, or hardly: for comparison, not for reading.

    Compatible forms are one (NFKC: full width, ligatures, styled letters), case is folded, and
    invisible characters are taken out. Digits that stand for letters stay digits.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded))


def _pattern(entry: str, what: str) -> re.Pattern[str]:
    if not entry.startswith(PATTERN_PREFIX):
        words = normalised(entry).split()
        if not words:
            raise ConfigError(f"{what} shows nothing, expected a word or {PATTERN_PREFIX}PATTERN")
        before = _BEFORE if words[0][0].isalnum() else ""  # "C++" ends where it likes
        after = _AFTER if words[-1][-1].isalnum() else ""
        return re.compile(before + _BETWEEN.join(map(re.escape, words)) + after)
    try:
        pattern = re.compile(entry.removeprefix(PATTERN_PREFIX).strip(), re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        text = f"{what} is no regular expression ({one_line(str(error))}); repair it"
        raise ConfigError(text) from error
    if pattern.search(""):
        raise ConfigError(f"{what} matches every prompt; make the expression narrower")
    return pattern
