"""Bodies of requests: how large, for how long, and how many at once.

A body is refused by its `Content-Length` before a byte is read. It is counted while it comes, for
a length may lie and a chunked body has none; and it must be over at a deadline that no dripping
moves. Whatever happens, its place is free afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from bootpig_rt.checks import check_int
from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    has_body,
    header_values,
    request_state,
    route_path,
)
from bootpig_rt.server.guard.refuse import refuse

logger = logging.getLogger(__name__)

_MAX_DIGITS = 18
_RETRY_AFTER_S = 1


@dataclass(frozen=True)
class BodyLimits:
    """Limits of the bodies of some routes.

    Attributes:
        max_bytes: Of one body.
        deadline_s: From the headers to the last byte.
        max_at_once: Bodies that are being read; more are refused at once with 503.
        max_per_tenant: The same, of one tenant with keys; None for no limit of its own.
    """

    max_bytes: int
    deadline_s: float = 30.0
    max_at_once: int = 64
    max_per_tenant: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are none.

        Raises:
            ParameterError: A number that is not above zero.
        """
        for name in ("max_bytes", "max_at_once", "max_per_tenant"):
            value = getattr(self, name)
            if value is not None:
                check_int(name, value, 1, 2**63 - 1)
        if not 0 < self.deadline_s < float("inf"):
            raise ParameterError(f"deadline_s is {self.deadline_s!r}, expected a number above 0")


class BodyGuard:
    """Middleware, the innermost: keeps the bodies that the app reads within limits.

    Refuses with 413 what is too large, 408 what takes too long, 415 what is compressed, 400 what
    says two lengths, and 503 what comes while too many others are being read. A refusal while the
    app reads is sent at once; the app is told that the client left, and what it then answers is
    dropped. A connection with a refused body is closed, by `EarlyAnswers`.

    Args:
        app: What reads bodies and answers.
        limits: By the beginning of a path, in whole parts; the longest that fits counts, and places
            are counted for each on its own. `/` has to be there.

    Raises:
        ParameterError: No limits for `/`, or a path that does not begin with `/`.
    """

    def __init__(self, app: App, *, limits: Mapping[str, BodyLimits]) -> None:
        if "/" not in limits or not all(prefix.startswith("/") for prefix in limits):
            raise ParameterError(
                f"limits of bodies are for {sorted(limits)}, expected paths that begin with '/', "
                "and '/' itself for all others"
            )
        self._app = app
        self._places = [
            (prefix.rstrip("/") + "/", _Places(limits[prefix]))
            for prefix in sorted(limits, key=len, reverse=True)
        ]

    @property
    def num_reading(self) -> int:
        """Bodies that are being read now."""
        return sum(places.taken.total() for _, places in self._places)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        path = route_path(scope) + "/"
        places = next(places for prefix, places in self._places if path.startswith(prefix))
        limits = places.limits
        refusal = _fault_of_headers(scope, limits)
        if refusal is not None:
            await refuse(scope, receive, send, *refusal)
            return
        tenant = getattr(request_state(scope).get("principal"), "name", "")
        if not places.take(tenant):
            message = "too many requests are being read; try again"
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            await refuse(scope, receive, send, 503, "too_many_uploads", message, headers)
            return
        body = _Body(scope, receive, send, _Place(places, tenant))
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            # The client has had its answer, and the app was told that it left: what comes of that
            # is no fault. Anything else is.
            if not body.is_refused:
                raise
            logger.debug("after its body was refused the app raised", exc_info=True)
        finally:
            body.place.free()


def _fault_of_headers(scope: Scope, limits: BodyLimits) -> tuple[int, str, str] | None:
    """Status, code and message for what can be refused unread; None where nothing can."""
    codings = header_values(scope, b"content-encoding")
    if any(coding.lower() not in ("", "identity") for coding in codings):
        message = "compressed bodies are not taken; send this one without Content-Encoding"
        return 415, "unsupported_media_type", message
    lengths = header_values(scope, b"content-length")
    is_chunked = bool(header_values(scope, b"transfer-encoding"))
    is_number = len(lengths) == 1 and lengths[0].isascii() and lengths[0].isdigit()
    if lengths and (is_chunked or not is_number):
        return 400, "invalid_value", "the length of the body must be said once, as one number"
    if lengths and (len(lengths[0]) > _MAX_DIGITS or int(lengths[0]) > limits.max_bytes):
        return _too_large(limits)
    return None


def _too_large(limits: BodyLimits) -> tuple[int, str, str]:
    return 413, "body_too_large", f"the body is over {limits.max_bytes} bytes, the limit here"


@dataclass
class _Places:
    """Places for bodies of one kind, in one event loop."""

    limits: BodyLimits
    taken: Counter[str] = field(default_factory=Counter)

    def take(self, tenant: str) -> bool:
        """Take a place if there is one; never waits."""
        own = self.limits.max_per_tenant if tenant else None
        if self.taken.total() >= self.limits.max_at_once:
            return False
        if own is not None and self.taken[tenant] >= own:
            return False
        self.taken[tenant] += 1
        return True

    def free(self, tenant: str) -> None:
        self.taken[tenant] -= 1
        if not self.taken[tenant]:
            del self.taken[tenant]  # names of tenants do not pile up


class _Place:
    """A place that one body holds, until `free`; twice is once."""

    def __init__(self, places: _Places, tenant: str) -> None:
        self.limits = places.limits
        self._places: _Places | None = places
        self._tenant = tenant

    def free(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.free(self._tenant)


class _Body:
    """One body on its way to the app: `receive` and `send` as the app sees them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, place: _Place) -> None:
        self.place = place
        self.is_refused = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._deadline = asyncio.get_running_loop().time() + place.limits.deadline_s
        self._num_bytes = 0
        self._is_over = False
        self._is_answering = False

    async def receive(self) -> Message:
        """The next part; after the last one, the client's leaving."""
        if self.is_refused:
            return {"type": "http.disconnect"}
        if self._is_over:
            return await self._receive()
        limits = self.place.limits
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"the body was not complete after {limits.deadline_s:g} s, the limit here"
            return await self._refuse(408, "body_timeout", text)
        if message["type"] != "http.request":
            self._end()
            return message
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > limits.max_bytes:
            return await self._refuse(*_too_large(limits))
        if not message.get("more_body", False):
            self._end()
        return message

    async def send(self, message: Message) -> None:
        """What the app answers; dropped when its request was refused."""
        if self.is_refused:
            return
        self._is_answering = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.place.free()  # whether or not the body was read
        await self._send(message)

    async def _refuse(self, status: int, code: str, text: str) -> Message:
        self._end()
        if not self._is_answering:  # an answer that began is the app's to end
            self.is_refused = True
            await refuse(self._scope, self._receive, self._send, status, code, text)
        return {"type": "http.disconnect"}

    def _end(self) -> None:
        self._is_over = True
        self.place.free()
