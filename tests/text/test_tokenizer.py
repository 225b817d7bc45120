from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from bootpig_rt.errors import CheckpointError
from bootpig_rt.text.tokenizer import Tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Rank counts: the first pair is merged first.
MERGES = [
    ("d", "o"), ("do", "g</w>"), ("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"),
    ("o", "f</w>"), ("i", "n</w>"), ("o", "n</w>"), ("t", "h"), ("th", "e</w>"), ("e", "a"),
    ("b", "ea"), ("bea", "c"), ("beac", "h</w>"), ("!", "!</w>"), ("'", "s</w>"), ("1", "2</w>"),
]  # fmt: skip


def added(text: str, **changes: Any) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": text, **flags, **changes}


def write(folder: Path, **files: Any) -> Path:
    """Write JSON files, named without `.json`."""
    folder.mkdir(exist_ok=True)
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents), encoding="utf-8")
    return folder


def vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m) for m in MERGES)]
    tokens.remove("!")
    return {token: index for index, token in enumerate(["!", *tokens, BOS, EOS])}


def plain(folder: Path) -> Path:
    """A vocabulary alone, without a word about special tokens."""
    write(folder, vocab=vocabulary())
    lines = ["#version: 0.2", *(" ".join(merge) for merge in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def stable_diffusion_1(folder: Path) -> Path:
    tokens = {name: added(EOS) for name in ("eos_token", "unk_token")} | {"bos_token": added(BOS)}
    typed = {name: {"__type": "AddedToken", **token} for name, token in tokens.items()}
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": EOS, **typed}
    return write(
        plain(folder), tokenizer_config=config, special_tokens_map={**tokens, "pad_token": EOS}
    )


def stable_diffusion_2(folder: Path) -> Path:
    """Its configuration names one padding token, its special tokens map another, which counts."""
    stable_diffusion_1(folder)
    tokens = json.loads((folder / "special_tokens_map.json").read_text())
    return write(folder, special_tokens_map={**tokens, "pad_token": "!"})


def newer(folder: Path) -> Path:
    """Written by transformers 4.40 or so: all tokens listed in the configuration."""
    ids = vocabulary()
    listed = {
        str(ids["!"]): added("!", normalized=False, special=True),
        str(ids[BOS]): added(BOS, normalized=False, special=True),
        str(ids[EOS]): added(EOS, normalized=False, special=True),
    }
    config = {
        "added_tokens_decoder": listed,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": "!",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    return write(plain(folder), tokenizer_config=config, special_tokens_map={"pad_token": EOS})


def one_file(folder: Path) -> Path:
    """Written by transformers 5: `tokenizer.json` and a configuration."""
    ids = vocabulary()
    flags = {"special": True, "normalized": False}
    contents = {
        "model": {
            "type": "BPE",
            "end_of_word_suffix": "</w>",
            "unk_token": EOS,
            "vocab": ids,
            "merges": [list(merge) for merge in MERGES],
        },
        "added_tokens": [added(t, id=ids[t], **flags) for t in ("!", BOS, EOS)],
    }
    config = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": "!"}
    return write(
        folder,
        tokenizer=contents,
        tokenizer_config={**config, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
    )


FOLDERS = [plain, stable_diffusion_1, stable_diffusion_2, newer, one_file]

PROMPTS = [
    "",
    "a photo of the dog, on the beach",
    "  A PHOTO\tof\n THE   Dog  ",
    "it's the dog's! hello!! wow!!!",
    f"before {EOS} between {BOS} <|EndOfText|> after",
    "naïve café e\u0301 ﬁ ½ ² Σας İ ẞ",
    "日本語 한국어 עברית العربية हिन्दी",
    "🐶🏽\u200d♀️ dog 👨\u200d👩\u200d👧",
    "wide\u3000space nbsp\u00a0 zero\u200bwidth \x7f \x01 \x1b[31m",
    "12 1 2 123 3.14e-5 _a-b/c\\d",
    "dog " * 200,
    "!" * 100,
    "x" * 5000,
]


def _random_prompts(count: int) -> list[str]:
    rng = random.Random(0)

    def piece() -> str:
        point = rng.choice([rng.randrange(1, 0x250), rng.randrange(0xE000, 0x1FFFF)])
        return rng.choice([chr(point), rng.choice(" aeiou!.'<|>"), EOS, "'s", " dog", "!"])

    return ["".join(piece() for _ in range(rng.randrange(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("make", FOLDERS)
def test_ids_are_those_of_transformers(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    folder = make(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_folder(folder)
    oracle = transformers.CLIPTokenizer.from_pretrained(str(folder))
    prompts = [prompt.strip() for prompt in [*PROMPTS, *_random_prompts(200)]]
    expected = oracle(prompts, padding="max_length", truncation=True, max_length=77).input_ids
    got = tokenizer(prompts)
    assert got.dtype == np.int64
    assert got.shape == (len(prompts), 77)
    wrong = [prompt for prompt, a, b in zip(prompts, got, expected, strict=True) if list(a) != b]
    assert not wrong
    assert tokenizer.pad_id == oracle.pad_token_id


@pytest.mark.parametrize(
    ("make", "pad"),
    [(plain, EOS), (stable_diffusion_1, EOS), (stable_diffusion_2, "!"), (newer, "!")],
)
def test_padding_token_is_the_one_the_folder_names(
    tmp_path: Path, make: Callable[[Path], Path], pad: str
) -> None:
    ids = vocabulary()
    tokenizer = Tokenizer.from_folder(make(tmp_path / "tokenizer"))
    row = tokenizer(["the dog"])[0]
    assert row[:4].tolist() == [ids[BOS], ids["the</w>"], ids["dog</w>"], ids[EOS]]
    assert set(row[4:].tolist()) == {ids[pad]}


def test_each_row_is_what_it_is_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(plain(tmp_path / "tokenizer"))
    together = tokenizer(["a dog", "", "the beach"])
    for index, prompt in enumerate(["a dog", "", "the beach"]):
        assert np.array_equal(together[index : index + 1], tokenizer([prompt]))
    assert tokenizer([]).shape == (0, 77)


def test_long_prompt_is_cut_and_a_warning_tells_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.from_folder(plain(tmp_path / "tokenizer"))
    with caplog.at_level(logging.WARNING):
        fits, cut = tokenizer([" ".join(["dog"] * 75), " ".join(["dog"] * 76)])
    assert np.array_equal(fits, cut)
    assert cut[-1] == tokenizer.eos_id
    [record] = caplog.records
    assert "has 78 tokens, the text encoder reads 77; the end is ignored" in record.message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(tokenizer([" ".join(["dog"] * 76)], tells_cut=False)[0], cut)
        assert not caplog.records
        tokenizer.tell_cut(" ".join(["dog"] * 75), " ".join(["dog"] * 76))
    assert [record.message[:24] for record in caplog.records] == ["the prompt has 78 tokens"]


@pytest.mark.parametrize(("length", "expected"), [(8, 8), (8.0, 8), (1e30, 77)])
def test_length_is_the_one_the_folder_names(tmp_path: Path, length: float, expected: int) -> None:
    folder = write(plain(tmp_path / "t"), tokenizer_config={"model_max_length": length})
    assert Tokenizer.from_folder(folder)(["dog"]).shape == (1, expected)


def _truncate(name: str) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return truncate


def _replace(name: str, contents: bytes) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).write_bytes(contents)

    return replace


def _edit_vocabulary(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        ids: dict[str, Any] = vocabulary() | changes
        write(folder, vocab={token: index for token, index in ids.items() if index != "drop"})

    return edit


BAD_FOLDERS: list[tuple[str, Callable[[Path], None], str]] = [
    ("no folder", shutil.rmtree, "has no vocab.json and no merges.txt, expected"),
    ("no vocab", lambda folder: (folder / "vocab.json").unlink(), "has no vocab.json, expected"),
    ("no merges", lambda folder: (folder / "merges.txt").unlink(), "has no merges.txt, expected"),
    ("cut vocab", _truncate("vocab.json"), "vocab.json' is no JSON object"),
    ("empty vocab", _replace("vocab.json", b""), "vocab.json' is no JSON object"),
    ("list", _replace("vocab.json", b"[1]"), "vocab.json' is no JSON object"),
    ("deep", _replace("vocab.json", b"[" * 100_000), "vocab.json' is no JSON object"),
    ("binary merges", _replace("merges.txt", b"\xff\xfe\x00"), "merges.txt' is no UTF-8 text"),
    ("other merges", _replace("merges.txt", b"q z\n"), "no token for the merge 'q z'"),
    ("triple", _replace("merges.txt", b"a b c\n"), "a merge that is no pair of tokens"),
    ("no eos", _edit_vocabulary(**{EOS: "drop"}), r"no special token '<\|endoftext\|>'"),
    ("text id", _edit_vocabulary(dog="1"), "the id '1' for 'dog'"),
    ("negative id", _edit_vocabulary(dog=-1), "the id -1 for 'dog'"),
    ("huge id", _edit_vocabulary(dog=2**40), "the id 1099511627776 for 'dog'"),
    ("config", _replace("tokenizer_config.json", b"{"), "tokenizer_config.json' is no JSON"),
    (
        "length",
        _replace("tokenizer_config.json", b'{"model_max_length": 0}'),
        "is 0, expected a number of at least 2",
    ),
    (
        "length nan",
        _replace("tokenizer_config.json", b'{"model_max_length": NaN}'),
        "is nan, expected a number of at least 2",
    ),
    (
        "pad",
        _replace("special_tokens_map.json", b'{"pad_token": "<pad>"}'),
        "no special token '<pad>'",
    ),
    ("other kind", _replace("tokenizer.json", b'{"model": {"type": "Unigram"}}'), "is no CLIP"),
    ("no model", _replace("tokenizer.json", b"{}"), "is no CLIP tokenizer"),
    (
        "odd merges",
        _replace("tokenizer.json", b'{"model": {"end_of_word_suffix": "</w>", "merges": [1]}}'),
        "no special token|no pair",
    ),
]


@pytest.mark.parametrize(
    ("harm", "expected"), [pytest.param(b, c, id=a) for a, b, c in BAD_FOLDERS]
)
def test_bad_folder_is_refused_in_one_line(
    tmp_path: Path, harm: Callable[[Path], None], expected: str
) -> None:
    folder = plain(tmp_path / "tokenizer")
    harm(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value.path).startswith(str(folder))
