"""Chat completions of any OpenAI-compatible endpoint, patient with limits and short outages."""

from __future__ import annotations

import logging
import os
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from bootpig_rt.errors import ConfigError, EndpointError
from bootpig_rt.training.bootstrap.config import CaptionsConfig

logger = logging.getLogger(__name__)

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_SHOWN = 200


class Endpoint:
    """Asks one model of one endpoint. Safe to use from several threads.

    Raises:
        ConfigError: The address is no http address.
    """

    def __init__(self, settings: CaptionsConfig) -> None:
        if not settings.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"[captions] url is {settings.url!r}, expected one like http://localhost:8000/v1"
            )
        self._settings = settings
        self._url = settings.url.rstrip("/").removesuffix("/chat/completions")
        key = os.environ.get(settings.api_key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=settings.timeout_s)

    def ask(self, question: str, seed: int) -> str:
        """The answer to a question; "" if the endpoint gave none.

        Where the endpoint limits rates, is overloaded or cannot be reached, it is asked again after
        as long as it says, or after twice the last wait, until `max_wait_s` are spent waiting.

        Raises:
            EndpointError: It refuses, or is out of order for too long.
        """
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": self._settings.temperature,
            "max_tokens": self._settings.max_new_tokens,
            "seed": seed,
        }
        waited_s, wait_s = 0.0, _FIRST_WAIT_S
        while True:
            reason, told_s = "", None
            try:
                response = self._client.post(f"{self._url}/chat/completions", json=body)
                if response.is_success:
                    return _text(response)
                reason = _reason(response)
                if response.status_code not in _AGAIN:
                    raise EndpointError(f"{self._url} refuses: {reason}{self._fix(response)}")
                told_s = _retry_after(response)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            # Nobody waits in step with the others that were sent away at the same time.
            pause_s = told_s if told_s is not None else wait_s * random.uniform(0.5, 1.0)
            if waited_s + pause_s > self._settings.max_wait_s:
                raise EndpointError(
                    f"{self._url} gave no answer after {waited_s:.0f} s of waiting ({reason}); "
                    "run the same command again later: what was answered is kept; captions."
                    "max_wait_s waits longer"
                )
            logger.info("%s: %s; asking again in %.1f s", self._url, reason, pause_s)
            time.sleep(pause_s)
            waited_s += pause_s
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _fix(self, response: httpx.Response) -> str:
        name = self._settings.api_key_env
        if response.status_code in (401, 403):
            state = "was sent and is not accepted" if os.environ.get(name) else "is not set"
            return f"; the key in ${name} {state}"
        if response.status_code == 404:
            return f"; check captions.url and captions.model ({self._settings.model!r})"
        return "; check the model and its limits"


def _text(response: httpx.Response) -> str:
    """The content of the first choice; what is no chat completion is taken as it is."""
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return response.text
    return content if isinstance(content, str) else ""


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = response.text
    return f"HTTP {response.status_code} {' '.join(str(said).split())[:_SHOWN]}".strip()


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait: a number, or a date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
