"""Text states: each prompt is encoded once, whatever it stands beside."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from bootpig_rt.engine.text_states import TextStates
from bootpig_rt.pipeline import Pipeline


class LengthBackend:
    """The states of a prompt are its number of bytes; counts what is encoded."""

    def __init__(self) -> None:
        self.launches: list[int] = []

    def encode_text(self, ids: Any) -> np.ndarray:
        self.launches.append(len(ids))
        return np.array(ids, np.float32)[:, None, None]

    def download_states(self, states: np.ndarray) -> np.ndarray:
        return states


def text_states() -> tuple[TextStates, list[int]]:
    backend: Any = LengthBackend()
    tokenizer: Any = lambda texts, **_: [len(text) for text in texts]  # noqa: E731
    return TextStates(backend, tokenizer), backend.launches


def plain(*asked: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(text, ()) for text in asked]


def numbers(texts: TextStates, *asked: str) -> dict[str, float]:
    names, states = texts.of(plain(*asked))
    assert states.shape == (len(names), 1, 1)
    return {name: float(value) for (name, _), value in zip(names, states.ravel(), strict=True)}


def test_only_prompts_that_are_new_are_encoded_in_one_launch() -> None:
    texts, launches = text_states()
    assert numbers(texts, "a", "") == {"a": 1, "": 0}
    assert numbers(texts, "aaa", "", "aa", "a") == {"aaa": 3, "": 0, "aa": 2, "a": 1}
    assert numbers(texts, "aa", "aaa")["aa"] == 2
    assert launches == [2, 2]


def test_an_answer_that_holds_all_that_is_asked_for_is_given_again() -> None:
    texts, _ = text_states()
    first = texts.of(plain("a", "aa", ""))
    assert texts.of(plain("", "aa", "a")) is first
    assert texts.of(plain("aa", "a")) is first  # whoever left takes nothing along
    assert texts.of(plain("aa")) is not first  # but it does not stay for ever
    assert texts.of(plain("aa", "b")) is not first


def test_prompts_that_were_not_used_for_long_are_forgotten() -> None:
    texts, launches = text_states()
    texts.of(plain("old", "often"))
    for number in range(100):
        texts.of(plain(str(number), "often"))
    texts.of(plain("often"))
    assert len(launches) == 101
    texts.of(plain("old"))
    assert len(launches) == 102


def test_a_list_longer_than_what_is_kept_is_encoded_once() -> None:
    texts, launches = text_states()
    many = [str(number) for number in range(500)]
    for _ in range(2):
        assert texts.of(plain(*many))[1].shape == (500, 1, 1)
    assert launches == [500]


def test_states_from_the_cache_are_those_of_the_encoder(pipeline: Pipeline) -> None:
    prompts = ["a dog", "a cat, in snow", ""]
    texts = TextStates(pipeline._backend, pipeline._tokenizer)
    for prompt in prompts:
        texts.of(plain(prompt))
    states = pipeline._backend.encode_text(pipeline._tokenizer(prompts))
    expected = pipeline._backend.download_states(states)
    np.testing.assert_allclose(texts.of(plain(*prompts))[1], expected, atol=1e-6)


def test_a_prompt_that_is_cut_is_told_of_at_every_request(
    paper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the first was told: the states of the second were there already."""
    long = " ".join(["dog"] * 100)
    for number in (1, 2):
        with caplog.at_level(logging.WARNING, "bootpig_rt"):
            paper.submit(prompt=long, negative_prompt="rain")
            paper.run()
        told = [r for r in caplog.records if "the end is ignored" in r.getMessage()]
        assert len(told) == number
    assert len(paper.backend.num_texts) == 1
