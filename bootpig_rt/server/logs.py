"""Logs of the service: a line for each record on stderr, as JSON or for people.

Every line has the id of its request. Text from outside cannot forge or break lines: control
characters are escaped in both forms. A thread of its own writes them, so that a slow or closed
pipe holds nothing up: lines that have no room are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from bootpig_rt.server.line_writer import LineWriter
from bootpig_rt.server.request_notes import current_notes

LogForm: TypeAlias = Literal["auto", "json", "text"]

PRIVATE = frozenset({"prompt", "negative_prompt", "reference_prompt"})
"""Fields that are left out unless the service was told to log prompts."""

_MAX_CHARS = 16 << 10
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON in ASCII: time, level, logger, message, request_id, fields.

    Args:
        log_prompts: Keep the fields of `PRIVATE`.
    """

    def __init__(self, *, log_prompts: bool = False) -> None:
        super().__init__()
        self._log_prompts = log_prompts

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
            **_fields_of(record, log_prompts=self._log_prompts),
        }
        trace = _traceback(self, record)
        if trace:
            told["exception"] = trace
        line = json.dumps(told, default=str)
        return line.replace("\x7f", "\\u007f")


class TextFormatter(logging.Formatter):
    """A record as a line for people: time, level, message, fields.

    Args:
        log_prompts: Keep the fields of `PRIVATE`.
    """

    def __init__(self, *, log_prompts: bool = False) -> None:
        super().__init__()
        self._log_prompts = log_prompts

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end; a traceback follows on lines that begin with a space."""
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        words = [at, f"{record.levelname.lower():<7}", printable(_cut(record.getMessage()))]
        for name, value in _fields_of(record, log_prompts=self._log_prompts).items():
            if value is not None:
                words.append(f"{name}={printable(str(value))}")
        lines = [" ".join(words)]
        lines += [f"  {printable(line)}" for line in _traceback(self, record).splitlines()]
        return "\n".join(lines)


class LineHandler(logging.Handler):
    """Gives lines to a writer, and never fails or waits.

    Args:
        fd: File descriptor to write to.
        formatter: Makes the lines.
    """

    def __init__(self, fd: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(fd, self._lost_line)

    def emit(self, record: logging.LogRecord) -> None:
        """Format here, where the request is known; write there."""
        try:
            line = self.format(record)
        except Exception as error:  # of whoever made the record: the service goes on
            record = logging.LogRecord(
                record.name, logging.ERROR, record.pathname, record.lineno,
                "a log line could not be formatted (%s): %r", (error, str(record.msg)), None,
            )  # fmt: skip
            line = self.format(record)
        self.writer.put(line)

    def flush(self) -> None:
        """Wait until all is written, for a moment at most."""
        self.writer.flush()

    def _lost_line(self, count: int) -> str:
        record = logging.LogRecord(
            "bootpig_rt.server", logging.WARNING, __file__, 0,
            "%d log lines were lost: nobody took them", (count,), None,
        )  # fmt: skip
        return self.format(record)


@contextmanager
def logs_to_stderr(
    form: LogForm = "auto", *, log_prompts: bool = False, fd: int | None = None
) -> Iterator[LineWriter]:
    """All logs of the process go to stderr in one form, until the block ends.

    Ours and uvicorn's from level INFO on, DEBUG where the logger `bootpig_rt` is at DEBUG already;
    those of other packages from WARNING on. Warnings and what threads die of are logged as well.

    Args:
        form: `json`, `text`, or `auto`: text on a terminal.
        log_prompts: Prompts may appear.
        fd: File descriptor to write to; that of stderr by default.

    Yields:
        Who writes, and knows how many lines were lost.
    """
    fd = _stderr_fd() if fd is None else fd
    is_text = form == "text" or (form == "auto" and os.isatty(fd))
    formatter = (TextFormatter if is_text else JsonFormatter)(log_prompts=log_prompts)
    handler = LineHandler(fd, formatter)
    ours = logging.getLogger("bootpig_rt")
    level = ours.level if ours.level and ours.level < logging.INFO else logging.INFO
    levels = {"": logging.WARNING, "bootpig_rt": level}
    levels |= dict.fromkeys(_UVICORN, logging.INFO)
    before = {name: _state(logging.getLogger(name)) for name in levels}
    old_hook = threading.excepthook
    try:
        for name, at in levels.items():
            logger = logging.getLogger(name)
            logger.handlers = [handler] if not name else []
            logger.propagate = True
            logger.setLevel(at)
        threading.excepthook = _log_thread
        logging.captureWarnings(True)
        yield handler.writer
    finally:
        logging.captureWarnings(False)
        threading.excepthook = old_hook
        for name, (handlers, propagate, at) in before.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(at)
        handler.writer.close()


def printable(text: str) -> str:
    """Text in which everything that a terminal could take for a command is escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _fields_of(record: logging.LogRecord, *, log_prompts: bool) -> dict[str, Any]:
    notes = current_notes()
    fields: dict[str, Any] = {}
    if notes is not None:
        fields["request_id"] = notes.request_id
        if notes.trace_id is not None:
            fields["trace_id"] = notes.trace_id
    own: Mapping[str, Any] = getattr(record, "fields", {})
    for name, value in own.items():
        if log_prompts or name not in PRIVATE:
            fields[name] = _plain(value)
    return fields


def _plain(value: object) -> object:
    """A value that JSON has a word for."""
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _utc(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return _cut("\n".join(parts), keep_end=True)


def _cut(text: str, *, keep_end: bool = False) -> str:
    if len(text) <= _MAX_CHARS:
        return text
    left_out = f"... ({len(text) - _MAX_CHARS} characters left out)"
    return left_out + text[-_MAX_CHARS:] if keep_end else text[:_MAX_CHARS] + left_out


def _state(logger: logging.Logger) -> tuple[list[logging.Handler], bool, int]:
    return list(logger.handlers), logger.propagate, logger.level


def _stderr_fd() -> int:
    """That of `sys.stderr`; 2 where it has none."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return 2


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("bootpig_rt.server").error(
        "the thread %s died", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
    )
