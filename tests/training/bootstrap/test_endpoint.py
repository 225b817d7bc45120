"""The endpoint of captions: a real server that fails, limits rates and answers nonsense."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError, EndpointError
from bootpig_rt.training.bootstrap.config import CaptionsConfig
from bootpig_rt.training.bootstrap.endpoint import Endpoint


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited each time; nobody really waits."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def ask(endpoint: Any, **changes: Any) -> str:
    values: dict[str, Any] = {"source": "endpoint", "url": endpoint.url, "model": "tiny"}
    return Endpoint(CaptionsConfig(**(values | changes))).ask("ten captions", 7)


def test_a_question_is_a_chat_with_model_seed_and_temperature(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    endpoint.says("A photo of a dog, on a beach")
    assert ask(endpoint, api_key_env="MY_KEY") == "A photo of a dog, on a beach"
    assert endpoint.keys == ["Bearer sesame"]
    (body,) = endpoint.asked
    assert body["model"] == "tiny"
    assert body["messages"] == [{"role": "user", "content": "ten captions"}]
    assert (body["seed"], body["temperature"]) == (7, 1.2)


def test_an_address_may_have_its_path_and_no_key_is_sent_where_there_is_none(
    endpoint: Any,
) -> None:
    endpoint.says("yes")
    assert ask(endpoint, url=f"{endpoint.url}/chat/completions") == "yes"
    assert endpoint.keys == [None]


def test_limits_and_outages_are_waited_for(endpoint: Any, waits: list[float]) -> None:
    endpoint.fails(429, retry_after="7")
    endpoint.fails(503, "busy")
    endpoint.fails(500)
    endpoint.fails(429, retry_after=formatdate(time.time() + 40, usegmt=True))
    endpoint.says("yes")
    assert ask(endpoint) == "yes"
    assert len(endpoint.asked) == 5
    assert waits[0] == 7.0
    # Twice as long each time, less up to a half.
    assert 0.5 <= waits[1] <= 1.0
    assert 1.0 <= waits[2] <= 2.0
    assert 30 <= waits[3] <= 40


def test_an_endpoint_that_stays_bad_ends_in_one_line_that_says_how_to_go_on(
    endpoint: Any, waits: list[float]
) -> None:
    endpoint.fails(429, '{"error": {"message": "too many\\n tokens"}}', retry_after="20")
    with pytest.raises(EndpointError, match=r"after 40 s .*HTTP 429 too many tokens.*run the same"):
        ask(endpoint, max_wait_s=50)
    assert waits == [20.0, 20.0]


def test_an_endpoint_that_is_not_there_is_waited_for_and_named(
    endpoint: Any, waits: list[float]
) -> None:
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1 gave no answer.*refused"):
        ask(endpoint, url="http://127.0.0.1:9/v1", max_wait_s=3)
    assert 2 <= len(waits) <= 5


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, r"the key in \$OPENAI_API_KEY is not set"),
        (404, "check captions.url and captions.model .'tiny'"),
        (400, "check the model and its limits"),
    ],
)
def test_a_refusal_is_not_asked_again(
    endpoint: Any, waits: list[float], status: int, fix: str
) -> None:
    endpoint.fails(status, '{"error": {"message": "no"}}')
    with pytest.raises(EndpointError, match=rf"refuses: HTTP {status} no; {fix}"):
        ask(endpoint)
    assert waits == []


def test_a_key_that_is_refused_is_told_from_one_that_is_not_set(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123")
    endpoint.fails(401)
    with pytest.raises(EndpointError, match="was sent and is not accepted") as caught:
        ask(endpoint)
    assert "sk-123" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("<html>welcome</html>", "<html>welcome</html>"),
        ('{"choices": []}', '{"choices": []}'),
        ('{"choices": [{"message": {"content": null}}]}', ""),
    ],
)
def test_an_answer_of_another_form_is_text_for_the_parser_to_refuse(
    endpoint: Any, body: str, answer: str
) -> None:
    endpoint.fails(200, body)
    assert ask(endpoint) == answer


def test_an_address_that_is_none_is_refused_at_once(endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="url is 'localhost', expected one like http"):
        ask(endpoint, url="localhost")
