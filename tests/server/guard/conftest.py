"""A tiny app behind the guards, on a real uvicorn and real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from bootpig_rt.server.guard import early_answers
from bootpig_rt.server.guard.asgi import App, Message, Receive, Scope, Send
from bootpig_rt.server.guard.body import BodyLimits
from bootpig_rt.server.guard.connections import http_protocol
from bootpig_rt.server.guard.key_changes import add_key
from bootpig_rt.server.guard.keys import KeyFile
from bootpig_rt.server.guard.stack import guard_app

TIMEOUT_S = 20.0
"""Of everything that a test waits for; what is waited for takes milliseconds."""

ROUTES: dict[str, Any] = {
    "GET /": "public",
    "GET /page/{file:path}": "public",
    "GET /who": "user",
    "GET /who/{name}": "user",
    "GET /boom": "user",
    "GET /headers": "user",
    "GET /first": "user",
    "GET /second": "user",
    "GET /until-gone": "user",
    "GET /flood": "user",
    "GET /is-cut": "user",
    "GET /is-gone": "user",
    "POST /read": "user",
    "POST /early": "user",
    "POST /begun": "user",
    "POST /admin": "admin",
    "DELETE /who": "user",
    "POST /slow/{what}": "user",
    "POST /one/{what}": "user",
    "POST /large/read": "user",
}

LIMITS = {
    "/": BodyLimits(1000),
    "/large": BodyLimits(4_000_000),
    "/slow": BodyLimits(1000, deadline_s=0.3),
    "/one": BodyLimits(1000, max_at_once=1),
}


class TinyApp:
    """Answers what was asked of it, as JSON; `/first` goes on once `/second` was asked."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.is_gone = asyncio.Event()
        self.is_cut = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        name = scope["path"].rpartition("/")[2]
        handler = getattr(self, "do_" + name.replace("-", "_"), self.do_who)
        await handler(scope, receive, send)

    async def do_who(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = scope["state"]["principal"]
        facts = {
            "name": principal and principal.name,
            "role": principal and principal.role,
            "request_id": scope["state"]["request_id"],
        }
        await answer(send, facts)

    async def do_read(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left")
            num_bytes += len(message["body"])
            more = message.get("more_body", False)
        await answer(send, {"bytes": num_bytes})

    async def do_early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, {"bytes": None})

    async def do_stubborn(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers whatever it is told, as a framework does that takes any fault for its own."""
        with_fault = False
        try:
            await self.do_read(scope, receive, send)
        except ConnectionError:
            with_fault = True
        if with_fault:
            await answer(send, {"bytes": -1}, status=400)

    async def do_begun(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await send({"type": "http.response.body", "body": message["type"].encode()})

    async def do_admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, {"done": True})

    async def do_boom(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret text of /etc/passwd")

    async def do_headers(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = {"cache-control": "max-age=60", "X-Request-Id": "forged", "Referrer-Policy": "origin"}
        await answer(send, {}, headers=own)

    async def do_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first,", "more_body": True})
        await self.goes_on.wait()
        await send({"type": "http.response.body", "body": b"second", "more_body": False})

    async def do_second(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.goes_on.set()
        await answer(send, {})

    async def do_until_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_gone.set()

    async def do_flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):  # more than the system's buffers take
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        self.is_cut.set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def do_is_cut(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.is_cut.wait()
        await answer(send, {})

    async def do_is_gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.is_gone.wait()
        await answer(send, {})


@dataclass
class Seen:
    """What an observer saw of a request."""

    path: str
    status: int
    refusal: str | None
    num_disconnects: int


class Observer:
    """Notes every answer once it is whole."""

    def __init__(self, app: App, seen: list[Seen]) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = num_disconnects = 0

        async def receive_and_see() -> Message:
            nonlocal num_disconnects
            message = await receive()
            num_disconnects += message["type"] == "http.disconnect"
            return message

        async def send_and_see(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if not message.get("more_body", message["type"] == "http.response.start"):
                refusal = scope["state"].get("refusal")
                self.seen.append(Seen(scope["path"], status, refusal, num_disconnects))
            await send(message)

        await self.app(scope, receive_and_see, send_and_see)


async def answer(
    send: Send, facts: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    body = json.dumps(facts).encode()
    pairs = [(b"content-length", str(len(body)).encode())]
    pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def facts(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        """Of an error, whose other fields are checked here."""
        error = self.facts["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        return error["code"]


@dataclass
class Live:
    """A server that runs, and how to talk to it."""

    port: int
    seen: list[Seen]
    tokens: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with closing(socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)) as found:
            yield found

    def send(self, connection: socket.socket, method: str, path: str, **headers: object) -> None:
        """Send the head of a request; `_` in names stands for `-`."""
        lines = [f"{method} {path} HTTP/1.1"]
        for name, value in ({"Host": f"localhost:{self.port}"} | headers).items():
            values = value if isinstance(value, list) else [value]
            lines += [f"{name.replace('_', '-')}: {each}" for each in values if each is not None]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())

    def read(self, connection: socket.socket, method: str = "GET") -> Answer:
        """Read one answer."""
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def is_closed(self, connection: socket.socket) -> bool:
        """Whether the server closes the connection, rather than wait for more."""
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    def ask(self, method: str, path: str, body: bytes = b"", **headers: object) -> Answer:
        """One request on a connection of its own."""
        with self.connection() as connection:
            if body:
                headers.setdefault("Content_Length", len(body))
            self.send(connection, method, path, **headers)
            connection.sendall(body)
            return self.read(connection, method)

    def bearer(self, name: str) -> str:
        return f"Bearer {self.tokens[name]}"

    def eventually(self, ask: Callable[[], Answer], status: int) -> Answer:
        """Ask again until the answer has `status`; the last answer in any case."""
        end = time.monotonic() + TIMEOUT_S
        while (found := ask()).status != status and time.monotonic() < end:
            time.sleep(0.01)
        return found


@contextmanager
def running(
    app: App, header_deadline_s: float, stall_s: float, max_connections: int
) -> Iterator[int]:
    """Run an app; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=http_protocol(
            header_deadline_s=header_deadline_s, stall_s=stall_s, max_connections=max_connections
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        end = time.monotonic() + TIMEOUT_S
        while not server.started and time.monotonic() < end:
            time.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(TIMEOUT_S)
        listener.close()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Live]]:
    """Starts servers, which run until the end, and linger less than others."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_answers, "LINGER_S", 0.2)

        def start(
            keys: KeyFile | None = None,
            header_deadline_s: float = TIMEOUT_S,
            stall_s: float = TIMEOUT_S,
            max_connections: int = 1000,
            always: Sequence[str] = ("/who",),
            **options: Any,
        ) -> Live:
            seen: list[Seen] = []
            app = guard_app(
                TinyApp(),
                keys=keys,
                routes=ROUTES,
                body_limits=LIMITS,
                always=always,
                observe=lambda guarded: Observer(guarded, seen),
                **options,
            )
            served = running(app, header_deadline_s, stall_s, max_connections)
            port = stack.enter_context(served)
            return Live(port, seen)

        yield start


@pytest.fixture(scope="session")
def live(serve: Callable[..., Live]) -> Live:
    """A server without keys."""
    return serve(
        allowed_hosts=["pics.example.org", "*.example.net"],
        allowed_origins=["https://app.example.org"],
    )


@pytest.fixture(scope="session")
def locked(serve: Callable[..., Live], tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A server with keys, of the user `alice` and the admin `ops`."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    tokens = {
        "alice": add_key(path, "alice")[1],
        "ops": add_key(path, "ops", role="admin")[1],
    }
    found = serve(KeyFile.load(path))
    found.tokens.update(tokens)
    return found


@pytest.fixture
def routes() -> dict[str, Any]:
    """The table of the servers."""
    return ROUTES
