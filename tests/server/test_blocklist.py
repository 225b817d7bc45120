"""Prompts that are refused, and those that are not."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootpig_rt.errors import ConfigError
from bootpig_rt.server.blocklist import Blocklist, normalised
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output

LIST = """\
# words
grape

Red Grape
strasse
re: \\bcherr(y|ies)\\b
C++
葡萄
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blocked.txt"
    path.write_text(LIST, encoding="utf-8")
    return path


@pytest.fixture
def blocklist(file: Path) -> Blocklist:
    return Blocklist.load(file)


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a grape", 2),
        ("GRAPE!", 2),
        ("Grape", 2),
        ("a \uff27\uff32\uff21\uff30\uff25", 2),  # full width
        ("a \U0001d4f0\U0001d4fb\U0001d4ea\U0001d4f9\U0001d4ee", 2),  # bold script
        ("gr\u200bap\u00ade", 2),  # zero width space, soft hyphen
        ("g\ufe0fr\u034fa\u2060p\U000e0067e", 2),
        ("grape_juice", 2),
        ("a (grape)", 2),
        ("\ud83dgrape", 2),
        ("Straße", 5),
        ("STRASSE", 5),
        ("two cherries", 6),
        ("CHERRY", 6),
        ("see c++ there", 7),
        ("C++17", 7),
        ("葡萄", 8),
        ("一 葡萄。", 8),
    ],
)
def test_a_word_is_found_however_it_is_written(
    blocklist: Blocklist, prompt: str, line: int
) -> None:
    assert blocklist.find(prompt) == line


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "grapefruit",
        "agrape",
        "gr ape",
        "gr4pe",
        "grape2",
        "cherryade",
        "vitamin c",
        "re",
        "a 葡萄酒",
    ],
)
def test_other_words_are_not(blocklist: Blocklist, prompt: str) -> None:
    assert blocklist.find(prompt) is None


@pytest.mark.parametrize(
    "prompt",
    ["red grape", "RED   GRAPE", "red-grape", "red, \n grape", "red_grape", "a red/grape!"],
)
def test_a_phrase_is_found_whatever_lies_between_its_words(tmp_path: Path, prompt: str) -> None:
    (tmp_path / "b.txt").write_text("Red  Grape")
    blocklist = Blocklist.load(tmp_path / "b.txt")
    assert blocklist.find(prompt) == 1
    for other in ("redgrape", "red old grape", "grape red", "red grapes", "infrared grape"):
        assert blocklist.find(other) is None


def test_nothing_is_blocked_by_default() -> None:
    assert Blocklist().find("anything at all") is None
    Output().check_prompts({"prompt": "anything at all"})


def test_a_file_of_comments_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf# nothing\r\n\r\n  \r\n  # more\r\n")
    assert Blocklist.load(tmp_path / "b.txt") == Blocklist()


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=())))
def test_normalising_again_changes_nothing_and_every_text_can_be_searched(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert Blocklist().find(text) is None


@settings(deadline=None, max_examples=200)
@given(
    word=st.text(st.characters(categories=["Lu", "Ll", "Nd"]), min_size=1, max_size=8),
    before=st.sampled_from(["", "a ", "(", "\n", "_", "\u200b "]),
    after=st.sampled_from(["", " b", ")", ".", "_", "\u3000b"]),
)
def test_every_word_of_letters_and_digits_is_found_between_others(
    word: str, before: str, after: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "words.txt"
    file.write_text(word, encoding="utf-8")
    assert Blocklist.load(file).find(before + word + after) == 1


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"ok\nre: (", "line 2 of the blocklist .* is no regular expression"),
        (b"re:", "line 1 .* matches every prompt"),
        (b"re: .*", "line 1 .* matches every prompt"),
        (b"ok\n\n\xe2\x80\x8b", "line 3 .* shows nothing"),
        (b"\xff\xfe", "is not UTF-8"),
        (None, "cannot read the blocklist .*no such file.*check the path"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, contents: bytes | None, expected: str
) -> None:
    path = tmp_path / "b.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ConfigError, match=expected):
        Output.of(ServerOptions(blocklist=str(path)))


def test_the_answer_does_not_say_which_word_it_was(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = Output.of(ServerOptions(blocklist=str(file)))
    output.check_prompts({"prompt": "a dog", "negative_prompt": ""})
    with pytest.raises(ApiError) as caught, caplog.at_level("INFO", "bootpig_rt"):
        output.check_prompts({"prompt": "a dog", "reference_prompt": "a grape"})
    error: dict[str, Any] = caught.value.body()["error"]
    assert (caught.value.status, error["code"]) == (400, "content_policy")
    assert error["param"] == "reference_prompt"
    assert "grape" not in str(error)
    assert "line 2 of the blocklist" in caplog.text
    assert "grape" not in caplog.text


def test_a_blocked_prompt_is_refused_wherever_it_comes_in(
    ask_service: Any, blocklist: Blocklist, reference_png: bytes
) -> None:
    output = Output(blocklist)
    image = {"image": ("a.png", reference_png)}
    dog = {"prompt": "a dog, on a beach"}
    drawn = dog | {"num_inference_steps": "2"}
    bad = "a grape"
    for path, param, body in (
        ("images/generations", "prompt", {"json": {"prompt": bad}}),
        ("images/generations", "negative_prompt", {"json": dog | {"negative_prompt": bad}}),
        ("images/edits", "reference_prompt", {"data": drawn | {"reference_prompt": bad}}),
        ("subjects", "reference_prompt", {"data": {"reference_prompt": bad}}),
    ):
        files = {"files": image} if "data" in body else {}
        answer = ask_service(output, "POST", f"/v1/{path}", **body, **files)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "content_policy")
        assert error["param"] == param
        assert "grape" not in answer.text
    answer = ask_service(output, "POST", "/v1/images/edits", data=drawn, files=image)
    assert answer.status_code == 200


def test_a_subject_that_came_as_a_file_is_read_as_well(
    ask_service: Any, blocklist: Blocklist, reference_png: bytes
) -> None:
    form = {"data": {"reference_prompt": "a grape"}, "files": {"image": reference_png}}
    made = ask_service(Output(), "POST", "/v1/subjects", **form).json()
    file = ask_service(Output(), "GET", f"/v1/subjects/{made['id']}/file").content
    assert file
    uploaded = {"file": ("grape.subject", file)}
    answer = ask_service(Output(blocklist), "POST", "/v1/subjects", files=uploaded)
    assert answer.json()["error"]["code"] == "content_policy"
    drawing = {"prompt": "a dog", "subject_id": made["id"], "num_inference_steps": 2}
    body = {"json": drawing}
    answer = ask_service(Output(blocklist), "POST", "/v1/images/generations", **body)
    assert answer.json()["error"]["code"] == "content_policy"
