"""One line a record, whatever is in it; whoever reads the pipe cannot hold up who logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.server.line_writer import LineWriter
from bootpig_rt.server.logs import JsonFormatter, TextFormatter, logs_to_stderr, printable
from bootpig_rt.server.request_notes import begin_notes, note

NASTY = 'a\nb\r\x1b[31mred\x1b[0m\x00\x7f\x85\u2028\u202e"}\ud800 <script>'

ours = logging.getLogger("bootpig_rt.server.test")


class Pipe:
    """A pipe whose reading end a test holds."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def text(self) -> str:
        """All that was written; nothing can be written any more."""
        os.close(self.writer)
        self.writer = -1
        with os.fdopen(self.reader, encoding="utf-8") as file:
            self.reader = -1
            return file.read()

    def records(self) -> list[dict[str, Any]]:
        """The same as JSON, a line each."""
        return [json.loads(line) for line in self.text().splitlines()]

    def close(self) -> None:
        for end in (self.reader, self.writer):
            if end >= 0:
                os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    found = Pipe()
    yield found
    found.close()


def test_a_line_says_when_who_what_and_of_which_request(pipe: Pipe) -> None:
    async def answer() -> None:
        begin_notes({"state": {"request_id": "req_1"}})
        await asyncio.to_thread(ours.info, "drew %d", 3, extra={"fields": {"model": "small"}})

    with logs_to_stderr("json", fd=pipe.writer):
        asyncio.run(answer())
        ours.warning("of no request")
    first, second = pipe.records()
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "bootpig_rt.server.test",
        "message": "drew 3",
        "request_id": "req_1",
        "model": "small",
    }
    assert "request_id" not in second


def test_nothing_that_is_logged_breaks_or_forges_a_line_of_json(pipe: Pipe) -> None:
    with logs_to_stderr("json", fd=pipe.writer):
        ours.info("user said %s", NASTY, extra={"fields": {"tenant": NASTY, "x": float("nan")}})
    text = pipe.text()
    assert text.count("\n") == 1
    assert all(" " <= char <= "~" for char in text[:-1])
    told = json.loads(text)
    assert told["message"] == f"user said {NASTY}"
    assert told["tenant"] == NASTY
    assert told["x"] == "nan"


def test_nothing_that_is_logged_breaks_or_paints_a_line_for_people(pipe: Pipe) -> None:
    with logs_to_stderr("text", fd=pipe.writer):
        ours.info("user said %s", NASTY, extra={"fields": {"tenant": NASTY}})
        try:
            raise ValueError(NASTY)
        except ValueError:
            ours.exception("failed")
    lines = pipe.text().split("\n")
    assert lines.pop() == ""
    assert all(line.isprintable() for line in lines)
    assert "a\\nb\\r\\x1b[31mred" in lines[0]
    assert "\\u202e" in lines[0]
    assert all(
        line.startswith("  ") for line in lines[2:]
    )  # no line of a traceback looks like ours
    assert len(lines) > 3


def test_text_without_control_characters_stays_as_it_is() -> None:
    assert printable("ein Hündchen 子犬 🐶") == "ein Hündchen 子犬 🐶"


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("is_wanted", [False, True])
def test_prompts_are_left_out_unless_they_are_wanted(
    pipe: Pipe, form: Any, is_wanted: bool
) -> None:
    fields = {"prompt": "my secret dog", "negative_prompt": "my cat", "reference_prompt": "a pig"}
    with logs_to_stderr(form, log_prompts=is_wanted, fd=pipe.writer):
        ours.info("drew", extra={"fields": {**fields, "steps": 4}})
    text = pipe.text()
    assert "steps" in text
    assert [value in text for value in fields.values()] == [is_wanted] * 3


def test_auto_is_text_on_a_terminal_and_json_elsewhere(pipe: Pipe) -> None:
    theirs, mine = os.openpty()
    try:
        with logs_to_stderr("auto", fd=mine):
            ours.info("hello")
        line = os.read(theirs, 1 << 12).decode()
    finally:
        os.close(mine)
        os.close(theirs)
    assert "info    hello" in line
    assert not line.startswith("{")
    with logs_to_stderr("auto", fd=pipe.writer):
        ours.info("hello")
    assert pipe.records()[0]["message"] == "hello"


def test_uvicorn_warnings_and_dying_threads_are_logged_in_the_same_form(pipe: Pipe) -> None:
    def die() -> None:
        raise RuntimeError("in a thread")

    with logs_to_stderr("json", fd=pipe.writer):
        logging.getLogger("uvicorn.error").info("started")
        logging.getLogger("some.library").info("chatter")
        logging.getLogger("some.library").warning("trouble")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old thing", stacklevel=1)
        thread = threading.Thread(target=die, name="worker")
        thread.start()
        thread.join()
    told = [(one["logger"], one["message"]) for one in pipe.records()]
    assert [name for name, _ in told] == [
        "uvicorn.error",
        "some.library",
        "py.warnings",
        "bootpig_rt.server",
    ]
    assert told[1][1] == "trouble"
    assert "old thing" in told[2][1]
    assert told[3][1] == "the thread worker died"


def test_the_logging_of_the_process_is_as_before_afterwards(pipe: Pipe) -> None:
    def state() -> list[Any]:
        found = [logging.getLogger(name) for name in (None, "bootpig_rt", "uvicorn.error")]
        return [(one.level, list(one.handlers), one.propagate) for one in found]

    before = state(), threading.excepthook
    with contextlib.suppress(KeyError), logs_to_stderr("json", fd=pipe.writer):
        raise KeyError
    assert (state(), threading.excepthook) == before


def test_a_record_that_cannot_be_formatted_is_told_as_that(pipe: Pipe) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with logs_to_stderr("json", fd=pipe.writer):
        ours.info("%d pictures", "three")
        ours.info("%s", Odd())
        ours.info("fine")
    told = pipe.records()
    assert ["could not be formatted" in one["message"] for one in told] == [True, True, False]
    assert "'%d pictures'" in told[0]["message"]


def test_long_texts_are_cut(pipe: Pipe) -> None:
    with logs_to_stderr("json", fd=pipe.writer):
        ours.info("x" * 100_000, extra={"fields": {"tenant": "y" * 100_000}})
    (line,) = pipe.records()
    assert len(line["message"]) < 17_000
    assert len(line["tenant"]) < 17_000
    assert "83616 characters left out" in line["message"]


def test_a_closed_pipe_costs_lines_and_nothing_else(
    pipe: Pipe, capfd: pytest.CaptureFixture[str]
) -> None:
    os.close(pipe.reader)
    pipe.reader = -1
    with logs_to_stderr("json", fd=pipe.writer) as writer:
        for number in range(100):
            ours.info("line %d", number)
            if number == 0:
                writer.flush()
        assert writer.is_broken
    assert writer.num_lost == 100
    assert capfd.readouterr() == ("", "")


def test_a_process_whose_log_pipe_was_closed_ends_well(root: Path) -> None:
    code = """if True:
        import logging, sys
        from bootpig_rt.server.logs import logs_to_stderr
        with logs_to_stderr("json"):
            sys.stdin.readline()
            for number in range(50):
                logging.getLogger("bootpig_rt").info("line %d", number)
        print("still here")
    """
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        env=environment,
        text=True,
    ) as process:
        os.close(writer)
        os.close(reader)
        out, _ = process.communicate("go\n", timeout=120)
    assert out == "still here\n"
    assert process.returncode == 0


def test_a_reader_that_stops_reading_holds_nobody_up_and_hears_what_it_missed(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writer, lambda count: f"{count} lost", max_lines=10)
    line = "x" * 1000
    for _ in range(2000):  # far more than the pipe and the queue take; would hang here
        writer.put(line)
    lost = writer.num_lost
    assert lost > 1000
    got = b""
    while got.count(b"\n") < 2000 - lost:  # what had room comes out whole
        got += os.read(pipe.reader, 1 << 16)
    writer.put("the last one")
    writer.flush(60)
    writer.close()
    lines = got.decode().splitlines() + pipe.text().splitlines()
    assert lines[-1] == "the last one"
    told = [int(text.removesuffix(" lost")) for text in lines[:-1] if text != line]
    assert sum(told) == lost  # in several lines, where some were written in between


def test_whoever_flushes_after_the_end_waits_for_nothing(pipe: Pipe) -> None:
    writer = LineWriter(pipe.writer, lambda count: f"{count} lost")
    writer.put("a line")
    writer.close()
    assert pipe.text() == "a line\n"
    assert writer._lines.unfinished_tasks == 0


def test_a_full_disk_loses_lines_until_it_has_room(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = threading.Event()
    write: Callable[[int, Any], int] = os.write

    def write_unless_full(fd: int, data: Any) -> int:
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_unless_full)
    with logs_to_stderr("json", fd=pipe.writer) as writer:
        ours.info("first")
        writer.flush()
        is_full.set()
        ours.info("second")
        writer.flush()
        is_full.clear()
        ours.info("third")
    told = [one["message"] for one in pipe.records()]
    assert told == ["first", "1 log lines were lost: nobody took them", "third"]


def test_notes_outside_of_a_request_are_nobodys() -> None:
    note(model="small")  # nothing to add to, and no error


def test_formatters_tell_the_time_in_utc_and_of_the_wall() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "x", (), None)
    record.created = 86_400.25
    assert json.loads(JsonFormatter().format(record))["time"] == "1970-01-02T00:00:00.250Z"
    assert TextFormatter().format(record).endswith("00.250 info    x")
