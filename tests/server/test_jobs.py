"""JobBook: what is kept of requests on their way and of those that ended."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from bootpig_rt.server.engine_client import Progress
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.jobs import JobBook


class Model:
    """As much of a client as the book asks."""

    class facts:
        name = "one"


class Drawing:
    """As much of a drawing as the book asks; in truth it holds the pictures."""

    def progress(self) -> Progress:
        return Progress(8, 8, None, has_begun=True, is_done=True)

    def cancel(self) -> None:
        """There is nothing to stop."""


def finish(book: JobBook, id: str, *, num_images: int = 1) -> weakref.ref[Any]:
    model: Any = Model()
    record = book.open(id, "anna", model, num_images)
    record.drawing = Drawing()  # type: ignore[assignment]
    book.close(record, "succeeded")
    return weakref.ref(record.drawing)


def test_a_job_that_has_ended_is_told_of_and_holds_no_pictures() -> None:
    book = JobBook()
    drawing = finish(book, "one")
    assert drawing() is None
    told = book.show("anna", "one")
    assert (told["status"], told["done_steps"], told["total_steps"]) == ("succeeded", 8, 8)
    assert book.live() == []


def test_jobs_that_ended_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootpig_rt.server.jobs._KEPT", 2)
    book = JobBook()
    for id in ("one", "two", "three"):
        finish(book, id)
    assert book.show("anna", "two")["id"] == "two"
    with pytest.raises(ApiError) as caught:
        book.show("anna", "one")
    assert caught.value.code == "job_not_found"


def test_pictures_count_against_a_rate_whatever_id_their_requests_have() -> None:
    book = JobBook()
    for _ in range(3):
        finish(book, "same", num_images=2)
    assert book.wait_for_rate_s("anna", 1, 6) > 50.0
