"""RequestNotes: what is known of the request at hand, for its log lines, its trace and its counts.

They are in a context variable, so `note` works anywhere in the request's own tasks and threads of
`asyncio.to_thread`, and does nothing elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bootpig_rt.request import Timings

NoteValue: TypeAlias = str | int | float | bool | None


@dataclass
class RequestNotes:
    """Of one request.

    Attributes:
        scope: Of ASGI; `scope["state"]` has the request's id and who asks, once that is known.
        began_at: By `time.perf_counter`.
        fields: For the access line and the span, such as model and outcome.
        timings: Of its pictures; None until they are there.
        drawn_at: When they were, by `time.perf_counter`.
        trace_id: Of its trace, 32 hexadecimal digits; None without traces.
    """

    scope: Mapping[str, Any]
    began_at: float = field(default_factory=time.perf_counter)
    fields: dict[str, NoteValue] = field(default_factory=dict)
    timings: Timings | None = None
    drawn_at: float = 0.0
    trace_id: str | None = None

    @property
    def request_id(self) -> str | None:
        """The client's or ours; None before one was given."""
        found = self.scope.get("state", {}).get("request_id")
        return None if found is None else str(found)

    @property
    def tenant(self) -> str | None:
        """Name of who asks; None where that is not known, or nobody has a name."""
        principal = self.scope.get("state", {}).get("principal")
        return getattr(principal, "name", None) or None

    @property
    def route(self) -> str | None:
        """Template of the route that answers, "/v1/jobs/{id}"; None where there is none."""
        path = getattr(self.scope.get("route"), "path", None)
        return None if path is None else str(path)


_notes: ContextVar[RequestNotes | None] = ContextVar("bootpig_request_notes", default=None)


def begin_notes(scope: Mapping[str, Any]) -> RequestNotes:
    """Notes of the request that this task answers from now on."""
    notes = RequestNotes(scope)
    _notes.set(notes)
    return notes


def current_notes() -> RequestNotes | None:
    """Notes of the request at hand; None outside of one."""
    return _notes.get()


def note(**fields: NoteValue) -> None:
    """Add to the access line and the span of the request at hand: `note(model="small", steps=20)`.

    Prompts are left out of logs unless the service was told otherwise, and never traced.
    """
    notes = _notes.get()
    if notes is not None:
        notes.fields.update(fields)


def note_timings(timings: Timings) -> None:
    """The pictures of the request at hand are there, after these times."""
    notes = _notes.get()
    if notes is not None:
        notes.timings, notes.drawn_at = timings, time.perf_counter()
