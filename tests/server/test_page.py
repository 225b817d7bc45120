"""The page as files: what is served how, and that nothing in it needs what its CSP forbids."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from bootpig_rt.server.page import CONTENT_TYPES, add_page, read_page

Ask = Callable[..., httpx.Response]

SCRIPTS = "page/js/"
FOREIGN = re.compile(r"""(?:https?:)?//(?!www\.w3\.org/)[a-z0-9.-]+\.[a-z]{2,}""")


@pytest.fixture(scope="module")
def ask() -> Ask:
    """A function that asks an application with nothing but the page."""
    app = Starlette()
    add_page(app)

    async def get(method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, headers=headers)

    def call(path: str, method: str = "GET", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(get(method, path, named))

    return call


class Tags(HTMLParser):
    """Collects what a page asks a browser for, and what a strict CSP would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.refused: list[str] = []
        self.ids: list[str] = []
        self.labelled: list[str] = []
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._is_script = tag == "script"
        if tag in ("script", "link", "img"):
            self.urls += [url for url in (values.get("src"), values.get("href")) if url]
        if tag == "style" or "style" in values or any(name.startswith("on") for name in values):
            self.refused.append(f"<{tag}> at {self.getpos()}")
        if "id" in values:
            self.ids.append(values["id"] or "")
        if "for" in values:
            self.labelled.append(values["for"] or "")

    def handle_data(self, data: str) -> None:
        if self._is_script and data.strip():
            self.refused.append(f"a script in the page at {self.getpos()}")
        self._is_script = False


@pytest.fixture(scope="module")
def index() -> Tags:
    return Tags(read_page()["index.html"].body.decode())


def test_the_root_is_the_page(ask: Ask) -> None:
    answer = ask("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == read_page()["index.html"].body


def test_every_file_has_its_type_and_is_asked_for_again(ask: Ask) -> None:
    for path in read_page():
        answer = ask(f"/page/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == CONTENT_TYPES[Path(path).suffix]
        assert answer.headers["cache-control"] == "no-cache"
        again = ask(f"/page/{path}", if_none_match=f'"other", W/{answer.headers["etag"]}')
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
        assert ask(f"/page/{path}", if_none_match='"other"').status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/nothing.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/js"],
)
def test_nothing_else_is_served(ask: Ask, path: str) -> None:
    assert ask(path).status_code == 404


def test_the_page_is_read_and_never_written(ask: Ask) -> None:
    assert ask("/", "HEAD").status_code == 200
    assert ask("/", "POST").status_code == 405


def test_all_that_the_page_asks_for_is_there(index: Tags) -> None:
    files = read_page()
    assert index.urls
    assert [url for url in index.urls if url.removeprefix("page/") not in files] == []
    for path, file in files.items():
        if path.endswith(".js"):
            named = re.findall(r"""(?:from|import) ["']\./([^"']+)["']""", file.body.decode())
            assert [name for name in named if f"js/{name}" not in files] == [], path


def test_every_module_is_used(index: Tags) -> None:
    files = read_page()
    code = "".join(file.body.decode() for path, file in files.items() if path.endswith(".js"))
    used = set(re.findall(r"""\./(\w+\.js)["']""", code)) | {Path(url).name for url in index.urls}
    assert {Path(path).name for path in files if path.endswith(".js")} <= used


def test_the_page_needs_nothing_that_its_csp_refuses(index: Tags) -> None:
    assert index.refused == []
    for path, file in read_page().items():
        if path.endswith((".js", ".css")):
            text = file.body.decode()
            assert not re.search(r"\binnerHTML|\bouterHTML|insertAdjacentHTML|\beval\(", text), path
            assert not re.search(r"document\.write|new Function|setAttribute\(.style", text), path


def test_nothing_comes_from_another_address() -> None:
    for path, file in read_page().items():
        if path.endswith((".html", ".js", ".css", ".svg")):
            assert FOREIGN.findall(file.body.decode()) == [], path


def test_names_are_unique_and_labels_name_something(index: Tags) -> None:
    assert len(index.ids) == len(set(index.ids))
    assert [name for name in index.labelled if name not in index.ids] == []


def test_what_the_modules_look_up_is_in_the_page(index: Tags) -> None:
    for path, file in read_page().items():
        if not path.endswith(".js"):
            continue
        wanted = re.findall(r'byId\("([\w-]+)"', file.body.decode())
        assert [name for name in wanted if name not in index.ids] == [], path


def test_pictures_of_the_page_in_the_documentation_are_small(root: Path) -> None:
    text = (root / "docs" / "how-to" / "the-page.md").read_text()
    shown = re.findall(r"\.\./assets/(page-\w+\.png)", text)
    sizes = {name: (root / "docs" / "assets" / name).stat().st_size for name in shown}
    assert len(sizes) >= 5
    assert max(sizes.values()) < 150_000
