"""The guards around the service itself: its table of routes, and bodies that its routes read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from bootpig_rt.errors import ConfigError, ParameterError
from bootpig_rt.server.app import create_app
from bootpig_rt.server.guard.key_changes import add_key
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.stack import ACCESS, access_of, guarded

Eventually = Callable[[Callable[[], bool]], bool]


def test_the_table_has_every_route_of_the_service_and_no_other(local_service: Any) -> None:
    service, _ = local_service
    app = create_app(service)
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert routes == set(ACCESS) - {"GET /openapi.json"}
    plain = {f"GET {route.path}" for route in app.routes if isinstance(route, Route)}
    assert plain <= set(access_of(service.options))
    assert "GET /" in plain


def test_only_probes_and_the_page_are_public() -> None:
    def public(**options: Any) -> set[str]:
        return {
            entry
            for entry, access in access_of(ServerOptions(**options)).items()
            if access == "public"
        }

    probes = {"GET /livez", "GET /readyz"}
    page = {"GET /", "GET /page/{path:path}"}
    assert public() == probes | page
    assert public(page=False, public_metrics=True) == probes | {"GET /metrics"}
    assert "GET /" not in access_of(ServerOptions(page=False))


def test_a_request_without_a_key_reaches_no_route(local_service: Any, tmp_path: Path) -> None:
    service, runner = local_service
    path = tmp_path / "keys.json"
    _, token = add_key(path, "alice")
    app = guarded(create_app(service), ServerOptions(keys=str(path)))

    async def statuses(**headers: str) -> dict[str, int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = {}
            for entry, access in ACCESS.items():
                method, where = entry.split()
                answer = await client.request(
                    method, where.replace("{", "").replace("}", ""), headers=headers
                )
                if access != "public":
                    found[entry] = answer.status_code
            return found

    nobody = runner.run(statuses())
    assert set(nobody.values()) == {401}
    alice = runner.run(statuses(Authorization=f"Bearer {token}"))
    assert alice.pop("POST /v1/admin/reload") == 403
    assert not {401, 403} & set(alice.values())


def test_a_bad_setting_of_a_guard_is_an_error_before_anything_listens(tmp_path: Path) -> None:
    async def app(*_: object) -> None: ...

    with pytest.raises(ConfigError, match="no key file"):
        guarded(app, ServerOptions(keys=str(tmp_path / "keys.json")))
    with pytest.raises(ParameterError, match="allowed host"):
        guarded(app, ServerOptions(allowed_hosts=("http://example.org",)))
    with pytest.raises(ParameterError, match="allowed origin"):
        guarded(app, ServerOptions(allowed_origins=("example.org",)))


@pytest.mark.parametrize(
    "head",
    [
        "/v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9",
        "/v1/images/edits HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 999",
        "/v1/subjects HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Transfer-Encoding: chunked",
    ],
)
def test_a_client_that_leaves_amid_its_body_is_no_error_of_the_server(
    server: Any, client: httpx.Client, eventually: Eventually, head: str
) -> None:
    def ended() -> float:
        lines = client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("bootpig_http_requests_total")]
        return sum(float(line.rpartition(" ")[2]) for line in found if "4xx" in line)

    before, num_lines = ended(), len(server.lines)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"POST {head}\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.05)  # so that the route waits for the body
    assert eventually(lambda: ended() > before)
    told = "".join(server.lines[num_lines:])
    assert "Traceback" not in told
    assert "rror" not in told
