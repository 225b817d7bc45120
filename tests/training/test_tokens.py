"""The vocabulary: the same each time, and read alike by transformers and by the runtime."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.captions import POSITIONS, Caption
from bootpig_rt.training.scenes import SCENES
from bootpig_rt.training.tokens import learn_merges, train_tokenizer

NOUNS = ["dog", "apple", "school bus", "owl", "crown", "ice cream", "hourglass", "t-rex"]
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def corpus(nouns: list[str]) -> list[str]:
    """Every caption that can be drawn."""
    return [
        Caption(noun, position, scene.key, phrase).text
        for noun in nouns
        for position in POSITIONS
        for scene in SCENES.values()
        for phrase in scene.phrases
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus(NOUNS), path, vocabulary=700, max_tokens=24)
    return path


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_ids_are_those_of_transformers(folder: Path) -> None:
    prompts = [
        *corpus(NOUNS),
        "",
        "A Photo of THE dog's 12 bones!!",
        "un café à la plage",
        "狗 on a beach 🐕",
        "word " * 60,
    ]
    oracle = transformers.CLIPTokenizer.from_pretrained(str(folder))
    expected = oracle(
        [p.strip() for p in prompts], padding="max_length", truncation=True, max_length=24
    ).input_ids
    got = Tokenizer.from_folder(folder)(prompts)
    assert got.shape == (len(prompts), 24)
    wrong = [p for p, a, b in zip(prompts, got, expected, strict=True) if list(a) != b]
    assert not wrong


def test_the_same_captions_give_the_same_files_in_any_order(folder: Path, tmp_path: Path) -> None:
    captions = corpus(NOUNS)
    random.Random(0).shuffle(captions)
    train_tokenizer(captions, tmp_path, vocabulary=700, max_tokens=24)
    assert contents(tmp_path) == contents(folder)


def test_another_process_gives_the_same_files(folder: Path, tmp_path: Path, root: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path\n"
        "from bootpig_rt.training.tokens import train_tokenizer\n"
        "captions = json.loads(Path(sys.argv[2]).read_text())\n"
        "train_tokenizer(captions, Path(sys.argv[1]), vocabulary=700, max_tokens=24)"
    )
    environment = {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "77"}
    texts = tmp_path / "captions.json"
    texts.write_text(json.dumps(corpus(NOUNS)))
    command = [sys.executable, "-c", code, str(tmp_path), str(texts)]
    subprocess.run(command, check=True, env=environment)
    assert contents(tmp_path) == contents(folder)


@pytest.mark.parametrize("vocabulary", [514, 520, 700])
def test_the_vocabulary_has_no_more_tokens_than_asked(vocabulary: int, tmp_path: Path) -> None:
    train_tokenizer(corpus(["dog"]), tmp_path, vocabulary=vocabulary, max_tokens=24)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    assert 514 <= len(ids) <= vocabulary
    assert sorted(ids.values()) == list(range(len(ids)))
    assert ids["<|startoftext|>"] == len(ids) - 2
    assert ids["<|endoftext|>"] == len(ids) - 1


def test_words_of_the_captions_become_single_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    (row,) = tokenizer(["a photo of a dog"])
    end = tokenizer.eos_id
    words = [ids[f"{word}</w>"] for word in ("a", "photo", "of", "a", "dog")]
    assert row.tolist() == [tokenizer.bos_id, *words, *[end] * 18]


def test_every_caption_fits_and_any_text_has_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer(corpus(NOUNS))[:, -1] == tokenizer.eos_id).all()
    strange = tokenizer(["ζ ü 狗 🐕 %&$"])[0]
    inside = strange[1 : int(np.argmax(strange == tokenizer.eos_id))]
    assert len(inside) > 8  # bytes, none of them unknown


def test_a_prompt_that_is_too_long_is_cut(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    (row,) = tokenizer(["dog " * 40])
    assert len(row) == 24
    assert row[-1] == tokenizer.eos_id
    assert (row[1:-1] == row[1]).all()


def test_the_most_frequent_pair_is_merged_first_and_ties_go_by_name() -> None:
    words = {("b", "c"): 3, ("a", "b", "c"): 2, ("x", "y"): 5, ("q",): 9}
    assert learn_merges(words, 3) == [("b", "c"), ("x", "y"), ("a", "bc")]
    assert learn_merges(words, 1) == [("b", "c")]


def test_a_pair_that_is_seen_once_is_not_merged() -> None:
    assert learn_merges({("a", "b"): 1}, 5) == []


def test_a_run_of_one_letter_is_merged_from_the_left() -> None:
    assert learn_merges({("a", "a", "a"): 2}, 2) == [("a", "a"), ("aa", "a")]
