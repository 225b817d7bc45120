"""Scripts and the notebook of `examples/`, each run as its reader runs it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bootpig_rt.bundle.pair_config import PairConfig
from bootpig_rt.images.picture import is_marked_generated, read_parameters


@pytest.fixture
def drawings(root: Path) -> Path:
    return root / "bootpig_rt" / "assets" / "subjects"


def run(root: Path, folder: Path, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A script of the examples, in a folder."""
    command = [sys.executable, root / "examples" / script, *words]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [str(each) for each in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def cells_of(root: Path) -> list[str]:
    notebook = json.loads((root / "examples" / "quickstart.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_cells_of_the_notebook_run_in_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = property(lambda config: 5, lambda config, steps: None)
    monkeypatch.setattr(PairConfig, "default_steps", few)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells_of(root):
        tree = ast.parse(cell)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "quickstart.ipynb", "exec"), names)
        if isinstance(last, ast.Expr):  # which a notebook shows
            value = compile(ast.Expression(last.value), "quickstart.ipynb", "eval")
            shown.append(eval(value, names))
    pictures = [each for each in shown if isinstance(each, Image.Image)]
    assert [each.size for each in pictures] == [(192, 192), (384, 192), (192, 192)]
    assert is_marked_generated("owl-beach.png")


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(root: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel runs it")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(root / "examples" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert (tmp_path / "owl-beach.png").is_file()


def test_a_batch_job_draws_what_is_missing_and_tells_what_failed(
    root: Path, tmp_path: Path, drawings: Path, tiny_bundle_folder: Path
) -> None:
    line = {
        "references": [str(drawings / "owl.png")],
        "reference_prompt": "an owl",
        "num_inference_steps": 2,
    }
    lines = [
        {"name": "snow", "prompt": "an owl, snow", "seed": 1, **line},
        {"name": "bad", "prompt": "", **line},
        {"name": "gone", "prompt": "an owl", **line, "references": ["gone.png"]},
        {"name": "odd", "prompt": "an owl", **line, "colour": "red"},
        {"name": "late", "prompt": "an owl", **line, "width": 31},
        {"name": "sea", "prompt": "an owl, sea", "seed": 2, **line},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("batch_job.py", "jobs.jsonl", "-o", "out", "--model", tiny_bundle_folder)
    first = run(root, tmp_path, *words)
    assert first.returncode == 1, first.stderr
    assert "2 drawn, 0 there already" in first.stdout
    assert [each for each in ("bad", "gone", "odd", "late") if f"failed: {each}: " in first.stderr]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["sea.png", "snow.png"]
    assert read_parameters(tmp_path / "out" / "sea.png")["seed"] == 2
    (tmp_path / "out" / "sea.png").unlink()
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, [lines[0], lines[5]])))
    second = run(root, tmp_path, *words)
    assert second.returncode == 0, second.stderr
    assert "1 drawn, 1 there already" in second.stdout


def multipart(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A form with one file, as a browser sends it."""
    head = 'Content-Disposition: form-data; name="reference"; filename="a.png"'
    body = b"--xx\r\n" + head.encode() + b"\r\n\r\n" + picture + b"\r\n--xx--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=xx"}


def test_the_service_draws_and_refuses(
    root: Path, tmp_path: Path, drawings: Path, tiny_bundle_folder: Path
) -> None:
    pytest.importorskip("fastapi", reason="pip install bootpig-rt[serve]")
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",
        "PAIR": str(tiny_bundle_folder),
    }
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(root / "examples")]
    command += ["service:app", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "running on" in line)
        address = next(word for word in line.split() if word.startswith("http"))
        body, headers = multipart((drawings / "owl.png").read_bytes())
        query = "/draw?reference_prompt=an%20owl&seed=4&prompt="
        request = urllib.request.Request(f"{address}{query}an%20owl,%20snow", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            (tmp_path / "owl.png").write_bytes(answer.read())
        assert read_parameters(tmp_path / "owl.png")["seed"] == 4
        bad = urllib.request.Request(f"{address}{query}owl", *multipart(b"no picture"))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(bad, timeout=60)
        assert caught.value.code == 422
        assert b"reference image" in caught.value.read()
        caught.value.close()
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_bundle_for_a_card_that_is_not_here_is_built_signed_and_checked(
    root: Path, tmp_path: Path, shallow_pair_folder: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install bootpig-rt[tensorrt]")
    words = ["--pair", shallow_pair_folder, "-o", "bundle", "--", "--resolution", "16:32"]
    done = run(root, tmp_path, "build_for_another_card.py", *words, "--max-batch", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "bundle" / "manifest.sig").is_file()
    assert (tmp_path / "keys" / "key.pem").stat().st_mode & 0o077 == 0
    assert "bootpig-rt serve --model bundle --trust key.pub.pem" in done.stdout
    again = run(root, tmp_path, "build_for_another_card.py", *words)
    assert again.returncode == 2  # a bundle of that name is there, and stays
