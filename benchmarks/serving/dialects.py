"""How a request is put to a server, and what its answer tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from bootpig_rt.benchmarks.serving.client import Answer
from bootpig_rt.benchmarks.serving.workload import Ask

_SUBJECT = re.compile(rb'"subject_id": ?"(sub_[0-9a-f]+)"')
_BATCH = re.compile(rb'"batch": ?([0-9]+)')


class Dialect(Protocol):
    """What a client of a server knows."""

    def request(self, ask: Ask) -> tuple[str, bytes]:
        """Path and JSON body of a POST."""

    def learn(self, ask: Ask, answer: Answer) -> None:
        """Keep what an answer tells about later requests."""

    def batch_of(self, answer: Answer) -> int | None:
        """In how large a batch it was drawn, where the answer tells."""


class OurDialect:
    """The API of `bootpig-rt serve`: a subject is sent once, and named by its id from then on.

    Args:
        options: Fields that every request has, such as `reference_schedule`.
        is_forgetful: The reference image is sent with every request.
    """

    def __init__(self, options: Mapping[str, Any], *, is_forgetful: bool = False) -> None:
        self._options, self._is_forgetful = dict(options), is_forgetful
        self._ids: dict[int, str] = {}

    def request(self, ask: Ask) -> tuple[str, bytes]:
        """An edit for a subject that the server does not know yet, else a generation."""
        fields: dict[str, Any] = {
            "prompt": ask.prompt,
            "size": f"{ask.size_px}x{ask.size_px}",
            "num_inference_steps": ask.steps,
            "n": ask.images,
            "seed": ask.seed,
            **self._options,
        }
        known = self._ids.get(ask.subject)
        if known is not None:
            fields["subject_id"] = known
            return "/v1/images/generations", msgspec.json.encode(fields)
        fields["images"] = [{"image_url": f"data:image/png;base64,{ask.photo.base64}"}]
        fields["reference_prompt"] = ask.photo.shows
        return "/v1/images/edits", msgspec.json.encode(fields)

    def learn(self, ask: Ask, answer: Answer) -> None:
        """The id of the subject; one that the server has lost is forgotten."""
        if answer.status == 404:
            self._ids.pop(ask.subject, None)
        elif answer.status == 200 and not self._is_forgetful and ask.subject not in self._ids:
            found = _SUBJECT.search(answer.body)
            if found is not None:
                self._ids[ask.subject] = found[1].decode()

    def batch_of(self, answer: Answer) -> None:
        """Its metrics tell."""


class PlainDialect:
    """The API of the servers that are compared: everything with every request.

    Args:
        path: Of the one route.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def request(self, ask: Ask) -> tuple[str, bytes]:
        """The reference image and all that is wanted."""
        return self._path, msgspec.json.encode(
            {
                "prompt": ask.prompt,
                "reference_prompt": ask.photo.shows,
                "image": ask.photo.base64,
                "size_px": ask.size_px,
                "steps": ask.steps,
                "n": ask.images,
                "seed": ask.seed,
            }
        )

    def learn(self, ask: Ask, answer: Answer) -> None:
        """Nothing: each request stands alone."""

    def batch_of(self, answer: Answer) -> int | None:
        """From the answer."""
        found = _BATCH.search(answer.body, max(0, len(answer.body) - 40))
        return None if found is None else int(found[1])
