"""The page of the HTTP API has all routes, fields and codes, and the table of access all routes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.server.app import create_app
from bootpig_rt.server.metrics import Metrics
from bootpig_rt.server.openapi.operations import ERRORS
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.schema import EditFields, ImageFields, SubjectFields
from bootpig_rt.server.service import Service
from bootpig_rt.server.stack import access_of


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/reference/http.md").read_text()


@pytest.fixture(scope="module")
def routes() -> set[tuple[str, str]]:
    options = ServerOptions()
    app = create_app(Service(options, {}, Output(), Metrics([])))
    found: set[tuple[str, str]] = set()

    def walk(some: Any) -> None:
        for route in some:
            for method in getattr(route, "methods", None) or ():
                if method != "HEAD":
                    found.add((method, route.path))
            walk(getattr(route, "routes", ()))

    walk(app.routes)
    found |= {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    return found


def test_every_route_has_its_role_in_the_table_and_no_role_is_left_over(
    routes: set[tuple[str, str]],
) -> None:
    listed = {tuple(entry.split(" ")) for entry in access_of(ServerOptions())}
    assert listed == routes


def test_every_route_is_on_the_page(page: str, routes: set[tuple[str, str]]) -> None:
    for method, path in routes:
        shown = path.replace(":path}", "}")
        assert f"`{method} {shown}`" in page


def test_every_field_is_on_the_page(page: str) -> None:
    for kind in (ImageFields, EditFields, SubjectFields):
        for name in kind.model_fields:
            assert f"`{name}`" in page


def test_every_code_of_an_error_is_on_the_page(page: str, root: Path) -> None:
    raised = re.compile(
        r"(?:ApiError\(\s*|refuse\((?:scope, receive, send, )?|return )(\d{3}), \"([a-z_]+)\""
    )
    found = set()
    for file in (root / "bootpig_rt/server").rglob("*.py"):
        found |= set(raised.findall(file.read_text()))
    assert len(found) > 15
    described = {(str(status), one) for status, (_, codes) in ERRORS.items() for one in codes}
    assert found - {("405", "method_not_allowed")} == described
    for status, code in found:
        row = rf"\| {status} \|[^\n]*`{code}`"
        assert re.search(row, page), f"{status} {code}"
