"""`bootpig-rt provenance`, on our own files and on those of others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from bootpig_rt.cli.main import main
from bootpig_rt.images.content_credentials import ContentCredentials
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
    head, *rest = told.splitlines()
    assert head == "generated: yes, it says so"
    assert rest[1:] == ['prompt: "a dog\\n\\u001b[31m"', "seed: 3"]
    assert main(["provenance", str(file), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == {"is_generated": True, "credentials": None, "parameters": parameters}


def test_a_picture_of_others_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "steps: 20")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert main(["provenance", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out.startswith("generated: it does not say\ncredentials: no")


@pytest.mark.parametrize("depth", [90, *range(900, 1000, 7), 5000])
def test_parameters_that_are_nested_deeply_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], depth: int
) -> None:
    """Python reads deeper JSON than it writes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", '{"a": ' + "[" * depth + "]" * depth + "}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    for words in ([], ["--json"]):
        assert main(["provenance", str(tmp_path / "a.png"), *words]) == 0
        assert ("[[[" in capsys.readouterr().out.replace("\n", "").replace(" ", "")) == (
            depth < 100
        )


def test_who_signed_a_picture_is_told(
    make_certificates: Callable[..., tuple[Path, Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")
    chain, key, root = make_certificates("Me \x1b[31m")
    credentials = ContentCredentials.load(chain, key, is_required=True)
    file = tmp_path / "out.png"
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    signed = encode_image(noise, credentials=credentials)
    file.write_bytes(signed)
    told = []
    for words in ([], ["--trust-anchors", str(root)]):
        assert main(["provenance", str(file), *words]) == 0
        told.append(capsys.readouterr().out.splitlines()[1])
    names = '; the certificate names "Me \\u001b[31m"'
    assert told == [
        f"credentials: unchanged, signed by somebody whom no given list vouches for{names}",
        "credentials: unchanged, and signed by somebody whom your trust anchors vouch for" + names,
    ]
    file.write_bytes(signed[:-40] + bytes([signed[-40] ^ 1]) + signed[-39:])
    assert main(["provenance", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["credentials"]["state"] == "Invalid"
    assert main(["provenance", str(file), "--trust-anchors", str(key)]) == 2
    assert "holds no certificate in PEM form" in capsys.readouterr().err


def test_a_picture_is_read_without_the_package_for_signatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    (tmp_path / "a.png").write_bytes(encode_image(Image.new("RGB", (8, 8))))
    assert main(["provenance", str(tmp_path / "a.png")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("generated: yes, it says so\ncredentials: not read; ")
    assert "pip install 'bootpig-rt[provenance]'" in told


def test_a_file_that_is_no_picture_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"hello")
    assert main(["provenance", str(tmp_path / "a.png")]) == 2
    assert "is not a picture, expected PNG" in capsys.readouterr().err
