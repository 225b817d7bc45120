"""Where captions come from: grammars, a language model, an endpoint, a file; duplicates leave."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import CheckpointError, ConfigError, InputError
from bootpig_rt.training.bootstrap.ask import (
    MAX_LINE,
    FileCaptions,
    LlmCaptions,
    WorldCaptions,
    make_captions,
    read_lines,
)
from bootpig_rt.training.bootstrap.captions import ask_captions, items_of
from bootpig_rt.training.bootstrap.stage import Item, Reject, run_here
from bootpig_rt.training.captions import POSITIONS
from bootpig_rt.training.splits import load_splits


def outcomes(stage: Any, *questions: int) -> list[Any]:
    return [each for one in stage([Item(number) for number in questions]) for each in one]


@pytest.mark.parametrize("source", ["grammar", "world"])
def test_grammars_give_the_same_captions_to_the_same_question(
    bootstrap_config: Any, source: str
) -> None:
    config = bootstrap_config(captions={"source": source}, seed=3)
    first, again = (outcomes(make_captions(config), 0, 1) for _ in range(2))
    assert first == again
    assert all(isinstance(each, Item) for each in first)
    assert len({each.index for each in first}) == len(first)
    assert first[:1000] == outcomes(make_captions(config), 0)
    other = bootstrap_config(captions={"source": source}, seed=4)
    assert outcomes(make_captions(other), 0) != first[:1000]


def test_the_small_world_is_asked_for_nothing_that_is_held_out(bootstrap_config: Any) -> None:
    held_out = load_splits().concepts
    found = outcomes(WorldCaptions(bootstrap_config()), 0, 1, 2)
    nouns = {each.noun.replace(" ", "-") for each in found}
    assert len(nouns) > 300
    assert nouns.isdisjoint(held_out)
    assert {each.position for each in found} == set(POSITIONS.values())


def test_a_language_model_is_asked_in_its_own_template(
    bootstrap_config: Any, llm_folder: Path
) -> None:
    settings = {"source": "llm", "model": str(llm_folder), "answers": 2, "max_new_tokens": 60}
    stage = LlmCaptions(bootstrap_config(captions=settings | {"temperature": 0.05}))
    found = outcomes(stage, 0)
    captions = Counter(each.caption for each in found if isinstance(each, Item))
    assert captions == {
        "a photo of a teapot, on a wooden table": 2,
        "a photo of a red panda, next to a waterfall": 2,
        "a photo of a kite, above a green meadow": 2,
    }
    rejects = [each for each in found if isinstance(each, Reject)]
    assert [each.reason for each in rejects] == ["nonsense"] * 2
    assert "'here is another'" in rejects[0].detail


def test_a_question_to_a_language_model_depends_on_its_own_seed_alone(
    bootstrap_config: Any, llm_folder: Path
) -> None:
    settings = {"source": "llm", "model": str(llm_folder), "answers": 2, "max_new_tokens": 20}
    stage = LlmCaptions(bootstrap_config(captions=settings | {"temperature": 4.0}))
    together = outcomes(stage, 0, 1)
    assert together == [*outcomes(stage, 0), *outcomes(stage, 1)]
    texts = [
        [e.detail if isinstance(e, Reject) else e.caption for e in outcomes(stage, n)]
        for n in (0, 1)
    ]
    assert texts[0] != texts[1]


def test_a_model_without_a_chat_template_is_refused(
    bootstrap_config: Any, llm_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(llm_folder, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="base has no chat template; expected a model that"):
        LlmCaptions(bootstrap_config(captions={"source": "llm", "model": str(folder)}))


def test_questions_to_an_endpoint_are_asked_at_once_and_answered_in_order(
    bootstrap_config: Any, endpoint: Any
) -> None:
    endpoint.says("A photo of a dog, on a beach\nA photo of a cat, on a beach\n")
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m", "per_ask": 2}
    found = outcomes(make_captions(bootstrap_config(captions=settings)), 0, 1, 2)
    assert [each.noun for each in found] == ["dog", "cat"] * 3
    asked = sorted(body["messages"][0]["content"] for body in endpoint.asked)
    assert len(set(asked)) == 3  # each about another theme
    assert all("Write 2 captions" in text for text in asked)
    assert len({body["seed"] for body in endpoint.asked}) == 3


def test_the_user_may_write_the_instruction(
    bootstrap_config: Any, endpoint: Any, tmp_path: Path
) -> None:
    endpoint.says("A photo of a dog, on a beach")
    own = tmp_path / "own.txt"
    own.write_text("{count} lines, please, about {theme}")
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m", "instruction": str(own)}
    outcomes(make_captions(bootstrap_config(captions=settings)), 0)
    assert endpoint.asked[0]["messages"][0]["content"] == "50 lines, please, about pets"
    own.write_text("some lines")
    with pytest.raises(ConfigError, match="has no .count.; write where"):
        make_captions(bootstrap_config(captions=settings))


def ask(config: Any, tmp_path: Path) -> tuple[list[Item], dict[str, Any]]:
    return ask_captions(config, tmp_path / "captions", run_here)


def test_duplicates_leave_and_more_is_asked_until_there_are_enough(
    bootstrap_config: Any, endpoint: Any, tmp_path: Path
) -> None:
    endpoint.says("A photo of a dog, on a beach\nA photo of the dog, on the beach!")
    endpoint.says("nothing today")
    endpoint.says("A photo of a cat, in a barn\nA photo of a cow, in a barn")
    endpoint.says("A photo of a pig, in a barn")
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m", "batch_size": 1}
    config = bootstrap_config(captions=settings | {"per_ask": 2, "count": 4})
    kept, record = ask(config, tmp_path)
    assert [item.noun for item in kept] == ["dog", "cat", "cow", "pig"]
    assert [item.index for item in kept] == [0, 1, 2, 3]
    assert record == {"items": 4, "rejects": {"duplicate": 1, "nonsense": 1}}
    folder = tmp_path / "captions"
    assert (folder / "captions.txt").read_text().splitlines()[1] == "a photo of a cat, in a barn"
    assert "nonsense: 'nothing today'" in (folder / "rejected.txt").read_text()


def test_an_answer_is_asked_for_once(bootstrap_config: Any, endpoint: Any, tmp_path: Path) -> None:
    endpoint.says("A photo of a dog, on a beach")
    endpoint.fails(400)
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m", "batch_size": 1}
    config = bootstrap_config(captions=settings | {"per_ask": 1, "count": 2})
    from bootpig_rt.errors import EndpointError

    with pytest.raises(EndpointError, match="refuses: HTTP 400"):
        ask(config, tmp_path)
    assert len(endpoint.asked) == 2
    endpoint.replies = []
    endpoint.says("A photo of a cat, on a beach")
    kept, _ = ask(config, tmp_path)
    assert [item.noun for item in kept] == ["dog", "cat"]
    assert len(endpoint.asked) == 3


def test_a_source_that_repeats_itself_ends_with_what_there_is(
    bootstrap_config: Any, endpoint: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.says("A photo of a dog, on a beach")
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m"}
    kept, record = ask(bootstrap_config(captions=settings | {"per_ask": 1, "count": 5}), tmp_path)
    assert len(kept) == 1
    assert record["rejects"]["duplicate"] >= 5
    assert "1 different captions in place of 5: answers repeat themselves" in caplog.text


def test_a_source_of_nonsense_is_an_error_that_shows_some(
    bootstrap_config: Any, endpoint: Any, tmp_path: Path
) -> None:
    endpoint.says("I cannot help with that.")
    settings = {"source": "endpoint", "url": endpoint.url, "model": "m"}
    with pytest.raises(
        InputError, match=r"no caption in all answers .nonsense \d+; .*I cannot help"
    ):
        ask(bootstrap_config(captions=settings), tmp_path)


def test_a_file_of_captions_is_read_whatever_its_line_ends(
    bootstrap_config: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(
        "\ufeffA photo of a dog, on a beach\r\n\r\nhello\nA photo of a bär, im Wald".encode()
    )
    config = bootstrap_config(captions={"source": "file", "file": str(path), "count": 9})
    kept, record = ask(config, tmp_path)
    assert [item.noun for item in kept] == ["dog", "bär"]
    assert record == {"items": 2, "rejects": {"nonsense": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the captions: no such file.*mine.txt.; check the path"),
        (b"\n \n", "has no captions, expected one a line"),
        (b"a photo of a dog, on a beach\n" + b"x" * 10_000_000, "line 2 has over 1000 characters"),
        ("ä".encode() * 10_000_000, "line 1 has over 1000 characters"),
        (b"a photo of a d\xe4chshund, on a beach", "line 1 is no UTF-8"),
        (b"y" * (MAX_LINE + 1) + b"\n", "line 1 has over 1000 characters"),
    ],
)
def test_a_file_that_is_no_list_of_captions_is_named_with_its_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines(path)


def test_the_longest_line_that_is_allowed_is_read(bootstrap_config: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("ä" * MAX_LINE)
    config = bootstrap_config(captions={"source": "file", "file": str(path)})
    (reject,) = outcomes(FileCaptions(config), 0)
    assert reject.reason == "nonsense"


def test_each_caption_is_drawn_as_often_as_asked_and_some_as_pairs(bootstrap_config: Any) -> None:
    config = bootstrap_config(pictures={"source": "pair", "per_caption": 3}, pairs={"share": 0.25})
    captions = [Item(k, f"a photo of a dog, {k}", "dog") for k in range(200)]
    items = list(items_of(config, captions))
    assert [item.index for item in items] == list(range(600))
    assert [item.caption for item in items[:4]] == [captions[k].caption for k in (0, 0, 0, 1)]
    assert 110 < sum(item.is_pair for item in items) < 190
    assert items == list(items_of(config, captions))
