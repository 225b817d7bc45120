"""The page at `/`: files of the package, held in memory, each with an ETag.

The page is plain HTML, CSS and ES modules: what lies in `page/` is what a browser gets. It speaks
to the service through its HTTP interface alone, so nothing here knows what the service does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
"""By suffix. A table of ours: the system's may say anything of a .js file, and files of other kinds
are not served."""

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = {"": _PACKAGE / "server" / "page", "subjects/": _PACKAGE / "assets" / "subjects"}
_INDEX = "index.html"


@dataclass(frozen=True)
class StaticFile:
    """One file of the page.

    Attributes:
        body: Its bytes.
        content_type: For the header of that name.
        etag: A strong one: of the bytes.
    """

    body: bytes
    content_type: str
    etag: str


def read_page() -> dict[str, StaticFile]:
    """The files of the page and the sample subjects, by their paths below `/page/`."""
    return {
        prefix + path.relative_to(folder).as_posix(): _read(path)
        for prefix, folder in _FOLDERS.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in CONTENT_TYPES and path.is_file()
    }


def page_routes() -> list[Route]:
    """GET and HEAD of `/` and of every file below `/page/`. They need no key: they hold no data."""
    files = read_page()

    async def index(request: Request) -> Response:
        return _answer(request, files[_INDEX])

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["path"])
        if found is None:
            raise HTTPException(404)
        return _answer(request, found)

    return [Route("/", index), Route("/page/{path:path}", file)]


def add_page(app: Starlette) -> None:
    """Serve the page at the root of an application."""
    app.router.routes.extend(page_routes())


def _read(path: Path) -> StaticFile:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:32]
    return StaticFile(body, CONTENT_TYPES[path.suffix], f'"{digest}"')


def _answer(request: Request, file: StaticFile) -> Response:
    """The file, or 304 where the browser has it already."""
    # Asked for each time and mostly answered by 304: an update is never half there.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    known = [
        one.strip().removeprefix("W/")
        for one in request.headers.get("if-none-match", "").split(",")
    ]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.content_type, headers=headers)
