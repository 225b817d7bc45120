"""From what a language model, a grammar or a person wrote to captions in BootPIG's form.

The form is "A photo of a [object], [position] [scene]", under 18 words (paper, appendix A). What
has another form is a reject with a reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_NOUN_WORDS = 5
MAX_SHOWN = 120

_LEAD = re.compile(r"^\s*(?:[-*•\u2013]+|\(?\d{1,5}[.):])?\s*[\"'“\u2018*`]*\s*")
_TRAIL = re.compile(r"[\s\"'”\u2019*`.,;]+$")
_FORM = re.compile(
    r"^an? (?:close-up )?(?:photo|photograph|picture|image) of "
    r"(?P<what>(?:(?:an?|the|one|some) )?(?P<noun>[^,]+?)), (?P<rest>\S.*)$",
    re.IGNORECASE,
)
_NOUN = re.compile(r"[^\W\d_][\w'\u2019 -]*")
_PLACES = (
    "on the left side of|on the right side of|on the left of|on the right of|to the left of|"
    "to the right of|in the middle of|in the cent(?:er|re) of|in the background of|"
    "in the foreground of|in the corner of|at the edge of|at the top of|at the bottom of|"
    "at the foot of|on top of|in front of|next to|close to|beside|behind|beneath|underneath|under|"
    "inside|within|among|between|above|below|over|against|across|along|near|beyond|atop|outside|"
    "by|at|on|in"
)
_REST = re.compile(
    rf"^(?P<position>(?:\w+ing )?(?:\w+ly )?(?:{_PLACES})) (?P<scene>\S.*)$", re.IGNORECASE
)
_ARTICLE = re.compile(r"\b(?:an?|the|some|one)\b")


@dataclass(frozen=True)
class ParsedCaption:
    """A caption, and its object, position and scene; `position` is "" where none is known."""

    text: str
    noun: str
    position: str
    scene: str


@dataclass(frozen=True)
class NoCaption:
    """Why a line is no caption: `reason` to count by, `detail` to read."""

    reason: str
    detail: str


def parse_caption(line: str, max_words: int) -> ParsedCaption | NoCaption:
    """Read one line; numbering, bullets and quotes around it are dropped.

    Args:
        line: What was written.
        max_words: A caption has fewer words.
    """
    text = " ".join(_TRAIL.sub("", _LEAD.sub("", line)).split()).replace(" ,", ",")
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    if not text.isprintable():
        return NoCaption("nonsense", f"{shown!r} has characters that nobody can read")
    match = _FORM.match(text)
    if match is None:
        return NoCaption("nonsense", f"{shown!r} is not 'a photo of a THING, PLACE'")
    noun = match["noun"].lower()
    if not _NOUN.fullmatch(noun) or len(noun.split()) > MAX_NOUN_WORDS:
        return NoCaption("no_object", f"{noun[:MAX_SHOWN]!r} is no name of a thing")
    if len(text.split()) >= max_words:
        return NoCaption("too_long", f"{len(text.split())} words, expected under {max_words}")
    place = _REST.match(match["rest"])
    position, scene = (place["position"], place["scene"]) if place else ("", match["rest"])
    caption = f"a photo of {match['what'].lower()}, {match['rest']}"
    return ParsedCaption(caption, noun, position.lower(), scene)


def split_answer(answer: str) -> list[str]:
    """The lines of a language model's answer: a list in JSON, or text; what it thought is left."""
    text = answer.rpartition("</think>")[2]
    text = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE).strip()
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return values
    return [line for line in text.splitlines() if line.strip()]


def normalised(caption: str) -> str:
    """What two captions share that say the same: no case, punctuation or articles."""
    words = re.sub(r"[^\w\s]", " ", caption.casefold())
    return " ".join(_ARTICLE.sub(" ", words).split())
