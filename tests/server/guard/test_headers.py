"""What every answer says, whoever gave it."""

from __future__ import annotations

import re
from typing import Any

import pytest

MADE = re.compile(r"req_[0-9a-f]{24}")


def every_kind(live: Any) -> dict[str, Any]:
    """An answer of the app, of each guard, and of the protocol below them."""
    return {
        "app": live.ask("GET", "/who"),
        "page": live.ask("GET", "/"),
        "host": live.ask("GET", "/who", Host="evil.example"),
        "origin": live.ask("GET", "/who", Origin="http://evil.example"),
        "route": live.ask("GET", "/nothing"),
        "body": live.ask("POST", "/read", b"x" * 1001),
        "failure": live.ask("GET", "/boom"),
        "no http": live.ask("GET", "/who", Host=None),
    }


def test_every_answer_has_the_headers_and_an_id(live: Any) -> None:
    for kind, found in every_kind(live).items():
        policy = found.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'"), kind
        assert "unsafe" not in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cross-origin-opener-policy"] == "same-origin"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in found.headers["permissions-policy"]
        assert found.headers["cache-control"] == "no-store"
        assert MADE.fullmatch(found.headers["x-request-id"]), kind
        assert "server" not in found.headers


def test_ids_are_new_each_time(live: Any) -> None:
    assert len({found.headers["x-request-id"] for found in every_kind(live).values()}) == 8


def test_the_app_may_say_how_to_cache_and_nothing_else(live: Any) -> None:
    found = live.ask("GET", "/headers")
    assert found.headers["cache-control"] == "max-age=60"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert MADE.fullmatch(found.headers["x-request-id"])


@pytest.mark.parametrize("given", ["a", "req_1-B", "x" * 64])
def test_a_good_id_of_the_client_is_kept_within_and_without(live: Any, given: str) -> None:
    found = live.ask("GET", "/who", X_Request_Id=given)
    assert found.headers["x-request-id"] == found.facts["request_id"] == given
    refused = live.ask("GET", "/nothing", X_Request_Id=given)
    assert refused.headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 65, "a b", "a\x1b[31m", "<script>", "é", "../x", ["a", "b"], "a;b"]
)
def test_a_bad_id_of_the_client_is_replaced(live: Any, given: Any) -> None:
    found = live.ask("GET", "/who", X_Request_Id=given)
    assert MADE.fullmatch(found.headers["x-request-id"]) or found.status == 400


def test_a_failure_is_logged_with_its_id_and_tells_the_client_nothing(
    live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = live.ask("GET", "/boom", X_Request_Id="mine")
    assert (found.status, found.code) == (500, "internal_error")
    assert found.facts["error"]["type"] == "server_error"
    assert b"secret" not in found.body
    assert b"passwd" not in found.body
    assert "request mine failed" in caplog.text
    assert "secret text" in caplog.text


def test_no_header_is_there_twice(live: Any) -> None:
    with live.connection() as connection:
        live.send(connection, "GET", "/headers", Connection="close")
        head = b""
        while more := connection.recv(10_000):
            head += more
    names = [line.partition(b":")[0].lower() for line in head.splitlines()[1:] if b":" in line]
    assert len(names) == len(set(names)) > 8


def test_an_answer_streams_through_all_guards(live: Any) -> None:
    """The second part is sent when the first has been read and a second request was made."""
    with live.connection() as connection:
        live.send(connection, "GET", "/first")
        head = b""
        while b"first," not in head:
            head += connection.recv(1000)
        assert b"second" not in head
        assert live.ask("GET", "/second").status == 200
        rest = b""
        while b"second" not in rest:
            rest += connection.recv(1000)


def test_the_app_learns_at_once_that_a_client_left(live: Any) -> None:
    with live.connection() as connection:
        live.send(connection, "GET", "/until-gone")
        while b"begun" not in connection.recv(1000):
            pass
    assert live.ask("GET", "/is-gone").status == 200
