"""What travels between the processes that take requests and those that draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

from bootpig_rt.backends.base import PairSpec
from bootpig_rt.engine.events import Event, Launch, StepEvent
from bootpig_rt.errors import ParameterError
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import Request
from bootpig_rt.server.engine_client import Load, ModelFacts, Progress
from bootpig_rt.storage.stats import StoreStats
from bootpig_rt.text.tokenizer import Tokenizer


class SubjectMissing(Exception):
    """A replica was to fetch a subject that the storage no longer has: send it along."""


@dataclass(frozen=True)
class Order:
    """A request on its way to a replica.

    Attributes:
        request: Without its subject where the replica fetches that itself.
        subject: Fingerprint of the subject that is to be fetched; empty for none.
        request_id: The caller's name for it.
        deadline_s: Seconds from when it is sent; None for none.
        preview_every: Steps between previews; None for none.
        priority: Higher ones begin first.
    """

    request: Request
    subject: str
    request_id: str
    deadline_s: float | None
    preview_every: int | None
    priority: int


@dataclass(frozen=True)
class Told:
    """What a replica says of a request; the first one says that it was taken.

    Attributes:
        event: What happened; None where only the progress is news.
        progress: How far it is.
    """

    event: Event | None
    progress: Progress


@dataclass(frozen=True)
class Description:
    """What must be known of a replica's model to refuse what it would refuse, without asking.

    Attributes:
        facts: For callers.
        spec: Of the pair.
        tokenizer: Of the pair.
        tables: How its tables are made.
    """

    facts: ModelFacts
    spec: PairSpec
    tokenizer: Tokenizer
    tables: TableOptions


@dataclass(frozen=True)
class Status:
    """How a replica is.

    Attributes:
        replica: Its name.
        pid: Its process.
        load: How busy it is.
        store: Counters of its tables.
        launches: Steps since it was asked last, by whomever: each is told once.
    """

    replica: str
    pid: int
    load: Load
    store: StoreStats
    launches: tuple[Launch, ...]


def sendable(event: Event) -> Event:
    """An event without what is bound to the process that it comes from."""
    if isinstance(event, StepEvent):
        return replace(event, _decode=_not_here, _cancel=_nothing)
    return event


def _not_here() -> NoReturn:
    raise ParameterError(
        "a picture that another process draws cannot be decoded between steps; ask for previews "
        "with preview_every"
    )


def _nothing() -> None:
    """Cancelling goes through the drawing that the event is of."""
