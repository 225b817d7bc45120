"""What every route does with a request: whose it is, its body, its time, and whether it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive

from bootpig_rt.errors import ImageError, StorageError, describe_os_error
from bootpig_rt.images.image_input import format_name
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.guard.keys import Principal
from bootpig_rt.server.parse import from_form, printable_name
from bootpig_rt.server.schema import Fields

MAX_FILES = 64
MAX_FIELDS = 64
_MAX_FIELD_BYTES = 1 << 20
_FORMATS = ("PNG", "JPEG", "WebP")
_HEAD_BYTES = 512
_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii"})

ResultT = TypeVar("ResultT")
FieldsT = TypeVar("FieldsT", bound=Fields)


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        id: The client's name for it, or ours.
        principal: Who asks.
    """

    id: str
    principal: Principal

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.principal.name


def call_of(http: HttpRequest) -> Call:
    """What the guards found out about a request."""
    state = http.scope["state"]
    return Call(state["request_id"], state["principal"])


def media_type(http: HttpRequest) -> str:
    """Of the body, without parameters."""
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(http: HttpRequest) -> bytes:
    """The body of a JSON request. Read once: the request keeps no copy of it.

    Raises:
        ApiError: 415: it says that it is something else.
    """
    if media_type(http) != "application/json":
        raise ApiError(415, "unsupported_media_type", "expected Content-Type: application/json")
    return b"".join([chunk async for chunk in http.stream()])


@asynccontextmanager
async def read_form(http: HttpRequest) -> AsyncIterator[FormData]:
    """The form of a multipart request; its files are gone at the end of the block.

    Raises:
        ApiError: 415: it is no form, or not in UTF-8; 400: it is damaged, cut short, or has too
            many parts.
        StorageError: No room for a temporary file.
    """
    if media_type(http) != "multipart/form-data":
        raise ApiError(415, "unsupported_media_type", "expected Content-Type: multipart/form-data")
    _, parameters = parse_options_header(http.headers["content-type"])
    # Starlette would decode by any codec of Python's, some of which raise what it does not catch.
    if parameters.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise ApiError(415, "unsupported_media_type", "expected a form in UTF-8")
    parser = _FormParser(
        http.headers,
        http.stream(),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        text = f"the form is damaged or has too many parts ({MAX_FILES} files, {MAX_FIELDS} fields)"
        raise ApiError(400, "invalid_form", text) from error
    except OSError as error:
        raise StorageError(f"cannot keep an upload: {describe_os_error(error)}") from error
    try:
        if not parser.is_whole:
            text = "the form is cut short: its last boundary is missing"
            raise ApiError(400, "invalid_form", text)
        yield form
    finally:
        await form.close()
        parser.close_files()


class _FormParser(MultiPartParser):
    """Knows whether the form came to its end: a field or file that was cut off is not in it."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    def close_files(self) -> None:
        """Close those that were cut off, too."""
        for file in self._files_to_close_on_error:
            file.close()


def fields_of(kind: type[FieldsT], form: FormData) -> FieldsT:
    """The text fields of a form.

    Raises:
        ApiError: As `parse.validated`.
    """
    return from_form(kind, [(k, v) for k, v in form.multi_items() if isinstance(v, str)])


async def files_of(
    form: FormData, names: Sequence[str], *, most: int, beside: str | None = None
) -> list[bytes]:
    """Contents of the files of a form, in their order.

    Args:
        form: As `read_form` gives it.
        names: That files may have.
        most: How many there may be.
        beside: Name of one that is none of them.

    Raises:
        ApiError: 422: there is none; 400: too many, or one of another name.
    """
    uploads: list[UploadFile] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name != beside:
            if name not in names:
                text = f"a file is named otherwise than {' or '.join(names)}"
                raise ApiError(400, "unknown_field", text, param=printable_name(name))
            uploads.append(value)
    if not uploads:
        text = f"{names[0]} is missing: expected at least one file"
        raise ApiError(422, "missing_field", text, param=names[0])
    if len(uploads) > most:
        text = f"{len(uploads)} files, expected at most {most} for this model"
        raise ApiError(400, "too_many_images", text, param=names[0])
    return [await one.read() for one in uploads]


async def images_of(form: FormData, *, most: int, beside: str | None = None) -> list[bytes]:
    """Contents of the image files of a form, in their order; arguments as of `files_of`.

    Raises:
        ApiError: As `files_of`.
        ImageError: As `check_formats`.
    """
    images = await files_of(form, ("image", "image[]"), most=most, beside=beside)
    check_formats(images)
    return images


async def mask_of(form: FormData) -> bytes | None:
    """Contents of the file `mask` of a form; None where there is none.

    Raises:
        ApiError: It is there twice, or no file.
        ImageError: As `check_formats`.
    """
    found = form.getlist("mask")
    if not found:
        return None
    if len(found) > 1:
        raise ApiError(400, "invalid_value", "mask is there twice", param="mask")
    (value,) = found
    if not isinstance(value, UploadFile):
        raise ApiError(400, "invalid_value", "mask is text, expected a file", param="mask")
    mask = await value.read()
    check_formats([mask], "mask")
    return mask


def check_formats(images: Sequence[bytes], what: str = "reference image") -> None:
    """Refuse files of other formats than strangers may send, before anything opens them.

    Raises:
        ImageError: One is no PNG, JPEG or WebP.
    """
    for image in images:
        name = format_name(image[:_HEAD_BYTES])
        if name not in _FORMATS:
            got = f"is {name}" if name else "is not a picture" if image else "is empty (0 bytes)"
            raise ImageError(f"{what} {got}, expected PNG, JPEG or WebP; convert it")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
    """The result of some work; None where the client went away first, and the work was cancelled.

    Args:
        receive: Of a request whose body was read.
        work: What the client waits for.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # nobody is left to be told
            await working
        return None
    finally:
        watching.cancel()
        working.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
