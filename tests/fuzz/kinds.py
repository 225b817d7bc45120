"""The kinds of inputs: how one is made, what it is given to, and how many of a hundred it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import bodies, corpus
from tests.fuzz.checks import Checks
from tests.fuzz.requests import request_input
from tests.fuzz.settings import settings_input


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        told: What the inputs are.
        share: Of a hundred inputs.
        make: Draws one; the folder has what `made.py` made.
        check: Gives one to the code that reads it; None where a server is asked.
    """

    told: str
    share: int
    make: Callable[[Random, Path], bytes]
    check: Callable[[Checks, bytes], str] | None


def input_of(kind: str, seed: int, index: int, folder: Path) -> bytes:
    """The same input for the same numbers, but for what is signed."""
    return KINDS[kind].make(Random(f"{kind} {seed} {index}"), folder)


def _picture(random: Random, _: Path | None = None) -> bytes:
    return corpus.picture(random, corpus.pictures())


def _marks(random: Random, folder: Path) -> bytes:
    signed = [path.read_bytes() for path in sorted(folder.glob("signed.*"))]
    whole = corpus.marked_pictures()
    return corpus.picture(random, signed if signed and random.random() < 0.4 else whole)


def _subject(random: Random, _: Path) -> bytes:
    return corpus.subject_file(random, corpus.subject_files())


def _form(random: Random, _: Path) -> bytes:
    name = random.choice(("image", "image[]", "file"))
    files = [(name, random.choice(corpus.pictures())) for _ in range(random.randrange(4))]
    body = bodies.form_body(random, {"reference_prompt": "a dog", "noise_seed": 3}, files)
    return body.content_type.encode("latin-1", "replace").replace(b"\n", b" ") + b"\n" + body.data


def _body(random: Random, _: Path) -> bytes:
    is_edit = random.random() < 0.4
    return bodies.json_body(random, _picture, is_edit=is_edit).data


def _settings(random: Random, _: Path) -> bytes:
    return settings_input(random, corpus.manifest())


def _request(random: Random, folder: Path) -> bytes:
    own = [path.read_bytes() for path in sorted(folder.glob("*.subject"))]
    return request_input(random, own or corpus.subject_files())


KINDS: Mapping[str, Kind] = {
    "picture": Kind("reference images", 38, _picture, Checks.picture),
    "marks": Kind("marks and manifests in pictures", 10, _marks, Checks.marks),
    "subject": Kind("files of subjects and tables", 20, _subject, Checks.subject),
    "form": Kind("multipart forms", 10, _form, Checks.form),
    "body": Kind("JSON bodies", 8, _body, Checks.body),
    "settings": Kind("manifests, keys, options, kept subjects", 8, _settings, Checks.settings),
    "request": Kind("requests to a running service", 6, _request, None),
}
