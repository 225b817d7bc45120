"""Fetching DreamBench: pinned, resumed, from a folder or a server, and never half of it."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.errors import ParameterError, StorageError
from bootpig_rt.images.image_input import load_image
from bootpig_rt.training import fetch_dreambench as module
from bootpig_rt.training.fetch_dreambench import PinnedFiles, fetch_dreambench, load_pinned

TEXT = "dataset/prompts_and_classes.txt"


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A clone of a repository with two photographs."""
    folder = tmp_path / "clone"
    (folder / "dataset" / "dog").mkdir(parents=True)
    (folder / TEXT).write_text("Classes\n")
    (folder / "dataset" / "dog" / "00.jpg").write_bytes(photograph(0, (200, 150)))
    (folder / "dataset" / "dog" / "01.jpg").write_bytes(photograph(1, (90, 90)))
    return folder


@pytest.fixture
def pinned(published: Path) -> PinnedFiles:
    """What the clone holds."""
    files = {}
    for path in sorted(each for each in published.rglob("*") if each.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files[path.relative_to(published).as_posix()] = (len(content), digest)
    return PinnedFiles("someone/dogs", "c" * 40, "CC0-1.0", files)


class _Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts, and fails a few times first."""

    asked: list[str]
    failures: int


@pytest.fixture
def server(published: Path) -> Iterator[_Server]:
    """The clone over HTTP."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        server: _Server

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, directory=str(published), **keywords)

        def do_GET(self) -> None:
            self.server.asked.append(self.path)
            if self.server.failures:
                self.server.failures -= 1
                self.send_error(503)
                return
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as found:
        found.asked, found.failures = [], 0
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def address(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_photographs_are_made_small_and_texts_are_kept(
    published: Path, pinned: PinnedFiles, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = fetch_dreambench(out, url=published.as_uri(), size_px=100, pinned=pinned)
    assert (found.photographs, found.fetched) == (2, 3)
    assert (out / TEXT).read_bytes() == (published / TEXT).read_bytes()
    sizes = [load_image(out / f"dataset/dog/0{number}.jpg").size for number in (0, 1)]
    assert sizes == [(100, 75), (90, 90)]  # never enlarged


def test_size_0_keeps_photographs_as_they_are(
    published: Path, pinned: PinnedFiles, tmp_path: Path
) -> None:
    fetch_dreambench(tmp_path / "out", url=published.as_uri(), size_px=0, pinned=pinned)
    for path in pinned.files:
        assert (tmp_path / "out" / path).read_bytes() == (published / path).read_bytes()


def test_a_second_run_fetches_what_is_missing_or_changed(
    server: _Server, pinned: PinnedFiles, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fetch_dreambench(out, url=address(server), pinned=pinned)
    assert len(server.asked) == 3
    assert fetch_dreambench(out, url=address(server), pinned=pinned).fetched == 0
    (out / "dataset/dog/00.jpg").write_bytes(b"half")
    (out / TEXT).unlink()
    again = fetch_dreambench(out, url=address(server), pinned=pinned)
    assert again.fetched == 2
    assert len(server.asked) == 5
    assert fetch_dreambench(out, url=address(server), size_px=64, pinned=pinned).fetched == 3


def test_a_server_that_fails_at_times_is_asked_again(
    server: _Server, pinned: PinnedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    server.failures = 2
    assert fetch_dreambench(tmp_path, url=address(server), workers=1, pinned=pinned).fetched == 3
    assert len(server.asked) == 5


def test_a_server_that_keeps_failing_ends_the_run_and_keeps_what_came(
    server: _Server, pinned: PinnedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    fetched: list[int] = []

    def fail_later(done: int, _: int) -> None:
        fetched.append(done)
        server.failures = 99 if done else 0

    with pytest.raises(StorageError, match="503.*run again, what is fetched is kept"):
        fetch_dreambench(
            tmp_path, url=address(server), workers=1, pinned=pinned, on_progress=fail_later
        )
    assert fetched == [0, 1]
    server.failures = 0
    assert fetch_dreambench(tmp_path, url=address(server), pinned=pinned).fetched == 2


def test_a_file_that_is_not_there_is_not_asked_for_again(
    server: _Server, published: Path, pinned: PinnedFiles, tmp_path: Path
) -> None:
    (published / TEXT).unlink()
    with pytest.raises(StorageError, match="could not fetch http.*404"):
        fetch_dreambench(tmp_path, url=address(server), workers=1, pinned=pinned)
    assert server.asked.count(f"/{TEXT}") == 1


@pytest.mark.parametrize("content", [b"Classes?\n", b"Classes\nmore", b"Cl"])
def test_another_file_than_the_pinned_one_is_not_kept(
    published: Path, pinned: PinnedFiles, tmp_path: Path, content: bytes
) -> None:
    (published / TEXT).write_bytes(content)
    with pytest.raises(StorageError, match="is not the pinned file"):
        fetch_dreambench(tmp_path / "out", url=published.as_uri(), pinned=pinned)
    assert not (tmp_path / "out" / TEXT).exists()


def test_other_addresses_and_sizes_are_refused(pinned: PinnedFiles, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="address is 'ftp://x', expected one of https://"):
        fetch_dreambench(tmp_path, url="ftp://x", pinned=pinned)
    with pytest.raises(ParameterError, match="--size-px is 7, expected 64"):
        fetch_dreambench(tmp_path, size_px=7, pinned=pinned)


def test_the_command_takes_a_clone(
    published: Path,
    pinned: PinnedFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "load_pinned", lambda: pinned)
    words = ["fetch-data", "--set", "dreambench", "-o", str(tmp_path / "out"), "--json"]
    assert main([*words, "--from-folder", str(published)]) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] == 3
    assert main([*words, "--from-folder", str(tmp_path / "nowhere")]) == 0  # all is there
    assert main([*words, "--from-folder", "x", "--url", "https://x"]) == 2
    assert main(["fetch-data", "--size-px", "64"]) == 2
    assert "--size-px is for --set dreambench" in capsys.readouterr().err


def test_the_pinned_list_is_the_benchmark() -> None:
    pinned = load_pinned()
    assert pinned.repository == "google/dreambooth"
    assert len(pinned.commit) == 40
    photographs = [path for path in pinned.files if path.endswith(".jpg")]
    assert len(photographs) == 158
    assert len({path.split("/")[1] for path in photographs}) == 30
    assert set(pinned.files) - set(photographs) == {
        "LICENSE.md",
        TEXT,
        "dataset/references_and_licenses.txt",
    }
    assert all(len(digest) == 64 and size > 0 for size, digest in pinned.files.values())
