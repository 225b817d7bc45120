"""`bootpig-rt provenance`, on our own files and on those of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from bootpig_rt.cli.main import main
from bootpig_rt.images.encode_image import MEDIA_TYPES, encode_image


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_a_picture_of_ours_tells_how_it_was_made(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {"prompt": "a dog\n\x1b[31m", "seed": 3}
    file = tmp_path / f"out.{format}"
    file.write_bytes(encode_image(Image.new("RGB", (8, 8)), format=format, parameters=parameters))  # type: ignore[arg-type]
    assert main(["provenance", str(file)]) == 0
    told = capsys.readouterr().out
    assert told == 'generated: yes, it says so\nprompt: "a dog\\n\\u001b[31m"\nseed: 3\n'
    assert main(["provenance", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"is_generated": True, "parameters": parameters}


def test_a_picture_of_others_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "steps: 20")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert main(["provenance", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == "generated: it does not say\n"


def test_a_file_that_is_no_picture_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"hello")
    assert main(["provenance", str(tmp_path / "a.png")]) == 2
    assert "is not a picture, expected PNG" in capsys.readouterr().err
