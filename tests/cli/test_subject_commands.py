"""`encode-subject`, `subjects` and `generate --subject`, as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bootpig_rt.cli.main import main
from bootpig_rt.images.picture import is_marked_generated
from bootpig_rt.models.unet import ReferenceUNet
from bootpig_rt.reference.subject import Subject

PROMPT = "a photo of a dog, on a beach"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each launch of the Reference U-Net."""
    counted: list[int] = []
    forward = ReferenceUNet.forward

    def count(self: ReferenceUNet, latents: Any, *rest: Any) -> Any:
        counted.append(len(latents))
        return forward(self, latents, *rest)

    monkeypatch.setattr(ReferenceUNet, "forward", count)
    return counted


@pytest.fixture
def cli(
    shallow_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Any:
    """Runs a command in an empty folder and returns its code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BOOTPIG_RT_STORE", raising=False)
    model = ["--model", str(shallow_pair_folder), "--device", "cpu", "--backend", "torch"]

    def run(command: str, *words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main([command, *words, *([] if command == "subjects" else model)])
        captured = capsys.readouterr()
        out = json.loads(captured.out) if "--json" in words and code == 0 else captured.out
        return code, out, captured.err

    return run


@pytest.fixture
def encode(cli: Any, dog_file: Path) -> Any:
    def run(*words: str) -> tuple[int, Any, str]:
        found: tuple[int, Any, str] = cli(
            "encode-subject",
            *("--reference", str(dog_file), "--reference-prompt", "a photo of a dog", "--json"),
            *words,
        )
        return found

    return run


def test_a_full_subject_draws_without_a_reference_pass(
    cli: Any, encode: Any, launches: list[int]
) -> None:
    code, summary, _ = encode("-o", "dog.subject", "--full", "--steps", "3")
    assert code == 0
    assert summary["form"] == "full"
    _, planned, _ = encode("--dry-run", "--steps", "3")
    assert summary["table_bytes"] == planned["table_bytes"] > 0
    assert summary["file_bytes"] == Path("dog.subject").stat().st_size
    assert launches == [3]  # by the encoding alone, not by the dry run
    launches.clear()
    words = ["--subject", "dog.subject", "--prompt", PROMPT, "--steps", "3", "--json"]
    code, result, _ = cli("generate", *words)
    assert (code, launches) == (0, [])
    assert result["reference_passes"] == 0
    assert result["pictures"][0]["parameters"]["subject_fingerprint"] == summary["fingerprint"]


def test_a_light_subject_on_a_warm_store_draws_without_a_reference_pass(
    cli: Any, encode: Any, launches: list[int]
) -> None:
    _, summary, _ = encode("-o", "dog.subject")
    assert (summary["form"], launches) == ("light", [])
    words = ["--subject", "dog.subject", "--prompt", PROMPT, "--store", "kept", "--json"]
    code, cold, _ = cli("generate", *words, "--seed", "1", "-o", "cold.png")
    assert (code, cold["reference_passes"], launches) == (0, 2, [2])
    code, warm, _ = cli("generate", *words, "--seed", "1", "-o", "warm.png")
    assert (code, warm["reference_passes"], launches) == (0, 0, [2])
    with Image.open("cold.png") as one, Image.open("warm.png") as other:
        assert one.tobytes() == other.tobytes()


def test_encoding_into_a_store_warms_it(cli: Any, encode: Any, launches: list[int]) -> None:
    encode("--name", "dog", "--store", "kept", "--table-dtype", "int8")
    assert launches == [2]
    launches.clear()
    words = ["--subject", "dog", "--prompt", PROMPT, "--store", "kept", "--table-dtype", "int8"]
    code, result, _ = cli("generate", *words, "--json")
    assert (code, result["reference_passes"], launches) == (0, 0, [])
    assert result["pictures"][0]["parameters"]["table_dtype"] == "int8"


def test_subjects_are_listed_shown_and_removed(
    cli: Any, encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode("--name", "dog", "--store", "kept")
    encode("--name", "old.dog", "--store", "kept", "--full", "--noise-seed", "3")
    Path("kept/subjects/bad.subject").write_bytes(b"bad")
    code, listed, _ = cli("subjects", "ls", "--store", "kept", "--json")
    assert code == 0
    assert [entry["name"] for entry in listed["subjects"]] == ["bad", "dog", "old.dog"]
    assert "damaged" in listed["subjects"][0]["error"]
    assert listed["table_bytes"] > 0
    monkeypatch.setenv("BOOTPIG_RT_STORE", "kept")
    code, shown, _ = cli("subjects", "show", "old.dog", "--json", "--preview", "dog.png")
    assert not is_marked_generated("dog.png")  # it is the reference, which no model made
    assert (shown["form"], shown["noise_seed"], shown["num_references"]) == ("full", 3, 1)
    with Image.open("dog.png") as image:
        assert image.size == (32, 32)
    (table,) = shown["tables"]
    assert (table["dtype"], table["entries"]) == ("float32", 2)
    assert table == listed["subjects"][2]["tables"][0]
    code, by_file, _ = cli("subjects", "show", "kept/subjects/dog.subject")
    assert (code, "form: light" in by_file) == (0, True)
    for name in ("dog", "old.dog", "bad"):
        assert cli("subjects", "rm", name)[0] == 0
    _, listed, _ = cli("subjects", "ls", "--json")
    assert listed == {"subjects": [], "table_bytes": 0}


def test_listing_and_removing_read_headers_and_showing_checks_all(
    cli: Any, encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode("--name", "dog", "--store", "kept", "--full")
    path = Path("kept/subjects/dog.subject")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (table,) = Path("kept/tables").rglob("*.table")
    code, _, errors = cli("subjects", "show", "dog", "--store", "kept")
    assert (code, "not those that were written" in errors) == (2, True)

    def nothing_is_read(*_: Any, **__: Any) -> Any:
        raise AssertionError("the tensors of a file were read")

    monkeypatch.setattr("bootpig_rt.files.tensor_file._read", nothing_is_read)
    code, listed, _ = cli("subjects", "ls", "--store", "kept", "--json")
    assert [entry["form"] for entry in listed["subjects"]] == ["full"]
    freed = len(data) + table.stat().st_size
    _, removed, _ = cli("subjects", "rm", "dog", "--store", "kept", "--json")
    assert removed == {"freed_bytes": freed}
    assert not table.exists()


def test_the_bytes_of_a_table_are_told_ahead_of_its_pass(
    cli: Any, encode: Any, dog_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, summary, _ = encode("-o", "dog.subject", "--full", "--steps", "3")
    assert summary["planned_table_bytes"] == summary["table_bytes"] > 0
    _, light, _ = encode("-o", "light.subject")
    assert light["planned_table_bytes"] == light["table_bytes"] == 0
    words = ["--reference", str(dog_file), "--reference-prompt", "a dog", "--full", "--steps", "3"]

    def failing(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ReferenceUNet, "forward", failing)
    code, out, _ = cli("encode-subject", *words, "-o", "big.subject")
    assert code == 1
    assert out == f"reference table: {summary['table_bytes']} bytes in float32, exact, 3 steps\n"
    assert cli("encode-subject", *words, "-o", "big.subject", "--quiet")[1] == ""


def test_the_reference_pass_of_an_encoding_has_a_bar(
    cli: Any, dog_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--reference", str(dog_file), "--reference-prompt", "a dog", "--full", "-o", "x"]
    assert "reference:" not in cli("encode-subject", *words)[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, errors = cli("encode-subject", *words)
    assert (code, "reference:" in errors) == (0, True)
    assert "reference:" not in cli("encode-subject", *words, "--quiet")[2]


def test_the_folder_of_a_store_is_held_to_its_bytes(cli: Any, encode: Any) -> None:
    encode("-o", "dog.subject")
    words = ["--subject", "dog.subject", "--prompt", PROMPT, "--store", "kept", "--json"]
    for limit, passes in (("1", 2), ("1", 2), ("1000000000", 2), ("1000000000", 0)):
        _, drawn, _ = cli("generate", *words, "--store-bytes", limit)
        assert drawn["reference_passes"] == passes
    code, _, errors = cli("generate", *words, "--store-bytes", "-1")
    assert (code, "folder_bytes is -1, expected 0.." in errors) == (2, True)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("subjects", ["ls"], "no store; give --store FOLDER or set BOOTPIG_RT_STORE"),
        ("subjects", ["ls", "--store", "none"], "no store at 'none'"),
        ("subjects", ["show"], "needs the name of a subject"),
        ("subjects", ["rm"], "needs the name of a subject"),
        ("subjects", ["burn", "x"], "invalid choice: 'burn'"),
        ("encode-subject", [], "nowhere to keep the subject"),
        ("encode-subject", ["--name", "dog"], "a name needs a store"),
        ("encode-subject", ["--name", "../d", "--store", "s"], "the name of a subject is '../d'"),
        ("encode-subject", ["-o", "x.subject"], "reference_prompt is missing"),
        ("encode-subject", ["-o", "x", "--reference-prompt", "a"], "no reference image"),
        ("encode-subject", ["-o", "x", "--table-dtype", "int3"], "dtype is 'int3'"),
        ("generate", ["--subject", "none.subject", "--prompt", "a"], "cannot be read"),
        ("generate", ["--subject", "x", "--prompt", "a", "--reference", "y"], "one or the other"),
        ("generate", ["--subject", "x", "--prompt", "a", "--store", "s"], "expected one of: none"),
        (
            "generate",
            ["--subject", "x", "--prompt", "a", "--guidance-interval", "1-0"],
            "guidance_interval is '1-0'",
        ),
        (
            "generate",
            ["--subject", "x", "--prompt", "a", "--reference-schedule", "window:1-0"],
            "expected exact, clean, anchor:T, stride:K or window:A-B",
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(
    cli: Any, command: str, words: list[str], message: str
) -> None:
    code, _, errors = cli(command, *words)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert [path for path in Path.cwd().iterdir() if path.name != "dog.png"] == []


def test_a_store_on_a_read_only_disk_costs_no_picture(cli: Any, encode: Any) -> None:
    encode("-o", "dog.subject")
    Path("kept").write_text("a file where the store should be")
    words = ["--subject", "dog.subject", "--prompt", PROMPT, "--store", "kept", "--json"]
    code, result, errors = cli("generate", *words)
    assert (code, result["reference_passes"]) == (0, 2)
    assert "the store could not keep a table" in errors


def test_what_a_file_of_others_says_is_shown_without_its_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Subject(
        pixels=None,
        latents=np.zeros((1, 4, 8, 8), np.float32),
        reference_prompt="a \x1b[31mdog",
        noise_seed=0,
        pair_fingerprint="\ud800\n",
    )
    subject.save(tmp_path / "a.subject")
    assert main(["subjects", "show", str(tmp_path / "a.subject")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "reference_prompt: 'a \\x1b[31mdog'" in lines
    assert "pair: '\\ud800\\n'" in lines
    assert "form: light" in lines
