"""What each kind of input is given to, and what may come of it: a value, or one of our errors.

A check returns in a word how it went. Whatever else it raises is a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from starlette.requests import Request

from bootpig_rt.bundle.bundle import open_bundle
from bootpig_rt.bundle.pair_config import read_pair_config
from bootpig_rt.bundle.signing import check_signature
from bootpig_rt.cli.main import main
from bootpig_rt.errors import BootPIGError, CheckpointError, ImageError
from bootpig_rt.images.content_credentials import ContentCredentials, read_credentials
from bootpig_rt.images.image_input import load_image
from bootpig_rt.images.picture import prepare_reference, to_pil
from bootpig_rt.images.read_marks import is_marked_generated, read_parameters
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.subject_file import read_facts
from bootpig_rt.reference.table_file import read_table, read_table_key
from bootpig_rt.server.blocklist import Blocklist
from bootpig_rt.server.calls import check_formats, fields_of, images_of, read_form
from bootpig_rt.server.config import read_config
from bootpig_rt.server.errors import ApiError, api_error
from bootpig_rt.server.guard.keys import KeyFile, read_keys
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.parse import image_bytes, parse_json, validated
from bootpig_rt.server.schema import EditFields, ImageFields, SubjectFields
from bootpig_rt.server.subject_folder import SubjectFolder

MAX_PIXELS = ServerOptions.max_image_pixels
MAX_FILE_BYTES = 1 << 22
_MAX_MESSAGE = 2000


class Wrong(Exception):
    """An outcome that should not be."""


class Checks:
    """Gives inputs to the code that reads them.

    Args:
        folder: For the files that they are written to.
        made: What `made.py` made; where that could sign, pictures are read as signed ones, too.
    """

    def __init__(self, folder: Path, made: Path) -> None:
        self._folder, self._runner = folder, asyncio.Runner()
        self._credentials: ContentCredentials | None = None
        if (made / "key.pem").exists():
            self._credentials = ContentCredentials.load(
                made / "chain.pem", made / "key.pem", is_required=False
            )
        self._trust = made / "trust.pem"
        self._can_read_credentials = find_spec("c2pa") is not None
        self._count = 0

    def close(self) -> None:
        """End the event loop."""
        self._runner.close()

    def picture(self, data: bytes) -> str:
        """A reference image, as a service and a script read it."""
        with contextlib.suppress(ImageError):
            check_formats([data])

        def read() -> None:
            image = load_image(data, max_pixels=MAX_PIXELS)
            if image.mode not in ("RGB", "RGBA") or image.info:
                raise Wrong(f"mode {image.mode}, info {sorted(map(str, image.info))}")
            pixels = prepare_reference(image, 32, max_pixels=MAX_PIXELS, warn=lambda text: None)
            low, high = float(pixels.min()), float(pixels.max())
            if pixels.shape != (3, 32, 32) or not -1 <= low <= high <= 1:
                raise Wrong(f"pixels of shape {pixels.shape} in {low}..{high}")
            to_pil(pixels[np.newaxis])

        return _outcome(read)

    def marks(self, data: bytes) -> str:
        """A picture of anybody, asked how it was made; as a reference of a signed picture, too."""
        self._count += 1
        outcome = _outcome(lambda: is_marked_generated(data))
        with contextlib.suppress(ImageError):
            read_parameters(data)
        if self._can_read_credentials:
            read_credentials(data)
        if self._credentials is not None and self._count % 4 == 0:
            self._credentials.origin(data)
        if self._count % 8 == 0:
            path = self._write("picture.png", data)
            self._command("provenance", str(path), *(["--json"] if self._count % 16 else []))
        return outcome

    def subject(self, data: bytes) -> str:
        """A file of a subject or of a table."""
        self._count += 1
        path = self._write("one.subject", data)
        outcome = _outcome(lambda: self._read_subject(path))
        for read in (read_table, read_table_key):
            with contextlib.suppress(CheckpointError):
                read(path, max_bytes=MAX_FILE_BYTES)
        if self._count % 16 == 0:
            self._command("subjects", "show", str(path), *(["--json"] if self._count % 32 else []))
        return outcome

    def _read_subject(self, path: Path) -> None:
        try:
            facts = read_facts(path, max_bytes=MAX_FILE_BYTES)
        except CheckpointError:
            facts = None
        subject = Subject.load(path, max_bytes=MAX_FILE_BYTES)
        if facts is None or facts.fingerprint != subject.fingerprint:
            raise Wrong("a subject was read whose header could not be")
        if not np.isfinite(subject.latents).all() or not subject.num_references:
            raise Wrong("a subject without numbers")
        subject.reference_images()
        again = self._folder / "again.subject"
        subject.save(again, form=subject.form)
        if Subject.load(again).fingerprint != subject.fingerprint:
            raise Wrong("a subject that is another one when it was saved")

    def form(self, data: bytes) -> str:
        """A form of reference images; the first line is its content type."""
        kind, _, body = data.partition(b"\n")
        step = 1 + len(body) // 3 if len(body) % 2 else max(1, len(body))
        parts = [body[at : at + step] for at in range(0, len(body), step)] or [b""]

        async def receive() -> dict[str, object]:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def read() -> None:
            scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
            async with read_form(Request(scope, receive)) as form:
                fields_of(SubjectFields, form)
                await images_of(form, most=4)

        return _outcome(lambda: self._runner.run(read()))

    def body(self, data: bytes) -> str:
        """The JSON of a picture."""

        def read() -> None:
            values = parse_json(data)
            if "images" in values:
                check_formats(image_bytes(validated(EditFields, values).images))
            else:
                validated(ImageFields, values).size_px()

        return _outcome(read)

    def settings(self, data: bytes) -> str:
        """A file of settings; the first line names it."""
        kind, _, contents = data.partition(b"\n")
        name = kind.decode("ascii")
        path = self._write(name, contents)
        match name:
            case "manifest.json":
                bundle = self._folder / "bundle"
                bundle.mkdir(exist_ok=True)
                os.replace(path, bundle / name)
                return _outcome(lambda: open_bundle(bundle))
            case "manifest.sig":
                if not self._trust.exists():
                    return "skipped"
                return _outcome(lambda: check_signature(b"", contents, self._trust, what="it"))
            case "pair.json":
                return _outcome(lambda: read_pair_config(path))
            case "serve.toml":
                return _outcome(lambda: ServerOptions(**read_config(path)))
            case "blocklist.txt":
                return _outcome(lambda: Blocklist.load(path))
            case "keys.json":
                return self._keys(path)
            case "kept.json":
                kept = self._folder / "kept"
                kept.mkdir(exist_ok=True)
                os.replace(path, kept / ("sub_" + "0" * 24 + ".json"))
                return "read" if list(SubjectFolder(kept).records()) else "refused"
        raise Wrong(f"no such file: {name}")

    def _keys(self, path: Path) -> str:
        """Of a file of keys that is there from the beginning, and of one that changed meanwhile."""
        path.chmod(0o600)
        outcome = _outcome(lambda: read_keys(path))
        new = path.read_bytes()
        path.write_text('{"format": 1, "keys": []}')
        keys = KeyFile.load(path)
        path.write_bytes(new)
        keys.find("bprt_\ud800")
        return outcome

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path

    def _command(self, *words: str) -> None:
        """A command on a file of anybody ends with its code, and says an error in one line."""
        printed, errors = io.BytesIO(), io.StringIO()
        stdout = io.TextIOWrapper(printed, "utf-8")  # as a terminal is
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(errors):
            code = main(words)
        told = errors.getvalue()
        if code not in (0, 2) or "bootpig-rt: error: unexpected" in told:
            raise Wrong(f"{' '.join(words[:1])} ended with {code}: {told[-300:]}")
        if "\x1b" in told or b"\x1b" in printed.getvalue():
            raise Wrong(f"{' '.join(words[:1])} passes on control characters")


def _outcome(read: Callable[[], object]) -> str:
    """How reading went: `read`, or the name of the error of ours that said why not."""
    try:
        read()
    except (BootPIGError, ApiError) as error:
        if not isinstance(error, (ApiError, CheckpointError)) and api_error(error).status >= 500:
            raise Wrong(f"{type(error).__name__} is a fault of the server's: {error}") from error
        text = error.message if isinstance(error, ApiError) else str(error)
        if "\n" in text or len(text) > _MAX_MESSAGE or not text:
            raise Wrong(f"a message of {len(text)} characters: {text[:200]!r}") from error
        if isinstance(error, ApiError):
            json.dumps(error.body(), ensure_ascii=False).encode()
            return f"{error.status} {error.code}"
        return type(error).__name__
    return "read"
