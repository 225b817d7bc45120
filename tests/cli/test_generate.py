from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.cli.options import call_progress
from bootpig_rt.engine.events import ReferenceEvent, StepEvent
from bootpig_rt.images.content_credentials import read_credentials
from bootpig_rt.images.picture import is_marked_generated, read_parameters
from bootpig_rt.pipeline import Pipeline

PROMPT = "a photo of a dog, on a beach"


@pytest.fixture
def generate(
    shallow_pair_folder: Path, dog_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Runs `bootpig-rt generate` in an empty folder, with a reference, and returns its code."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: str) -> int:
        model = ["--model", str(shallow_pair_folder), "--device", "cpu"]
        return main(["generate", *model, "--reference", str(dog_file), *words])

    return run


def test_one_picture_is_one_file(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--prompt", PROMPT, "--seed", "3") == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["out.png"]
    with Image.open("out.png") as image:
        assert image.size == (32, 32)
    out = capsys.readouterr().out
    assert out.startswith("out.png: 1 picture, seed 3, 2 steps of dpmpp_2m, ")


def test_every_file_says_that_it_is_generated_and_prompts_can_stay_out(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--negative-prompt", "a cat", "--num-images", "2", "--omit-prompts", "--json"]
    generate("--prompt", PROMPT, *words, "-o", "dogs.png")
    assert json.loads(capsys.readouterr().out)["pictures"][0]["parameters"]["prompt"] == PROMPT
    for file in ("dogs.png", "dogs-0.png", "dogs-1.png"):
        assert is_marked_generated(file)
        assert b"a photo of a dog" not in Path(file).read_bytes()
        assert b"a cat" not in Path(file).read_bytes()
    assert read_parameters("dogs-0.png")["num_inference_steps"] == 2
    assert len(read_parameters("dogs.png")["pictures"]) == 2


def test_pictures_are_signed_with_the_digests_of_their_references(
    generate: Any, make_certificates: Any, dog_file: Path
) -> None:
    pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")
    chain, key, _ = make_certificates()
    words = ["--credentials-certificate", str(chain), "--credentials-key", str(key)]
    assert generate("--prompt", PROMPT, "--num-images", "2", *words) == 0
    digest = hashlib.sha256(dog_file.read_bytes()).hexdigest()
    for file in ("out.png", "out-0.png", "out-1.png"):
        report = read_credentials(Path(file).read_bytes())
        assert report is not None
        assert report.state == "Valid"
        assert report.generation["references"] == [{"alg": "sha256", "hash": digest}]
        made_from = read_parameters("out-0.png")
        assert report.generation["subjects"] == [made_from["subject_fingerprint"]]
        assert report.generation["models"][0]["fingerprint"] == made_from["model_fingerprint"]


def test_nothing_is_drawn_that_could_not_be_signed(
    generate: Any, make_certificates: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("c2pa", reason="the extra `provenance` is not installed")
    chain, key, _ = make_certificates(days=(-9, -1))
    words = ["--credentials-certificate", str(chain), "--credentials-key", str(key)]
    assert generate("--prompt", PROMPT, *words) == 2
    assert "expired on" in capsys.readouterr().err
    assert generate("--prompt", PROMPT, *words[:2]) == 2
    assert "expected both or none" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_the_png_holds_what_makes_it_again(
    generate: Any, shallow_pair_folder: Path, dog_file: Path
) -> None:
    generate("--prompt", PROMPT, "--steps", "3", "--solver", "unipc", "--image-guidance", "2.5")
    parameters = read_parameters("out.png")
    assert parameters["solver"] == "unipc"
    assert parameters["image_guidance_scale"] == 2.5
    pipeline = Pipeline(shallow_pair_folder, device="cpu")
    again = pipeline(
        parameters["prompt"],
        reference_images=dog_file,
        reference_prompt=parameters["reference_prompt"],
        seed=parameters["seed"],
        num_inference_steps=parameters["num_inference_steps"],
        image_guidance_scale=parameters["image_guidance_scale"],
        text_guidance_scale=parameters["text_guidance_scale"],
        solver=parameters["solver"],
        merge=parameters["merge"],
        reference_schedule=parameters["reference_schedule"],
    )
    with Image.open("out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(again.images[0]))


def test_several_pictures_are_a_grid_and_single_files(generate: Any) -> None:
    words = ["--prompt", PROMPT, "--prompt", "a photo of a dog, in snow", "--num-images", "2"]
    assert generate(*words, "--seed", "5", "-o", "dogs.png") == 0
    names = sorted(path.name for path in Path.cwd().iterdir())
    assert names == ["dogs-0.png", "dogs-1.png", "dogs-2.png", "dogs-3.png", "dogs.png"]
    with Image.open("dogs.png") as sheet, Image.open("dogs-3.png") as last:
        assert sheet.size == (32 * 2 + 4, 32 * 2 + 4)
        np.testing.assert_array_equal(np.asarray(sheet)[36:, 36:], np.asarray(last))
    assert read_parameters("dogs-3.png")["seed"] == 8
    assert [p["seed"] for p in read_parameters("dogs.png")["pictures"]] == [5, 6, 7, 8]


def test_json_is_all_that_stands_on_stdout(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("--prompt", PROMPT, "--num-images", "2", "--seed", "1", "--json") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["output"] == "out.png"
    assert [picture["file"] for picture in summary["pictures"]] == ["out-0.png", "out-1.png"]
    assert summary["pictures"][1]["parameters"] == read_parameters("out-1.png")
    assert summary["reference_passes"] == 2
    store = summary["store"]
    assert (store["misses"], store["device_hits"]) == (1, 1)
    assert store["device_bytes"] > 0
    stages = {
        "load_ms",
        "queue_ms",
        "encode_ms",
        "text_ms",
        "reference_ms",
        "denoise_ms",
        "decode_ms",
    }
    assert set(summary["timings"]) == {*stages, "total_ms"}
    assert "the reference is read as 'a photo of a dog'" in captured.err


def test_quiet_prints_nothing(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--prompt", PROMPT, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_every_option_reaches_the_picture(generate: Any) -> None:
    words = "--reference-prompt toy --negative-prompt fog --steps 4 --image-guidance 2 --seed 9"
    words += " --text-guidance 3 --solver ddim --merge softmax --reference-schedule anchor:200"
    words += " --guidance-interval 0.25-1 --table-dtype int8 --table-budget 100000000"
    words += " --width 48 --height 40 --backend torch"
    assert generate("--prompt", PROMPT, *words.split()) == 0
    expected = {
        "reference_prompt": "toy",
        "negative_prompt": "fog",
        "num_inference_steps": 4,
        "image_guidance_scale": 2.0,
        "text_guidance_scale": 3.0,
        "seed": 9,
        "solver": "ddim",
        "merge": "softmax",
        "reference_schedule": "anchor:200",
        "guidance_interval": [0.25, 1.0],
        "table_dtype": "int8",
        "width": 48,
        "height": 40,
        "backend": "torch",
    }
    parameters = read_parameters("out.png")
    assert {name: parameters[name] for name in expected} == expected


def test_a_background_remover_is_asked_for_the_subject(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remover(image: Image.Image) -> Image.Image:
        mask = Image.new("L", image.size)
        mask.paste(255, (4, 4, 20, 20))
        return mask

    monkeypatch.setattr("bootpig_rt.images.background.load_remover", lambda name: remover)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "green").save(photo)
    fingerprints = []
    for words in ([], ["--remove-background", "grabcut"]):
        assert generate("--prompt", PROMPT, "--reference", str(photo), *words) == 0
        fingerprints.append(read_parameters("out.png")["subject_fingerprint"])
    assert fingerprints[0] != fingerprints[1]


def test_more_references_are_all_read(generate: Any, dog_file: Path) -> None:
    assert generate("--prompt", PROMPT, "--reference", str(dog_file)) == 0
    assert read_parameters("out.png")["num_references"] == 2


def test_progress_is_shown_on_a_terminal_only(
    generate: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("--prompt", PROMPT)
    assert "step" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    generate("--prompt", PROMPT)
    shown = capsys.readouterr().err
    assert shown.index("reference:   0%") < shown.index("step:   0%")
    assert "0/2" in shown
    generate("--prompt", PROMPT, "--quiet")
    assert capsys.readouterr().err == ""


def test_the_bar_begins_anew_with_each_stage_and_each_subject(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with call_progress(is_shown=True) as on_event:
        assert on_event is not None
        for total in (3, 5):
            on_event(ReferenceEvent(1, total))
            on_event(ReferenceEvent(total, total))
        event: Any = StepEvent(1, 7, 500, (0,), None, list, list)
        on_event(event)
    shown = capsys.readouterr().err
    starts = [shown.index(f" 0/{total} ") for total in (3, 5, 7)]
    assert starts == sorted(starts)
    assert shown.count("| 0/") == 3


def test_ctrl_c_ends_with_130_and_no_file(
    generate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bootpig_rt.engine.loop.Loop.step", interrupt)
    assert generate("--prompt", PROMPT) == 130
    assert capsys.readouterr().err.endswith("bootpig-rt: error: interrupted\n")
    assert list(Path.cwd().iterdir()) == []


def test_a_subject_is_drawn_into_a_picture_file(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    mask = np.zeros((32, 40), np.uint8)
    mask[8:24, 10:30] = 255
    Image.fromarray(pixels).save("scene.png")
    Image.fromarray(mask).save("mask.png")
    words = ["--prompt", PROMPT, "--seed", "3", "--image", "scene.png"]
    assert generate(*words, "--mask", "mask.png", "--mask-edge", "2", "--json") == 0
    first = json.loads(capsys.readouterr().out)["pictures"][0]["parameters"]
    assert (first["width"], first["height"], first["mask_edge_px"]) == (40, 32, 2)
    with Image.open("out.png") as image:
        drawn = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(drawn[mask == 0], pixels[mask == 0])
    assert generate(*words, "--strength", "0.5", "-o", "whole.png") == 0
    assert read_parameters("whole.png")["strength"] == 0.5


def test_what_cannot_be_drawn_into_is_said_before_the_pair_is_loaded(
    generate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32)).save("scene.png")
    Image.new("L", (32, 32)).save("black.png")
    for words, told in (
        (["--mask", "black.png"], "--mask is given without --image; give both, or neither"),
        (["--image", "scene.png", "--mask", "black.png"], "mask_image is black all over"),
        (["--strength", "0.5"], "strength is given without an image; give both, or neither"),
        (["--image", "scene.png", "--mask-edge", "2"], "mask_edge_px is given without a mask"),
    ):
        assert generate("--model", "nowhere", "--prompt", PROMPT, *words) == 2
        assert told in capsys.readouterr().err
