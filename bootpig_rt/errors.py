"""Every error that bootpig_rt raises on purpose.

    BootPIGError
     ├ InputError (ValueError)             what the user passed in
     │  ├ PromptError
     │  ├ ImageError
     │  ├ ParameterError
     │  └ ConfigError
     ├ CheckpointError                     a model folder or one of its files
     │  └ BundleError                      a bundle that may not be loaded
     ├ BackendUnavailable (ImportError)    a missing package or device
     ├ SubjectMismatch                     a Subject made for something else
     ├ EngineError                         a graph or an engine that cannot be built
     ├ OutOfDeviceMemory                   a call that is too large for the device
     ├ CredentialsError                    a picture that must be signed and cannot be
     ├ StorageError (OSError)              a file that cannot be written or read
     ├ NumericalError                      NaN or Inf where numbers are expected
     ├ ParityError                         engines that do not compute what torch computes
     ├ EngineFull                          too many requests wait; try again later
     ├ EngineLost                          the process that drew it is gone; try again
     ├ EndpointError                       a service that is asked over the network fails
     ├ ProcessLost                         a process of a training is gone; run it again
     ├ DeadlineExceeded (TimeoutError)     a request that ran out of its time
     └ Cancelled                           the caller stopped the run

A message is one line and says what was wrong, what was got, what was expected and what to do.
`exit_code` is what the command line returns for the error. This file knows nothing about what
raises them and imports nothing outside the standard library.
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 130


class BootPIGError(Exception):
    """Base of all errors of this package: catch it to catch them all."""

    exit_code: ClassVar[int] = EXIT_FAILURE

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole, whatever the constructor takes."""
        return _again, (type(self), self.args, dict(vars(self)))


class InputError(BootPIGError, ValueError):
    """The caller passed something that cannot be used."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class PromptError(InputError):
    """A prompt is missing, empty or not text."""


class ImageError(InputError):
    """A picture cannot be opened, is out of limits or shows no subject."""


class ParameterError(InputError):
    """A number or a name is outside what the call accepts."""


class ConfigError(InputError):
    """A configuration file or field is wrong."""


class CheckpointError(BootPIGError):
    """A model folder, or a file in it, is missing, unsafe, damaged or of the wrong shape.

    Attributes:
        path: The folder or file at fault, or None when there is no single one.
    """

    exit_code: ClassVar[int] = EXIT_BAD_INPUT

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        """Keep the one-line message and the path at fault."""
        super().__init__(message)
        self.path = path


class BundleError(CheckpointError):
    """A bundle, or a file in it, is unsigned, changed, incomplete or for something else.

    Nothing of it was loaded.
    """


class BackendUnavailable(BootPIGError, ImportError):
    """A package or a device that the chosen backend needs is not there.

    The message holds the pip line that installs the package.
    """

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class SubjectMismatch(BootPIGError):
    """A Subject was made with other weights, another size or other settings than those in use."""

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class EngineError(BootPIGError):
    """A graph or an engine could not be built."""


class OutOfDeviceMemory(BootPIGError):
    """The device has no room for a call; a smaller one can follow at once.

    Attributes:
        asked_bytes: What could not be allocated; None where the allocator did not say.
        free_bytes: Free on the device at that time, by its driver; None where there is none.
        total_bytes: Of the device; likewise.
    """

    def __init__(
        self,
        what: str,
        *,
        asked_bytes: int | None = None,
        free_bytes: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        """Say what was being done, with its sizes, and which options make it smaller."""
        numbers = []
        if asked_bytes is not None:
            numbers.append(f"asked for {asked_bytes / 2**20:.0f} MiB")
        if free_bytes is not None and total_bytes is not None:
            numbers.append(f"{free_bytes / 2**20:.0f} of {total_bytes / 2**20:.0f} MiB free")
        told = f" ({', '.join(numbers)})" if numbers else ""
        super().__init__(
            f"out of device memory{told} while {what}; draw fewer or smaller pictures at once "
            "(max_batch, width, height), or give tables less room with TableOptions (dtype, "
            "budget_bytes, device_bytes, rows_per_launch)"
        )
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.total_bytes = total_bytes


class StorageError(BootPIGError, OSError):
    """A file could not be written or read: disk full, read-only folder, no permission."""


class CredentialsError(BootPIGError):
    """Content credentials cannot be made: certificate or key are missing, expired or unfit.

    Where they are required, no picture is given out.
    """

    exit_code: ClassVar[int] = EXIT_BAD_INPUT


class NumericalError(BootPIGError):
    """The model produced NaN or Inf; no picture was made from it."""


class ParityError(BootPIGError):
    """New graphs or engines differ from torch by more than the limits; no bundle was made."""


class EngineFull(BootPIGError):
    """As many requests wait as the engine takes. The same request may be taken later.

    Attributes:
        retry_after_s: When there will be room, as far as the engine can tell.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        """Keep the message and the expected wait."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineLost(BootPIGError):
    """The process that drew a request has ended before the request did.

    Nothing is wrong with the request: it may be sent again, and gives the same picture.

    Attributes:
        retry_after_s: When another process is likely to take it.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        """Keep the message and the expected wait."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointError(BootPIGError):
    """A service that is asked over the network refuses, or is out of order for too long."""


class ProcessLost(BootPIGError):
    """Another process of a training has ended or does not answer; the last checkpoint is whole."""


class DeadlineExceeded(BootPIGError, TimeoutError):
    """A request was not done in the time that it was given; work on it has stopped."""


class Cancelled(BootPIGError):
    """The caller asked the run to stop. Ctrl-C stays KeyboardInterrupt."""

    exit_code: ClassVar[int] = EXIT_INTERRUPTED


def describe_os_error(error: OSError) -> str:
    """One line for an operating system error, with the fix when there is an obvious one."""
    reason = error.strerror or str(error) or type(error).__name__
    where = f" ({error.filename})" if error.filename else ""
    fixes = {
        errno.ENOSPC: "free some space or write to another disk",
        errno.EDQUOT: "free some space or write to another disk",
        errno.EROFS: "write to a folder that is not read-only",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.ENOENT: "check the path",
        errno.EISDIR: "give a file name, not a folder",
        errno.ENOTDIR: "check the path: one of its parts is a file",
    }
    fix = fixes.get(error.errno) if error.errno is not None else None
    return f"{reason[:1].lower()}{reason[1:]}{where}" + (f"; {fix}" if fix else "")


def one_line(text: str, most_chars: int = 300) -> str:
    """Text of anybody's as part of a message: on one line, without control characters, cut."""
    shown = "".join(char if char.isprintable() else " " for char in text[: most_chars + 1])
    return shown if len(shown) <= most_chars else f"{shown[: most_chars - 3]}..."


def shown(value: object, most_chars: int = 100) -> str:
    """A value of anybody's as part of a message: as Python writes it, cut."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        text = f"{type(value).__name__} of thousands of digits"
    except RecursionError:
        text = f"{type(value).__name__} that is nested deeply"
    return one_line(text, most_chars)


def _again(kind: type[BootPIGError], args: tuple[Any, ...], state: dict[str, Any]) -> BootPIGError:
    """An error that was pickled."""
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error
