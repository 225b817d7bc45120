"""Keys and roles: every line of a table, over real sockets."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.access import KeyGuard, RouteTable

WRONG = "Bearer bprt_" + "A" * 43


def requests(routes: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A request for each line: method, path, access. None of them waits for another."""
    skipped = {"GET /first", "GET /until-gone", "GET /is-gone", "GET /boom"}
    skipped |= {"GET /flood", "GET /is-cut"}
    return [
        (entry.split()[0], re.sub(r"\{.*?\}", "early", entry.split()[1]), access)
        for entry, access in routes.items()
        if entry not in skipped
    ]


def test_every_route_needs_what_its_line_says(locked: Any, routes: dict[str, Any]) -> None:
    refusals = 0
    for method, path, access in requests(routes):
        statuses = {
            who: locked.ask(method, path, Authorization=header).status
            for who, header in [
                ("nobody", None),
                ("stranger", WRONG),
                ("alice", locked.bearer("alice")),
                ("ops", locked.bearer("ops")),
            ]
        }
        public, user = access == "public", access in ("public", "user")
        assert statuses == {
            "nobody": 200 if public else 401,
            "stranger": 200 if public else 401,
            "alice": 200 if user else 403,
            "ops": 200,
        }, path
        refusals += not public
    assert refusals > 5


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/who/", "//who", "/who/a/b", "/page/", "/page", "/page/../admin", "/WHO"),
        *("/page/%2e%2e/admin", "/page/..%2fadmin", "/page/./x", "/page/a%5cb", "/page//x"),
        *("/who%00", "/who%0a", "http://localhost/who", "*"),
    ],
)
def test_a_path_that_is_in_no_line_is_closed(live: Any, locked: Any, path: str) -> None:
    for found in (
        live.ask("GET", path),
        locked.ask("GET", path, Authorization=locked.bearer("ops")),
    ):
        assert (found.status, found.code) == (404, "not_found")


def test_a_method_that_is_in_no_line_is_closed_and_the_others_are_named(live: Any) -> None:
    found = live.ask("PUT", "/who")
    assert (found.status, found.code) == (405, "method_not_allowed")
    assert found.headers["allow"] == "DELETE, GET, HEAD"
    assert live.ask("HEAD", "/who").status == 200
    assert live.ask("HEAD", "/read").status == 405


def test_who_asks_is_known_within(live: Any, locked: Any) -> None:
    alice = locked.ask("GET", "/who", Authorization=locked.bearer("alice")).facts
    assert (alice["name"], alice["role"]) == ("alice", "user")
    everybody = live.ask("GET", "/who").facts
    assert (everybody["name"], everybody["role"]) == ("", "admin")
    assert live.ask("POST", "/admin").status == 200
    assert locked.ask("GET", "/").facts["name"] is None
    known = locked.ask("GET", "/", Authorization=locked.bearer("alice")).facts
    assert known["name"] == "alice"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_read_in_any_case(locked: Any, scheme: str) -> None:
    header = f"{scheme} {locked.tokens['alice']}"
    assert locked.ask("GET", "/who", Authorization=header).status == 200


def test_a_key_in_another_place_is_no_key(locked: Any) -> None:
    token = locked.tokens["alice"]
    for header in (token, f"Basic {token}", f"Token {token}", "Bearer", "Bearer ", "é"):
        found = locked.ask("GET", "/who", Authorization=header)
        assert (found.status, found.code) == (401, "invalid_api_key")
        assert found.headers["www-authenticate"].startswith("Bearer")
    twice = [locked.bearer("alice"), locked.bearer("alice")]
    assert locked.ask("GET", "/who", Authorization=twice).status == 401
    assert locked.ask("GET", "/who", Cookie=f"key={token}", X_Api_Key=token).status == 401


@pytest.mark.parametrize(
    "query", ["key={}", "a=b&API_KEY={}", "access_token=x", "x={}", "%6bey=x", "{}", "Api-Key"]
)
def test_a_key_in_the_address_is_refused_even_beside_a_good_one(locked: Any, query: str) -> None:
    path = "/who?" + query.format(locked.tokens["alice"])
    found = locked.ask("GET", path, Authorization=locked.bearer("alice"))
    assert (found.status, found.code) == (401, "invalid_api_key")
    assert "logs" in found.facts["error"]["message"]


def test_other_queries_pass(locked: Any) -> None:
    path = "/who?limit=2&after=sub_1&monkey=1"
    assert locked.ask("GET", path, Authorization=locked.bearer("alice")).status == 200


def test_an_answer_tells_nothing_of_the_key_that_was_sent(locked: Any) -> None:
    found = locked.ask("GET", "/who", Authorization=WRONG)
    assert WRONG.removeprefix("Bearer ") not in found.body.decode() + str(found.headers)


def test_the_stricter_line_counts_in_any_order() -> None:
    lines = {"GET /v1/{what:path}": "user", "GET /v1/admin/{what}": "admin", "GET /v1/x": "public"}
    for order in (list(lines), list(reversed(lines))):
        table = RouteTable({entry: lines[entry] for entry in order})  # type: ignore[misc]
        assert table.methods("/v1/admin/reload") == {"GET": "admin", "HEAD": "admin"}
        assert table.methods("/v1/x")["GET"] == "user"
        assert table.methods("/v2/x") == {}


def test_a_path_with_a_line_of_its_own_takes_none_of_a_pattern_s_methods() -> None:
    lines = {"GET /a/{id}": "user", "DELETE /a/{id}": "user", "POST /a/new": "user"}
    table = RouteTable(lines)  # type: ignore[arg-type]
    assert table.methods("/a/new") == {"POST": "user"}
    assert set(table.methods("/a/b")) == {"GET", "HEAD", "DELETE"}


def test_dots_in_a_path_are_no_pattern() -> None:
    table = RouteTable({"GET /openapi.json": "user", "GET /a.b/{x}.c": "user"})
    for path in ("/openapi.json", "/a.b/1.c"):
        assert table.methods(path)
        assert table.methods(path.replace(".", "X", 1)) == {}


def test_websockets_are_closed_for_no_route_takes_them() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def unused(*_: object) -> None:
        raise AssertionError

    guard = KeyGuard(unused, keys=None, routes=RouteTable({"GET /who": "public"}))
    scope = {"type": "websocket", "path": "/who", "headers": []}
    asyncio.run(guard(scope, unused, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    "entry", ["/who", "GET who", "get /who", "GET /a//b", "GET  /a", "GET /../a"]
)
def test_a_line_that_cannot_be_read_is_refused(entry: str) -> None:
    with pytest.raises(ParameterError, match="route is"):
        RouteTable({entry: "user"})
    with pytest.raises(ParameterError, match="route is"):
        RouteTable({"GET /who": "root"})  # type: ignore[dict-item]
