"""Requests in the name of other hosts and other sites, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from bootpig_rt.errors import ParameterError
from bootpig_rt.server.guard.hosts import HostGuard


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]:80"),
        *("pics.example.org", "a.example.net", "a.b.example.net:443"),
    ],
)
def test_hosts_of_the_server_are_answered(live: Any, host: str) -> None:
    assert live.ask("GET", "/who", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:80", "localhost.evil.example", "example.net", "0.0.0.0"),
        *("8.8.8.8", "::1", "user@localhost", "2130706433", "pics.example.org.evil.example"),
        *("a b", ""),
    ],
)
@pytest.mark.parametrize("path", ["/", "/who", "/page/app.js"])
def test_a_name_that_was_bound_to_the_server_by_its_dns_is_refused(
    live: Any, host: str, path: str
) -> None:
    found = live.ask("GET", path, Host=host)
    assert (found.status, found.code) == (403, "bad_host")


def test_two_hosts_or_none_are_no_request(live: Any) -> None:
    assert live.ask("GET", "/who", Host=["localhost", "localhost"]).code == "invalid_request"
    assert live.ask("GET", "/who", Host=None).code == "invalid_request"


def test_the_address_of_the_socket_is_a_host() -> None:
    """Probes ask by the address of a pod, which nobody told the server."""
    guard = HostGuard(answers_nothing)
    scope = {"headers": [(b"host", b"10.1.2.3:8000")], "server": ("10.1.2.3", 8000)}
    assert guard._host(scope) is not None
    assert guard._host(scope | {"server": ("10.1.2.4", 8000)}) is None
    assert guard._host(scope | {"server": ("/run/socket", None)}) is None
    assert guard._host(scope | {"server": None}) is None
    named = scope | {"headers": [(b"host", b"server")], "server": ("server", 8000)}
    assert guard._host(named) is None


async def answers_nothing(*_: object) -> None:
    """No app."""


@pytest.mark.parametrize(("method", "path"), [("POST", "/early"), ("DELETE", "/who")])
@pytest.mark.parametrize(
    "origin",
    [
        *("null", "http://evil.example", "https://app.example.org.evil.example", "file://", ""),
        *("http://app.example.org", "https://app.example.org:444", "http://localhost"),
    ],
)
def test_a_page_of_another_site_can_change_nothing(
    live: Any, method: str, path: str, origin: str
) -> None:
    found = live.ask(method, path, Origin=origin)
    assert (found.status, found.code) == (403, "bad_origin")
    assert "access-control-allow-origin" not in found.headers


def test_a_page_of_another_site_can_read_nothing_either(live: Any) -> None:
    """`fetch` and `EventSource` send their origin with every method."""
    assert live.ask("GET", "/who", Origin="http://evil.example").code == "bad_origin"
    both = ["https://app.example.org", "http://evil.example"]
    assert live.ask("GET", "/who", Origin=both).code == "bad_origin"


def test_the_servers_own_page_and_programs_without_an_origin_are_answered(live: Any) -> None:
    own = f"http://localhost:{live.port}"
    assert live.ask("POST", "/early", Origin=own).status == 200
    assert live.ask("POST", "/early", Origin=own, Sec_Fetch_Site="same-origin").status == 200
    assert live.ask("POST", "/early").status == 200
    behind_a_proxy = live.ask(
        "POST", "/early", Host="pics.example.org", Origin="https://pics.example.org"
    )
    assert behind_a_proxy.status == 200


def test_what_the_browser_calls_cross_site_changes_nothing(live: Any) -> None:
    own = f"http://localhost:{live.port}"
    for headers in ({}, {"Origin": own}):
        found = live.ask("POST", "/early", Sec_Fetch_Site="cross-site", **headers)
        assert (found.status, found.code) == (403, "bad_origin")
    assert live.ask("GET", "/", Sec_Fetch_Site="cross-site").status == 200  # a link to the page


def test_an_allowed_page_of_another_site_gets_what_its_browser_asks_for(live: Any) -> None:
    origin = "https://app.example.org"
    asked = live.ask("OPTIONS", "/read", Origin=origin, Access_Control_Request_Method="POST")
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == origin
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    found = live.ask("POST", "/early", Origin=origin, Sec_Fetch_Site="cross-site")
    assert found.status == 200
    assert found.headers["access-control-allow-origin"] == origin
    assert found.headers["vary"] == "Origin"
    refused = live.ask("GET", "/nothing", Origin=origin)
    assert refused.code == "not_found"
    assert refused.headers["access-control-allow-origin"] == origin


def test_a_browser_that_asks_for_another_site_is_told_nothing(live: Any) -> None:
    asked = live.ask(
        "OPTIONS", "/read", Origin="http://evil.example", Access_Control_Request_Method="POST"
    )
    assert asked.status == 403
    assert live.ask("OPTIONS", "/read").status == 405


@pytest.mark.parametrize("origin", ["*", "app.example.org", "https://app.example.org/", "null"])
def test_an_allowed_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ParameterError, match="allowed origin"):
        HostGuard(answers_nothing, allowed_origins=[origin])


def test_every_host_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    HostGuard(answers_nothing, allowed_hosts=["*"])
    assert "DNS rebinding" in caplog.text
