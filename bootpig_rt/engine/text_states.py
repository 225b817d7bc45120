"""Text states of prompts: each text is encoded once, whatever it stands beside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TypeAlias

import numpy as np

from bootpig_rt.backends.base import Backend, FloatArray
from bootpig_rt.text.tokenizer import Sizes, Tokenizer

_KEPT_TEXTS = 64
"""20 MB at the sizes of SD 2.1."""


Text: TypeAlias = tuple[str, Sizes]
"""A prompt and the sizes that it is told with."""

Texts: TypeAlias = tuple[tuple[Text, ...], FloatArray]
"""Distinct texts, and their states float32 [P, S, E], one entry each."""


class TextStates:
    """Text states of prompts; those of the last few are kept on the host. Safe to use from threads.

    Args:
        backend: Computes them.
        tokenizer: Of the pair.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer) -> None:
        """Start empty."""
        self._backend, self._tokenizer = backend, tokenizer
        self._kept: OrderedDict[Text, FloatArray] = OrderedDict()
        self._last: Texts | None = None
        self._lock = Lock()

    def of(self, texts: Sequence[Text]) -> Texts:
        """States of some texts; those that are not kept take one launch.

        While the last answer holds all that is asked for, and not much more, it is given again, the
        same array: backends keep what they derive from it.
        """
        wanted = dict.fromkeys(texts)
        with self._lock:
            last = self._last
            if last is not None and len(last[0]) <= 2 * len(wanted):
                if wanted.keys() <= set(last[0]):
                    return last
            states = {text: self._kept[text] for text in wanted if text in self._kept}
        missing = [text for text in wanted if text not in states]
        if missing:
            prompts, sizes = zip(*missing, strict=True)
            made = self._backend.encode_text(self._tokenizer(prompts, sizes=sizes, tells_cut=False))
            for text, state in zip(missing, self._backend.download_states(made), strict=True):
                states[text] = state.copy()  # not a view, which would keep all of them
        answer = tuple(wanted), np.stack([states[text] for text in wanted])
        with self._lock:
            for text in wanted:
                self._kept[text] = states[text]
                self._kept.move_to_end(text)
            while len(self._kept) > max(_KEPT_TEXTS, len(wanted)):
                self._kept.popitem(last=False)
            self._last = answer
        return answer
