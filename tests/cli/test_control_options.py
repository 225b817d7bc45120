"""Maps on the command line: given, made of a photo, and what is said about those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main

PROMPT = "a photo of a dog, on a beach"
MAP = ("--control-image", "depth=depth.png")


@pytest.fixture
def generate(controlled_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bootpig-rt generate` on the tiny pair with controls, in an empty folder with a map."""
    monkeypatch.chdir(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    Image.fromarray(grey).save("depth.png")
    rgb = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(rgb).save("photo.png")
    dog = Image.new("RGBA", (32, 32))
    dog.paste((200, 30, 30, 255), (6, 8, 26, 24))
    dog.save("dog.png")

    def run(*words: str, model: str = str(controlled_pair_folder)) -> int:
        usual = "generate --backend torch --seed 3 --steps 2 --reference dog.png --model"
        return main([*usual.split(), model, "--prompt", PROMPT, *words])

    return run


def test_a_picture_follows_a_map_of_a_file(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--control-image", "depth=depth.png", "--control-image", "outline=depth.png"]
    scales = ["--control-scale", "depth=0.5", "--control-scale", "outline=2"]
    assert generate(*words, *scales, "--control-interval", "0-0.5", "--json") == 0
    first = json.loads(capsys.readouterr().out)["pictures"][0]["parameters"]
    assert (first["width"], first["height"]) == (40, 32)
    assert [(one["kind"], one["scale"], one["interval"]) for one in first["controls"]] == [
        ("depth", 0.5, [0.0, 0.5]),
        ("outline", 2.0, [0.0, 0.5]),
    ]


def test_a_map_is_made_of_a_photo(
    generate: Any, controlled_pair_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control = f"canny={controlled_pair_folder / 'controlnet_outline'}"
    assert generate("--control", control, "--make-map", "canny=photo.png", "--json") == 0
    first = json.loads(capsys.readouterr().out)["pictures"][0]["parameters"]
    assert [one["kind"] for one in first["controls"]] == ["canny"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--control-scale", "0.5"], "--control-scale is given without --control-image"),
        (["--depth-estimator", "x"], "--depth-estimator is given without --control-image"),
        (["--control-image", "depth.png"], "expected KIND=FILE such as depth=depth.png"),
        (["--control-image", "depth=no.png"], "control_image depth"),
        (["--control-image", "depth=photo.png"], "is in colour, expected a grey depth map"),
        (["--make-map", "depth=photo.png"], "not made here; give --depth-estimator DIR"),
        (["--make-map", "pose=photo.png"], "not made here; give the map with --control-image"),
        (
            ["--control-image", "depth=depth.png", "--control-scale", "much"],
            "--control-scale is 'much', expected a number",
        ),
        (
            ["--control-image", "depth=depth.png", "--control-interval", "0.6-0.2"],
            "--control-interval is '0.6-0.2', expected A-B",
        ),
        (
            [
                "--control-image",
                "depth=depth.png",
                "--control-scale",
                "0.1",
                "--control-scale",
                "0.2",
            ],
            "given 2 times, expected once for all maps, or KIND=VALUE once for each",
        ),
        (
            [
                "--control-image",
                "depth=depth.png",
                "--make-map",
                "depth=photo.png",
                "--depth-estimator",
                "nowhere",
            ],
            "two maps of kind depth",
        ),
    ],
)
def test_what_cannot_be_followed_is_said_before_the_pair_is_loaded(
    generate: Any, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert generate(*words, model="nowhere") == 2
    assert told in capsys.readouterr().err
    assert not Path("out.png").exists()
