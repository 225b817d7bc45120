"""The server that people write first: the published way behind FastAPI, one request at a time.

python -m bootpig_rt.benchmarks.serving.fastapi_server FOLDER --port N --threads N
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import Body as JsonBody
from fastapi import FastAPI, HTTPException

from bootpig_rt.benchmarks.serving.drawer import Body, Drawer
from bootpig_rt.errors import ImageError

PATH = "/draw"


def create_app(drawer: Drawer) -> FastAPI:
    """One route that draws under a lock, for the pipeline is not safe in several threads."""
    app, lock = FastAPI(), threading.Lock()

    @app.post(PATH)
    def draw(fields: dict[str, Any] = JsonBody()) -> dict[str, Any]:  # noqa: B008
        try:
            body = msgspec.convert(fields, Body)
            with lock:
                return drawer.draw([body])[0].to_dict()
        except (msgspec.ValidationError, ImageError) as error:
            raise HTTPException(400, str(error)) from error

    @app.get("/health")
    def health() -> str:
        return "ok"

    return app


def main(words: list[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(words)
    drawer = Drawer(args.folder, threads=args.threads, is_batched=False)
    uvicorn.run(create_app(drawer), port=args.port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1:])
